// torture: one mode, or each of them in turn on the same store; a row for each. All counts but
// those of removals and looks are of write calls; one that found no space is tried again later and
// not counted.

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/interrupt.h"
#include "cli/removal_report.h"
#include "cli/torture_run.h"

namespace latchkey::cli {

using nlohmann::json;

namespace {

std::vector<keymgr::RemovalMode> modes_of(const std::string& name) {
  std::vector<keymgr::RemovalMode> modes;
  if (name == "all")
    for (const keymgr::RemovalRow& row : keymgr::removal_rows()) modes.push_back(row.mode);
  else if (const auto mode = keymgr::parse_removal_mode(name))
    modes.push_back(*mode);
  return modes;
}

json describe(const TortureRow& row) {
  const auto& absent = row.absent_ns;
  json out = {{"mode", keymgr::removal_row(row.mode).name},
              {"acknowledged", row.writes.acknowledged},
              {"acknowledged_after_removal", row.writes.after_removal},
              {"waited", row.writes.waited},
              {"refused", row.writes.refused},
              {"reported_lost", row.reported_lost},
              {"silently_lost", row.silently_lost},
              {"removals", row.removals},
              {"removals_refused", row.removals_refused},
              {"absent", {{"count", absent.size()}, {"median_ns", nullptr}, {"worst_ns", nullptr}}},
              {"looks", row.looks},
              {"looks_with_master", row.looks_with_master},
              {"master_in_memory", nullptr},  // while files were open
              {"masters_left", row.masters_left}};
  if (!absent.empty()) {
    out["absent"]["median_ns"] = absent[absent.size() / 2];
    out["absent"]["worst_ns"] = absent.back();
  }
  if (row.looks != 0) out["master_in_memory"] = row.looks_with_master != 0;
  return out;
}

std::string master_of(const TortureRow& row) {
  if (row.looks == 0) return "nobody was inside";
  return fmt::format("{}, in {} of {} looks", row.looks_with_master != 0 ? "yes" : "no",
                     row.looks_with_master, row.looks);
}

void print_table(const std::vector<TortureRow>& rows) {
  fmt::print("{:<8}{:>13}{:>10}{:>10}{:>10}{:>10}{:>9}{:>22}  {}\n", "", "", "", "lost,", "lost,",
             "", "", "time to absent:", "master in memory");
  fmt::print("{:<8}{:>13}{:>10}{:>10}{:>10}{:>10}{:>9}{:>11}{:>11}  {}\n", "mode", "acknowledged",
             "refused", "reported", "silently", "removals", "refused", "median", "worst",
             "while files were open");
  for (const TortureRow& row : rows) {
    const auto& absent = row.absent_ns;
    fmt::print("{:<8}{:>13}{:>10}{:>10}{:>10}{:>10}{:>9}{:>11}{:>11}  {}\n",
               keymgr::removal_row(row.mode).name, row.writes.acknowledged, row.writes.refused,
               row.reported_lost, row.silently_lost, row.removals, row.removals_refused,
               absent.empty() ? "-" : format_duration(absent[absent.size() / 2]),
               absent.empty() ? "-" : format_duration(absent.back()), master_of(row));
  }
}

Exit judge(const std::vector<TortureRow>& rows) {
  Exit exit = Exit::ok;
  for (const TortureRow& row : rows) {
    if (!row.kept_its_word()) return Exit::integrity;
    if (!row.exercised()) exit = Exit::nothing_exercised;
  }
  return exit;
}

}  // namespace

Exit run_torture(const Common& common, const TortureArgs& args) {
  const auto modes = modes_of(args.mode);
  if (modes.empty()) return report_usage(common, args.mode, "is not a removal mode");
  const InterruptGuard guard;
  std::vector<TortureRow> rows;
  for (const keymgr::RemovalMode mode : modes) {
    auto row = TortureRun(common, args, mode).run();
    if (!row) return report_image(common, args.image, row.error());
    rows.push_back(std::move(*row));
    if (!rows.back().kept_its_word()) break;
  }
  if (common.json) {
    json list = json::array();
    for (const TortureRow& row : rows) list.push_back(describe(row));
    print_json(common, args.mode == "all" ? list : list.front());
  } else {
    print_table(rows);
  }
  return judge(rows);
}

}  // namespace latchkey::cli
