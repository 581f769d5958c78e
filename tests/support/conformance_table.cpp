#include "tests/support/conformance_table.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "base/check.h"

namespace latchkey::tests {

namespace {

// The order of the page, which is that of the measurement.
constexpr std::string_view kGroups[] = {"validation", "claims", "policies", "locked",
                                        "busy",       "mounts", "quota",    "races"};

std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> fields;
  std::istringstream in(line);
  for (std::string field; std::getline(in, field, '\t');) fields.push_back(field);
  return fields;
}

template <class Fn>
void each_line(const std::string& path, Fn&& fn) {
  std::ifstream in(path);
  LK_CHECK_MSG(in.good(), "a file of the conformance table is not there");
  for (std::string line; std::getline(in, line);)
    if (!line.empty() && line[0] != '#') fn(line);
}

u32 number_of(const std::string& text) { return static_cast<u32>(std::stoul(text)); }

// "[subject] words: operation", or an operation alone.
void read_operation(const std::string& text, Step& step) {
  if (!text.starts_with('[')) {
    step.operation = text;
    return;
  }
  const std::size_t close = text.find("] ");
  LK_CHECK(close != std::string::npos);
  step.missing = text.substr(1, close - 1);
  step.what = text.substr(close + 2);
  const std::size_t colon = step.what.find(": ");
  if (colon == std::string::npos) return;
  step.operation = step.what.substr(colon + 2);
  step.what.resize(colon);
}

Step read_step(const std::string& line) {
  std::vector<std::string> fields = fields_of(line);
  LK_CHECK_MSG(fields.size() >= 3, "a step of the conformance table that cannot be read");
  Step step;
  step.uid = fields[1];
  read_operation(fields[2], step);
  if (fields[0] == "-") return step;
  LK_CHECK(fields.size() >= 4);
  fields.resize(5);
  step.number = number_of(fields[0]);
  step.kernel = {fields[3], fields[4]};
  return step;
}

void read_scenarios(const std::string& path, ConformanceTable& table) {
  static constexpr std::string_view kScenario = "scenario ";
  each_line(path, [&](const std::string& line) {
    if (!line.starts_with(kScenario))
      return table.scenarios.back().steps.push_back(read_step(line));
    const std::string rest = line.substr(kScenario.size());
    const std::size_t space = rest.find(' ');
    table.scenarios.push_back({rest.substr(0, space), rest.substr(space + 1), {}});
  });
}

// "default", "compat" or "both".
std::vector<Setting> settings_of(const std::string& text) {
  std::vector<Setting> settings;
  for (const Setting setting : kSettings)
    if (text == "both" || text == name_of(setting)) settings.push_back(setting);
  LK_CHECK_MSG(!settings.empty(), "a difference in no setting");
  return settings;
}

void read_differences(const std::string& path, ConformanceTable& table) {
  each_line(path, [&](const std::string& line) {
    std::vector<std::string> fields = fields_of(line);
    const std::string kind = fields[0];
    fields.resize(7);
    if (kind == "reason")
      table.reasons.push_back({fields[1], fields[2], fields[3], fields[4]});
    else if (kind == "missing")
      table.missing.push_back({fields[1], fields[2]});
    else
      for (const Setting setting : settings_of(fields[1]))
        table.differences.push_back({.reason = kind,
                                     .setting = setting,
                                     .scenario = fields[2],
                                     .step = number_of(fields[3]),
                                     .here = {fields[4], fields[5]}});
  });
}

std::string at(Setting setting, const Scenario& scenario, const Step& step) {
  return std::string(name_of(setting)) + ": " + scenario.id + " " + std::to_string(step.number) +
         " " + step.uid + " " + step.operation;
}

}  // namespace

std::string_view name_of(Setting setting) {
  return setting == Setting::ours ? "default" : "compat";
}

std::string to_text(const Outcome& outcome) {
  return outcome.detail.empty() ? outcome.result : outcome.result + " " + outcome.detail;
}

const Difference* ConformanceTable::difference(Setting setting, std::string_view scenario,
                                               u32 step) const {
  const auto found = std::ranges::find_if(differences, [&](const Difference& row) {
    return row.setting == setting && row.scenario == scenario && row.step == step;
  });
  return found == differences.end() ? nullptr : &*found;
}

ConformanceTable read_conformance_table(const std::string& folder) {
  ConformanceTable table;
  for (const std::string_view group : kGroups)
    read_scenarios(folder + "/" + std::string(group) + ".tsv", table);
  read_differences(folder + "/differences.tsv", table);
  return table;
}

Judgement judge(const ConformanceTable& table, Setting setting, const Seen& seen) {
  Judgement judgement;
  u32 rows = 0;
  for (const Scenario& scenario : table.scenarios) {
    for (const Step& step : scenario.steps) {
      if (step.number == 0) continue;
      if (!step.missing.empty()) {
        ++judgement.impossible;
        continue;
      }
      const auto found = seen.find({scenario.id, step.number});
      const Outcome here = found == seen.end() ? Outcome{"nothing"} : found->second;
      const Difference* row = table.difference(setting, scenario.id, step.number);
      const Outcome& allowed = row == nullptr ? step.kernel : row->here;
      if (row != nullptr) ++rows;
      ++(row == nullptr ? judgement.equal : judgement.intended);
      if (row != nullptr && row->here == step.kernel)
        judgement.findings.push_back(at(setting, scenario, step) +
                                     ": a row that differs in nothing");
      if (here != allowed)
        judgement.findings.push_back(at(setting, scenario, step) + ": kernel " +
                                     to_text(step.kernel) + ", allowed " + to_text(allowed) +
                                     ", seen " + to_text(here));
    }
  }
  const auto of_setting = std::ranges::count(table.differences, setting, &Difference::setting);
  if (rows != of_setting)
    judgement.findings.push_back(std::string(name_of(setting)) +
                                 ": rows of steps that are not there, or two of one step");
  return judgement;
}

}  // namespace latchkey::tests
