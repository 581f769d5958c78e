#include "volume/format.h"

#include <fmt/format.h>

#include <cstring>

#include "base/checksum.h"

namespace latchkey::volume {

namespace {

constexpr u64 kDeviceNumberMax = 0xffff'ffff;

bool kind_known(u8 kind) {
  return kind >= static_cast<u8>(FileKind::regular) &&
         kind <= static_cast<u8>(FileKind::block_device);
}

}  // namespace

bool has_policy_of(const Attributes& item, const Attributes& directory) {
  if (!directory.encrypted || is_special(item.kind)) return true;
  return item.encrypted && item.key_id == directory.key_id;
}

std::string_view sealed_target(std::string_view stored) {
  static constexpr std::size_t kSealedBytesMin = 16;
  if (stored.size() < sizeof(Le16) + kSealedBytesMin) return {};
  const auto size = load_disk<Le16>(std::as_bytes(std::span(stored)));
  if (size != stored.size() - sizeof(Le16)) return {};
  return stored.substr(sizeof(Le16));
}

std::string to_text(InodeId inode) {
  if (inode.subvolume == kRootInode.subvolume) return fmt::format("inode {}", inode.number);
  return fmt::format("subvolume {}, inode {}", inode.subvolume, inode.number);
}

InodeDisk encode(const Attributes& attributes) {
  InodeDisk disk{};
  disk.version = 1;
  disk.kind = static_cast<u8>(attributes.kind);
  disk.mode = attributes.mode;
  disk.uid = attributes.uid;
  disk.gid = attributes.gid;
  disk.links = attributes.links;
  disk.size = attributes.size;
  disk.mtime_ns = static_cast<u64>(attributes.mtime_ns);
  disk.ctime_ns = static_cast<u64>(attributes.ctime_ns);
  disk.atime_ns = static_cast<u64>(attributes.atime_ns);
  disk.btime_ns = static_cast<u64>(attributes.btime_ns);
  if (attributes.encrypted) {
    disk.encrypted = 1;
    disk.contents_mode = kPolicyFields.contents_mode;
    disk.names_mode = kPolicyFields.names_mode;
    disk.policy_flags = kPolicyFields.flags;
    disk.key_id = attributes.key_id.bytes;
    disk.nonce = attributes.nonce.bytes;
  }
  return disk;
}

Result<Attributes> decode_inode(Bytes value) {
  if (value.size() != sizeof(InodeDisk))
    return fail(Errc::malformed, "an inode item has a wrong size");
  const auto disk = load_disk<InodeDisk>(value);
  Attributes attributes;
  const auto kind = static_cast<FileKind>(disk.kind);
  const u64 size_max = is_device(kind)             ? kDeviceNumberMax
                       : is_special(kind)          ? 0
                       : kind == FileKind::symlink ? kStoredTargetMax
                                                   : u64{1} << 62;
  const bool policy_known =
      disk.encrypted == 0 ||
      (disk.encrypted == 1 && disk.contents_mode == kPolicyFields.contents_mode &&
       disk.names_mode == kPolicyFields.names_mode && disk.policy_flags == kPolicyFields.flags);
  if (disk.version != 1 || !kind_known(disk.kind) || !policy_known || disk.mode > 07777 ||
      disk.size > size_max || (is_special(kind) && disk.encrypted != 0))
    return fail(Errc::malformed, "an inode item is malformed");
  attributes.kind = kind;
  attributes.mode = disk.mode;
  attributes.uid = disk.uid;
  attributes.gid = disk.gid;
  attributes.links = disk.links;
  attributes.size = disk.size;
  attributes.mtime_ns = static_cast<i64>(disk.mtime_ns.get());
  attributes.ctime_ns = static_cast<i64>(disk.ctime_ns.get());
  attributes.atime_ns = static_cast<i64>(disk.atime_ns.get());
  attributes.btime_ns = static_cast<i64>(disk.btime_ns.get());
  attributes.encrypted = disk.encrypted != 0;
  attributes.key_id.bytes = disk.key_id;
  attributes.nonce.bytes = disk.nonce;
  // Reserved bytes, and the policy of an inode that has none.
  const InodeDisk canonical = encode(attributes);
  if (std::memcmp(&canonical, value.data(), sizeof canonical) != 0)
    return fail(Errc::malformed, "an inode item is malformed");
  return attributes;
}

std::vector<std::byte> encode_entry(const Entry& entry) {
  std::vector<std::byte> value(sizeof(EntryDisk) + entry.stored.size());
  const bool crosses = entry.kind == FileKind::subvolume;
  const EntryDisk disk{crosses ? entry.inode.subvolume : entry.inode.number,
                       static_cast<u8>(entry.kind), static_cast<u8>(entry.stored.size())};
  store_disk(value, disk);
  std::memcpy(value.data() + sizeof disk, entry.stored.data(), entry.stored.size());
  return value;
}

Result<Entry> decode_entry(engine::TreeId subvolume, const engine::Key& key, Bytes value) {
  if (value.size() < sizeof(EntryDisk))
    return fail(Errc::malformed, "a directory entry is malformed");
  const auto disk = load_disk<EntryDisk>(value);
  const bool leads_somewhere =
      kind_known(disk.kind) || disk.kind == static_cast<u8>(FileKind::subvolume);
  if (!leads_somewhere || disk.name_size == 0 || value.size() != sizeof disk + disk.name_size)
    return fail(Errc::malformed, "a directory entry is malformed");
  Entry entry;
  entry.key = key;
  entry.kind = static_cast<FileKind>(disk.kind);
  if (entry.kind == FileKind::subvolume)
    entry.inode = {disk.inode, kRootNumber};
  else
    entry.inode = {subvolume, disk.inode};
  const Bytes name = value.subspan(sizeof disk);
  entry.stored.assign(reinterpret_cast<const char*>(name.data()), name.size());
  return entry;
}

std::vector<std::byte> encode_back(const NameOfInode& name) {
  std::vector<std::byte> value(sizeof(BackDisk) + name.stored.size());
  store_disk(value, BackDisk{name.directory, static_cast<u8>(name.stored.size())});
  std::ranges::copy(std::as_bytes(std::span(name.stored)), value.begin() + sizeof(BackDisk));
  return value;
}

Result<NameOfInode> decode_back(Bytes value) {
  if (value.size() < sizeof(BackDisk)) return fail(Errc::malformed, "a back item is malformed");
  const auto disk = load_disk<BackDisk>(value);
  if (disk.name_size == 0 || value.size() != sizeof disk + disk.name_size)
    return fail(Errc::malformed, "a back item is malformed");
  const Bytes name = value.subspan(sizeof disk);
  return NameOfInode{disk.directory, {reinterpret_cast<const char*>(name.data()), name.size()}};
}

u64 entry_offset(std::string_view stored) {
  return hash64(std::as_bytes(std::span(stored))) & ~(kEntrySlots - 1);
}

u64 back_offset(const NameOfInode& name) {
  std::vector<std::byte> hashed(sizeof(Le64) + name.stored.size());
  store_disk(hashed, Le64(name.directory));
  std::ranges::copy(std::as_bytes(std::span(name.stored)), hashed.begin() + sizeof(Le64));
  return hash64(hashed) & ~(kEntrySlots - 1);
}

}  // namespace latchkey::volume
