// One step of one row of the comparison, as bench/compare.py calls it:
//
//     file_row ROW prepare|run|clear directory DIR      a mounted file system
//     file_row ROW prepare|run|clear library DEVICE     a store, through the library
//     file_row ROW prepare|run|clear device DEVICE      the device, nothing on it
//     file_row format DEVICE                            makes that store; what is there is lost
//     file_row rows                                     the rows, as JSON
//
// run prints {"ns", "bytes", "operations"}: the wall time of the row alone. What is begun in one
// step is durable at its end. Exit 2: the side has no such row.

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "base/env.h"
#include "bench/file_rows.h"

namespace latchkey::bench {
namespace {

int usage() {
  fmt::print(stderr,
             "file_row ROW prepare|run|clear directory|library|device PATH; see file_row.cpp\n");
  return 2;
}

int tell_rows() {
  nlohmann::json told = nlohmann::json::array();
  for (const FileRow& row : kFileRows)
    told.push_back({{"name", row.name}, {"cold", row.needs.cold}});
  fmt::print("{}\n", told.dump());
  return 0;
}

int step(const FileRow& row, std::string_view what, FileSide& side) {
  if ((row.needs.direct && !side.has_direct()) || (row.needs.copies && !side.has_copies()))
    return 2;
  Data data;
  if (what == "prepare") {
    row.prepare(side, data);
  } else if (what == "clear") {
    row.clear(side);
  } else {
    const u64 begun = system_env().monotonic_ns();
    row.run(side, data);
    const u64 ns = system_env().monotonic_ns() - begun;
    const nlohmann::json told = {{"ns", ns}, {"bytes", row.bytes}, {"operations", row.operations}};
    fmt::print("{}\n", told.dump());
    return 0;
  }
  side.settle();
  return 0;
}

int run(const std::vector<std::string>& words) {
  if (words.size() == 1 && words[0] == "rows") return tell_rows();
  if (words.size() == 2 && words[0] == "format")
    return Disk::create_on(words[1]).has_value() ? 0 : 1;
  const FileRow* row = words.size() == 4 ? file_row(words[0]) : nullptr;
  if (row == nullptr) return usage();
  std::unique_ptr<FileSide> side;
  if (words[2] == "library")
    side = std::make_unique<LibrarySide>(words[3]);
  else if (words[2] == "device")
    side = std::make_unique<RawSide>(words[3]);
  else
    side = std::make_unique<MountedSide>(words[3]);
  return step(*row, words[1], *side);
}

}  // namespace
}  // namespace latchkey::bench

int main(int argc, char** argv) { return latchkey::bench::run({argv + 1, argv + argc}); }
