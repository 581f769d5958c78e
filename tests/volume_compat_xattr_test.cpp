// Goal: with compat_fscrypt user.* attributes of an encrypted inode are as ext4 has them, in the
// clear and there for whoever lacks the key; by default none is ever written so; and either setting
// reads what the other wrote. Method: a volume on a SimDevice, locked and unlocked, opened under
// the one setting and the other, and the records as they lie in the store.

#include <cstring>
#include <set>

#include "engine/format.h"
#include "tests/support/volume_fixture.h"
#include "volume/xattr_records.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

using Value = std::vector<std::byte>;

class CompatXattr : public VolumeTest {
 protected:
  void SetUp() override {
    VolumeTest::SetUp();
    id_ = vault();
    put("/vault/file", "x");
    file_ = resolve(*volume_, "/vault/file").value_or(InodeId{});
    directory_ = resolve(*volume_, "/vault").value_or(InodeId{});
    lock_under(true);
  }
  void open_under(bool compat) {
    options_.compat_fscrypt = compat;
    reopen();
  }
  void lock_under(bool compat) {
    open_under(compat);
    ASSERT_EQ(state(id_), keymgr::KeyState::absent);
  }
  void unlock_under(bool compat) {
    open_under(compat);
    add_key();
  }
  Errc set(std::string_view name, std::string_view value, XattrFlags flags = {}) {
    return code_of(volume_->set_xattr(file_, name, bytes_of(value), flags));
  }
  std::string get(std::string_view name) {
    auto value = volume_->get_xattr(file_, name);
    if (!value) return std::string("error: ") + value.error().what;
    return {reinterpret_cast<const char*>(value->data()), value->size()};
  }
  Errc get_error(std::string_view name) { return code_of(volume_->get_xattr(file_, name)); }
  Errc remove_attribute(std::string_view name) {
    return code_of(volume_->remove_xattr(file_, name));
  }
  std::set<std::string> names() {
    const auto names = volume_->list_xattrs(file_);
    EXPECT_TRUE(names);
    return names ? std::set<std::string>(names->begin(), names->end()) : std::set<std::string>{};
  }
  bool has_feature() {
    return (volume_->facts().store.features_incompat & engine::kFeatureClearAttributes) != 0;
  }
  bool on_device(std::string_view needle) {
    EXPECT_TRUE(volume_->sync());
    Value raw(device_.info().size_bytes);
    device_.peek(0, raw);
    return ::memmem(raw.data(), raw.size(), needle.data(), needle.size()) != nullptr;
  }
  // Records of the file's attributes; the volume is closed meanwhile.
  std::size_t records() {
    EXPECT_TRUE(volume_->close());
    volume_.reset();
    std::size_t count = 0;
    {
      auto store = engine::Store::open(device_, {.read_only = true}, system_env());
      EXPECT_TRUE(store);
      EXPECT_TRUE((*store)->view().scan(file_.subvolume, {file_.number, kXattrType, 0},
                                        {file_.number, kXattrType, ~u64{0}},
                                        [&](const engine::Key&, Bytes) { return ++count != 0; }));
    }
    open_again();
    return count;
  }
  // What somebody writes into the store behind our back.
  void plant(const Xattr& xattr) {
    EXPECT_TRUE(volume_->close());
    volume_.reset();
    {
      auto store = engine::Store::open(device_, {}, system_env());
      ASSERT_TRUE(store);
      auto space = (*store)->reserve({0, 1, 500});
      ASSERT_TRUE(space);
      {
        auto transaction = (*store)->begin(std::move(*space));
        ASSERT_TRUE(transaction);
        ASSERT_TRUE(transaction->put(file_.subvolume, {file_.number, kXattrType, xattr.offset},
                                     encode_xattr(xattr, 4000).front()));
      }
      ASSERT_TRUE((*store)->close());
    }
    open_again();
  }
  void unplant(const Xattr& xattr) { ASSERT_EQ(remove_attribute(xattr.name), Errc{}); }

  crypto::KeyId id_;
  InodeId file_, directory_;
};

TEST_F(CompatXattr, a_locked_file_takes_gives_lists_and_loses_attributes) {
  EXPECT_EQ(set("user.a", "v"), Errc{});
  EXPECT_EQ(get("user.a"), "v");
  EXPECT_EQ(set("user.a", "w", {.create = true}), Errc::exists);
  EXPECT_EQ(set("user.b", "w", {.replace = true}), Errc::no_attribute);
  EXPECT_EQ(set("user.b", "w", {.create = true}), Errc{});
  EXPECT_EQ(set("user.a", "another", {.replace = true}), Errc{});
  EXPECT_EQ(get("user.a"), "another");
  EXPECT_EQ(names(), (std::set<std::string>{"user.a", "user.b"}));
  EXPECT_EQ(remove_attribute("user.b"), Errc{});
  EXPECT_EQ(remove_attribute("user.b"), Errc::no_attribute);
  EXPECT_EQ(get_error("user.b"), Errc::no_attribute);
  EXPECT_EQ(code_of(volume_->set_xattr(directory_, "user.a", bytes_of("of a directory"))), Errc{});
  EXPECT_EQ(volume_->get_xattr(directory_, "user.a")->size(), 14U);
  EXPECT_EQ(state(id_), keymgr::KeyState::absent);
  reopen();
  EXPECT_EQ(get("user.a"), "another");
  add_key();
  EXPECT_EQ(get("user.a"), "another");
  EXPECT_EQ(set("user.a", "with the key"), Errc{});
  EXPECT_EQ(remove_attribute("user.a"), Errc{});
  EXPECT_EQ(names(), std::set<std::string>{});
}

TEST_F(CompatXattr, what_is_set_with_the_key_is_read_without_it) {
  unlock_under(true);
  EXPECT_EQ(set("user.a", "nothing secret is in here"), Errc{});
  EXPECT_TRUE(on_device("nothing secret is in here"));
  const HandleId handle = open("/vault/file");
  remove(id_, keymgr::RemovalMode::hard);
  EXPECT_EQ(volume_->get_xattr(handle, "user.a")->size(), 25U) << "nor does a handle need it";
  (void)volume_->close_handle(handle);
  ASSERT_EQ(state(id_), keymgr::KeyState::absent);
  EXPECT_EQ(get("user.a"), "nothing secret is in here");
}

// Sealed or clear, of many pieces or of one: nothing of the former value is left.
TEST_F(CompatXattr, a_value_takes_all_pieces_of_the_former_one) {
  for (const bool sealed : {false, true}) {
    unlock_under(!sealed);
    EXPECT_EQ(set("user.a", std::string(40'000, 'l')), Errc{});
    EXPECT_GT(records(), 9U);
    lock_under(true);
    EXPECT_EQ(set("user.a", "short"), Errc{});
    EXPECT_EQ(records(), 1U) << sealed;
    EXPECT_EQ(get("user.a"), "short");
  }
  EXPECT_EQ(set("user.a", std::string(40'000, 'c')), Errc{});
  unlock_under(false);
  EXPECT_EQ(set("user.a", std::string(5000, 's')), Errc{});
  EXPECT_EQ(records(), 2U);
  add_key();
  EXPECT_EQ(get("user.a"), std::string(5000, 's'));
}

TEST_F(CompatXattr, by_default_none_is_written_in_the_clear) {
  lock_under(false);
  EXPECT_EQ(set("user.a", "the first needle"), Errc::no_key);
  EXPECT_EQ(names(), std::set<std::string>{});
  unlock_under(false);
  EXPECT_EQ(set("user.a", "the second needle"), Errc{});
  EXPECT_FALSE(on_device("the first needle"));
  EXPECT_FALSE(on_device("the second needle"));
  EXPECT_FALSE(has_feature());
  reopen();
  EXPECT_FALSE(has_feature());
}

// Nor where a store has such attributes: what is on the device does not decide what is written.
TEST_F(CompatXattr, by_default_a_store_that_has_clear_ones_gets_no_more) {
  EXPECT_EQ(set("user.a", "clear"), Errc{});
  lock_under(false);
  ASSERT_TRUE(has_feature());
  EXPECT_EQ(set("user.a", "the first needle"), Errc::no_key);
  EXPECT_EQ(set("user.b", "the first needle"), Errc::no_key);
  EXPECT_EQ(get("user.a"), "clear") << "nothing was changed";
  add_key();
  EXPECT_EQ(set("user.a", "the second needle"), Errc{});
  EXPECT_EQ(set("user.b", "the second needle"), Errc{});
  EXPECT_FALSE(on_device("the first needle"));
  EXPECT_FALSE(on_device("the second needle"));
  for (const bool compat : {false, true}) {
    lock_under(compat);
    EXPECT_EQ(get_error("user.a"), Errc::no_key);
    EXPECT_EQ(get_error("user.b"), Errc::no_key);
  }
}

TEST_F(CompatXattr, each_setting_reads_what_the_other_wrote) {
  EXPECT_EQ(set("user.clear", "in the clear"), Errc{});
  unlock_under(false);
  EXPECT_EQ(set("user.sealed", "sealed"), Errc{});
  for (const bool compat : {false, true, false}) {
    SCOPED_TRACE(compat);
    lock_under(compat);
    EXPECT_EQ(get("user.clear"), "in the clear");
    EXPECT_EQ(get_error("user.sealed"), Errc::no_key);
    EXPECT_EQ(names(), (std::set<std::string>{"user.clear", "user.sealed"}));
    add_key();
    EXPECT_EQ(get("user.clear"), "in the clear");
    EXPECT_EQ(get("user.sealed"), "sealed");
  }
  lock_under(true);
  EXPECT_EQ(set("user.sealed", "no more"), Errc{});
  EXPECT_EQ(get("user.sealed"), "no more");
  lock_under(false);
  EXPECT_EQ(get("user.sealed"), "no more");
  EXPECT_EQ(remove_attribute("user.sealed"), Errc{});
  EXPECT_EQ(remove_attribute("user.clear"), Errc{});
}

// The mark in the superblock comes with the first one, in its commit, and stays.
TEST_F(CompatXattr, the_store_says_that_it_may_have_clear_ones) {
  EXPECT_FALSE(has_feature()) << "to be opened so is not enough";
  EXPECT_EQ(code_of(volume_->set_xattr(file_, "trusted.a", bytes_of("v"))), Errc{});
  EXPECT_EQ(code_of(volume_->set_xattr(kRootInode, "user.a", bytes_of("v"))), Errc{});
  EXPECT_EQ(set("user.a", "v", {.replace = true}), Errc::no_attribute);
  EXPECT_FALSE(has_feature()) << "of what is never encrypted, or was refused";
  EXPECT_EQ(set("user.a", "v"), Errc{});
  EXPECT_TRUE(has_feature());
  ASSERT_TRUE(volume_->sync());
  crash(1);
  EXPECT_TRUE(has_feature());
  EXPECT_EQ(get("user.a"), "v");
  EXPECT_EQ(remove_attribute("user.a"), Errc{});
  for (int i = 0; i < 3; ++i) {  // both sets of superblocks are written anew
    EXPECT_EQ(code_of(volume_->set_xattr(file_, "trusted.a", bytes_of("w"))), Errc{});
    ASSERT_TRUE(volume_->sync());
  }
  lock_under(false);
  EXPECT_TRUE(has_feature());
}

// Without the mark one in the clear is what it always was, whoever asks.
TEST_F(CompatXattr, in_a_store_that_has_none_a_clear_one_is_damage) {
  Xattr planted;
  planted.name = "user.planted";
  planted.offset = xattr_offset(planted.name);
  planted.stored = Value(5, std::byte{'p'});
  plant(planted);
  for (const bool compat : {false, true}) {
    lock_under(compat);
    EXPECT_EQ(get_error("user.planted"), Errc::damaged);
    add_key();
    EXPECT_EQ(get_error("user.planted"), Errc::damaged);
  }
  unplant(planted);
}

TEST_F(CompatXattr, a_directory_with_user_attributes_gets_a_policy_and_keeps_them) {
  unlock_under(true);
  auto made = make_directory(*volume_, kUser, "/new");
  ASSERT_TRUE(made);
  EXPECT_EQ(code_of(volume_->set_xattr(*made, "user.a", bytes_of("before"))), Errc{});
  EXPECT_FALSE(has_feature());
  ASSERT_TRUE(volume_->set_policy(kUser, *made, id_));
  EXPECT_TRUE(has_feature());
  for (const bool compat : {true, false}) {
    lock_under(compat);
    const auto value = volume_->get_xattr(*made, "user.a");
    ASSERT_TRUE(value) << value.error().what;
    EXPECT_EQ(value->size(), 6U);
  }
}

TEST_F(CompatXattr, snapshots_keep_theirs) {
  EXPECT_EQ(set("user.a", "before"), Errc{});
  ASSERT_TRUE(volume_->snapshot(kUser, kRootInode, kRootInode, "frozen", true));
  EXPECT_EQ(set("user.a", "after"), Errc{});
  const auto frozen = volume_->lookup(kRootInode, "frozen");
  ASSERT_TRUE(frozen);
  const InodeId copy{frozen->subvolume, file_.number};
  for (const bool compat : {true, false}) {
    lock_under(compat);
    const auto value = volume_->get_xattr(copy, "user.a");
    ASSERT_TRUE(value) << value.error().what;
    EXPECT_EQ(value->size(), 6U);
    EXPECT_EQ(code_of(volume_->set_xattr(copy, "user.a", bytes_of("x"))), Errc::read_only);
    EXPECT_EQ(get("user.a"), "after");
  }
}

// All values of a store that was made with nobody's key, after a crash at each write.
TEST_F(CompatXattr, a_cut_leaves_the_mark_wherever_it_leaves_an_attribute) {
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  const SimImage made = device_.snapshot();
  options_ = {.compat_fscrypt = true, .commit_interval_ms = 0, .inline_writeback = true};
  u64 cut = 0, with = 0, without = 0;
  for (bool survived = false; !survived; ++cut) {
    SCOPED_TRACE(testing::Message() << "cut " << cut);
    device_.restore(made);
    device_.cut_after(cut);
    bool set_and_synced = false;
    if (auto opened = Volume::open(device_, options_, system_env())) {
      const std::string value(9000, 'v');
      set_and_synced = (*opened)->set_xattr(file_, "user.a", bytes_of(value)) && (*opened)->sync();
      opened->reset();
    }
    survived = !device_.power_off();
    device_.restore(device_.crash_image(cut));
    expect_clean();  // one without the mark would be told
    auto opened = Volume::open(device_, {}, system_env());
    ASSERT_TRUE(opened) << opened.error().what;
    const auto value = (*opened)->get_xattr(file_, "user.a");
    if (value)
      EXPECT_EQ(value->size(), 9000U);
    else
      EXPECT_EQ(value.error().code, Errc::no_attribute) << value.error().what;
    EXPECT_TRUE(value || !set_and_synced);
    (value ? with : without) += 1;
    ASSERT_FALSE(testing::Test::HasFailure());
  }
  EXPECT_GT(with, 0U);
  EXPECT_GT(without, 0U);
}

}  // namespace
}  // namespace latchkey::tests
