#include "tests/support/key_life.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/thread.h"
#include "base/wait.h"
#include "tests/support/keys.h"
#include "volume/paths.h"

namespace latchkey::tests {

namespace {

using keymgr::KeyState;
using Verb = KeyStep::Verb;

constexpr u64 kPage = 4096;
constexpr Errc kOk{};

std::string directory_of(u32 key) { return fmt::format("/{}", key); }
std::string path_of(u32 name) { return fmt::format("/{}/{}", KeyModel::key_of(name), name % 2); }

SecretBytes secret_of(u32 key) { return in_arena(raw_key(key + 1)); }

volume::VolumeOptions options() { return {.status_public = true, .inline_writeback = true}; }

template <class T>
Errc code_of(const Result<T>& result) {
  return result ? kOk : result.error().code;
}

// The store that every life begins with: a directory under each key.
const SimImage& empty_store() {
  static const SimImage image = [] {
    SimDevice device({.size_bytes = 64 * kMiB});
    LK_CHECK(volume::Volume::mkfs(device, {}, system_env()).has_value());
    auto store = volume::Volume::open(device, options(), system_env());
    LK_CHECK(store.has_value());
    for (u32 key = 0; key < kModelKeys; ++key) {
      const auto id = (*store)->add_key({0}, secret_of(key));
      const auto directory = volume::make_directory(**store, {0}, directory_of(key));
      LK_CHECK(id && directory && (*store)->set_policy({0}, *directory, *id));
    }
    LK_CHECK((*store)->close().has_value());
    return device.durable();
  }();
  return image;
}

std::string_view name_of(Verb verb) {
  constexpr std::array<std::string_view, 10> names{"add",   "remove", "open",  "create", "unlink",
                                                   "write", "read",   "fsync", "close",  "sync"};
  return names[static_cast<std::size_t>(verb)];
}

std::string_view name_of(Meanwhile meanwhile) {
  constexpr std::array<std::string_view, 4> names{"", ", a write fails", ", the caller adds it",
                                                  ", another user adds it"};
  return names[static_cast<std::size_t>(meanwhile)];
}

std::string differ(std::string_view what, auto there, auto wanted) {
  return fmt::format("{}: {}, and by the model {}", what, there, wanted);
}

KeyState to_state(ModelState state) {
  if (state == ModelState::absent) return KeyState::absent;
  return state == ModelState::present ? KeyState::present : KeyState::incompletely_removed;
}

}  // namespace

std::string to_text(const KeyStep& step) {
  std::string text(name_of(step.verb));
  switch (step.verb) {
    case Verb::add:
      text += fmt::format(" key {} by {}", step.key, step.uid);
      break;
    case Verb::remove:
      text += fmt::format(" key {} by {}, {}{}{}", step.key, step.uid, model_row(step.mode).name,
                          step.all_users ? ", all users" : "", name_of(step.meanwhile));
      break;
    case Verb::open:
    case Verb::create:
      text += fmt::format(" {} as handle {}", path_of(step.name), step.slot);
      break;
    case Verb::unlink:
      text += " " + path_of(step.name);
      break;
    case Verb::sync:
      break;
    default:
      text += fmt::format(" handle {}", step.slot);
  }
  if (step.cut) text += fmt::format("; the power goes after {} writes", *step.cut);
  return text;
}

KeyLife::KeyLife() : medium_({.size_bytes = 64 * kMiB, .shuffle = false}) {
  medium_.restore(empty_store());
  for (u32 key = 0; key < kModelKeys; ++key) ids_[key] = *keymgr::Keyring::identify(secret_of(key));
  LK_CHECK(open_store().empty());
}

KeyLife::~KeyLife() = default;

std::string KeyLife::open_store() {
  auto opened = volume::Volume::open(device_, options(), system_env());
  if (!opened) return fmt::format("the store does not open: {}", opened.error().what);
  volume_ = std::move(*opened);
  return {};
}

bool KeyLife::means_nothing(const KeyStep& step) const {
  switch (step.verb) {
    case Verb::add:
    case Verb::remove:
    case Verb::unlink:
    case Verb::sync:
      return false;
    case Verb::open:
    case Verb::create:
      return model_.is_open(step.slot);
    case Verb::write:
    case Verb::read:
      return !model_.is_open(step.slot) || model_.would_wait(step.slot);
    case Verb::fsync:
    case Verb::close:
      return !model_.is_open(step.slot);
  }
  return false;
}

// What comes in between comes before the first write of the removal to its device, which is then
// past the point where it has looked at what it flushes.
void KeyLife::prepare_meanwhile(const KeyStep& step) {
  switch (step.meanwhile) {
    case Meanwhile::nothing:
      return;
    case Meanwhile::write_error:
      medium_.inject({.kind = engine::OpKind::write});
      return;
    case Meanwhile::own_add:
    case Meanwhile::other_add:
      device_.at_next(engine::OpKind::write, [this, step] {
        add_in_between(step, step.meanwhile == Meanwhile::own_add ? step.uid : kOtherUser);
      });
      return;
  }
}

// A thread of its own: after the key is there an add waits for the inode whose flush this stands
// in.
void KeyLife::add_in_between(const KeyStep& step, u32 uid) {
  const auto there = [&] {
    const volume::KeyReport report = volume_->key_status({uid}, ids_[step.key]);
    return report.state == KeyState::present && report.added_by_self;
  };
  // Of a key that the caller has claimed all along nothing tells that its add has come but its end,
  // and then it waits for nothing.
  const bool claimed = there();
  adding_.emplace([this, step, uid] {
    LK_CHECK(volume_->add_key({uid}, secret_of(step.key)).has_value());
    added_ = true;
  });
  while (claimed ? !added_.load() : !there()) pause_for(10'000);
}

Errc KeyLife::done(const KeyStep& step) {
  const volume::HandleId handle = handles_[step.slot];
  switch (step.verb) {
    case Verb::add:
      return code_of(volume_->add_key({step.uid}, secret_of(step.key)));
    case Verb::remove: {
      const u32 flushes = model_.would_flush(step.key, step.mode);
      // What fails, or is overtaken, is one write of one page.
      if (flushes == 1) prepare_meanwhile(step);
      const auto removed = volume_->remove_key(
          {step.uid}, ids_[step.key], {.mode = step.mode, .all_users = step.all_users}, report_);
      device_.hook = {};
      medium_.clear_faults();
      if (adding_) adding_->join();
      adding_.reset();
      added_ = false;
      return code_of(removed);
    }
    case Verb::open:
    case Verb::create: {
      const auto opened = volume::open_path(*volume_, {step.uid}, path_of(step.name),
                                            {.write = true, .create = step.verb == Verb::create});
      if (opened) handles_[step.slot] = *opened;
      return code_of(opened);
    }
    case Verb::unlink: {
      const auto directory = volume::resolve(*volume_, directory_of(KeyModel::key_of(step.name)));
      LK_CHECK(directory.has_value());
      return code_of(volume_->unlink(*directory, fmt::format("{}", step.name % 2)));
    }
    case Verb::write: {
      std::array<u32, kPage / sizeof(u32)> page;
      page.fill(writes_);
      return code_of(volume_->write(handle, 0, std::as_bytes(std::span(page))));
    }
    case Verb::read: {
      std::array<u32, kPage / sizeof(u32)> page{};
      const auto read = volume_->read(handle, 0, std::as_writable_bytes(std::span(page)));
      read_ = page.front();
      if (read && (*read != (read_ == 0 ? 0 : kPage) || page.front() != page.back()))
        return Errc::damaged;
      return code_of(read);
    }
    case Verb::fsync:
      return code_of(volume_->fsync(handle));
    case Verb::close:
      return code_of(volume_->close_handle(handle));
    case Verb::sync:
      return code_of(volume_->sync());
  }
  return Errc::invalid;
}

Errc KeyLife::expected(const KeyStep& step) {
  switch (step.verb) {
    case Verb::add:
      return model_.add(step.uid, step.key);
    case Verb::remove:
      removed_ = model_.remove(
          step.uid, step.key, step.all_users, step.mode,
          model_.would_flush(step.key, step.mode) == 1 ? step.meanwhile : Meanwhile::nothing);
      return removed_.error;
    case Verb::open:
    case Verb::create:
      return model_.open(step.slot, step.name, step.verb == Verb::create);
    case Verb::unlink:
      return model_.unlink(step.name);
    case Verb::write:
      return model_.write(step.slot, writes_);
    case Verb::read:
      return model_.read(step.slot, model_read_);
    case Verb::fsync:
      return model_.fsync(step.slot);
    case Verb::close:
      return model_.close(step.slot);
    case Verb::sync:
      model_.sync();
      return kOk;
  }
  return Errc::invalid;
}

std::string KeyLife::step(const KeyStep& step) {
  if (means_nothing(step)) return {};
  if (step.verb == Verb::write) ++writes_;
  if (step.cut) medium_.cut_after(*step.cut);
  const Errc there = done(step);
  const KeyModel before = model_;
  const Errc wanted = expected(step);
  if (step.cut) return crash(there == kOk && wanted == kOk, before);
  if (there != wanted) return differ("the answer", name_of(there), name_of(wanted));
  if (step.verb == Verb::read && there == kOk && read_ != model_read_)
    return differ("the content", read_, model_read_);
  if (step.verb == Verb::remove) {
    const std::string wrong = compare_removal();
    if (!wrong.empty()) return wrong;
  }
  return compare_keys();
}

std::string KeyLife::compare_removal() const {
  if (removed_.error == Errc::busy && report_.holders.size() != removed_.holders)
    return differ("holders", report_.holders.size(), removed_.holders);
  if (removed_.error != kOk) return {};
  if (report_.other_users != removed_.other_users)
    return differ("OTHER_USERS", report_.other_users, removed_.other_users);
  if (report_.files_busy != removed_.files_busy)
    return differ("FILES_BUSY", report_.files_busy, removed_.files_busy);
  if (!removed_.other_users && report_.holders.size() != removed_.holders)
    return differ("holders", report_.holders.size(), removed_.holders);
  if (report_.bytes_flushed != removed_.flushed * kPage)
    return differ("bytes flushed", report_.bytes_flushed, removed_.flushed * kPage);
  if (report_.files_lost != removed_.lost || report_.bytes_lost != removed_.lost * kPage)
    return differ("bytes lost", report_.bytes_lost, removed_.lost * kPage);
  return {};
}

std::string KeyLife::compare_keys() {
  for (u32 key = 0; key < kModelKeys; ++key) {
    const KeyModel::Key& wanted = model_.key(key);
    for (const u32 uid : kUids) {
      const volume::KeyReport report = volume_->key_status({uid}, ids_[key]);
      if (report.state != to_state(wanted.state))
        return differ(fmt::format("the state of key {}", key), keymgr::name_of(report.state),
                      keymgr::name_of(to_state(wanted.state)));
      if (report.user_count != wanted.claims.size())
        return differ(fmt::format("claims of key {}", key), report.user_count,
                      wanted.claims.size());
      if (report.added_by_self != wanted.claims.contains(uid))
        return differ(fmt::format("the claim of {} on key {}", uid, key), report.added_by_self,
                      wanted.claims.contains(uid));
      if (wanted.state != ModelState::absent && report.holders.size() != model_.holders(key))
        return differ(fmt::format("holders of key {}", key), report.holders.size(),
                      model_.holders(key));
    }
  }
  return {};
}

// What every name has, through the keys, which are there for root then.
std::string KeyLife::contents(std::array<KeyModel::Content, kModelFiles>& there) {
  for (u32 key = 0; key < kModelKeys; ++key)
    if (!volume_->add_key({0}, secret_of(key))) return "a key cannot be added";
  for (u32 name = 0; name < kModelFiles; ++name) {
    const auto handle = volume::open_path(*volume_, {0}, path_of(name), {});
    if (!handle && handle.error().code == Errc::not_found) continue;
    if (!handle) return fmt::format("{}: {}", path_of(name), handle.error().what);
    std::array<u32, kPage / sizeof(u32)> page{};
    const auto read = volume_->read(*handle, 0, std::as_writable_bytes(std::span(page)));
    if (!read) return fmt::format("{}: {}", path_of(name), read.error().what);
    if (page.front() != page.back()) return fmt::format("{}: half of a write", path_of(name));
    there[name] = page.front();
    (void)volume_->close_handle(*handle);  // which may tell an error that nobody has heard of
  }
  return {};
}

std::string KeyLife::crash(bool acknowledged, const KeyModel& before) {
  ++crashes_;
  medium_.vanish();
  volume_.reset();
  medium_.crash(crashes_);
  if (std::string wrong = open_store(); !wrong.empty()) return wrong;
  if (!acknowledged) model_.or_else(before);
  std::array<KeyModel::Content, kModelFiles> there;
  if (std::string wrong = contents(there); !wrong.empty()) return wrong;
  for (u32 name = 0; name < kModelFiles; ++name)
    if (!model_.after_crash(name).contains(there[name]))
      return fmt::format("after the crash {} has {}, which it cannot have", path_of(name),
                         there[name] ? fmt::format("write {}", *there[name]) : "gone");
  model_.crash(there);
  for (u32 key = 0; key < kModelKeys; ++key) {
    const auto removed = volume_->remove_key({0}, ids_[key], keymgr::RemovalMode::soft);
    if (!removed) return fmt::format("key {} is not removed: {}", key, removed.error().what);
  }
  return compare_keys();
}

std::string KeyLife::audit() {
  for (u32 slot = 0; slot < kModelHandles; ++slot)
    if (std::string wrong = step({.verb = Verb::close, .slot = slot}); !wrong.empty())
      return "at the end, " + wrong;
  std::array<KeyModel::Content, kModelFiles> there;
  if (std::string wrong = contents(there); !wrong.empty()) return wrong;
  for (u32 name = 0; name < kModelFiles; ++name)
    if (there[name] != model_.content(name))
      return fmt::format("at the end {} has write {}, not {}", path_of(name),
                         there[name].value_or(0), model_.content(name).value_or(0));
  if (const auto closed = volume_->close(); !closed)
    return fmt::format("it does not close: {}", closed.error().what);
  volume_.reset();
  const auto check = volume::check_volume(medium_, {}, system_env());
  if (!check) return fmt::format("it cannot be checked: {}", check.error().what);
  for (const engine::Finding& finding : check->findings) return finding.where + ": " + finding.what;
  return {};
}

}  // namespace latchkey::tests
