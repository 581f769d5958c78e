#pragma once
// Records of extended attributes (docs/disk_format.md): a name and a stored value, cut into pieces
// where it is longer than a record. Names are plain; the stored value of a user.* attribute of an
// encrypted inode is what crypto/values.h makes of the value, unless it was set with
// compat_fscrypt. Nothing here knows a key.

#include <optional>
#include <vector>

#include "base/disk.h"
#include "engine/store.h"
#include "volume/format.h"

namespace latchkey::volume {

inline constexpr u8 kXattrType = 6;  // (inode, 6, hash, slot and piece): XattrDisk, name and value

inline constexpr std::size_t kXattrNameBytesMax = 255;
inline constexpr std::size_t kXattrValueBytesMax = 64 * kKiB;

// Begins the first piece, before the name; the others are bytes of the stored value alone.
struct XattrDisk {
  u8 name_size;
  u8 sealed;  // 1: the value is encrypted
  Le16 reserved;
  Le32 stored_bytes;
};
LK_DISK_STRUCT(XattrDisk, 8);
LK_DISK_FIELD(XattrDisk, stored_bytes, 4);

struct Xattr {
  u64 offset = 0;  // of the first piece's key
  u32 pieces = 0;
  std::string name;
  bool sealed = false;
  std::vector<std::byte> stored;
};

// The low 16 bits of an offset are not the hash's: a slot of 8 bits tells names of one hash apart,
// the piece's number in the last 8 keeps those of one attribute together.
inline constexpr u64 kXattrSlotStep = 256;
inline constexpr u64 kXattrHashStep = 65536;
u64 xattr_offset(std::string_view name);  // slot 0, piece 0

// user.* is encrypted where the inode is; trusted.*, security.* and the POSIX ACLs never are.
inline bool is_user_xattr(std::string_view name) { return name.starts_with("user."); }
inline bool is_secret_xattr(const Attributes& owner, std::string_view name) {
  return owner.encrypted && is_user_xattr(name);
}
// `clear`: the store has the feature without which a secret one in the clear is damage.
inline bool is_stored_as_it_may_be(const Xattr& xattr, const Attributes& owner, bool clear) {
  const bool secret = is_secret_xattr(owner, xattr.name);
  return xattr.sealed == secret || (secret && clear);
}
// out_of_range: empty or longer than 255 bytes; invalid: nothing after its namespace, or a NUL;
// unsupported: another namespace.
Result<void> check_xattr_name(std::string_view name);

// Values of the records at xattr.offset, + 1, ...; each at most record_bytes_max.
std::vector<std::vector<std::byte>> encode_xattr(const Xattr& xattr, u32 record_bytes_max);

// Puts attributes together from the records of one inode in the order of their keys. Decodes
// totally: malformed for what encode_xattr() would not write, whatever the size of a record.
class XattrReader {
 public:
  // An attribute that is whole by now; `values` is false: its value was only counted.
  explicit XattrReader(bool values = true) : values_(values) {}
  // What the record before began is complete when one with piece 0 or end() comes.
  Result<void> add(const engine::Key& key, Bytes value);
  Result<void> end();
  std::vector<Xattr> take() { return std::exchange(whole_, {}); }

 private:
  const bool values_;
  std::optional<Xattr> open_;
  u64 open_bytes_ = 0;    // of its stored value, seen so far
  u64 wanted_bytes_ = 0;  // that its first piece promises
  std::vector<Xattr> whole_;
};

Result<std::optional<Xattr>> find_xattr(const engine::View& view, InodeId inode,
                                        std::string_view name);
Result<std::vector<std::string>> xattr_names(const engine::View& view, InodeId inode);
// The first slot of this name's hash that nobody has; no_space when all are taken.
Result<u64> free_xattr_offset(const engine::View& view, InodeId inode, std::string_view name);
// Erases at most `count_max` records of any attribute; true when none is left.
Result<bool> erase_xattrs(engine::Transaction& transaction, InodeId inode, std::size_t count_max);

}  // namespace latchkey::volume
