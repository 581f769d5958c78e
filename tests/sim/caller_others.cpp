// The key, what all callers share, scrubs, and a caller's further subvolumes.

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "tests/sim/caller.h"

namespace latchkey::tests {

// ---- the key

namespace {

constexpr u64 kModes = 8;

// Those that may lose data, and those that may not: soft and hard more often than others.
keymgr::RemovalMode mode_of(const SimOp& op, u64 drawn) {
  using enum keymgr::RemovalMode;
  static constexpr std::array<keymgr::RemovalMode, kModes> kLosing{hard, hard, hard, hard,
                                                                   hard, sync, sync, sync};
  static constexpr std::array<keymgr::RemovalMode, kModes> kKeeping{soft, soft,   sealed, sealed,
                                                                    safe, freeze, deny,   suspend};
  return (op.kind == SimOpKind::remove_hard ? kLosing : kKeeping)[drawn];
}

}  // namespace

void Caller::act_on_key(const SimOp& op) {
  const u32 uid = Files::kUser + (draw(op, 61, 4) == 0 ? 1 : 0);
  SimWorld& world = machine_.world;
  if (op.kind == SimOpKind::add_key) {
    (void)judge(machine_, op, machine_.files.add_key(uid));
    return;
  }
  const keymgr::RemovalMode mode = mode_of(op, draw(op, 63, kModes));
  world.key_was_removed = true;
  const bool drops = keymgr::removal_row(mode).may_lose ||
                     machine_.plan.promise() != SimPromise::survived || machine_.plan.nearly_full;
  if (drops) {
    ++world.removals_under_way;
    world.dirty_may_be_lost();
  }
  const auto removed = machine_.files.remove_key(uid, mode);
  if (drops) {
    world.dirty_may_be_lost();
    --world.removals_under_way;
  }
  if (!removed) return;  // somebody else was first, or holds the claim
  machine_.scheduler.note(removed->bytes_lost);
  if (removed->bytes_lost != 0 && !drops && !machine_.device.power_off())
    fail(op, "a removal that loses nothing has lost data");
  if (draw(op, 62, 4) != 0) (void)judge(machine_, op, machine_.files.add_key(uid));
}

// ---- what is shared

void Caller::act_on_blocks(const SimOp& op) {
  SharedBlocks& blocks = machine_.world.blocks;
  const auto which = static_cast<u32>(draw(op, 71, SharedBlocks::kFiles));
  const auto block = static_cast<u32>(draw(op, 72, SharedBlocks::kBlocks));
  const auto file = machine_.files.open_file(SharedBlocks::path(which), {.write = true});
  if (judge(machine_, op, file) != Verdict::done) return;
  if (op.kind == SimOpKind::block_write) {
    const u64 stamp = blocks.begin_write(which, block);
    const auto wrote = machine_.files.write(*file, block * SharedBlocks::kBlockBytes,
                                            SharedBlocks::bytes_of(stamp));
    (void)judge(machine_, op, wrote);
    blocks.end_write(which, block, stamp, wrote.has_value());
    if (machine_.world.removals_under_way != 0 || machine_.faulty()) blocks.may_be_lost();
  } else if (op.kind == SimOpKind::block_read) {
    std::vector<std::byte> bytes(SharedBlocks::kBlockBytes);
    const u64 begun = blocks.next_event();
    const auto count = machine_.files.read(*file, block * SharedBlocks::kBlockBytes, bytes);
    const bool read = judge(machine_, op, count) == Verdict::done;
    if (read && *count != bytes.size()) fail(op, "a shared block is cut short");
    if (const auto wrong = blocks.explain_read(which, block, begun, bytes);
        read && wrong && machine_.world.removals_under_way == 0)
      fail(op, fmt::format("block {} of shared file {} {}", block, which, *wrong));
  } else {
    const u64 begun = blocks.next_event();
    const auto flushed = machine_.files.fsync(*file);
    if (judge(machine_, op, flushed) == Verdict::done && !machine_.log_may_be_torn())
      blocks.acknowledge(which, begun);
  }
  (void)judge(machine_, op, machine_.files.close_file(*file));
}

void Caller::act_on_shared_names(const SimOp& op) {
  SharedNames& names = machine_.world.names;
  const auto path = [&](u64 salt) {
    return fmt::format("{}/n{}", SharedNames::kPath, draw(op, salt, 4));
  };
  const auto expected_of_races = [](const Error& error) {
    return error.code == Errc::exists || error.code == Errc::not_found;
  };
  const auto count = [&](const auto& result, i64 by) {
    if (!result && expected_of_races(result.error())) return;
    const Verdict verdict = judge(machine_, op, result);
    if (verdict == Verdict::done) names.expected += by;
    if (verdict == Verdict::disturbed) names.unsure = true;
  };
  if (op.kind == SimOpKind::name_create) {
    count(machine_.files.mkdir(path(81)), +1);
  } else if (op.kind == SimOpKind::name_unlink) {
    count(machine_.files.rmdir(path(81)), -1);
  } else if (path(81) != path(82)) {
    count(machine_.files.rename(path(81), path(82), {.no_replace = true}), 0);
  }
}

// ---- scrubs

void Caller::scrub(const SimOp& op) {
  const auto wrong = machine_.files.scrub();
  if (judge(machine_, op, wrong) != Verdict::done || *wrong == 0 || machine_.faulty()) return;
  if (machine_.device.power_off()) return;
  fail(op, fmt::format("a scrub finds {} blocks bad", *wrong));
}

// ---- subvolumes and snapshots

void Caller::make_place(const SimOp& op) {
  constexpr std::size_t kPlacesMax = 3;
  if (own_.places.size() >= kPlacesMax) return;
  const bool snapshot = op.kind == SimOpKind::snapshot;
  if (snapshot && place_->names_unsure) return;
  auto made = std::make_shared<Place>();
  made->root = fmt::format("{}/{}{}", own_.others, own_.prefix, own_.made++);
  made->encrypted = own_.encrypted;
  made->may_vanish = !snapshot;
  made->read_only = snapshot && draw(op, 93, 2) == 0;
  const auto done = snapshot ? machine_.files.snapshot(place_->root, made->root, made->read_only)
                             : machine_.files.make_subvolume(made->root);
  const Verdict verdict = judge(machine_, op, done);
  if (verdict == Verdict::refused) return;
  if (snapshot) {
    const auto not_sure = [&](const History& history) { return unsure(history); };
    made->model = place_->model.copy(not_sure);
    if (machine_.faulty() || machine_.world.removals_under_way != 0 || !place_->unsure.empty())
      made->all_unsure();
    if (verdict == Verdict::done) {
      place_->model.sync(not_sure);
      own_.durable();
    }
  }
  (verdict == Verdict::done ? own_.places : own_.maybe).push_back(made);
}

void Caller::drop_place(const SimOp& op) {
  if (op.kind == SimOpKind::finish_drops) {
    (void)judge(machine_, op, machine_.files.finish_removals());
    return;
  }
  if (own_.places.size() < 2) return;
  place_ = own_.places[1 + draw(op, 95, own_.places.size() - 1)];
  const bool leave_open = draw(op, 94, 6) == 0;
  bool inside = false;
  for (std::size_t i = open_.size(); i-- > 0;) {
    if (open_[i].place != place_) continue;
    inside = true;
    if (leave_open) break;
    const OpenFile open = open_[i];
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(i));
    close(op, open);
  }
  const auto removed = machine_.files.remove_subvolume(place_->root);
  if (inside && leave_open && removed) return fail(op, "a subvolume goes under its users");
  // Somebody may be inside for a moment: who flushes, who asks for a removed key's files.
  if (!removed && removed.error().code == Errc::busy) return;
  const Verdict verdict = judge(machine_, op, removed);
  if (verdict == Verdict::refused) return;
  if (verdict == Verdict::disturbed) {
    // It is still there, perhaps without a name until the next life.
    place_->names_unsure = true;
    return;
  }
  std::erase(own_.places, place_);
  own_.maybe.push_back(place_);
}

}  // namespace latchkey::tests
