// mkfs, info, check.

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "cli/verbs.h"
#include "crypto/backends.h"
#include "crypto/xts.h"
#include "engine/format.h"
#include "engine/superblock.h"

namespace latchkey::cli {

using nlohmann::json;

namespace {

// A store of ours, also a damaged or truncated one, is recognised by its superblocks; anything else
// by its signature.
Result<std::string> recognised(const std::string& image, engine::Device& device) {
  LK_TRY(const auto io, device.make_io({}));
  if (device.info().size_bytes < engine::kDeviceBytesMin) return engine::foreign_signature(image);
  const auto scan = engine::scan_superblocks(*io, device.info().size_bytes);
  if (scan) return std::string("a latchkey store");
  switch (scan.error().code) {
    case Errc::format_version:
      return std::string("a latchkey store of another version");
    case Errc::damaged:
      return std::string("what is left of a latchkey store");
    case Errc::wrong_device:
      return engine::foreign_signature(image);
    default:
      return std::unexpected(scan.error());
  }
}

}  // namespace

Exit run_mkfs(const Common& common, const MkfsArgs& args) {
  engine::OpenDeviceOptions options;
  options.create_size = args.size;
  options.force = args.force;
  struct stat status{};
  const bool existed = ::lstat(args.image.c_str(), &status) == 0;
  auto device = open_image(args.image, options);
  if (!device) return report_image(common, args.image, device.error());
  // A file that was made here and did not become a store is of no use.
  const auto give_up = [&](const Error& error) {
    if (!existed) ::unlink(args.image.c_str());
    return report_image(common, args.image, error);
  };
  if (!args.force) {
    auto found = recognised(args.image, **device);
    if (!found) return give_up(found.error());
    if (!found->empty()) {
      const std::string sentence =
          fmt::format("holds {}; nothing was changed; -f overwrites it", *found);
      return report_refusal(common, args.image, sentence, Errc::exists);
    }
  }
  volume::MkfsOptions mkfs;
  mkfs.extent_bytes_max = static_cast<u32>(std::min<u64>(args.extent, kGiB));
  mkfs.node_bytes = static_cast<u32>(std::min<u64>(args.node, kGiB));
  mkfs.label = args.label;
  mkfs.uid = ::geteuid();
  mkfs.gid = ::getegid();
  if (auto made = volume::Volume::mkfs(**device, mkfs, system_env()); !made)
    return give_up(made.error());
  const engine::DeviceInfo& info = (*device)->info();
  if (common.json) {
    print_json(common, {{"image", args.image},
                        {"size_bytes", info.size_bytes},
                        {"kind", info.kind},
                        {"direct_io", info.direct},
                        {"extent_bytes_max", mkfs.extent_bytes_max},
                        {"node_bytes", mkfs.node_bytes}});
  } else if (!common.quiet) {
    fmt::print("{}: an empty store of {} on a {} ({} I/O), extents up to {}\n", args.image,
               format_bytes(info.size_bytes), info.kind, info.direct ? "direct" : "buffered",
               format_bytes(mkfs.extent_bytes_max));
  }
  return Exit::ok;
}

namespace {

json machine_facts() {
  // The arena decides its kind when it is first used.
  {
    auto probe = SecretBytes::create(64);
  }
  const ArenaStatus arena = arena_status();
  json facts;
  facts["secrets"] = {{"kind", arena.kind == ArenaKind::memfd_secret ? "memfd_secret" : "locked"},
                      {"reason", arena.reason}};
  facts["backend"] = crypto::backend();
  facts["xts_kernel"] = crypto::xts_kernel();
  facts["backends"] = json::array();
  for (const crypto::BackendInfo& backend : crypto::probe_backends()) {
    json kernels = json::array();
    for (const crypto::KernelInfo& kernel : backend.kernels)
      kernels.push_back({{"name", kernel.name}, {"usable", kernel.usable}});
    facts["backends"].push_back({{"name", backend.name},
                                 {"usable", backend.usable},
                                 {"reason", backend.reason},
                                 {"kernels", kernels}});
  }
  return facts;
}

void print_machine(const json& facts) {
  fmt::print("secrets    {}", facts["secrets"]["kind"].get<std::string>());
  const auto reason = facts["secrets"]["reason"].get<std::string>();
  fmt::print("{}\n", reason.empty() ? "" : " (" + reason + ")");
  fmt::print("cipher     backend {}, kernel {}\n", facts["backend"].get<std::string>(),
             facts["xts_kernel"].get<std::string>());
  for (const json& backend : facts["backends"]) {
    std::string usable;
    for (const json& kernel : backend["kernels"])
      if (kernel["usable"].get<bool>())
        usable += (usable.empty() ? "" : ", ") + kernel["name"].get<std::string>();
    fmt::print("backend    {}: {}\n", backend["name"].get<std::string>(),
               backend["usable"].get<bool>()
                   ? usable
                   : "unavailable (" + backend["reason"].get<std::string>() + ")");
  }
}

// Mean and longest run, and how many there are of 1, 2 to 3, 4 to 7, ... blocks.
json describe_free(const engine::FreeRuns& runs) {
  return {{"runs", runs.runs},
          {"bytes", runs.blocks * engine::kBlockBytes},
          {"mean_run_bytes", runs.runs == 0 ? 0 : runs.blocks * engine::kBlockBytes / runs.runs},
          {"longest_run_bytes", runs.longest * engine::kBlockBytes},
          {"runs_by_log2_blocks", runs.by_length}};
}

void print_store(const json& store) {
  fmt::print("volume     {}{}\n", store["volume_id"].get<std::string>(),
             store["label"].get<std::string>().empty()
                 ? ""
                 : " (" + store["label"].get<std::string>() + ")");
  fmt::print("device     {}, {}, {} I/O\n", store["kind"].get<std::string>(),
             format_bytes(store["size_bytes"].get<u64>()),
             store["direct_io"].get<bool>() ? "direct" : "buffered");
  fmt::print("format     version {}, nodes of {}, extents up to {}, generation {}\n",
             store["format_version"].get<u64>(), format_bytes(store["node_bytes"].get<u64>()),
             format_bytes(store["extent_bytes_max"].get<u64>()), store["generation"].get<u64>());
  if ((store["features"]["incompatible"].get<u64>() & engine::kFeatureClearAttributes) != 0)
    fmt::print("attributes user.* of encrypted files may be in the clear (compat=fscrypt)\n");
  fmt::print("slots      {} for keys of readers\n", store["key_slots"]["capacity"].get<u64>());
  fmt::print("space      {} used, {} available\n", format_bytes(store["used_bytes"].get<u64>()),
             format_bytes(store["available_bytes"].get<u64>()));
  fmt::print("free       {} runs, {} on the average, {} the longest\n",
             store["free"]["runs"].get<u64>(),
             format_bytes(store["free"]["mean_run_bytes"].get<u64>()),
             format_bytes(store["free"]["longest_run_bytes"].get<u64>()));
}

}  // namespace

Exit run_info(const Common& common, const InfoArgs& args) {
  json body = machine_facts();
  if (!args.image.empty()) {
    volume::VolumeOptions options;
    options.read_only = true;
    auto opened = open_volume(args.image, options);
    if (!opened) return report_image(common, args.image, opened.error());
    const volume::VolumeFacts facts = opened->volume->facts();
    const engine::DeviceInfo& device = opened->device->info();
    body["store"] = {{"image", args.image},
                     {"kind", device.kind},
                     {"direct_io", device.direct},
                     // Of another version a store is not opened.
                     {"format_version", engine::kFormatVersion},
                     {"volume_id", to_hex(facts.store.volume_id)},
                     {"label", facts.store.label},
                     {"size_bytes", facts.store.size_bytes},
                     {"node_bytes", facts.store.node_bytes},
                     {"extent_bytes_max", u64{facts.store.extent_blocks_max} * engine::kBlockBytes},
                     {"generation", facts.store.generation},
                     {"stepped_back", facts.store.stepped_back},
                     {"used_bytes", facts.space.blocks_used * engine::kBlockBytes},
                     {"available_bytes", facts.space.blocks_available * engine::kBlockBytes},
                     {"promised_bytes", facts.space.blocks_promised * engine::kBlockBytes},
                     {"free", describe_free(opened->volume->free_runs())},
                     {"key_slots", describe_slots(facts.slots)},
                     {"features",
                      {{"compatible", facts.store.features_compat},
                       {"read_only_compatible", facts.store.features_ro_compat},
                       {"incompatible", facts.store.features_incompat}}}};
    if (auto closed = opened->volume->close(); !closed)
      return report_image(common, args.image, closed.error());
  }
  if (common.json) {
    print_json(common, body);
  } else {
    if (body.contains("store")) print_store(body["store"]);
    print_machine(body);
  }
  return Exit::ok;
}

namespace {

json describe_findings(const std::vector<engine::Finding>& findings) {
  json list = json::array();
  for (const engine::Finding& finding : findings)
    list.push_back({{"what", finding.what}, {"where", finding.where}});
  return list;
}

}  // namespace

int run_check(const Common& common, const CheckArgs& args) {
  engine::OpenDeviceOptions device_options;
  device_options.read_only = !args.repair;
  auto device = open_image(args.image, device_options);
  if (!device) {
    report_image(common, args.image, device.error());
    return kCheckCouldNotLook;
  }
  volume::RepairFindings repaired;
  if (args.repair) {
    auto repair = volume::repair_volume(**device, system_env());
    if (repair) repaired = std::move(*repair);
    // What is too damaged for a repair is the check's to tell.
    if (!repair && repair.error().code != Errc::damaged && repair.error().code != Errc::malformed) {
      report_image(common, args.image, repair.error());
      return kCheckCouldNotLook;
    }
  }
  Progress progress(common, "check");
  engine::CheckOptions options;
  options.data = args.data;
  options.progress = [&](u64 done, u64 total) { progress.update(done, total, "blocks"); };
  auto result = volume::check_volume(**device, options, system_env());
  progress.finish();
  if (!result) {
    const Error error = result.error();
    if (error.code != Errc::damaged && error.code != Errc::malformed) {
      report_image(common, args.image, error);
      return kCheckCouldNotLook;
    }
    // Too damaged to be opened is an answer, too.
    result = volume::CheckFindings{};
    result->findings.push_back({describe(error), args.image, false});
  }
  const bool clean = result->findings.empty();
  warn_if_stepped_back(args.image, result->stepped_back);
  if (common.json) {
    print_json(common, {{"clean", clean},
                        {"stepped_back", result->stepped_back},
                        {"errors", describe_findings(result->findings)},
                        {"mended", describe_findings(repaired.mended)},
                        {"notes", describe_findings(result->notes)},
                        {"data_read", args.data},
                        {"nodes", result->nodes},
                        {"extents", result->extents},
                        {"data_blocks", result->data_blocks},
                        {"inodes", result->inodes},
                        {"directories", result->directories}});
  } else {
    for (const engine::Finding& finding : repaired.mended)
      fmt::print("mended: {}: {}\n", finding.where, finding.what);
    for (const engine::Finding& finding : result->findings)
      fmt::print("{}: {}\n", finding.where, finding.what);
    for (const engine::Finding& finding : result->notes)
      fmt::print("note: {}: {}; the next commits mend it\n", finding.where, finding.what);
    fmt::print("{}: {}; {} nodes, {} extent records, {} data blocks, {} files and directories{}\n",
               args.image, clean ? "clean" : fmt::format("{} errors", result->findings.size()),
               result->nodes, result->extents, result->data_blocks, result->inodes,
               args.data ? "" : "; data not read (--data reads it)");
  }
  return (repaired.mended.empty() ? 0 : kCheckCorrected) | (clean ? 0 : kCheckErrorsLeft);
}

}  // namespace latchkey::cli
