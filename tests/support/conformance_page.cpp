#include "tests/support/conformance_page.h"

#include <functional>
#include <sstream>

namespace latchkey::tests {

namespace {

// "B01 16 17, B12 3": the steps of which `chosen` is true.
std::string list_steps(const ConformanceTable& table,
                       const std::function<bool(const Scenario&, const Step&)>& chosen) {
  std::ostringstream text;
  for (const Scenario& scenario : table.scenarios) {
    bool first = true;
    for (const Step& step : scenario.steps) {
      if (step.number == 0 || !chosen(scenario, step)) continue;
      if (first) text << (text.tellp() == 0 ? "" : ", ") << scenario.id;
      text << ' ' << step.number;
      first = false;
    }
  }
  return text.str().empty() ? "-" : text.str();
}

std::string steps_of(const ConformanceTable& table, const Reason& reason, Setting setting) {
  return list_steps(table, [&](const Scenario& scenario, const Step& step) {
    const Difference* row = table.difference(setting, scenario.id, step.number);
    return row != nullptr && row->reason == reason.name;
  });
}

void write_numbers(std::ostream& out, const std::map<Setting, Judgement>& judgements) {
  out << "| setting | equal | intended | impossible |\n|---|---|---|---|\n";
  for (const auto& [setting, judgement] : judgements)
    out << "| " << name_of(setting) << " | " << judgement.equal << " | " << judgement.intended
        << " | " << judgement.impossible << " |\n";
}

void write_reasons(std::ostream& out, const ConformanceTable& table) {
  out << "\n### Intended differences\n\n"
         "| | the kernel | here | why | steps by default | with compat "
         "|\n|---|---|---|---|---|---|\n";
  for (const Reason& reason : table.reasons)
    out << "| " << reason.name << " | " << reason.kernel << " | " << reason.here << " | "
        << reason.why << " | " << steps_of(table, reason, Setting::ours) << " | "
        << steps_of(table, reason, Setting::compat) << " |\n";
}

void write_missing(std::ostream& out, const ConformanceTable& table) {
  out << "\n### Impossible: the library has no such thing\n\n| | what | steps |\n|---|---|---|\n";
  for (const Missing& missing : table.missing)
    out << "| " << missing.name << " | " << missing.what << " | "
        << list_steps(table, [&](const Scenario&,
                                 const Step& step) { return step.missing == missing.name; })
        << " |\n";
}

std::string here_text(const ConformanceTable& table, Setting setting, const Scenario& scenario,
                      const Step& step) {
  const Difference* row = table.difference(setting, scenario.id, step.number);
  return row == nullptr ? "=" : to_text(row->here);
}

void write_differences(std::ostream& out, const ConformanceTable& table) {
  out << "\n### Each step that differs\n\n"
         "| step | | operation | the kernel | by default | with compat "
         "|\n|---|---|---|---|---|---|\n";
  for (const Scenario& scenario : table.scenarios)
    for (const Step& step : scenario.steps) {
      const std::string ours = here_text(table, Setting::ours, scenario, step);
      const std::string compat = here_text(table, Setting::compat, scenario, step);
      if (step.number == 0 || (ours == "=" && compat == "=")) continue;
      out << "| " << scenario.id << ' ' << step.number << " | " << step.uid << " | "
          << step.operation << " | " << to_text(step.kernel) << " | " << ours << " | " << compat
          << " |\n";
    }
}

void write_scenarios(std::ostream& out, const ConformanceTable& table) {
  out << "\n### Scenarios\n\n| | | steps | impossible | differ by default | differ with compat |\n"
         "|---|---|---|---|---|---|\n";
  for (const Scenario& scenario : table.scenarios) {
    u32 steps = 0, impossible = 0, ours = 0, compat = 0;
    for (const Step& step : scenario.steps) {
      if (step.number == 0) continue;
      ++steps;
      impossible += step.missing.empty() ? 0 : 1;
      ours += table.difference(Setting::ours, scenario.id, step.number) == nullptr ? 0 : 1;
      compat += table.difference(Setting::compat, scenario.id, step.number) == nullptr ? 0 : 1;
    }
    out << "| " << scenario.id << " | " << scenario.title << " | " << steps << " | " << impossible
        << " | " << ours << " | " << compat << " |\n";
  }
}

}  // namespace

std::string to_text(Setting setting, const Judgement& judgement) {
  std::ostringstream text;
  text << name_of(setting) << ": " << judgement.equal << " equal, " << judgement.intended
       << " intended, " << judgement.impossible << " impossible";
  return text.str();
}

std::string conformance_page(const ConformanceTable& table,
                             const std::map<Setting, Judgement>& judgements) {
  std::ostringstream out;
  write_numbers(out, judgements);
  write_reasons(out, table);
  write_missing(out, table);
  write_differences(out, table);
  write_scenarios(out, table);
  return out.str();
}

}  // namespace latchkey::tests
