#include "tests/support/live_latchkey.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "base/check.h"
#include "tests/support/keys.h"
#include "volume/paths.h"

namespace latchkey::tests {
namespace {

constexpr volume::Caller kRoot{0};
constexpr std::string_view kFolder = "/sequence";

template <class T>
std::string answer(const Result<T>& result) {
  return result ? "0" : live_error(posix_errno(result.error()));
}

std::string names_text(const Result<std::vector<volume::DirEntry>>& entries) {
  if (!entries) return answer(entries);
  std::vector<std::string> names;
  names.reserve(entries->size());
  for (const volume::DirEntry& entry : *entries) names.push_back(entry.name);
  return live_names(std::move(names));
}

template <class T>
T must(Result<T> result) {
  LK_CHECK_MSG(result.has_value(), result ? "" : result.error().what);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

}  // namespace

LiveLatchkey::LiveLatchkey(const LiveRules& rules)
    : rules_(rules), device_({.size_bytes = 64 * kMiB, .shuffle = false}) {
  must(volume::Volume::mkfs(device_, {}, system_env()));
  volume::VolumeOptions options;
  options.compat_fscrypt = true;
  options.inline_writeback = true;
  volume_ = must(volume::Volume::open(device_, options, system_env()));
}

std::string LiveLatchkey::finish() {
  const auto closed = volume_->close();
  volume_.reset();
  if (!closed) return closed.error().what;
  engine::CheckOptions options;
  options.data = true;
  const auto check = volume::check_volume(device_, options, system_env());
  if (!check) return check.error().what;
  std::string text;
  for (const engine::Finding& finding : check->findings)
    text += fmt::format("{}: {}\n", finding.where, finding.what);
  return text;
}

void LiveLatchkey::remove_all_keys() {
  for (const crypto::KeyId& id : ids_)
    (void)volume_->remove_key(kRoot, id, keymgr::RemovalMode::soft, true);
}

void LiveLatchkey::begin(const LivePlan& plan) {
  for (u32 key = 0; key < kLiveKeys; ++key)
    ids_[key] = must(volume_->add_key(kRoot, in_arena(live_key(key))));
  (void)must(volume::make_directory(*volume_, kRoot, kFolder));
  for (std::size_t i = 0; i < directories_.size(); ++i) {
    directories_[i] = must(volume::make_directory(
        *volume_, kRoot, fmt::format("{}/{}", kFolder, kLiveDirectories[i]), 0777));
    must(volume_->set_policy(kRoot, directories_[i], ids_[kLiveKeyOf[i]]));
  }
  if (wants_no_key_names(plan)) learn_no_key_names();
  remove_all_keys();
}

// As the kernel's side does it.
void LiveLatchkey::learn_no_key_names() {
  std::map<volume::InodeId, std::string*> place;
  for (u32 directory = 0; directory < directories_.size(); ++directory)
    for (u32 name = 0; name < kLiveNames; ++name) {
      const auto made =
          volume_->make_node(kRoot, directories_[directory], name_in_directory({directory, name}),
                             {.kind = volume::FileKind::regular, .mode = 0666});
      place[must(made)] = &no_key_names_[directory][name];
    }
  remove_all_keys();
  for (const volume::InodeId directory : directories_)
    for (const volume::DirEntry& entry : must(volume_->read_directory(directory))) {
      *place.at(entry.inode) = entry.name;
      must(volume_->unlink(directory, entry.name));
    }
}

void LiveLatchkey::end() {
  for (auto& open : open_)
    if (const auto closing = std::exchange(open, std::nullopt))
      (void)volume_->close_handle(closing->handle);
  remove_all_keys();
  must(volume::remove_tree(*volume_, kFolder));
}

std::string LiveLatchkey::run(const LiveOp& op) {
  switch (op.verb) {
    case LiveVerb::add:
    case LiveVerb::remove:
    case LiveVerb::remove_all:
    case LiveVerb::key_status:
      return key_call(op);
    case LiveVerb::open:
      return open(op);
    case LiveVerb::open_directory:
      return open_directory(op);
    case LiveVerb::close:
      return close(op);
    case LiveVerb::read:
    case LiveVerb::write:
    case LiveVerb::truncate:
    case LiveVerb::fsync:
    case LiveVerb::list_open:
      return handle_call(op);
    default:
      return file_call(op);
  }
}

std::string LiveLatchkey::key_call(const LiveOp& op) {
  const volume::Caller caller{op.uid()};
  const crypto::KeyId& id = ids_[op.key];
  if (op.verb == LiveVerb::add) {
    const auto added = volume_->add_key(caller, in_arena(live_key(op.key)));
    return added && *added != id ? "another identifier" : answer(added);
  }
  if (op.verb == LiveVerb::key_status) {
    const volume::KeyReport now = volume_->key_status(caller, id);
    return fmt::format("{}{}, {} users", keymgr::name_of(now.state),
                       now.added_by_self ? ", self" : "", now.user_count);
  }
  const auto removed =
      volume_->remove_key(caller, id, keymgr::RemovalMode::soft, op.verb == LiveVerb::remove_all);
  if (!removed) return answer(removed);
  return fmt::format("0{}{}", removed->files_busy ? ", busy" : "",
                     removed->other_users ? ", others" : "");
}

// Whether one that is open was opened by that name, and has so many.
bool LiveLatchkey::opened_by(LivePath name, u32 links_min) const {
  return std::ranges::any_of(open_, [&](const auto& open) {
    return open && !open->directory && open->linked && open->name == name &&
           must(volume_->stat(open->handle)).links >= links_min;
  });
}

bool LiveLatchkey::skips(const LiveOp& op) const {
  const bool exchanges = op.verb == LiveVerb::exchange;
  const bool replaces = op.verb == LiveVerb::rename;
  const bool moves = (exchanges || replaces || op.verb == LiveVerb::rename_new) &&
                     op.path.directory != op.to.directory;
  const bool moved = moves && (opened_by(op.path) || (exchanges && opened_by(op.to)));
  const bool lost =
      (op.verb == LiveVerb::unlink && opened_by(op.path, 2)) || (replaces && opened_by(op.to, 2));
  return (rules_.moved_name && moved) || (rules_.lost_name && lost);
}

// What was opened by `from` goes where the name went; none: the name is gone.
void LiveLatchkey::move_name(LivePath from, std::optional<LivePath> to) {
  for (auto& open : open_) {
    if (!open || open->directory || !open->linked || open->name != from) continue;
    open->linked = to.has_value();
    if (to) open->name = *to;
  }
}

std::string LiveLatchkey::open(const LiveOp& op) {
  auto& slot = open_[op.slot];
  if (slot) return "-";
  const auto handle = volume_->open_file(volume::Caller{op.uid()}, directory_of(op.path),
                                         op.name(no_key_names_), op.flags, 0666, "");
  if (!handle) return answer(handle);
  slot = Open{.handle = *handle, .append = op.flags.append, .name = op.path};
  return "0";
}

std::string LiveLatchkey::close(const LiveOp& op) {
  const auto closing = std::exchange(open_[op.slot], std::nullopt);
  if (!closing) return "-";
  return answer(volume_->close_handle(closing->handle));
}

std::string LiveLatchkey::open_directory(const LiveOp& op) {
  auto& slot = open_[op.slot];
  if (slot) return "-";
  const auto handle = volume_->open_directory(volume::Caller{op.uid()}, directory_of(op.path), "");
  if (handle) slot = Open{.handle = *handle, .name = op.path, .directory = true};
  return answer(handle);
}

std::string LiveLatchkey::handle_call(const LiveOp& op) {
  const auto& slot = open_[op.slot];
  if (!slot) return "-";
  switch (op.verb) {
    case LiveVerb::read: {
      std::vector<std::byte> data(op.size);
      const auto got = volume_->read(slot->handle, op.offset, data);
      return got ? live_bytes(Bytes(data).first(*got)) : answer(got);
    }
    case LiveVerb::write: {
      const std::vector<std::byte> data = live_data(op);
      if (slot->append) {
        const auto at = volume_->append(slot->handle, data);
        return at ? fmt::format("{} bytes", data.size()) : answer(at);
      }
      const auto wrote = volume_->write(slot->handle, op.offset, data);
      return wrote ? fmt::format("{} bytes", *wrote) : answer(wrote);
    }
    case LiveVerb::list_open:
      return names_text(volume_->read_directory(slot->handle));
    case LiveVerb::truncate:
      return answer(volume_->truncate(slot->handle, op.size));
    default:
      return answer(volume_->fsync(slot->handle));
  }
}

std::string LiveLatchkey::file_call(const LiveOp& op) {
  const std::string name = op.name(no_key_names_), to = name_in_directory(op.to);
  switch (op.verb) {
    case LiveVerb::unlink: {
      const auto gone = volume_->unlink(directory_of(op.path), name);
      if (gone) move_name(op.path, std::nullopt);
      return answer(gone);
    }
    case LiveVerb::link: {
      const auto inode = volume_->lookup(directory_of(op.path), name);
      if (!inode) return answer(inode);
      return answer(volume_->link(*inode, directory_of(op.to), to));
    }
    case LiveVerb::rename:
    case LiveVerb::rename_new:
    case LiveVerb::exchange:
      return rename(op);
    case LiveVerb::stat:
      return stat(op);
    default:
      return names_text(volume_->read_directory(directory_of(op.path)));
  }
}

std::string LiveLatchkey::rename(const LiveOp& op) {
  const std::string name = op.name(no_key_names_), to = name_in_directory(op.to);
  const auto from_inode = volume_->lookup(directory_of(op.path), name);
  const auto to_inode = volume_->lookup(directory_of(op.to), to);
  const auto renamed = volume_->rename(
      directory_of(op.path), name, directory_of(op.to), to,
      {.no_replace = op.verb == LiveVerb::rename_new, .exchange = op.verb == LiveVerb::exchange});
  if (!renamed) return answer(renamed);
  // Two names of one inode: POSIX has nothing happen.
  if (to_inode && *to_inode == *from_inode) return "0";
  if (op.verb != LiveVerb::exchange) {
    move_name(op.to, std::nullopt);
    move_name(op.path, op.to);
    return "0";
  }
  // By way of a name that there is not.
  constexpr u32 kAside = kLiveNames;
  const LivePath aside{.directory = op.path.directory, .name = kAside};
  move_name(op.path, aside);
  move_name(op.to, op.path);
  move_name(aside, op.to);
  return "0";
}

std::string LiveLatchkey::stat(const LiveOp& op) {
  const auto inode = volume_->lookup(directory_of(op.path), op.name(no_key_names_));
  if (!inode) return answer(inode);
  const auto found = volume_->stat(*inode);
  if (!found) return answer(found);
  return fmt::format("size {}, {} links", found->size, found->links);
}

}  // namespace latchkey::tests
