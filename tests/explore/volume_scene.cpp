#include "tests/explore/volume_scene.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "tests/support/keys.h"
#include "volume/paths.h"

namespace latchkey::tests {

namespace {

using volume::Volume;

constexpr u64 kPage = 4096;
constexpr std::string_view kPath = "/vault/file";

volume::VolumeOptions options() { return {.commit_interval_ms = 0, .inline_writeback = true}; }

SecretBytes secret() { return in_arena(raw_key(1)); }

// A directory under the key, and an empty file in it.
const SimImage& first_image() {
  static const SimImage image = [] {
    SimDevice device({.size_bytes = 16 * kMiB});
    LK_CHECK(Volume::mkfs(device, {}, system_env()).has_value());
    auto store = Volume::open(device, options(), system_env());
    LK_CHECK(store.has_value());
    const auto id = (*store)->add_key({0}, secret());
    const auto directory = volume::make_directory(**store, {0}, "/vault");
    LK_CHECK(id && directory && (*store)->set_policy({0}, *directory, *id));
    const auto handle = open_path(**store, {0}, kPath, {.write = true, .create = true});
    LK_CHECK(handle && (*store)->close_handle(*handle) && (*store)->close());
    return device.durable();
  }();
  return image;
}

}  // namespace

VolumeScene::VolumeScene(const KeyPlan& plan)
    : plan_(plan),
      device_({.size_bytes = 16 * kMiB, .shuffle = false}),
      handles_(plan.callers.size()) {
  device_.restore(first_image());
  auto opened = Volume::open(device_, options(), env_);
  LK_CHECK(opened.has_value());
  volume_ = std::move(*opened);
  for (const u32 uid : plan.claims) add(uid);
  for (u32 caller = 0; caller < handles_.size(); ++caller)
    if (plan.has_file_open[caller]) open(caller);
  if (plan.dirty) {
    open(0);
    write(0);
    close(0);
  }
  for (const auto& caller : plan.callers)
    for (const Act& act : caller) waits_ |= act.verb == Verb::await_removal;
}

VolumeScene::~VolumeScene() = default;

std::vector<std::function<void()>> VolumeScene::actors() {
  std::vector<std::function<void()>> bodies;
  bodies.reserve(plan_.callers.size());
  for (u32 caller = 0; caller < plan_.callers.size(); ++caller)
    bodies.emplace_back([this, caller] {
      for (const Act& next : plan_.callers[caller]) act(caller, next);
      if (caller != 0) return;
      Lock lock(ended_mutex_);
      removal_ended_ = true;
      ended_.notify_all();
    });
  return bodies;
}

void VolumeScene::act(u32 caller, const Act& act) {
  switch (act.verb) {
    case Verb::open:
      return open(caller);
    case Verb::write:
      if (handles_[caller]) write(caller);
      return;
    case Verb::close:
      if (handles_[caller]) close(caller);
      return;
    case Verb::writeback:
      (void)volume_->sync();
      return;
    case Verb::add:
      return add(act.uid);
    case Verb::remove:
    case Verb::remove_all:
      return remove(act);
    case Verb::store:
    case Verb::write_back:
      return;  // plays() no plan with them
    case Verb::await_removal: {
      Lock lock(ended_mutex_);
      while (!removal_ended_) ended_.wait(ended_mutex_);
      return;
    }
  }
}

void VolumeScene::open(u32 caller) {
  const u32 adds = adds_;
  const bool shut = shut_;
  const auto opened = open_path(*volume_, {1}, kPath, {.write = true});
  note(opened ? "opened" : "not opened");
  if (opened) handles_[caller] = *opened;
  must(!opened || !shut || adds != adds_, "opened between a removal and the next add (I3)");
}

void VolumeScene::write(u32 caller) {
  const auto content = static_cast<u32>(written_.size());
  written_.push_back({.begun = next_event()});
  std::array<u32, kPage / sizeof(u32)> page;
  page.fill(content);
  const auto wrote = volume_->write(*handles_[caller], 0, std::as_bytes(std::span(page)));
  note(wrote ? "wrote" : "write refused");
  if (wrote) written_[content].ended = next_event();
  must(wrote || may_refuse_, "a write was refused where it works as before");
}

void VolumeScene::close(u32 caller) {
  const auto closed = volume_->close_handle(*std::exchange(handles_[caller], std::nullopt));
  note(closed ? "closed" : "closed with an error");
  lost_ |= !closed;
}

void VolumeScene::add(u32 uid) {
  ++adds_;
  ++adding_;
  shut_ = false;
  const auto added = volume_->add_key({uid}, secret());
  LK_CHECK(added.has_value());
  id_ = *added;
  ++adds_;
  --adding_;
  note("added");
}

void VolumeScene::remove(const Act& act) {
  const keymgr::RemovalRow& row = keymgr::removal_row(act.mode);
  const bool suspends = row.later_io == keymgr::LaterIo::waits;
  may_lose_ |= row.may_lose;
  may_refuse_ |= row.later_io == keymgr::LaterIo::no_key || (suspends && !waits_);
  const bool all_users = act.verb == Verb::remove_all;
  volume::RemovalRequest request{.mode = act.mode, .all_users = all_users};
  if (suspends && !waits_) request.deadline_ns = 1;
  const u32 adds = adds_;
  const auto removed = volume_->remove_key({all_users ? 0 : act.uid}, id_, request);
  note(removed ? "removed" : "removal refused");
  if (!removed) return;
  lost_ |= removed->bytes_lost != 0;
  must(removed->bytes_lost == 0 || row.may_lose, "a mode that loses nothing reports a loss");
  if (!removed->other_users && adds == adds_ && adding_ == 0) shut_ = true;
}

// Not of a write that a later one, begun after its end, has taken the place of.
bool VolumeScene::may_be_read(u32 content) const {
  const u64 ended = content == 0 ? 0 : written_[content].ended;
  if (content != 0 && ended == 0) return true;  // refused half way, or cut off
  return lost_ || std::ranges::none_of(written_, [&](const Written& other) {
           return other.ended != 0 && other.begun > ended;
         });
}

const char* VolumeScene::end() {
  bool open = false;
  for (const auto& handle : handles_) open |= handle.has_value();
  const volume::KeyReport report = volume_->key_status({0}, id_);
  if (!open && report.state == KeyState::incompletely_removed)
    return "nobody is inside, and the key is still there (I5, I6)";
  if ((report.user_count != 0) != (report.state == KeyState::present))
    return "a key without claims is present, or one with claims is not (I4)";
  if (!may_lose_ && lost_) return "a mode that loses nothing has lost something";
  for (u32 caller = 0; caller < handles_.size(); ++caller)
    if (handles_[caller]) close(caller);
  add(1);
  const auto handle = open_path(*volume_, {1}, kPath, {});
  if (!handle) return "the file does not open once the key is back";
  std::array<u32, kPage / sizeof(u32)> page{};
  const auto read = volume_->read(*handle, 0, std::as_writable_bytes(std::span(page)));
  (void)volume_->close_handle(*handle);
  if (!read) return "the file cannot be read once the key is back";
  if (page.front() != page.back() || page.front() >= written_.size()) return "a torn page";
  if (!may_be_read(page.front())) return "an acknowledged write was lost silently (I2)";
  if (!volume_->close()) return "the volume does not close";
  return nullptr;
}

}  // namespace latchkey::tests
