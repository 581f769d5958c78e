// Operations on keys, policies and the volume itself.

#include "base/check.h"
#include "base/env.h"
#include "tests/support/conformance_world.h"

namespace latchkey::tests {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;

namespace {

std::string_view kernel_name(KeyState state) {
  switch (state) {
    case KeyState::absent:
      return "ABSENT";
    case KeyState::present:
      return "PRESENT";
    case KeyState::incompletely_removed:
      return "INCOMPLETELY_REMOVED";
  }
  return "?";
}

}  // namespace

std::string status_text(std::string_view state, bool added_by_self, u32 user_count) {
  return std::string(state) + " flags=" + (added_by_self ? "ADDED_BY_SELF" : "0") +
         " user_count=" + std::to_string(user_count);
}

Outcome ConformanceWorld::add(const Words& words) {
  return outcome_of(
      add(caller_, key(words.at(1), option(words, "size", 64), option(words, "seed", 0))));
}

Outcome ConformanceWorld::add_and_remove(const Words& words) {
  const u64 size = option(words, "size", 64);
  Key& added = key("of size " + std::to_string(size), size);
  const auto id = add(caller_, added);
  if (!id) return outcome_of(id);
  return outcome_of(remove(*id, false));
}

Outcome ConformanceWorld::remove(const Words& words, bool all_users) {
  const auto removed = remove(key(words.at(1)).id, all_users);
  std::string flags;
  if (removed && removed->files_busy) flags += "FILES_BUSY";
  if (removed && removed->other_users) flags += "OTHER_USERS";
  return {outcome_of(removed).result, "flags=" + (flags.empty() ? "0" : flags)};
}

Outcome ConformanceWorld::remove(const Words& words) { return remove(words, false); }

Outcome ConformanceWorld::remove_all(const Words& words) { return remove(words, true); }

Outcome ConformanceWorld::status(const Words& words) {
  const crypto::KeyId& id = key(words.at(1)).id;
  if (door_ == Door::bytes) return status_bytes(id);
  const KeyReport report = volume_->key_status(caller_, id);
  return {"0", status_text(kernel_name(report.state), report.added_by_self, report.user_count)};
}

Outcome ConformanceWorld::status_elsewhere(const Words& words) {
  SimDevice device({.size_bytes = 64 * kMiB});
  LK_CHECK(Volume::mkfs(device, {}, system_env()).has_value());
  auto other = Volume::open(device, {}, system_env());
  LK_CHECK(other.has_value());
  const KeyReport report = (*other)->key_status(caller_, key(words.at(1)).id);
  return {"0", std::string(kernel_name(report.state))};
}

Outcome ConformanceWorld::same_key(const Words& words) {
  return {key(words.at(1)).id == key(words.at(2)).id ? "0" : "EINVAL"};
}

Outcome ConformanceWorld::other_key(const Words& words) {
  return {key(words.at(1)).id != key(words.at(2)).id ? "0" : "EINVAL"};
}

// PREFIX.first and PREFIX.last were added, PREFIX.next was not.
Outcome ConformanceWorld::add_until_error(const Words& words) {
  static constexpr u32 kTriesMax = 1000;
  const std::string& prefix = words.at(1);
  for (u32 added = 0; added < kTriesMax; ++added) {
    Key& next = key(prefix + std::to_string(added));
    const auto id = add(caller_, next);
    if (id) {
      keys_[prefix + ".last"] = next;
      if (added == 0) keys_[prefix + ".first"] = next;
      continue;
    }
    keys_[prefix + ".next"] = next;
    return {errno_name(id.error()), "successes=" + std::to_string(added)};
  }
  return {"0"};
}

Outcome ConformanceWorld::policy(const Words& words) {
  const auto directory = inode(words.at(1));
  if (!directory) return outcome_of(directory);
  return outcome_of(set_policy(*directory, key(words.at(2)).id));
}

Outcome ConformanceWorld::add_policy_put(const Words& words) {
  const u64 size = option(words, "size", 64);
  const std::string name = "of_size_" + std::to_string(size);
  Key& added = key(name, size);
  const Outcome add_outcome = outcome_of(add(caller_, added));
  const auto directory = make_directory("/" + name);
  LK_CHECK(directory.has_value());
  const Outcome set = outcome_of(set_policy(*directory, added.id));
  Outcome made = count_outcome(put_text("/" + name + "/x", "make", "x"));
  made.detail = "ADD=" + add_outcome.result + " SET=" + set.result;
  return made;
}

Outcome ConformanceWorld::get_policy(const Words& words) {
  const auto found = inode(words.at(1));
  if (!found) return outcome_of(found);
  if (door_ == Door::bytes) return get_policy_bytes(*found, key(words.at(2)).id);
  const auto stat = volume_->stat(*found);
  const bool matches = stat && stat->key_id == key(words.at(2)).id;
  return {outcome_of(stat).result, std::string("identifier_matches=") + (matches ? "1" : "0")};
}

Outcome ConformanceWorld::get_nonce(const Words& words) {
  const auto found = inode(words.at(1));
  if (!found) return outcome_of(found);
  if (door_ == Door::bytes) return get_nonce_bytes(*found);
  const auto stat = volume_->stat(*found);
  return {stat && stat->nonce == crypto::Nonce{} ? "ENODATA" : outcome_of(stat).result};
}

Result<void> ConformanceWorld::make_contents(const std::string& path) {
  LK_TRYV(put_text(path + "/f1", "make", "hello-one"));
  LK_TRYV(put_text(path + "/f2", "make", "hello-two"));
  LK_TRYV(make_directory(path + "/sub"));
  LK_TRYV(put_text(path + "/sub/g", "make", "deep"));
  LK_TRY(const InodeId directory, inode(path));
  LK_TRYV(volume_->symlink(caller_, directory, "ln", "f1"));
  LK_TRYV(make_directory(path + "/empty"));
  for (const char* name : {"f1", "f2", "sub", "ln", "empty"}) {
    LK_TRY(called_[name], volume_->lookup(directory, name));
  }
  return {};
}

Outcome ConformanceWorld::fresh(const Words& words) {
  const std::string& path = words.at(1);
  Key& added = key(words.at(2));
  if (const auto id = add(caller_, added); !id) return outcome_of(id);
  const auto directory = make_directory(path);
  if (!directory) return outcome_of(directory);
  const auto set = set_policy(*directory, added.id);
  if (!set) return outcome_of(set);
  return outcome_of(make_contents(path));
}

Outcome ConformanceWorld::reopen(const Words& words) {
  return outcome_of(open_volume(words.size() > 1));
}

Outcome ConformanceWorld::small_volume(const Words&) {
  make_volume(32 * kMiB);
  return {"0"};
}

}  // namespace latchkey::tests
