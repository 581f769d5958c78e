// scrub: everything on the device read and verified, mended where it has a good twin.

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/interrupt.h"
#include "cli/verbs.h"

namespace latchkey::cli {

namespace {

using nlohmann::json;

json describe_report(const volume::ScrubReport& report) {
  json body = {{"nodes", report.store.nodes},
               {"data_blocks", report.store.data_blocks},
               {"bytes_read", report.store.bytes_read},
               {"mended", report.store.mended},
               {"bad_blocks", report.store.bad_blocks_count},
               {"stopped", report.store.stopped},
               {"errors", json::array()},
               {"files", json::array()}};
  for (const engine::Finding& finding : report.store.findings)
    body["errors"].push_back(
        {{"what", finding.what}, {"where", finding.where}, {"mended", finding.repairable}});
  for (const volume::ScrubFile& file : report.files)
    body["files"].push_back({{"path", printable(file.path)},
                             {"file_offset", file.file_offset},
                             {"device_offset", file.device_offset},
                             {"unreadable", file.unreadable}});
  return body;
}

void print_report(const std::string& image, const volume::ScrubReport& report) {
  for (const engine::Finding& finding : report.store.findings)
    fmt::print("{}: {}{}\n", finding.where, finding.what, finding.repairable ? "; mended" : "");
  for (const volume::ScrubFile& file : report.files)
    fmt::print("{}: file offset {}, device offset {}: {}\n", printable(file.path), file.file_offset,
               file.device_offset,
               file.unreadable ? "cannot be read" : "does not match its checksum");
  fmt::print("{}: {} read, {} nodes, {} data blocks; {} mended, {} data blocks bad{}\n", image,
             format_bytes(report.store.bytes_read), report.store.nodes, report.store.data_blocks,
             report.store.mended, report.store.bad_blocks_count,
             report.store.stopped ? "; stopped before its end" : "");
}

}  // namespace

Exit run_scrub(const Common& common, const ScrubArgs& args) {
  const InterruptGuard guard;
  volume::VolumeOptions options;
  options.read_only = args.read_only;
  return with_volume(common, args.image, args.key, options,
                     [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) -> Exit {
                       Progress progress(common, "scrub");
                       engine::ScrubOptions scrub;
                       scrub.bytes_per_second = args.rate;
                       scrub.progress = [&](u64 done, u64 total) {
                         progress.update(done, std::max(done, total), "B");
                         return !interrupted();
                       };
                       const auto report = volume.scrub(scrub);
                       progress.finish();
                       if (!report) return report_image(common, args.image, report.error());
                       if (common.json)
                         print_json(common, describe_report(*report));
                       else
                         print_report(args.image, *report);
                       const bool sound = report->store.bad_blocks_count == 0 &&
                                          std::ranges::all_of(report->store.findings,
                                                              &engine::Finding::repairable);
                       return sound ? Exit::ok : Exit::integrity;
                     });
}

}  // namespace latchkey::cli
