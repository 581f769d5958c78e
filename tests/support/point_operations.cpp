#include "tests/support/point_operations.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/checksum.h"
#include "base/hex.h"
#include "tests/support/keys.h"
#include "volume/paths.h"

namespace latchkey::tests {

using namespace volume;  // NOLINT: the whole file is about it

namespace {

constexpr Caller kOwner{1000};
constexpr const char* kFoo = "/vault/A/foo";
constexpr const char* kBar = "/vault/B/bar";
constexpr const char* kNewFoo = "/vault/B/foo";
constexpr const char* kNewBar = "/vault/A/bar";
constexpr const char* kSub = "/vault/A/sub";
constexpr const char* kPlain = "/plain";
constexpr const char* kSnapshot = "/snapshot";
constexpr const char* kSubvolume = "/subvolume";

std::vector<std::byte> pattern(u64 tag, u64 size) {
  std::mt19937_64 random(tag);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

Result<ParentAndName> parent(PointActor& a, const char* path) {
  return resolve_parent(a.volume, path);
}

// Opens, does it, closes: the close's error counts, too.
template <class Call>
Result<void> with_file(PointActor& a, const char* path, const Call& call) {
  LK_TRY(const HandleId handle, open_path(a.volume, kOwner, path, {.write = true}));
  const Result<void> done = call(handle);
  const Result<void> closed = a.volume.close_handle(handle);
  LK_TRYV(done);
  return closed;
}

Result<void> create(PointActor& a, const char* path) {
  const OpenFlags flags{.write = true, .create = true, .exclusive = true};
  LK_TRY(const HandleId handle, open_path(a.volume, kOwner, path, flags));
  return a.volume.close_handle(handle);
}
Result<void> mkdir(PointActor& a, const char* path) {
  LK_TRYV(make_directory(a.volume, kOwner, path));
  return {};
}
Result<void> write(PointActor& a, const char* path, u64 offset, Bytes bytes) {
  return with_file(a, path, [&](HandleId handle) -> Result<void> {
    LK_TRYV(a.volume.write(handle, offset, bytes));
    return {};
  });
}
Result<void> append(PointActor& a, const char* path, Bytes bytes) {
  return with_file(a, path, [&](HandleId handle) -> Result<void> {
    LK_TRYV(a.volume.append(handle, bytes));
    return {};
  });
}
Result<void> truncate(PointActor& a, const char* path, u64 size) {
  return with_file(a, path, [&](HandleId handle) { return a.volume.truncate(handle, size); });
}
Result<void> fsync(PointActor& a, const char* path) {
  return with_file(a, path, [&](HandleId handle) { return a.volume.fsync(handle); });
}
Result<void> link(PointActor& a, const char* from, const char* to) {
  LK_TRY(const InodeId inode, resolve(a.volume, from));
  LK_TRY(const ParentAndName into, parent(a, to));
  return a.volume.link(inode, into.directory, into.name);
}
Result<void> remove(PointActor& a, const char* path, bool directory) {
  LK_TRY(const ParentAndName from, parent(a, path));
  return directory ? a.volume.rmdir(from.directory, from.name)
                   : a.volume.unlink(from.directory, from.name);
}
Result<void> rename(PointActor& a, const char* from, const char* to, bool exchange = false) {
  LK_TRY(const ParentAndName first, parent(a, from));
  LK_TRY(const ParentAndName second, parent(a, to));
  return a.volume.rename(first.directory, first.name, second.directory, second.name,
                         {.exchange = exchange});
}
Result<void> clone(PointActor& a, const char* from, const char* to) {
  LK_TRY(const HandleId source, open_path(a.volume, kOwner, from, {}));
  const Result<void> done = with_file(
      a, to, [&](HandleId handle) { return a.volume.clone_range(source, 0, handle, 0, 0); });
  const Result<void> closed = a.volume.close_handle(source);
  LK_TRYV(done);
  return closed;
}
Result<void> symlink(PointActor& a, const char* path, std::string_view target) {
  LK_TRY(const ParentAndName into, parent(a, path));
  LK_TRYV(a.volume.symlink(kOwner, into.directory, into.name, target));
  return {};
}
Result<void> remove_key(PointActor& a, keymgr::RemovalMode mode) {
  LK_TRYV(a.volume.remove_key(kOwner, a.key, mode));
  return {};
}
// Unlinked while it is open: an orphan, which a recovery reaps.
Result<void> unlink_held(PointActor& a) {
  LK_TRY(const HandleId handle, open_path(a.volume, kOwner, kFoo, {.write = true}));
  a.held.push_back(handle);
  LK_TRYV(a.volume.write(handle, 0, pattern(90, 5000)));
  return remove(a, kFoo, false);
}
Result<void> unnamed_held(PointActor& a) {
  LK_TRY(const InodeId directory, resolve(a.volume, "/vault/A"));
  LK_TRY(const HandleId handle,
         a.volume.open_unnamed(kOwner, directory, {.write = true}, 0600, "(unnamed)"));
  a.held.push_back(handle);
  LK_TRYV(a.volume.write(handle, 0, pattern(91, 9000)));
  return {};
}

bool holds_key(PointModel& m) { return !m.locked(); }
void acknowledge_all(PointModel& m) { m.sync(); }

std::string hash_text(Bytes bytes) {
  return fmt::format("{} bytes {:016x}", bytes.size(), hash64(bytes));
}

std::string policy_text(const crypto::KeyId& id) { return to_hex(id.bytes).substr(0, 8); }
const std::string& point_policy() {
  static const std::string text = policy_text(needles_of(Heap(64, std::byte{7})).id);
  return text;
}

using A = PointActor;
using M = PointModel;
constexpr auto kRegular = FileKind::regular;

const PointOperation kOperations[] = {
    {"create A/bar", [](A& a) { return create(a, kNewBar); },
     [](M& m) { return m.make(kNewBar, kRegular); }},
    {"create B/foo", [](A& a) { return create(a, kNewFoo); },
     [](M& m) { return m.make(kNewFoo, kRegular); }},
    {"mkdir A/sub", [](A& a) { return mkdir(a, kSub); },
     [](M& m) { return m.make(kSub, FileKind::directory); }},
    {"write A/foo inside", [](A& a) { return write(a, kFoo, 100, pattern(1, 5000)); },
     [](M& m) { return m.write(kFoo, 100, pattern(1, 5000)); }},
    {"write A/foo behind a hole", [](A& a) { return write(a, kFoo, 30000, pattern(2, 3000)); },
     [](M& m) { return m.write(kFoo, 30000, pattern(2, 3000)); }},
    {"write B/bar whole", [](A& a) { return write(a, kBar, 0, pattern(3, 20000)); },
     [](M& m) { return m.write(kBar, 0, pattern(3, 20000)); }},
    {"append A/foo", [](A& a) { return append(a, kFoo, pattern(4, 6000)); },
     [](M& m) { return m.append(kFoo, pattern(4, 6000)); }},
    {"append A/bar", [](A& a) { return append(a, kNewBar, pattern(5, 6000)); },
     [](M& m) { return m.append(kNewBar, pattern(5, 6000)); }},
    {"truncate A/foo inside", [](A& a) { return truncate(a, kFoo, 5000); },
     [](M& m) { return m.truncate(kFoo, 5000); }},
    {"truncate A/foo to nothing", [](A& a) { return truncate(a, kFoo, 0); },
     [](M& m) { return m.truncate(kFoo, 0); }},
    {"truncate A/foo beyond", [](A& a) { return truncate(a, kFoo, 20000); },
     [](M& m) { return m.truncate(kFoo, 20000); }},
    {"link A/foo B/foo", [](A& a) { return link(a, kFoo, kNewFoo); },
     [](M& m) { return m.link(kFoo, kNewFoo); }},
    {"link B/bar A/bar", [](A& a) { return link(a, kBar, kNewBar); },
     [](M& m) { return m.link(kBar, kNewBar); }},
    {"unlink A/foo", [](A& a) { return remove(a, kFoo, false); },
     [](M& m) { return m.remove(kFoo, false); }},
    {"unlink B/bar", [](A& a) { return remove(a, kBar, false); },
     [](M& m) { return m.remove(kBar, false); }},
    {"unlink A/foo while it is open", unlink_held,
     [](M& m) { return m.write(kFoo, 0, pattern(90, 5000)) && m.remove(kFoo, false); }},
    {"a file without a name", unnamed_held, holds_key},
    {"rmdir A/sub", [](A& a) { return remove(a, kSub, true); },
     [](M& m) { return m.remove(kSub, true); }},
    {"rename A/foo A/bar", [](A& a) { return rename(a, kFoo, kNewBar); },
     [](M& m) { return m.rename(kFoo, kNewBar); }},
    {"rename A/foo B/foo", [](A& a) { return rename(a, kFoo, kNewFoo); },
     [](M& m) { return m.rename(kFoo, kNewFoo); }},
    {"rename A/foo over B/bar", [](A& a) { return rename(a, kFoo, kBar); },
     [](M& m) { return m.rename(kFoo, kBar); }},
    {"rename B/bar over A/foo", [](A& a) { return rename(a, kBar, kFoo); },
     [](M& m) { return m.rename(kBar, kFoo); }},
    {"rename B A/sub", [](A& a) { return rename(a, "/vault/B", kSub); },
     [](M& m) { return m.rename("/vault/B", kSub); }},
    {"exchange A/foo B/bar", [](A& a) { return rename(a, kFoo, kBar, true); },
     [](M& m) { return m.exchange(kFoo, kBar); }},
    {"symlink A/bar", [](A& a) { return symlink(a, kNewBar, "../B/bar"); },
     [](M& m) { return m.make(kNewBar, FileKind::symlink, "../B/bar"); }},
    {"chmod A/foo",
     [](A& a) -> Result<void> {
       LK_TRY(const InodeId inode, resolve(a.volume, kFoo));
       return a.volume.set_mode(inode, 0600);
     },
     [](M& m) { return m.say(kFoo, "mode", "600"); }},
    {"set an attribute of A/foo",
     [](A& a) -> Result<void> {
       LK_TRY(const InodeId inode, resolve(a.volume, kFoo));
       return a.volume.set_xattr(inode, "user.a", pattern(20, 300));
     },
     [](M& m) { return m.say(kFoo, "user.a", hash_text(pattern(20, 300))); }},
    {"set a longer attribute of A/foo",
     [](A& a) -> Result<void> {
       LK_TRY(const InodeId inode, resolve(a.volume, kFoo));
       return a.volume.set_xattr(inode, "user.a", pattern(21, 5000));
     },
     [](M& m) { return m.say(kFoo, "user.a", hash_text(pattern(21, 5000))); }},
    {"remove an attribute of A/foo",
     [](A& a) -> Result<void> {
       LK_TRY(const InodeId inode, resolve(a.volume, kFoo));
       return a.volume.remove_xattr(inode, "user.a");
     },
     [](M& m) { return m.unsay(kFoo, "user.a"); }},
    {"preallocate behind A/foo",
     [](A& a) {
       return with_file(a, kFoo,
                        [&](HandleId handle) { return a.volume.allocate(handle, 8192, 30000); });
     },
     [](M& m) { return m.has_contents(kFoo) && m.grow(kFoo, 8192 + 30000); }},
    {"preallocate beside the size of B/bar",
     [](A& a) {
       return with_file(a, kBar,
                        [&](HandleId handle) { return a.volume.allocate(handle, 0, 40000, true); });
     },
     [](M& m) { return m.has_contents(kBar); }},
    {"punch A/foo",
     [](A& a) {
       return with_file(a, kFoo,
                        [&](HandleId handle) { return a.volume.punch(handle, 1000, 9000); });
     },
     [](M& m) { return m.punch(kFoo, 1000, 9000); }},
    {"clone A/foo to B/bar", [](A& a) { return clone(a, kFoo, kBar); },
     [](M& m) { return m.copy_contents(kFoo, kBar); }},
    {"clone B/bar to A/bar", [](A& a) { return clone(a, kBar, kNewBar); },
     [](M& m) { return m.copy_contents(kBar, kNewBar); }},
    {"snapshot",
     [](A& a) -> Result<void> {
       LK_TRYV(a.volume.snapshot(kOwner, kRootInode, kRootInode, kSnapshot + 1, false));
       return {};
     },
     [](M& m) { return m.snapshot(kSnapshot); }, acknowledge_all},
    {"remove the snapshot",
     [](A& a) { return a.volume.remove_subvolume(kRootInode, kSnapshot + 1); },
     [](M& m) { return m.remove(kSnapshot, true); }},
    {"create a subvolume",
     [](A& a) -> Result<void> {
       LK_TRYV(a.volume.create_subvolume(kOwner, kRootInode, kSubvolume + 1, 0755));
       return {};
     },
     [](M& m) { return m.make(kSubvolume, FileKind::subvolume); }},
    {"set policy",
     [](A& a) -> Result<void> {
       LK_TRY(const InodeId directory, resolve(a.volume, kPlain));
       return a.volume.set_policy(kOwner, directory, a.key);
     },
     [](M& m) { return !m.locked() && m.say(kPlain, "policy", point_policy()); }},
    {"add key",
     [](A& a) -> Result<void> {
       LK_TRYV(add_point_key(a.volume));
       return {};
     },
     [](M& m) {
       m.lock(false);
       return true;
     }},
    {"remove key, soft", [](A& a) { return remove_key(a, keymgr::RemovalMode::soft); }, holds_key,
     [](M& m) { m.lock(true); }},
    {"remove key, sealed", [](A& a) { return remove_key(a, keymgr::RemovalMode::sealed); },
     holds_key, [](M& m) { m.lock(true); }},
    {"remove key, deny", [](A& a) { return remove_key(a, keymgr::RemovalMode::deny); }, holds_key,
     [](M& m) { m.lock(true); }},
    {"remove key, freeze", [](A& a) { return remove_key(a, keymgr::RemovalMode::freeze); },
     holds_key, [](M& m) { m.lock(true); }},
    {"remove key, hard", [](A& a) { return remove_key(a, keymgr::RemovalMode::hard); }, holds_key,
     [](M& m) {
       m.lose_dirty();
       m.lock(true);
     }},
    {"fsync A/foo", [](A& a) { return fsync(a, kFoo); }, [](M& m) { return m.has_contents(kFoo); },
     [](M& m) { m.fsync(kFoo); }},
    {"fsync B/bar", [](A& a) { return fsync(a, kBar); }, [](M& m) { return m.has_contents(kBar); },
     [](M& m) { m.fsync(kBar); }},
    {"sync", [](A& a) { return a.volume.sync(); }, [](M&) { return true; }, acknowledge_all},
};

}  // namespace

std::span<const PointOperation> point_operations() { return kOperations; }

const PointOperation& point_operation(std::string_view name) {
  const auto* found = std::ranges::find(kOperations, name, &PointOperation::name);
  LK_CHECK_MSG(found != std::end(kOperations), "no operation has that name");
  return *found;
}

Result<crypto::KeyId> add_point_key(Volume& volume) {
  LK_TRY(SecretBytes secret, SecretBytes::create(64));
  std::ranges::fill(secret.bytes(), std::byte{7});
  return volume.add_key(kOwner, std::move(secret));
}

Result<void> make_point_tree(Volume& volume, const crypto::KeyId& key) {
  PointActor a{volume, key};
  LK_TRY(const InodeId vault, make_directory(volume, kOwner, "/vault"));
  LK_TRYV(volume.set_policy(kOwner, vault, key));
  for (const char* path : {kPlain, "/vault/A", "/vault/B"}) LK_TRYV(mkdir(a, path));
  LK_TRYV(create(a, kFoo));
  LK_TRYV(write(a, kFoo, 0, pattern(10, 11000)));
  LK_TRYV(create(a, kBar));
  LK_TRYV(write(a, kBar, 0, pattern(11, 5000)));
  return volume.sync();
}

PointModel point_tree_model() {
  PointModel m;
  bool made = m.make("/vault", FileKind::directory) && m.say("/vault", "policy", point_policy());
  for (const char* path : {kPlain, "/vault/A", "/vault/B"})
    made = made && m.make(path, FileKind::directory);
  made = made && m.make(kFoo, kRegular) && m.write(kFoo, 0, pattern(10, 11000));
  made = made && m.make(kBar, kRegular) && m.write(kBar, 0, pattern(11, 5000));
  LK_CHECK(made);
  m.sync();
  return m;
}

namespace {

Result<std::vector<std::byte>> contents_of(Volume& volume, const std::string& path) {
  LK_TRY(const HandleId handle, open_path(volume, kOwner, path, {}));
  LK_TRY(const Stat stat, volume.stat(handle));
  std::vector<std::byte> contents(stat.size);
  u64 done = 0;
  while (done < contents.size()) {
    LK_TRY(const u64 count, volume.read(handle, done, std::span(contents).subspan(done)));
    if (count == 0) return fail(Errc::io, "a read ends before the end of the file");
    done += count;
  }
  LK_TRYV(volume.close_handle(handle));
  return contents;
}

Result<void> read_below(Volume& volume, InodeId directory, const std::string& path,
                        FoundTree& found) {
  LK_TRY(const auto entries, volume.read_directory(directory));
  for (const DirEntry& entry : entries) {
    const std::string name = path + "/" + entry.name;
    LK_TRY(const Stat stat, volume.stat(entry.inode));
    FoundEntry& row = found[name];
    row.inode = entry.inode;
    row.kind = entry.kind;
    row.links = stat.links;
    const u32 usual = entry.kind == FileKind::symlink    ? 0777
                      : stat.kind == FileKind::directory ? 0755
                                                         : 0644;
    if (stat.mode != usual) row.says += fmt::format("mode={:o};", stat.mode);
    if (stat.key_id) row.says += "policy=" + policy_text(*stat.key_id) + ";";
    if (entry.kind == FileKind::symlink) {
      LK_TRY(const std::string target, volume.read_link(entry.inode));
      row.says += "target=" + target + ";";
    }
    LK_TRY(const auto attributes, volume.list_xattrs(entry.inode));
    for (const std::string& attribute : attributes) {
      LK_TRY(const auto value, volume.get_xattr(entry.inode, attribute));
      row.says += attribute + "=" + hash_text(value) + ";";
    }
    if (entry.kind == FileKind::regular) {
      LK_TRY(row.contents, contents_of(volume, name));
    } else if (stat.kind == FileKind::directory) {
      LK_TRYV(read_below(volume, entry.inode, name, found));
    }
  }
  return {};
}

}  // namespace

Result<FoundTree> read_found_tree(Volume& volume) {
  FoundTree found;
  LK_TRYV(read_below(volume, kRootInode, "", found));
  return found;
}

std::string to_text(const FoundTree& tree) {
  std::string text;
  for (const auto& [path, entry] : tree)
    text +=
        fmt::format("{} kind {} links {} {}{} bytes {:016x}\n", path, static_cast<int>(entry.kind),
                    entry.links, entry.says, entry.contents.size(), hash64(entry.contents));
  return text;
}

}  // namespace latchkey::tests
