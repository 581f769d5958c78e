#pragma once
// A removal's report as users see it: a table for people, JSON for programs, with the same members.
// Times are realtime; durations in JSON are in ns.

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "volume/types.h"

namespace latchkey::cli {

// What a key's report and a removal's have in common: {"path", "uid", "pid", "command", "handle",
// "dirty_bytes", "since"} each.
nlohmann::json describe_holders(const std::vector<volume::Holder>& holders);
// Nothing without holders; pid and command where one is known.
std::string holders_table(const std::vector<volume::Holder>& holders);

// `refused` is what the call answered beside the report: a removal that was refused or went back
// has one, too (busy: who is inside).
nlohmann::json describe_removal(const volume::RemovalReport& report,
                                const std::optional<Error>& refused = {});
std::string removal_table(const volume::RemovalReport& report,
                          const std::optional<Error>& refused = {});

// "850 ns", "12.5 us", "3.40 ms", "1.20 s".
std::string format_duration(u64 ns);

}  // namespace latchkey::cli
