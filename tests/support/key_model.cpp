#include "tests/support/key_model.h"

#include <algorithm>

#include "base/check.h"

namespace latchkey::tests {

namespace {

using keymgr::RemovalMode;
using Inside = ModelRow::Inside;
using Dirty = ModelRow::Dirty;

constexpr std::array<ModelRow, 8> kRows = {{
    {RemovalMode::soft, "soft", false, true, Inside::work, true, Dirty::idle},
    {RemovalMode::sealed, "sealed", false, false, Inside::work, false, Dirty::idle},
    {RemovalMode::safe, "safe", true, false, Inside::cut_off, false, Dirty::all},
    {RemovalMode::sync, "sync", false, false, Inside::cut_off, false, Dirty::all},
    {RemovalMode::freeze, "freeze", false, false, Inside::cut_off, false, Dirty::all},
    {RemovalMode::deny, "deny", false, false, Inside::cut_off, false, Dirty::all},
    {RemovalMode::hard, "hard", false, true, Inside::cut_off, false, Dirty::lost},
    {RemovalMode::suspend, "suspend", false, false, Inside::wait, false, Dirty::all},
}};

constexpr Errc kOk{};

}  // namespace

const ModelRow& model_row(RemovalMode mode) {
  const ModelRow& row = kRows[static_cast<std::size_t>(mode)];
  LK_CHECK(row.mode == mode);
  return row;
}

// --- keys ----------------------------------------------------------------------------------------

Errc KeyModel::add(u32 uid, u32 index) {
  Key& key = keys_[index];
  if (key.state == ModelState::absent) key.former.clear();
  key.state = ModelState::present;
  key.sealed = key.suspended = false;
  key.claims.insert(uid);
  return kOk;
}

void KeyModel::drop_claims(Key& key, u32 uid, bool all_users) {
  if (all_users) {
    key.former.merge(key.claims);
    key.claims.clear();
  } else if (key.claims.erase(uid) != 0) {
    key.former.insert(uid);
  }
}

void KeyModel::become_absent(Key& key) {
  key.state = ModelState::absent;
  key.sealed = false;
  if (!key.suspended) key.former.clear();
}

void KeyModel::leave_if_empty(u32 index) {
  Key& key = keys_[index];
  if (key.state == ModelState::leaving && holders(index) == 0) become_absent(key);
}

KeyModel::Removed KeyModel::remove(u32 uid, u32 index, bool all_users, RemovalMode mode,
                                   Meanwhile meanwhile) {
  Key& key = keys_[index];
  const ModelRow& row = model_row(mode);
  if (all_users && uid != 0) return {.error = Errc::permission};
  if (key.state == ModelState::absent) {
    if (!key.suspended || (uid != 0 && !key.former.contains(uid))) return {.error = Errc::no_key};
    key.suspended = row.inside == Inside::wait;
    become_absent(key);
    return {};
  }
  if (!all_users && key.state == ModelState::present) {
    if (!key.claims.contains(uid)) return {.error = Errc::no_key};
    if (key.claims.size() > 1) {
      drop_claims(key, uid, false);
      return {.other_users = true};
    }
  }
  if (!all_users && key.state == ModelState::leaving && uid != 0 && !key.former.contains(uid))
    return {.error = Errc::no_key};
  if (row.refuses && holders(index) != 0) return {.error = Errc::busy, .holders = holders(index)};
  if (would_flush(index, mode) == 0) meanwhile = Meanwhile::nothing;
  const auto somebody_adds = [&] {
    if (meanwhile == Meanwhile::own_add) (void)add(uid, index);
    if (meanwhile == Meanwhile::other_add) (void)add(kOtherUser, index);
  };
  Removed removed;
  if (!row.claim_first) {
    if (meanwhile == Meanwhile::write_error) {
      for (std::size_t file = 0; file < files_.size(); ++file) {
        if (!is_dirty(file, index, row.dirty)) continue;
        ++files_[file].errors;
        files_[file].error_untold = true;
      }
      return {.error = Errc::io};
    }
    removed.flushed = flush(index, row.dirty);
    somebody_adds();
    if (meanwhile == Meanwhile::own_add) return {.error = Errc::canceled};
  }
  drop_claims(key, uid, all_users);
  if (!key.claims.empty()) {
    removed.other_users = true;
    return removed;
  }
  key.state = ModelState::leaving;
  removed.holders = holders(index);
  if (row.claim_first && row.dirty != Dirty::lost) {
    somebody_adds();
    if (meanwhile == Meanwhile::write_error)
      removed.lost = lose(index, row.dirty);
    else
      removed.flushed = flush(index, row.dirty);
  }
  if (row.inside == Inside::work) {
    removed.files_busy = key.state == ModelState::leaving && removed.holders != 0;
    if (key.state == ModelState::leaving && removed.holders != 0) key.sealed |= !row.secret_stays;
    leave_if_empty(index);
  } else {
    removed.lost += lose(index, Dirty::all);
    key.suspended = row.inside == Inside::wait;
    become_absent(key);
  }
  forget_idle();
  return removed;
}

// --- files ---------------------------------------------------------------------------------------

bool KeyModel::is_open_file(std::size_t file) const {
  return std::ranges::any_of(handles_,
                             [&](const auto& handle) { return handle && handle->file == file; });
}

u32 KeyModel::holders(u32 key) const {
  return static_cast<u32>(std::ranges::count_if(
      handles_, [&](const auto& handle) { return handle && files_[handle->file].key == key; }));
}

bool KeyModel::is_dirty(std::size_t file, u32 key, Dirty which) const {
  if (files_[file].key != key || !files_[file].dirty) return false;
  return which == Dirty::all || (which == Dirty::idle && !is_open_file(file));
}

u32 KeyModel::would_flush(u32 key, RemovalMode mode) const {
  u32 count = 0;
  for (std::size_t file = 0; file < files_.size(); ++file)
    count += is_dirty(file, key, model_row(mode).dirty) ? 1 : 0;
  return count;
}

void KeyModel::flush(File& file) {
  if (file.dirty) file.stored = *file.dirty;
  file.dirty.reset();
  if (file.named) names_[file.name].after_crash = {file.stored};
}

u32 KeyModel::flush(u32 key, Dirty which) {
  u32 flushed = 0;
  for (std::size_t file = 0; file < files_.size(); ++file) {
    if (!is_dirty(file, key, which)) continue;
    flush(files_[file]);
    ++flushed;
  }
  return flushed;
}

u32 KeyModel::lose(u32 key, Dirty which) {
  u32 lost = 0;
  for (std::size_t file = 0; file < files_.size(); ++file) {
    if (!is_dirty(file, key, which)) continue;
    files_[file].dirty.reset();
    ++files_[file].losses;
    ++lost;
  }
  return lost;
}

// A file that nobody uses and that is clean is not remembered.
void KeyModel::forget_idle() {
  for (std::size_t file = 0; file < files_.size(); ++file)
    if (!files_[file].dirty && !is_open_file(file)) {
      files_[file].losses = files_[file].errors = 0;
      files_[file].error_untold = false;
    }
}

Errc KeyModel::open(u32 slot, u32 name, bool create) {
  const u32 key = key_of(name);
  if (keys_[key].state != ModelState::present) return Errc::no_key;
  if (!names_[name].file) {
    if (!create) return Errc::not_found;
    names_[name].file = files_.size();
    names_[name].after_crash.insert(0);
    files_.push_back({.key = key, .name = name});
  }
  const File& file = files_[*names_[name].file];
  const u32 told = file.errors - (file.error_untold && file.errors != 0 ? 1 : 0);
  handles_[slot] = Handle{*names_[name].file, file.losses, told, false};
  return kOk;
}

Errc KeyModel::unlink(u32 name) {
  if (keys_[key_of(name)].state != ModelState::present) return Errc::no_key;
  if (!names_[name].file) return Errc::not_found;
  File& file = files_[*names_[name].file];
  file.named = false;
  if (!is_open_file(*names_[name].file)) file.dirty.reset();
  names_[name].file.reset();
  names_[name].after_crash.insert(std::nullopt);
  forget_idle();
  return kOk;
}

Errc KeyModel::ready(u32 slot) const {
  const Handle& handle = *handles_[slot];
  const File& file = files_[handle.file];
  if (keys_[file.key].state == ModelState::absent) return Errc::no_key;
  return handle.losses == file.losses ? kOk : Errc::io;
}

Errc KeyModel::write(u32 slot, u32 content) {
  if (const Errc error = ready(slot); error != kOk) return error;
  File& file = files_[handles_[slot]->file];
  file.dirty = content;
  if (file.named) names_[file.name].after_crash.insert(content);
  return kOk;
}

Errc KeyModel::read(u32 slot, u32& content) const {
  if (const Errc error = ready(slot); error != kOk) return error;
  const File& file = files_[handles_[slot]->file];
  content = file.dirty.value_or(file.stored);
  return kOk;
}

Errc KeyModel::tell(Handle& handle) {
  File& file = files_[handle.file];
  if (handle.errors_told != file.errors) {
    handle.errors_told = file.errors;
    file.error_untold = false;
    return Errc::io;
  }
  if (handle.losses == file.losses || handle.loss_told) return kOk;
  handle.loss_told = true;
  return Errc::io;
}

Errc KeyModel::fsync(u32 slot) {
  Handle& handle = *handles_[slot];
  flush(files_[handle.file]);
  return tell(handle);
}

Errc KeyModel::close(u32 slot) {
  Handle handle = *handles_[slot];
  handles_[slot].reset();
  File& file = files_[handle.file];
  if (!is_open_file(handle.file)) {
    if (!file.named) file.dirty.reset();
    if (keys_[file.key].state == ModelState::leaving && file.dirty) flush(file);
  }
  const Errc told = tell(handle);
  leave_if_empty(file.key);
  forget_idle();
  return told;
}

void KeyModel::sync() {
  for (File& file : files_)
    if (file.named || file.dirty) flush(file);
  for (Name& name : names_)
    name.after_crash = {name.file ? Content(files_[*name.file].stored) : std::nullopt};
  forget_idle();
}

KeyModel::Content KeyModel::content(u32 name) const {
  if (!names_[name].file) return std::nullopt;
  const File& file = files_[*names_[name].file];
  return file.dirty.value_or(file.stored);
}

void KeyModel::crash(const std::array<Content, kModelFiles>& there) {
  keys_ = {};
  handles_ = {};
  files_.clear();
  for (u32 name = 0; name < kModelFiles; ++name) {
    names_[name] = {};
    names_[name].after_crash = {there[name]};
    if (!there[name]) continue;
    names_[name].file = files_.size();
    files_.push_back({.key = key_of(name), .name = name, .stored = *there[name]});
  }
}

void KeyModel::or_else(const KeyModel& other) {
  for (u32 name = 0; name < kModelFiles; ++name) {
    auto& mine = names_[name].after_crash;
    mine.insert(other.names_[name].after_crash.begin(), other.names_[name].after_crash.end());
  }
}

}  // namespace latchkey::tests
