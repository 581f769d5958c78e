#include "volume/xattr_records.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/checksum.h"
#include "crypto/values.h"

namespace latchkey::volume {

namespace {

constexpr std::array<std::string_view, 3> kPrefixes{"user.", "trusted.", "security."};
constexpr std::array<std::string_view, 2> kAcls{"system.posix_acl_access",
                                                "system.posix_acl_default"};

engine::Key xattr_key(InodeId inode, u64 offset) { return {inode.number, kXattrType, offset}; }

u64 slot_of(u64 offset) { return offset / kXattrSlotStep; }  // with its hash
u32 piece_of(u64 offset) { return static_cast<u32>(offset % kXattrSlotStep); }

Result<void> read_range(const engine::View& view, InodeId inode, u64 first, u64 last,
                        XattrReader& reader) {
  Result<void> wrong;
  LK_TRYV(view.scan(inode.subvolume, xattr_key(inode, first), xattr_key(inode, last),
                    [&](const engine::Key& key, Bytes value) {
                      wrong = reader.add(key, value);
                      return wrong.has_value();
                    }));
  LK_TRYV(wrong);
  return reader.end();
}

}  // namespace

u64 xattr_offset(std::string_view name) {
  return hash64(std::as_bytes(std::span(name))) & ~(kXattrHashStep - 1);
}

Result<void> check_xattr_name(std::string_view name) {
  if (name.empty() || name.size() > kXattrNameBytesMax)
    return fail(Errc::out_of_range, "an attribute's name has 1 to 255 bytes");
  if (name.find('\0') != std::string_view::npos) return fail(Errc::invalid, "not a name");
  if (std::ranges::find(kAcls, name) != kAcls.end()) return {};
  for (const std::string_view prefix : kPrefixes) {
    if (!name.starts_with(prefix)) continue;
    if (name.size() == prefix.size()) return fail(Errc::invalid, "not a name");
    return {};
  }
  return fail(Errc::unsupported, "an attribute of another namespace than those that are kept");
}

std::vector<std::vector<std::byte>> encode_xattr(const Xattr& xattr, u32 record_bytes_max) {
  XattrDisk head{};
  head.name_size = static_cast<u8>(xattr.name.size());
  head.sealed = xattr.sealed ? 1 : 0;
  head.stored_bytes = static_cast<u32>(xattr.stored.size());
  std::vector<std::vector<std::byte>> pieces(1);
  std::vector<std::byte>& first = pieces.front();
  first.resize(sizeof head);
  store_disk(first, head);
  const Bytes name = std::as_bytes(std::span(xattr.name));
  first.insert(first.end(), name.begin(), name.end());
  for (Bytes left = xattr.stored;;) {
    std::vector<std::byte>& piece = pieces.back();
    const std::size_t taken = std::min(left.size(), record_bytes_max - piece.size());
    piece.insert(piece.end(), left.begin(), left.begin() + static_cast<std::ptrdiff_t>(taken));
    left = left.subspan(taken);
    if (left.empty()) return pieces;
    pieces.emplace_back();
  }
}

Result<void> XattrReader::end() {
  if (!open_) return {};
  Xattr xattr = *std::exchange(open_, std::nullopt);
  if (open_bytes_ != wanted_bytes_)
    return fail(Errc::malformed, "an attribute's value is not as long as it says");
  whole_.push_back(std::move(xattr));
  return {};
}

Result<void> XattrReader::add(const engine::Key& key, Bytes value) {
  Bytes stored = value;
  if (piece_of(key.offset) == 0) {
    LK_TRYV(end());
    if (value.size() < sizeof(XattrDisk)) return fail(Errc::malformed, "an attribute is malformed");
    const auto head = load_disk<XattrDisk>(value);
    const u64 overhead = head.sealed != 0 ? crypto::kValueOverhead : 0;
    if (head.name_size == 0 || head.sealed > 1 || head.reserved != 0 ||
        value.size() < sizeof head + head.name_size || head.stored_bytes < overhead ||
        head.stored_bytes > kXattrValueBytesMax + overhead)
      return fail(Errc::malformed, "an attribute is malformed");
    const Bytes name = value.subspan(sizeof head, head.name_size);
    stored = value.subspan(sizeof head + head.name_size);
    open_.emplace();
    open_->offset = key.offset;
    open_->name.assign(reinterpret_cast<const char*>(name.data()), name.size());
    open_->sealed = head.sealed != 0;
    open_bytes_ = 0;
    wanted_bytes_ = head.stored_bytes;
  } else if (!open_ || slot_of(key.offset) != slot_of(open_->offset) ||
             piece_of(key.offset) != open_->pieces || stored.empty()) {
    open_.reset();
    return fail(Errc::malformed, "a piece of an attribute's value without those before it");
  }
  ++open_->pieces;
  open_bytes_ += stored.size();
  if (values_) open_->stored.insert(open_->stored.end(), stored.begin(), stored.end());
  return {};
}

Result<std::optional<Xattr>> find_xattr(const engine::View& view, InodeId inode,
                                        std::string_view name) {
  const u64 base = xattr_offset(name);
  XattrReader reader;
  LK_TRYV(read_range(view, inode, base, base + kXattrHashStep - 1, reader));
  for (Xattr& xattr : reader.take())
    if (xattr.name == name) return std::optional(std::move(xattr));
  return std::optional<Xattr>{};
}

Result<std::vector<std::string>> xattr_names(const engine::View& view, InodeId inode) {
  XattrReader reader(false);
  LK_TRYV(read_range(view, inode, 0, ~u64{0}, reader));
  std::vector<std::string> names;
  for (Xattr& xattr : reader.take()) names.push_back(std::move(xattr.name));
  return names;
}

Result<u64> free_xattr_offset(const engine::View& view, InodeId inode, std::string_view name) {
  const u64 base = xattr_offset(name);
  u64 offset = base;
  LK_TRYV(view.scan(inode.subvolume, xattr_key(inode, base),
                    xattr_key(inode, base + kXattrHashStep - 1),
                    [&](const engine::Key& key, Bytes) {
                      if (key.offset == offset) offset += kXattrSlotStep;
                      return true;
                    }));
  if (offset == base + kXattrHashStep)
    return fail(Errc::no_space, "too many attributes of one hash");
  return offset;
}

Result<bool> erase_xattrs(engine::Transaction& transaction, InodeId inode, std::size_t count_max) {
  std::vector<engine::Key> keys;
  LK_TRYV(transaction.scan(inode.subvolume, xattr_key(inode, 0), xattr_key(inode, ~u64{0}),
                           [&](const engine::Key& key, Bytes) {
                             keys.push_back(key);
                             return keys.size() < count_max;
                           }));
  for (const engine::Key& key : keys) LK_TRYV(transaction.erase(inode.subvolume, key));
  return keys.size() < count_max;
}

}  // namespace latchkey::volume
