#include "cli/removal_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "cli/report.h"

namespace latchkey::cli {

using nlohmann::json;

namespace {

std::string flags_of(const volume::RemovalReport& report) {
  std::string flags;
  if (report.files_busy) flags += "FILES_BUSY";
  if (report.other_users) flags += flags.empty() ? "OTHER_USERS" : ", OTHER_USERS";
  return flags.empty() ? "none" : flags;
}

std::string lost_of(const volume::RemovalReport& report) {
  if (report.bytes_lost == 0) return "nothing";
  return fmt::format("{} of {} {}", format_bytes(report.bytes_lost), report.files_lost,
                     report.files_lost == 1 ? "file" : "files");
}

std::string cached_of(const volume::RemovalReport& report) {
  return fmt::format("{} {} of which the kernel kept pages: echo 1 >/proc/sys/vm/drop_caches",
                     report.files_cached, report.files_cached == 1 ? "file" : "files");
}

std::string kept_of(const volume::RemovalReport& report) {
  return fmt::format("{} keys of extents in {} of locked memory", report.own_keys,
                     format_bytes(report.own_key_bytes));
}

std::string times_of(const std::vector<volume::RemovalPhase>& phases) {
  std::string times;
  for (const volume::RemovalPhase& phase : phases)
    times +=
        fmt::format("{}{} {}", times.empty() ? "" : ", ", phase.name, format_duration(phase.ns));
  return times;
}

void add_line(std::string& text, std::string_view name, std::string_view value) {
  text += fmt::format("{:<10}{}\n", name, value);
}

}  // namespace

std::string format_duration(u64 ns) {
  static constexpr std::array<std::string_view, 4> kUnits = {"ns", "us", "ms", "s"};
  auto value = static_cast<double>(ns);
  std::size_t unit = 0;
  for (; value >= 999.5 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  const int digits = unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f} {}", value, digits, kUnits[unit]);
}

json describe_holders(const std::vector<volume::Holder>& holders) {
  json out = json::array();
  for (const volume::Holder& holder : holders)
    out.push_back({{"path", holder.path},
                   {"uid", holder.uid},
                   {"pid", holder.pid},
                   {"command", holder.command},
                   {"handle", static_cast<u64>(holder.handle)},
                   {"dirty_bytes", holder.dirty_bytes},
                   {"since", rfc3339(holder.since_ns)}});
  return out;
}

std::string holders_table(const std::vector<volume::Holder>& holders) {
  if (holders.empty()) return "";
  const bool processes = std::ranges::any_of(holders, &volume::Holder::pid);
  std::string text = fmt::format("\n{:>8} ", "uid");
  if (processes) text += fmt::format("{:>8} {:<16} ", "pid", "command");
  text += fmt::format("{:>7} {:>9}  {:<20}  open\n", "handle", "dirty", "since");
  for (const volume::Holder& holder : holders) {
    text += fmt::format("{:>8} ", holder.uid);
    if (processes) text += fmt::format("{:>8} {:<16} ", holder.pid, printable(holder.command));
    text += fmt::format("{:>7} {:>9}  {:<20}  {}\n", static_cast<u64>(holder.handle),
                        format_bytes(holder.dirty_bytes), rfc3339(holder.since_ns),
                        printable(holder.path));
  }
  return text;
}

json describe_removal(const volume::RemovalReport& report, const std::optional<Error>& refused) {
  json lost = json::array();
  for (const volume::LostFile& file : report.lost)
    lost.push_back({{"path", file.path},
                    {"inode", file.inode.number},
                    {"subvolume", file.inode.subvolume},
                    {"bytes", file.bytes}});
  json phases = json::array();
  for (const volume::RemovalPhase& phase : report.phases)
    phases.push_back({{"name", phase.name}, {"ns", phase.ns}});
  json flags = json::array();
  if (report.files_busy) flags.push_back("files-busy");
  if (report.other_users) flags.push_back("other-users");
  json out = {{"identifier", to_hex(report.key_id.span())},
              {"flags", flags},
              {"mode", keymgr::removal_row(report.mode).name},
              {"dry_run", report.dry_run},
              {"state", keymgr::name_of(report.state)},
              {"files_busy", report.files_busy},
              {"other_users", report.other_users},
              {"holders", describe_holders(report.holders)},
              {"bytes_flushed", report.bytes_flushed},
              {"bytes_lost", report.bytes_lost},
              {"files_lost", report.files_lost},
              {"lost", lost},
              {"files_cached", report.files_cached},
              {"own_keys", report.own_keys},
              {"own_key_bytes", report.own_key_bytes},
              {"phases", phases}};
  if (refused) {
    out["error"] = name_of(refused->code);
    out["message"] = describe(*refused);
  }
  return out;
}

std::string removal_table(const volume::RemovalReport& report,
                          const std::optional<Error>& refused) {
  std::string text;
  if (refused) add_line(text, "refused", describe(*refused));
  add_line(text, "key", to_hex(report.key_id.span()));
  add_line(text, "mode",
           fmt::format("{}{}", keymgr::removal_row(report.mode).name,
                       report.dry_run ? ", a dry run: nothing was changed" : ""));
  // What was refused has no state to tell of but the one it had before.
  if (!refused) add_line(text, "state", keymgr::name_of(report.state));
  add_line(text, "flags", flags_of(report));
  add_line(text, "flushed",
           report.bytes_flushed == 0 ? "nothing" : format_bytes(report.bytes_flushed));
  add_line(text, "lost", lost_of(report));
  if (report.files_cached != 0) add_line(text, "cached", cached_of(report));
  if (report.own_key_bytes != 0) add_line(text, "kept", kept_of(report));
  if (!report.phases.empty()) add_line(text, "time", times_of(report.phases));
  text += holders_table(report.holders);
  if (!report.lost.empty()) {
    text += fmt::format("\n{:>9}  lost of\n", "bytes");
    for (const volume::LostFile& file : report.lost)
      text += fmt::format("{:>9}  {}\n", file.bytes,
                          file.path.empty() ? volume::to_text(file.inode) : printable(file.path));
  }
  return text;
}

}  // namespace latchkey::cli
