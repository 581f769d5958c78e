#pragma once
// Records of a subvolume tree (docs/disk_format.md). The key's object is the inode number, but for
// the volume's own records, whose object is below kRootNumber.

#include "base/disk.h"
#include "engine/types.h"
#include "volume/types.h"

namespace latchkey::volume {

inline constexpr u8 kInodeType = 1;  // (inode, 1, 0): InodeDisk
inline constexpr u8 kBackType = 2;   // (inode, 2, hash and slot): BackDisk and the stored name
inline constexpr u8 kEntryType = 3;  // (directory, 3, hash and slot): EntryDisk and the stored name
inline constexpr u8 kMapType = 4;    // (inode, 4, file offset): extent::MapDisk
inline constexpr u8 kTargetType = 5;      // (symlink, 5, offset): a piece of its target as stored
inline constexpr u8 kInodeCountType = 9;  // (kCounterObject, 9, 0): Le64, inodes in the subvolume
inline constexpr u8 kCounterType =
    10;  // (kCounterObject, 10, 0): Le64, no inode number from here on is used
inline constexpr u8 kOrphanType = 11;  // (kOrphanObject, 11, inode): nothing; unlinked but open

inline constexpr u64 kCounterObject = 1;
inline constexpr u64 kOrphanObject = 2;
inline constexpr std::size_t kTargetPieceBytes = 896;  // of all but the last: fits any node size
inline constexpr u64 kStoredTargetMax = 4095;          // of a stored target
// In a snapshot, of every directory that stands where a subvolume was: it is no record's, always
// empty, and never changes.
inline constexpr u64 kEmptyNumber = 2;
inline constexpr u64 kInodeChunk = 1024;  // inode numbers that the counter is ahead by

// fscrypt's v2 policy in effect: contents AES-256-XTS, names AES-256-CTS, padding 32.
struct InodeDisk {
  u8 version;  // 1
  u8 kind;     // FileKind
  u8 encrypted;
  u8 contents_mode, names_mode, policy_flags;  // 1, 4, 3 if encrypted
  Le16 reserved0;
  Le32 mode, uid, gid, links;
  Le64 size;
  Le64 mtime_ns, ctime_ns;
  std::array<std::byte, 16> key_id;
  std::array<std::byte, 16> nonce;
  Le64 atime_ns, btime_ns;
};
LK_DISK_STRUCT(InodeDisk, 96);
LK_DISK_FIELD(InodeDisk, size, 24);
LK_DISK_FIELD(InodeDisk, key_id, 48);

struct EntryDisk {
  Le64 inode;
  u8 kind;
  u8 name_size;
};
LK_DISK_STRUCT(EntryDisk, 10);

struct BackDisk {
  Le64 directory;
  u8 name_size;
};
LK_DISK_STRUCT(BackDisk, 9);

// What an inode item says.
struct Attributes {
  FileKind kind = FileKind::regular;
  u32 mode = 0, uid = 0, gid = 0, links = 1;
  u64 size = 0;  // of a symlink: of its stored target; of a device: its number
  i64 mtime_ns = 0, ctime_ns = 0, atime_ns = 0, btime_ns = 0;
  bool encrypted = false;
  crypto::KeyId key_id;
  crypto::Nonce nonce;
};
inline void set_all_times(Attributes& attributes, i64 now_ns) {
  attributes.mtime_ns = attributes.ctime_ns = attributes.atime_ns = attributes.btime_ns = now_ns;
}
InodeDisk encode(const Attributes& attributes);
// Decodes totally, as all of these: malformed for anything that encode would not write.
Result<Attributes> decode_inode(Bytes value);

// fscrypt's rule: an encrypted directory holds what has its policy, what is never encrypted, and
// nothing else; a plain one holds anything.
bool has_policy_of(const Attributes& item, const Attributes& directory);
// Whether a directory can have a name that is stored so.
bool could_be_stored(std::string_view stored, bool encrypted);
// The ciphertext in the stored target of an encrypted symlink; empty: it is malformed.
std::string_view sealed_target(std::string_view stored);

struct Entry {
  engine::Key key;
  InodeId inode;
  FileKind kind = FileKind::regular;
  std::string stored;  // the name's bytes on disk
};
std::vector<std::byte> encode_entry(const Entry& entry);
// Of a directory in `subvolume`. An entry of kind subvolume leads to that one's root directory.
Result<Entry> decode_entry(engine::TreeId subvolume, const engine::Key& key, Bytes value);

// What a back item says: one name that leads to the inode.
struct NameOfInode {
  u64 directory = 0;  // of the same subvolume
  std::string stored;
  bool operator==(const NameOfInode&) const = default;
};
std::vector<std::byte> encode_back(const NameOfInode& name);
Result<NameOfInode> decode_back(Bytes value);

// Entries are found by the hash of the stored name, back items by that of directory and stored
// name; the low byte tells those of one hash apart.
u64 entry_offset(std::string_view stored);
u64 back_offset(const NameOfInode& name);
inline constexpr u64 kEntrySlots = 256;
// So many a directory gets of one hash: a place in its listing fits into 63 bits (mount/listing.h).
inline constexpr u64 kNamesOfOneHashMax = 124;

inline engine::Key inode_count_key() { return {kCounterObject, kInodeCountType, 0}; }
inline engine::Key inode_key(u64 number) { return {number, kInodeType, 0}; }
inline engine::Key orphan_key(InodeId inode) { return {kOrphanObject, kOrphanType, inode.number}; }

}  // namespace latchkey::volume
