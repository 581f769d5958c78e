#include "tests/sim/world.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace latchkey::tests {

SimWorld::SimWorld(const SimPlan& plan) : own(plan.callers) {
  for (u32 i = 0; i < plan.callers; ++i) {
    own[i].encrypted = i != 3;
    own[i].others = own[i].encrypted ? "/others" : "/plain_others";
    own[i].prefix = fmt::format("c{}_", i);
    own[i].places.push_back(std::make_shared<Place>());
    own[i].home().encrypted = own[i].encrypted;
    own[i].home().root = own[i].encrypted ? "/c" + std::to_string(i) : "/plain";
  }
}

void Place::all_unsure() {
  for (const std::string& path : model.files()) unsure.insert(model.history(path));
  unsure.insert(nameless.begin(), nameless.end());
}

void OwnFiles::durable() {
  maybe.clear();
  for (const auto& place : places) place->may_vanish = false;
}

void SimWorld::dirty_may_be_lost() {
  data_was_dropped = true;
  blocks.may_be_lost();
  for (OwnFiles& files : own)
    for (const auto& place : files.places)
      if (place->encrypted) place->all_unsure();
}

// ---- SharedBlocks

SharedBlocks::SharedBlocks() : versions_(std::size_t{kFiles} * kBlocks) {
  for (Versions& versions : versions_)
    versions = {{.stamp = 0, .begun = 0, .ended = 0, .done = true, .durable = true}};
}

std::vector<std::byte> SharedBlocks::bytes_of(u64 stamp) {
  std::vector<std::byte> bytes(kBlockBytes);
  for (u64 at = 0; stamp != 0 && at < kBlockBytes; at += 2 * sizeof(u64)) {
    std::memcpy(bytes.data() + at, &stamp, sizeof stamp);
    std::memcpy(bytes.data() + at + sizeof stamp, &at, sizeof at);
  }
  return bytes;
}

// Nothing: not all of it is from one write.
std::optional<u64> SharedBlocks::stamp_of(Bytes bytes) {
  LK_CHECK(bytes.size() == kBlockBytes);
  u64 stamp = 0;
  std::memcpy(&stamp, bytes.data(), sizeof stamp);
  const std::vector<std::byte> whole = bytes_of(stamp);
  if (!std::ranges::equal(whole, bytes)) return std::nullopt;
  return stamp;
}

u64 SharedBlocks::begin_write(u32 file, u32 block) {
  Version version;
  version.stamp = ++stamps_;
  version.begun = next_event();
  versions_[file * kBlocks + block].push_back(version);
  return version.stamp;
}

void SharedBlocks::end_write(u32 file, u32 block, u64 stamp, bool done) {
  for (Version& version : versions_[file * kBlocks + block]) {
    if (version.stamp != stamp || !done) continue;
    version.ended = next_event();
    version.done = true;
  }
}

void SharedBlocks::acknowledge(u32 file, u64 begun) {
  for (u32 block = 0; block < kBlocks; ++block)
    for (Version& version : versions_[file * kBlocks + block])
      if (version.done && version.ended < begun && !version.may_be_lost) version.durable = true;
}

void SharedBlocks::may_be_lost() {
  for (Versions& versions : versions_)
    for (Version& version : versions) version.may_be_lost |= !version.durable;
}

// A version may show unless one that began after its end counts as settled.
std::optional<std::string> SharedBlocks::explain(
    const Versions& versions, Bytes bytes, const std::function<bool(const Version&)>& settled) {
  const auto stamp = stamp_of(bytes);
  if (!stamp) return "is a mixture of several writes";
  const auto shown = std::ranges::find(versions, *stamp, &Version::stamp);
  if (shown == versions.end()) return fmt::format("shows write {}, which it never had", *stamp);
  for (const Version& later : versions)
    if (shown->done && later.begun > shown->ended && settled(later))
      return fmt::format("shows write {} although write {} came after it", *stamp, later.stamp);
  return std::nullopt;
}

std::optional<std::string> SharedBlocks::explain_read(u32 file, u32 block, u64 begun,
                                                      Bytes bytes) const {
  return explain(versions_[file * kBlocks + block], bytes, [begun](const Version& later) {
    return later.done && later.ended < begun && !later.may_be_lost;
  });
}

std::optional<std::string> SharedBlocks::explain_crash(u32 file, u32 block, Bytes bytes) const {
  return explain(versions_[file * kBlocks + block], bytes,
                 [](const Version& later) { return later.durable; });
}

void SharedBlocks::adopt(u32 file, u32 block, Bytes bytes) {
  const u64 stamp = stamp_of(bytes).value_or(0);
  versions_[file * kBlocks + block] = {
      {.stamp = stamp, .begun = 0, .ended = 0, .done = true, .durable = true}};
}

// ---- errors

namespace {

bool is_of_device(Errc code) {
  return code == Errc::io || code == Errc::read_only || code == Errc::damaged ||
         code == Errc::malformed || code == Errc::no_space;
}

}  // namespace

Verdict judge(SimMachine& machine, const SimOp& op, const Error& error) {
  if (machine.device.power_off()) return Verdict::disturbed;
  if (error.code == Errc::no_key && machine.world.key_was_removed) return Verdict::refused;
  // Dropped by a removal, which the handle is told of.
  const bool lost = error.code == Errc::io && error.os_errno == 0;
  if (lost && machine.world.data_was_dropped && !machine.faulty()) return Verdict::refused;
  if (machine.faulty() && is_of_device(error.code)) return Verdict::disturbed;
  if (error.code == Errc::no_space && machine.plan.nearly_full) return Verdict::refused;
  machine.world.fail(fmt::format("op {} ({} of caller {}) answers {} ({}:{}): {}", op.number,
                                 name_of(op.kind), op.caller, name_of(error.code),
                                 error.where.file_name(), error.where.line(), error.what));
  return Verdict::disturbed;
}

}  // namespace latchkey::tests
