// Goal: check finds every way in which records of extended attributes can be wrong. Method: as
// check_test.cpp's.

#include "engine/format.h"
#include "tests/support/check_fixture.h"
#include "volume/xattr_records.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

class CheckXattrs : public CheckTest {
 protected:
  static constexpr u32 kRecordBytesMax = 4000;

  static Xattr of(std::string name, std::size_t size, bool sealed = false) {
    Xattr xattr;
    xattr.offset = xattr_offset(name);
    xattr.name = std::move(name);
    xattr.sealed = sealed;
    xattr.stored.assign(size, std::byte{1});
    return xattr;
  }
  void put_xattr(u64 inode, const Xattr& xattr) {
    const auto pieces = encode_xattr(xattr, kRecordBytesMax);
    for (std::size_t i = 0; i < pieces.size(); ++i)
      put_record({inode, kXattrType, xattr.offset + i}, pieces[i]);
  }
};

TEST_F(CheckXattrs, what_is_right_is_not_told) {
  put_xattr(small_, of("user.a", 9000));
  put_xattr(small_, of("trusted.a", 0));
  put_xattr(file_, of("user.a", 9000, true));
  put_xattr(file_, of("security.a", 100));
  put_xattr(dir_, of("system.posix_acl_default", 28));
  expect({});
}

TEST_F(CheckXattrs, those_of_no_inode_are_found) {
  put_xattr(9000, of("user.a", 9000));
  put_xattr(9000, of("user.b", 1));
  expect({at(9000) + ": records of an inode without an inode item"});
}

TEST_F(CheckXattrs, name_hash_and_slot_are_checked) {
  put_xattr(small_, of("nothing.a", 1));
  Xattr moved = of("user.a", 1);
  moved.offset += kXattrHashStep;
  put_xattr(small_, moved);
  Xattr twice = of("user.b", 1);
  put_xattr(small_, twice);
  twice.offset += kXattrSlotStep;
  put_xattr(small_, twice);
  expect({at(small_) + ": an attribute has an impossible name",
          at(small_) + ": an attribute lies at the wrong hash",
          at(small_) + ": an inode has an attribute twice"});
}

TEST_F(CheckXattrs, encrypted_as_their_inode_is) {
  put_xattr(small_, of("user.a", 100, true));
  put_xattr(file_, of("user.a", 100, false));
  put_xattr(file_, of("trusted.a", 100, true));
  const std::string what = ": an attribute is not encrypted as its inode is";
  expect({at(small_) + what, at(file_) + what, at(file_) + what});
}

TEST_F(CheckXattrs, in_the_clear_where_the_store_may_have_them) {
  const Xattr clear = of("user.a", 100);
  damage([&](engine::Transaction& t) {
    t.need_feature(engine::kFeatureClearAttributes);
    return t.put(engine::kFirstSubvolume, {file_, kXattrType, clear.offset},
                 encode_xattr(clear, kRecordBytesMax).front());
  });
  put_xattr(file_, of("user.b", 9000, true));
  put_xattr(vault_, of("user.a", 1));
  expect({});
  put_xattr(small_, of("user.a", 100, true));
  put_xattr(file_, of("trusted.a", 100, true));
  const std::string what = ": an attribute is not encrypted as its inode is";
  expect({at(small_) + what, at(file_) + what});
}

TEST_F(CheckXattrs, links_and_special_files_have_none_of_users) {
  open_again();
  ASSERT_TRUE(volume_->make_node(kUser, kRootInode, "fifo", {}));
  const u64 fifo = number("/fifo");
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  put_xattr(fifo, of("user.a", 1));
  put_xattr(fifo, of("trusted.a", 1));
  expect({at(fifo) + ": an inode that can have no user attributes has one"});
}

TEST_F(CheckXattrs, pieces_are_whole_and_in_order) {
  const SimImage whole = device_.durable();
  const Xattr xattr = of("user.a", 10'000);
  const std::string first = ": an attribute's value is not as long as it says";
  const std::string later = ": a piece of an attribute's value without those before it";
  put_xattr(small_, xattr);
  const SimImage three = device_.durable();
  erase_record({small_, kXattrType, xattr.offset + 2});
  expect({at(small_) + first});
  device_.restore(three);
  erase_record({small_, kXattrType, xattr.offset + 1});
  expect({at(small_) + later});
  device_.restore(three);
  erase_record({small_, kXattrType, xattr.offset});
  expect({at(small_) + later, at(small_) + later});
  device_.restore(three);
  put_record({small_, kXattrType, xattr.offset}, bytes_of("too small"));
  expect({at(small_) + ": an attribute is malformed", at(small_) + later, at(small_) + later});
  device_.restore(whole);
  put_record({small_, kXattrType, xattr.offset}, bytes_of("four"));
  expect({at(small_) + ": an attribute is malformed"});
}

}  // namespace
}  // namespace latchkey::tests
