#include "tests/mounted/mounted_table.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

#include "base/check.h"

namespace latchkey::tests {
namespace {

using Fields = std::vector<std::string>;

Scenario& scenario_of(ConformanceTable& table, const std::string& id) {
  const auto found = std::ranges::find(table.scenarios, id, &Scenario::id);
  LK_CHECK_MSG(found != table.scenarios.end(), "a line of mounted.tsv about no scenario");
  return *found;
}

std::vector<Step>::iterator step_of(Scenario& scenario, const std::string& number) {
  const auto found = std::ranges::find(scenario.steps, std::stoul(number), &Step::number);
  LK_CHECK_MSG(found != scenario.steps.end(), "a line of mounted.tsv about no step");
  return found;
}

// before|is, scenario, step, uid, operation
void read_operation(const Fields& fields, ConformanceTable& table) {
  Scenario& scenario = scenario_of(table, fields.at(1));
  const auto at = step_of(scenario, fields.at(2));
  if (fields[0] == "before") {
    Step preparation;
    preparation.uid = fields.at(3);
    preparation.operation = fields.at(4);
    scenario.steps.insert(at, preparation);
    return;
  }
  LK_CHECK(at->uid == fields.at(3) && !at->missing.empty());
  at->missing.clear();
  at->operation = fields.at(4);
}

std::vector<Setting> settings_of(const std::string& text) {
  std::vector<Setting> settings;
  for (const Setting setting : kSettings)
    if (text == "both" || text == name_of(setting)) settings.push_back(setting);
  LK_CHECK(!settings.empty());
  return settings;
}

// A reason or "equal", setting, scenario, step, result, detail. It takes the library's row's place.
void read_difference(const Fields& fields, ConformanceTable& table) {
  const auto step = static_cast<u32>(std::stoul(fields.at(3)));
  for (const Setting setting : settings_of(fields.at(1))) {
    const bool there =
        std::erase_if(table.differences, [&](const Difference& row) {
          return row.setting == setting && row.scenario == fields[2] && row.step == step;
        }) != 0;
    if (fields[0] == "equal") {
      LK_CHECK_MSG(there, "a step of mounted.tsv is equal in the library, too");
      continue;
    }
    table.differences.push_back({.reason = fields[0],
                                 .setting = setting,
                                 .scenario = fields[2],
                                 .step = step,
                                 .here = {fields.at(4), fields.size() > 5 ? fields[5] : ""}});
  }
}

void read_line(const std::string& line, ConformanceTable& table) {
  Fields fields;
  std::istringstream in(line);
  for (std::string field; std::getline(in, field, '\t');) fields.push_back(field);
  if (fields.at(0) == "before" || fields[0] == "is")
    read_operation(fields, table);
  else if (fields[0] == "reason")
    table.reasons.push_back({fields.at(1), fields.at(2), fields.at(3), fields.at(4)});
  else
    read_difference(fields, table);
}

// --- the page -----------------------------------------------------------------------------------

const Scenario& counterpart(const ConformanceTable& table, const Scenario& scenario) {
  return *std::ranges::find(table.scenarios, scenario.id, &Scenario::id);
}

const Step& counterpart(const ConformanceTable& table, const Scenario& scenario, u32 number) {
  return *std::ranges::find(counterpart(table, scenario).steps, number, &Step::number);
}

// The preparations between this step and the one before it.
std::vector<std::string> preparations_of(const Scenario& scenario, u32 number) {
  std::vector<std::string> operations;
  for (const Step& step : scenario.steps) {
    if (step.number == number) break;
    if (step.number == 0)
      operations.push_back(step.operation);
    else
      operations.clear();
  }
  return operations;
}

std::string here_text(const ConformanceTable& table, Setting setting, const Scenario& scenario,
                      const Step& step) {
  const Difference* row = table.difference(setting, scenario.id, step.number);
  return row == nullptr ? "=" : to_text(row->here);
}

// With what is done for it there and not in the library.
std::string operation_text(const ConformanceTable& library, const Scenario& scenario,
                           const Step& step) {
  const auto before = preparations_of(scenario, step.number);
  const auto known = preparations_of(counterpart(library, scenario), step.number).size();
  std::string text;
  for (std::size_t i = known; i < before.size(); ++i) text += before[i] + "; ";
  return text + step.operation;
}

void write_reasons(std::ostream& out, const MountedTable& table) {
  std::set<std::string> known;
  for (const Reason& reason : table.unmounted.reasons) known.insert(reason.name);
  out << "\n| only mounted | the kernel | here | why |\n|---|---|---|---|\n";
  for (const Reason& reason : table.mounted.reasons)
    if (!known.contains(reason.name))
      out << "| " << reason.name << " | " << reason.kernel << " | " << reason.here << " | "
          << reason.why << " |\n";
}

void write_steps(std::ostream& out, const MountedTable& table) {
  out << "\n| step | | operation | the kernel | by default | with compat | why |\n"
         "|---|---|---|---|---|---|---|\n";
  for (const Scenario& scenario : table.mounted.scenarios)
    for (const Step& step : scenario.steps) {
      if (step.number == 0 || !step.missing.empty()) continue;
      const Step& library = counterpart(table.unmounted, scenario, step.number);
      const auto text = [&](const ConformanceTable& of, Setting setting) {
        return here_text(of, setting, scenario, step);
      };
      const bool same = std::ranges::all_of(kSettings, [&](Setting setting) {
        return text(table.mounted, setting) == text(table.unmounted, setting);
      });
      if (library.missing.empty() && same) continue;
      std::set<std::string> reasons;
      for (const Setting setting : kSettings)
        if (const Difference* row = table.mounted.difference(setting, scenario.id, step.number))
          reasons.insert(row->reason);
      out << "| " << scenario.id << ' ' << step.number << " | " << step.uid << " | "
          << operation_text(table.unmounted, scenario, step) << " | " << to_text(step.kernel)
          << " | " << text(table.mounted, Setting::ours) << " | "
          << text(table.mounted, Setting::compat) << " | ";
      for (const std::string& reason : reasons)
        out << (reason == *reasons.begin() ? "" : ", ") << reason;
      out << " |\n";
    }
}

void write_missing(std::ostream& out, const ConformanceTable& table) {
  out << "\n| impossible | what | steps |\n|---|---|---|\n";
  for (const Missing& missing : table.missing) {
    std::string steps, last;
    for (const Scenario& scenario : table.scenarios)
      for (const Step& step : scenario.steps) {
        if (step.missing != missing.name) continue;
        if (scenario.id != last) steps += (last.empty() ? " " : ", ") + scenario.id;
        last = scenario.id;
        steps += " " + std::to_string(step.number);
      }
    if (!steps.empty())
      out << "| " << missing.name << " | " << missing.what << " |" << steps << " |\n";
  }
}

}  // namespace

MountedTable read_mounted_table(const std::string& folder) {
  MountedTable table{read_conformance_table(folder), read_conformance_table(folder)};
  std::ifstream in(folder + "/mounted.tsv");
  LK_CHECK_MSG(in.good(), "mounted.tsv is not there");
  for (std::string line; std::getline(in, line);)
    if (!line.empty() && line[0] != '#') read_line(line, table.mounted);
  return table;
}

std::string mounted_page(const MountedTable& table,
                         const std::map<Setting, Judgement>& judgements) {
  std::ostringstream out;
  out << "| setting | equal | intended | impossible |\n|---|---|---|---|\n";
  for (const auto& [setting, judgement] : judgements)
    out << "| " << name_of(setting) << " | " << judgement.equal << " | " << judgement.intended
        << " | " << judgement.impossible << " |\n";
  write_reasons(out, table);
  write_steps(out, table);
  write_missing(out, table.mounted);
  return out.str();
}

}  // namespace latchkey::tests
