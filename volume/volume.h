#pragma once
// Files and directories on a store: the library's face. A mount, the command line, torture and
// bench are its clients.
//
// Promises
//   V1  After fsync() of a handle returns, what was written through any handle of that inode
//       before the call survives a crash; so do its size, its creation and its own names, but not
//       what else happened, such as a new name of a directory above it: that is for sync(). An
//       operation on names is atomic in a crash. Of an unacknowledged write each 4 KiB block is old
//       or new.
//   V2  A write that was acknowledged is not lost to the removal of its key but where the mode's
//       row says so, and then it is counted in the report and told once by fsync or close.
//   V3  Data and names of an encrypted directory are never on the device in the clear.
//   V4  An error changes nothing that it does not say.
//   V5  Where memory runs out a call answers no_memory or throws std::bad_alloc, with V1 and V4 as
//       for any error; in the middle of a change of the store the volume stops (D4). Nothing else
//       is thrown, and nothing by the volume's own threads.
//
// Threads: every call is thread-safe. uids are taken as given. Names: 1 to 255 bytes, no '/', no
// NUL, not "." or "..". Offsets and sizes are bytes. Errors are POSIX's: not_found, exists,
// not_dir, is_dir, is_symlink, not_empty, name_too_long, no_space, too_big, read_only, bad_handle,
// invalid, io, damaged; and no_key where the key that is needed is not usable (design 3, "Names",
// "Directories"). would_wait where a call asked not to wait (IoFlags).

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/env.h"
#include "base/result.h"
#include "base/secret.h"
#include "engine/io.h"
#include "volume/types.h"

namespace latchkey::volume {

class Volume {
 public:
  // Makes an empty store with a root directory. Does not ask what is on the device (see
  // engine::foreign_signature): the caller does.
  static Result<void> mkfs(engine::Device& device, const MkfsOptions& options, Env& env);
  // The device must outlive the volume.
  static Result<std::unique_ptr<Volume>> open(engine::Device& device, const VolumeOptions& options,
                                              Env& env);
  ~Volume();  // abandons what was not flushed, as a crash would; wipes all keys
  // Flushes, commits, wipes all keys. Handles are dead afterwards. Reports the first flush error.
  Result<void> close();

  // --- keys (design 3) -------------------------------------------------------------------------
  Result<crypto::KeyId> add_key(Caller caller, SecretBytes&& secret);
  // A key that the caller has and had no claim on is absent to him, and in no list, but for root
  // (VolumeOptions::status_public: and everybody).
  KeyReport key_status(Caller caller, const crypto::KeyId& id);
  // The state alone, at no cost for who is inside.
  keymgr::KeyState key_state(Caller caller, const crypto::KeyId& id);
  std::vector<KeyReport> key_list(Caller caller);
  // One path for all modes (keymgr/removal_mode.h says what each does). `report` is filled where
  // the removal is refused, too: busy has the holders. Errors: no_key (absent, or no claim),
  // permission (all users), busy (safe), canceled (overtaken by the caller's own add), no_memory
  // (sealed: the bound), invalid (a deadline that nobody waits for), and of the flush: then nothing
  // has changed, but for soft and hard, whose claim goes first.
  Result<void> remove_key(Caller caller, const crypto::KeyId& id, const RemovalRequest& request,
                          RemovalReport& report);
  Result<RemovalReport> remove_key(Caller caller, const crypto::KeyId& id,
                                   const RemovalRequest& request);
  Result<RemovalReport> remove_key(Caller caller, const crypto::KeyId& id, keymgr::RemovalMode mode,
                                   bool all_users = false);

  // --- names -----------------------------------------------------------------------------------
  // The directory must be empty, and without user.* attributes (with compat_fscrypt it may have
  // some, which stay in the clear); the same policy again is fine; exists: it has another.
  // permission: the caller is neither its owner nor root. The key must be present, with a claim of
  // the caller's (root: of anybody's). invalid: no store has such fields. New files and directories
  // below inherit it.
  Result<void> set_policy(Caller caller, InodeId directory, const crypto::KeyId& id,
                          const PolicyFields& fields = kPolicyFields);
  // not_permitted, and from opens: what lies there does not have the directory's policy, which only
  // somebody behind our back can have done (names.cpp).
  Result<InodeId> lookup(InodeId directory, std::string_view name);
  Result<Stat> stat(InodeId inode);
  Result<InodeId> mkdir(Caller caller, InodeId directory, std::string_view name, u32 mode);
  Result<void> rmdir(InodeId directory, std::string_view name);
  Result<void> unlink(InodeId directory, std::string_view name);
  // One atomic step. What has the new name goes, as by unlink or rmdir. Both directories must be
  // unlocked (no_key), and what leaves an encrypted one, too: in a directory that is held open the
  // names may outlive the key. cross_key: what moves into an encrypted directory must have its
  // policy.
  // invalid: a directory into itself or below.
  Result<void> rename(InodeId from_directory, std::string_view from, InodeId to_directory,
                      std::string_view to, RenameFlags flags = {});
  // mtime alone; mode alone.
  Result<void> set_times(InodeId inode, i64 mtime_ns);
  Result<void> set_mode(InodeId inode, u32 mode);

  // --- links, symlinks, special files, files without a name (links.cpp) ------------------------
  // One more name of the inode. not_permitted: it is a directory. too_many_links: it has kLinksMax.
  // cross_key: the directory is encrypted and the inode has another policy (special files have
  // none and lie anywhere), or it is in another subvolume. no_key: the directory is locked, or the
  // inode is.
  // not_found, too: the inode has no name left; but an unnamed file gets its first one in this way.
  Result<void> link(InodeId inode, InodeId directory, std::string_view name);
  Result<void> link(HandleId handle, InodeId directory, std::string_view name);
  // The target is any text of 1 to 4095 bytes without a zero (4093 in an encrypted directory, where
  // it is encrypted as fscrypt does it, under the symlink's own key), else name_too_long.
  Result<InodeId> symlink(Caller caller, InodeId directory, std::string_view name,
                          std::string_view target);
  // invalid: not a symlink. While its key is not present: the target's no-key form.
  Result<std::string> read_link(InodeId inode);
  // A fifo, socket, device or empty file. Special files are not encrypted, their names are.
  Result<InodeId> make_node(Caller caller, InodeId directory, std::string_view name,
                            const NewNode& node);
  // A new file with the directory's policy and without a name. It lives until its last handle is
  // closed; link() of a handle can name it, unless flags.exclusive is set. flags.write must be.
  Result<HandleId> open_unnamed(Caller caller, InodeId directory, OpenFlags flags, u32 mode,
                                std::string path);

  // Everything in the directory but "." and "..", in the store's order.
  Result<std::vector<DirEntry>> read_directory(InodeId directory);
  // The directory above; of the store's root, itself. not_found: it has been removed.
  Result<InodeId> parent(InodeId directory);

  // --- subvolumes (volume/subvolumes.h) --------------------------------------------------------
  // A subvolume is a tree of inodes of its own with a root directory, which inherits the policy of
  // the directory that names it. Names and links do not cross its border (cross_key).
  Result<InodeId> create_subvolume(Caller caller, InodeId directory, std::string_view name,
                                   u32 mode);
  // A subvolume like `source`, whose root directory that is, as it is after what was written before
  // the call; durable on return. Costs metadata alone, whatever the size; needs no key but for the
  // name. Subvolumes below are empty directories in it. read_only: changes answer read_only.
  Result<InodeId> snapshot(Caller caller, InodeId source, InodeId directory, std::string_view name,
                           bool read_only);
  Result<std::vector<SubvolumeInfo>> list_subvolumes();  // by id; the first is the store's root
  // Takes the name at once, and frees what only this one has in the background, after a crash at
  // the next open. busy: somebody is inside, `holders` says who has what open. not_empty: there are
  // subvolumes below. Needs no key.
  Result<void> remove_subvolume(InodeId directory, std::string_view name,
                                std::vector<Holder>* holders = nullptr);
  // Waits until removed subvolumes are gone, and helps. `progress` hears of each step of its own.
  Result<void> finish_removals(const std::function<void(u64 steps)>& progress = {});

  // --- attributes, of the inode or of an open handle's, which may be unlinked --------------------
  // One step; ctime moves by itself. A new owner takes setuid away, and setgid where the group may
  // execute, of all but directories, unless the same call sets the mode. So does a write or
  // truncate by another uid than 0. Needs no key.
  Result<void> set_attributes(InodeId inode, const AttributeChange& change);
  Result<void> set_attributes(HandleId handle, const AttributeChange& change);
  // Names begin with user., trusted. or security., or are system.posix_acl_access or _default,
  // which nobody here interprets; 1 to 255 bytes, else out_of_range; unsupported: another
  // namespace. Values have up to 64 KiB (list_too_big). no_attribute: there is none. Those of
  // user.* are encrypted where the inode is, and need its key (no_key; a handle keeps it as for
  // data); names are not: list and remove need none. With compat_fscrypt they are set in the clear,
  // with and without the key, and whoever opens the volume later reads them so. not_permitted:
  // user.* of what is neither file nor directory. no_space changes nothing.
  Result<void> set_xattr(InodeId inode, std::string_view name, Bytes value, XattrFlags flags = {});
  Result<void> set_xattr(HandleId handle, std::string_view name, Bytes value,
                         XattrFlags flags = {});
  Result<std::vector<std::byte>> get_xattr(InodeId inode, std::string_view name);
  Result<std::vector<std::byte>> get_xattr(HandleId handle, std::string_view name);
  Result<std::vector<std::string>> list_xattrs(InodeId inode);  // in the store's order
  Result<std::vector<std::string>> list_xattrs(HandleId handle);
  Result<void> remove_xattr(InodeId inode, std::string_view name);
  Result<void> remove_xattr(HandleId handle, std::string_view name);

  // --- handles ---------------------------------------------------------------------------------
  // Opens (or creates) a regular file by name. `path` is kept for reports only. is_symlink: it is
  // not followed. unsupported: a special file, which is its opener's to make one of.
  Result<HandleId> open_file(Caller caller, InodeId directory, std::string_view name,
                             OpenFlags flags, u32 mode, std::string path);
  // The same by inode, whatever its name: through the same door of its key. No flag that makes one.
  Result<HandleId> open(Caller caller, InodeId inode, OpenFlags flags, std::string path);
  // An open directory handle: keeps its key's names while it is open.
  Result<HandleId> open_directory(Caller caller, InodeId directory, std::string path);
  // What that handle has open, through the same door, although it may have no name any more. Of a
  // directory `flags` say nothing.
  Result<HandleId> open_again(Caller caller, HandleId handle, OpenFlags flags, std::string path);
  // Through a directory handle the plaintext names stay visible after a soft removal.
  Result<std::vector<DirEntry>> read_directory(HandleId directory);
  // At most so many, from the place `from` on (DirEntry::place; 0: all): what is there from the
  // first call of a listing to the last comes once, whatever comes and goes beside it.
  Result<std::vector<DirEntry>> read_directory(HandleId directory, u64 from, u64 count_max);
  // Flushes if the handle's inode is the last busy one of a key that is being removed. Reports a
  // writeback error that nobody has been told yet; the handle is closed in any case.
  Result<void> close_handle(HandleId handle);
  // What close_handle() would report, told now; the handle stays open.
  Result<void> take_errors(HandleId handle);
  // The handle's key is incompletely removed: a front drops the pages of the inode before the last
  // close of it.
  bool key_is_leaving(HandleId handle);
  Result<Stat> stat(HandleId handle);
  // bytes; 0 at the end
  Result<u64> read(HandleId handle, u64 offset, MutableBytes into, IoFlags flags = {});
  // All, or an error; of one that would wait half way through, what was written.
  Result<u64> write(HandleId handle, u64 offset, Bytes from, IoFlags flags = {});
  Result<u64> append(HandleId handle, Bytes from);  // the offset it was written at
  // Atomic for a file of few pieces; one of very many is cut in steps from its end, and an error or
  // a crash may leave a size in between. invalid: the handle is not open for writing (ftruncate's).
  Result<void> truncate(HandleId handle, u64 size, IoFlags flags = {});
  Result<void> fsync(HandleId handle);
  // Flushes the handle's file first, so that the rows say where everything is.
  Result<std::vector<MapRow>> map(HandleId handle);

  // --- holes and promises -----------------------------------------------------------------------
  // Where data, or a hole, is at or after `offset`; exact to 4 KiB. Dirty pages are data, promised
  // ranges are holes, so is what lies behind the end of the file. None (ENXIO): `offset` is not
  // inside of the file, or no data follows.
  Result<std::optional<u64>> seek(HandleId handle, u64 offset, Seek what);
  // The range reads as zeros, and its whole blocks take no space any more. The size stays. On an
  // error a part may have been punched.
  Result<void> punch(HandleId handle, u64 offset, u64 length, IoFlags flags = {});
  // Promises space: a first write to any block of the range does not fail with no_space, across
  // crashes. What is in the range stays; what was a hole reads as zeros and counts in Stat::blocks.
  // An overwrite is copied on write, as ever, and needs new space. The file grows to the end of the
  // range, but for keep_size. no_space: nothing was promised.
  Result<void> allocate(HandleId handle, u64 offset, u64 length, bool keep_size = false);

  // --- clones -----------------------------------------------------------------------------------
  // The range of `to` becomes the range of `from`, in the same blocks of the device under the same
  // extent keys; what is written to either afterwards goes elsewhere. length 0: to the end of
  // `from`. Rules and errors as FICLONERANGE: offsets are multiples of 4096, and so is the length
  // but where it ends both files; invalid also for ranges of one file that overlap, and between an
  // encrypted file and a plain one; cross_key between two keys; no_key unless both are unlocked; io
  // where a removal has dropped dirty data of one of them since its handle was opened. On an error
  // the front of the range may have been cloned.
  Result<void> clone_range(HandleId from, u64 from_offset, HandleId to, u64 to_offset, u64 length);

  // Everything. io, too, if dirty data was dropped with its key while this ran.
  Result<void> sync();
  // Reads and verifies all that is on the device, while the volume is in use or locked, and mends
  // what has a good twin (engine/scrub.h); then names the files of bad blocks.
  Result<ScrubReport> scrub(const engine::ScrubOptions& options);
  VolumeFacts facts() const;
  Result<VolumeSpace> space();         // exact, of this moment
  engine::FreeRuns free_runs() const;  // reads every bitmap

 private:
  struct State;
  explicit Volume(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Offline check of the whole structure: the engine's check, and maps against extent references,
// names against inodes and link counts, sizes against maps. Only reads; needs no key.
struct CheckFindings {
  std::vector<engine::Finding> findings;
  std::vector<engine::Finding> notes;  // see engine::CheckResult
  u64 nodes = 0, extents = 0, data_blocks = 0, inodes = 0, directories = 0;
  bool stepped_back = false;  // see engine::StoreFacts
};
Result<CheckFindings> check_volume(engine::Device& device, const engine::CheckOptions& options,
                                   Env& env);

// Offline repair of what can be derived: places of nodes, free space, superblock copies, counts of
// references (engine/repair.h); then, if every record can be read, names, links, counters, sizes,
// maps and subvolumes against each other (volume/repair.cpp). What nothing leads to comes into
// lost+found. A check afterwards says what is left. Needs no key. One that was cut off is begun
// again. Errors: those of Store::open, io.
struct RepairOptions {
  u32 commit_every = 256;  // changes
};
struct RepairFindings {
  std::vector<engine::Finding> mended;
};
Result<RepairFindings> repair_volume(engine::Device& device, Env& env,
                                     const RepairOptions& options = {});

}  // namespace latchkey::volume
