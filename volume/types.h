#pragma once
// What the library's calls take and give.

#include <array>
#include <compare>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/types.h"
#include "crypto/ids.h"
#include "engine/scrub.h"
#include "engine/store.h"
#include "keymgr/keyring.h"
#include "keymgr/slots.h"

namespace latchkey::volume {

class Front;  // volume/front.h

// Of one inode for ever: neither trees nor numbers within a tree are handed out twice.
struct InodeId {
  engine::TreeId subvolume = 0;
  u64 number = 0;
  auto operator<=>(const InodeId&) const = default;
};
std::string to_text(InodeId inode);      // "inode 300", "subvolume 257, inode 300"
inline constexpr u64 kRootNumber = 256;  // of every subvolume's root directory
inline constexpr InodeId kRootInode{engine::kFirstSubvolume, kRootNumber};

enum class HandleId : u64 {};

// Who calls. `gid` is of what he makes, unless its directory is setgid; none: as his uid. `pid` is
// for reports alone; 0: not known.
struct Caller {
  u32 uid = 0;
  std::optional<u32> gid = {};
  u32 pid = 0;
};

struct MkfsOptions {
  u32 node_bytes = 16384;
  u32 extent_bytes_max = 128 * 1024;  // 4 KiB to 1 MiB
  std::string label;
  u32 uid = 0, gid = 0;  // of the root directory
};

enum class Atime : u8 {
  none,
  relative,  // what was changed since, or was read a day ago
  strict,    // each
};

struct VolumeOptions {
  bool read_only = false;
  bool previous_generation = false;  // read-only, for rescue
  bool clear_cipher = false;        // bench only: derivation and cipher replaced by a copy; what is
                                    // written under it is plaintext on the device
  bool compat_fscrypt = false;      // the kernel's answers where ours differ (design 3); and values
                                    // of user.* attributes are written in the clear, as ext4's are
  u64 dirty_bytes_max = 64 * kMiB;  // writers wait beyond it
  u32 writeback_workers = 2;
  u32 queue_depth = 32;           // of each worker's ring
  u32 commit_interval_ms = 5000;  // 0: no timer; only fsync, pressure and close commit
  u32 extent_bytes = 0;           // longest extent of this volume; 0: the store's
  u32 key_slots = 1024;
  u32 max_claims_per_uid = 200;   // on different keys; root has no limit
  bool status_public = false;     // who has and had no claim on a key is told of it, too
  u64 sealed_bytes_max = 0;       // locked memory of one sealed removal; 0: what the arena has
  u32 parked_max = 1024;          // reads and writes that wait for suspended keys
  Atime atime = Atime::relative;  // which reads move atime (Stat)
  bool directory_atime = true;    // false: those of a directory do not
  bool discard = false;           // see engine::OpenOptions
  bool fsync_log = true;          // false: every fsync is a commit
  bool inline_writeback = false;  // no threads of our own: the caller's thread does all the work,
                                  // in one order, for the simulator
  Front* front = nullptr;         // what keeps pages in front of the volume; outlives it
};

enum class FileKind : u8 {
  regular = 1,
  directory = 2,
  symlink = 3,
  fifo = 4,
  socket = 5,
  char_device = 6,
  block_device = 7,
  subvolume = 8,  // of directory entries only: what they lead to is a directory
};
constexpr bool is_device(FileKind kind) {
  return kind == FileKind::char_device || kind == FileKind::block_device;
}
// What has no data of its own; fscrypt never encrypts it.
constexpr bool is_special(FileKind kind) {
  return kind == FileKind::fifo || kind == FileKind::socket || is_device(kind);
}
inline constexpr u32 kLinksMax = 65000;
inline constexpr u32 kSetGid = 02000;  // of a mode

struct Stat {
  InodeId inode;
  FileKind kind = FileKind::regular;
  u32 mode = 0;  // permission bits
  u32 uid = 0, gid = 0;
  u32 links = 0;
  u64 size = 0;    // of a symlink: of what read_link() gives just now
  u64 device = 0;  // of a device: its number as stat's st_rdev has it
  u64 blocks = 0;  // 4 KiB blocks that the map refers to, dirty pages not counted
  i64 mtime_ns = 0, ctime_ns = 0;
  // Of the last read, by relatime's rule: a read moves it if it is not younger than mtime and ctime
  // or a day old. On the device at the last close of the inode; a crash may lose it.
  i64 atime_ns = 0;
  i64 btime_ns = 0;                     // when it was made
  std::optional<crypto::KeyId> key_id;  // encrypted under
  crypto::Nonce nonce;                  // of its names' key, for an encrypted directory
  bool locked = false;                  // its key is not usable for a new open now
};

// What a policy of fscrypt's says beside its key. A store has one kind: these.
struct PolicyFields {
  u8 version = 2;
  u8 contents_mode = static_cast<u8>(crypto::Mode::aes_256_xts);
  u8 names_mode = static_cast<u8>(crypto::Mode::aes_256_cts);
  u8 flags = 3;                 // names are padded to 32 bytes
  std::array<u8, 4> rest = {};  // size of the data unit (0: a block), reserved
  bool operator==(const PolicyFields&) const = default;
};
inline constexpr PolicyFields kPolicyFields;

struct DirEntry {
  std::string name;  // plain, or no-key form while the directory is locked
  InodeId inode;
  FileKind kind = FileKind::regular;
  u64 place = 0;  // in its directory, as long as it is there; the next one's is greater
};

struct SubvolumeInfo {
  engine::TreeId id = 0;
  engine::TreeId parent = 0;  // the subvolume that has its name; 0: the first one, a removed one
  engine::TreeId origin = 0;  // that it was a snapshot of; 0: none
  i64 created_ns = 0;
  bool read_only = false;
  bool removed = false;  // its blocks are being freed
  std::string path;      // with no-key names where a directory is locked; of a removed one none
};

// What is not named stays as it is. Any i64 is a time.
struct AttributeChange {
  std::optional<u32> mode = {};  // the lowest 12 bits
  std::optional<u32> uid = {}, gid = {};
  std::optional<i64> atime_ns = {}, mtime_ns = {};
};

struct XattrFlags {
  bool create = false;   // exists if there is such an attribute already
  bool replace = false;  // no_attribute if there is none
};

// What statfs says, in blocks of 4 KiB.
struct VolumeSpace {
  u64 blocks_total = 0;
  u64 blocks_free = 0;       // that nothing committed or running refers to
  u64 blocks_available = 0;  // what can still be written (engine::SpaceFacts)
  u64 inodes = 0;            // that exist, in all subvolumes; those unlinked in use included
};

struct OpenFlags {
  bool read = true;
  bool write = false;
  bool append = false;
  bool create = false;
  bool exclusive = false;
  bool truncate = false;
};

// How a call of a front's waits (volume/front.h).
struct IoFlags {
  // false: would_wait instead of a wait for a suspended key, or for a removal that holds writers.
  bool wait = true;
  // A write of what the front holds dirty: acknowledged already, and lost if it is refused. Passes
  // where writers are held or stopped, until a removal has the front's pages; then no_key, which
  // that removal counts. Never waits, and goes where it says in a file opened to append, too.
  bool written_back = false;
  // The front drops the pages of this range just now, and that waits for this call: it is done as
  // long as what is written back is taken.
  bool serve = false;
};

struct NewNode {
  FileKind kind = FileKind::fifo;
  u32 mode = 0;    // permission bits
  u64 device = 0;  // of a device, as Stat has it: at most 32 bits
};

enum class Seek : u8 { data, hole };

struct RenameFlags {
  bool no_replace = false;  // exists if there is such a name already
  bool exchange = false;    // both names must exist; they change places
};

// One open handle of a key that is being removed or asked about.
struct Holder {
  std::string path;  // by which it was opened
  u32 uid = 0;
  HandleId handle{};
  u64 dirty_bytes = 0;
  u64 since_ns = 0;  // realtime
  u32 pid = 0;       // that opened it; 0: not known. In a mount's reports: that has it open now
  std::string command = {};  // of that process, where a mount knows
  u64 since_boot_ns = 0;     // as since_ns, by Env::boottime_ns()
};

struct KeyReport {
  crypto::KeyId key_id;
  keymgr::KeyState state = keymgr::KeyState::absent;
  bool added_by_self = false;
  u32 user_count = 0;
  std::vector<Holder> holders;
};

struct RemovalRequest {
  keymgr::RemovalMode mode = keymgr::RemovalMode::soft;
  bool all_users = false;  // every claim, root's verb
  bool dry_run = false;    // says what would be, and changes nothing
  // Returns when the key is absent; safe waits for the handles instead of refusing.
  bool wait = false;
  // From now on. If the key is not absent by then, the removal goes on in mode `then`: within this
  // call if it waits, else (soft, sealed) by a thread of the volume's own. Of suspend: what waits
  // for the key gets ENOKEY then.
  std::optional<u64> deadline_ns = {};
  keymgr::RemovalMode then = keymgr::RemovalMode::deny;
};

struct RemovalPhase {
  std::string_view
      name;  // "door", "front", "flush", "seal", "commit", "drop", "leave", "wait", "report"
  u64 ns = 0;
};

// Acknowledged data that a removal dropped.
struct LostFile {
  InodeId inode;
  std::string path;  // by which a handle was opened, else as it can be named then
  u64 bytes = 0;
};

struct RemovalReport {
  crypto::KeyId key_id;
  keymgr::RemovalMode mode{};
  keymgr::KeyState state = keymgr::KeyState::absent;
  bool files_busy = false;   // open handles remain
  bool other_users = false;  // only the caller's claim went
  std::vector<Holder> holders;
  u64 bytes_flushed = 0;
  u64 bytes_lost = 0;
  u64 files_lost = 0;
  std::vector<LostFile> lost;
  u64 files_cached = 0;   // of which the front still has pages although it was to drop them
  u64 own_keys = 0;       // sealed: of extents, that busy inodes keep
  u64 own_key_bytes = 0;  // sealed: of locked memory for all that they keep
  bool dry_run = false;
  std::vector<RemovalPhase> phases;
};

// One piece of a file's data on the device, in file order; holes have none.
struct MapRow {
  u64 file_offset = 0;
  u64 device_offset = 0;  // of the piece's first data unit
  u64 length = 0;         // bytes, a multiple of 4096
  std::optional<crypto::KeyId> key_id;
  crypto::Nonce nonce;
  crypto::Mode mode = crypto::Mode::none;
  u64 first_unit = 0;  // tweak of the first data unit
};

// A block of a file that a scrub found bad; a shared one has a row for each file.
struct ScrubFile {
  std::string path;  // one of its names; no-key names where a directory is locked
  InodeId inode;
  u64 file_offset = 0;
  u64 device_offset = 0;
  bool unreadable = false;  // else it does not match its checksum
};

struct ScrubReport {
  engine::ScrubResult store;
  std::vector<ScrubFile> files;
};

struct VolumeFacts {
  engine::StoreFacts store;
  engine::SpaceFacts space;
  u64 dirty_bytes = 0;
  u64 commits = 0;
  u64 log_blocks = 0;    // of the fsync log, written
  u64 maps_counted = 0;  // files whose map was read whole for Stat::blocks
  u64 extents_sealed = 0;
  u64 bytes_sealed = 0;
  keymgr::SlotCounters slots;
};

}  // namespace latchkey::volume

template <>
struct std::hash<latchkey::volume::InodeId> {
  std::size_t operator()(const latchkey::volume::InodeId& id) const {
    return id.number + id.subvolume * 0x9e3779b97f4a7c15;
  }
};
