// Goal: what fstests generic/395 to 398 and 419 ask of encryption policies is true of ours: who may
// set one, what one may say, what can be done without its key, and that no operation mixes
// policies. Method: their steps through the library, in words of our own; suites bear their
// numbers. Each runs with our answers and with the kernel's (docs/conformance.md, "fstests").

#include <functional>
#include <map>

#include "tests/support/check_fixture.h"
#include "tests/support/fstests_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

class Generic395 : public Fstest {};
INSTANTIATE_TEST_SUITE_P(Setting, Generic395, ::testing::Bool(), setting_name);

TEST_P(Generic395, a_policy_is_set_once_on_an_empty_directory_of_the_callers) {
  const crypto::KeyId id = add_key(), other = add_key_of(8);
  const InodeId empty = directory("/empty_dir");
  EXPECT_FALSE(volume_->stat(empty)->key_id);
  ASSERT_TRUE(volume_->set_policy(kUser, empty, id));
  EXPECT_EQ(volume_->stat(empty)->key_id, id);
  EXPECT_TRUE(volume_->set_policy(kUser, empty, id));
  EXPECT_EQ(code_of(volume_->set_policy(kUser, empty, other)), Errc::exists);
  EXPECT_EQ(volume_->stat(empty)->key_id, id);

  const InodeId nonempty = directory("/nonempty_dir");
  put("/nonempty_dir/file", "");
  EXPECT_EQ(code_of(volume_->set_policy(kUser, nonempty, id)), Errc::not_empty);
  put("/nondirectory", "");
  EXPECT_EQ(code_of(volume_->set_policy(kUser, inode("/nondirectory"), id)), Errc::not_dir);

  const InodeId of_another = directory("/unauthorized_dir");
  add_key({1001});
  EXPECT_EQ(code_of(volume_->set_policy({1001}, of_another, id)), Errc::permission);
  for (const InodeId plain : {nonempty, inode("/nondirectory"), of_another})
    EXPECT_FALSE(volume_->stat(plain)->key_id);
}

TEST_P(Generic395, none_is_set_on_a_read_only_volume) {
  const InodeId plain = directory("/ro_dir");
  options_.read_only = true;
  reopen();
  EXPECT_EQ(code_of(volume_->set_policy(kUser, plain, add_key())), Errc::read_only);
  EXPECT_FALSE(volume_->stat(plain)->key_id);
}

// A policy's modes and flags are fixed here. One that says something else can otherwise only come
// from the device.
// Whatever else it says, a directory has none afterwards; and what is wrong in itself comes before
// the key.
TEST_P(Generic395, a_policy_of_another_kind_is_refused_as_in_396) {
  const InodeId plain = directory("/dir"), has_one = directory_under("/vault", add_key());
  const auto set = [&](InodeId in, const std::function<void(PolicyFields&)>& change) {
    PolicyFields fields;
    change(fields);
    return code_of(volume_->set_policy(kUser, in, crypto::KeyId{}, fields));
  };
  const std::vector<std::function<void(PolicyFields&)>> others = {
      [](PolicyFields& fields) { fields.version = 0; },
      [](PolicyFields& fields) { fields.version = 0xff; },
      [](PolicyFields& fields) { fields.contents_mode = 0xff; },
      [](PolicyFields& fields) { fields.names_mode = 0xff; },
      [](PolicyFields& fields) { std::swap(fields.contents_mode, fields.names_mode); },
      [](PolicyFields& fields) { fields.flags = 0xff; },
      [](PolicyFields& fields) { fields.flags |= 0x04; },
      [](PolicyFields& fields) { fields.rest[3] = 1; }};
  for (const auto& other : others) {
    EXPECT_EQ(set(plain, other), Errc::invalid);
    EXPECT_EQ(set(has_one, other), Errc::exists);
  }
  EXPECT_FALSE(volume_->stat(plain)->key_id);
}

class Generic396 : public CheckTest {
 protected:
  static Errc decoded(const std::function<void(InodeDisk&)>& change) {
    Attributes attributes;
    attributes.kind = FileKind::directory;
    attributes.encrypted = true;
    InodeDisk disk = encode(attributes);
    change(disk);
    return code_of(decode_inode(std::as_bytes(std::span(&disk, 1))));
  }
};

TEST_F(Generic396, a_policy_with_other_modes_flags_or_version_is_no_policy) {
  EXPECT_EQ(decoded([](InodeDisk&) {}), Errc{});
  EXPECT_EQ(decoded([](InodeDisk& disk) { disk.contents_mode = 0xff; }), Errc::malformed);
  EXPECT_EQ(decoded([](InodeDisk& disk) { disk.names_mode = 0xff; }), Errc::malformed);
  EXPECT_EQ(decoded([](InodeDisk& disk) { disk.policy_flags = 0xff; }), Errc::malformed);
  EXPECT_EQ(decoded([](InodeDisk& disk) { disk.version = 0xff; }), Errc::malformed);
  constexpr u8 kXts = 1, kCts = 4;
  for (const auto& [contents, names] : {std::pair{kCts, kCts}, {kCts, kXts}, {kXts, kXts}})
    EXPECT_EQ(decoded([=](InodeDisk& disk) {
                disk.contents_mode = contents;
                disk.names_mode = names;
              }),
              Errc::malformed);
}

TEST_F(Generic396, a_directory_that_has_such_a_policy_is_not_entered) {
  change_inode(vault_, [](InodeDisk& disk) { disk.contents_mode = 0xff; });
  unlock();
  EXPECT_EQ(code_of(volume_->stat({kRootInode.subvolume, vault_})), Errc::malformed);
  EXPECT_EQ(code_of(resolve(*volume_, "/vault/file")), Errc::malformed);
  EXPECT_EQ(code_of(make_directory(*volume_, kUser, "/vault/new")), Errc::malformed);
  shut();
}

class Generic397 : public Fstest {
 protected:
  void fill(const std::string& path) {
    put(path + "/empty", "");
    put(path + "/a", std::string(4096, 'a'));
    put(path + "/abcdefghijklmnopqrstuvwxyz", std::string(33 * 1024, 'b'));
    const std::string longest(255, 'y');
    put(path + "/" + longest, std::string(1024, 'c'));
    for (const auto& [name, target] : {std::pair<std::string, std::string>{"symlink", "a"},
                                       {"symlink2", "abcdefghijklmnopqrstuvwxyz"},
                                       {"symlink3", longest}})
      ASSERT_TRUE(volume_->symlink(kUser, inode(path), name, target)) << name;
    directory(path + "/subdir");
    directory(path + "/subdir/subsubdir");
  }
  using Tree = std::map<std::string, std::string>;
  void read_tree(const std::string& path, const std::string& below, Tree& tree) {
    for (const DirEntry& entry : entries(inode(path))) {
      const std::string name = below + "/" + entry.name;
      if (entry.kind == FileKind::directory) {
        tree[name] = "directory";
        read_tree(path + "/" + entry.name, name, tree);
      } else if (entry.kind == FileKind::symlink) {
        tree[name] = "to " + volume_->read_link(entry.inode).value_or("?");
      } else {
        tree[name] = content(path + "/" + entry.name);
      }
    }
  }
  Tree tree(const std::string& path) {
    Tree all;
    read_tree(path, "", all);
    return all;
  }
  // None of the calls that make a name.
  void expect_no_new(InodeId locked, std::string_view name) {
    for (const bool exclusive : {false, true})
      EXPECT_EQ(open_error(locked, name, {.write = true, .create = true, .exclusive = exclusive}),
                Errc::no_key)
          << name;
    EXPECT_EQ(code_of(volume_->mkdir(kUser, locked, name, 0700)), Errc::no_key) << name;
    EXPECT_EQ(code_of(volume_->symlink(kUser, locked, name, "foo")), Errc::no_key) << name;
    EXPECT_EQ(code_of(volume_->make_node(kUser, locked, name, {})), Errc::no_key) << name;
  }
};
INSTANTIATE_TEST_SUITE_P(Setting, Generic397, ::testing::Bool(), setting_name);

TEST_P(Generic397, with_the_key_all_is_as_in_a_plain_directory_without_it_names_can_only_go) {
  directory_under("/edir", add_key());
  directory("/ref_dir");
  fill("/edir");
  fill("/ref_dir");
  const Tree reference = tree("/ref_dir");
  EXPECT_EQ(reference.size(), 9U);
  EXPECT_TRUE(tree("/edir") == reference);
  reopen();
  add_key();
  EXPECT_TRUE(tree("/edir") == reference);

  reopen();  // no key
  EXPECT_EQ(lookup_error("/edir/empty"), locked_name());
  EXPECT_EQ(lookup_error("/edir/symlink"), locked_name());
  const InodeId locked = inode("/edir");
  const auto listed = entries(locked);
  EXPECT_EQ(listed.size(), 8U);
  for (const DirEntry& entry : listed) {
    EXPECT_FALSE(reference.contains("/" + entry.name)) << entry.name;
    if (entry.kind == FileKind::regular) {
      EXPECT_EQ(open_error(locked, entry.name), Errc::no_key);
    } else if (entry.kind == FileKind::symlink) {
      EXPECT_FALSE(reference.contains("/" + volume_->read_link(entry.inode).value_or("a")));
    } else {
      EXPECT_EQ(entries(entry.inode).size(), 1U);
    }
  }
  expect_no_new(locked, "newfile");
  expect_no_new(locked, "0123456789abcdef");  // could be base64
  ASSERT_TRUE(remove_tree(*volume_, "/edir"));
  EXPECT_EQ(lookup_error("/edir"), Errc::not_found);
  EXPECT_TRUE(tree("/ref_dir") == reference);
}

class Generic398 : public Fstest {
 protected:
  void SetUp() override {
    Fstest::SetUp();
    edir1_ = directory_under("/edir1", add_key());
    edir2_ = directory_under("/edir2", add_key_of(8));
    udir_ = directory("/udir");
    put("/edir1/efile1", "1");
    put("/edir2/efile2", "2");
    put("/udir/ufile", "u");
  }
  InodeId edir1_, edir2_, udir_;
};
INSTANTIATE_TEST_SUITE_P(Setting, Generic398, ::testing::Bool(), setting_name);

TEST_P(Generic398, no_operation_mixes_policies_in_an_encrypted_directory) {
  const InodeId efile1 = inode("/edir1/efile1"), ufile = inode("/udir/ufile");
  // From one policy to another, and from none to one.
  EXPECT_EQ(link_error(efile1, edir2_, "efile1"), Errc::cross_key);
  EXPECT_EQ(rename_error({edir1_, "efile1"}, {edir2_, "efile1"}), Errc::cross_key);
  EXPECT_EQ(link_error(ufile, edir1_, "ufile"), Errc::cross_key);
  EXPECT_EQ(rename_error({udir_, "ufile"}, {edir1_, "ufile"}), Errc::cross_key);
  // Out of one: nothing forbids it.
  EXPECT_EQ(link_error(efile1, udir_, "efile1"), Errc{});
  EXPECT_TRUE(volume_->unlink(udir_, "efile1"));
  EXPECT_EQ(rename_error({edir1_, "efile1"}, {udir_, "efile1"}), Errc{});
  EXPECT_EQ(content("/udir/efile1"), "1");
  EXPECT_EQ(rename_error({udir_, "efile1"}, {edir1_, "efile1"}), Errc{});
  // An exchange moves both ways.
  EXPECT_EQ(exchange_error({edir1_, "efile1"}, {edir2_, "efile2"}), Errc::cross_key);
  EXPECT_EQ(exchange_error({udir_, "ufile"}, {edir1_, "efile1"}), Errc::cross_key);
  EXPECT_EQ(exchange_error({edir1_, "efile1"}, {udir_, "ufile"}), Errc::cross_key);
  EXPECT_EQ(names(edir1_), std::vector<std::string>{"efile1"});
  EXPECT_EQ(names(edir2_), std::vector<std::string>{"efile2"});
  EXPECT_EQ(names(udir_), std::vector<std::string>{"ufile"});
}

TEST_P(Generic398, special_files_are_not_encrypted_and_go_anywhere) {
  ASSERT_TRUE(volume_->make_node(kUser, edir1_, "fifo", {.kind = FileKind::fifo, .mode = 0600}));
  EXPECT_EQ(rename_error({edir1_, "fifo"}, {edir2_, "fifo"}), Errc{});
  EXPECT_EQ(rename_error({edir2_, "fifo"}, {udir_, "fifo"}), Errc{});
  EXPECT_EQ(rename_error({udir_, "fifo"}, {edir1_, "fifo"}), Errc{});
  ASSERT_TRUE(volume_->make_node(kUser, udir_, "fifo", {.kind = FileKind::fifo, .mode = 0600}));
  EXPECT_EQ(exchange_error({udir_, "fifo"}, {edir1_, "fifo"}), Errc{});
  EXPECT_EQ(link_error(inode("/edir1/fifo"), edir2_, "fifo"), Errc{});
  EXPECT_EQ(volume_->stat(inode("/edir2/fifo"))->links, 2U);
  for (const InodeId in : {edir1_, edir2_, udir_}) EXPECT_TRUE(volume_->unlink(in, "fifo"));
}

TEST_P(Generic398, without_keys_nothing_is_exchanged) {
  reopen();
  const std::string efile1 = name_of_kind(edir1_, FileKind::regular);
  const std::string efile2 = name_of_kind(edir2_, FileKind::regular);
  EXPECT_EQ(exchange_error({edir1_, efile1}, {edir2_, efile2}), Errc::no_key);
  EXPECT_EQ(exchange_error({edir1_, efile1}, {udir_, "ufile"}), Errc::no_key);
  EXPECT_EQ(exchange_error({udir_, "ufile"}, {edir1_, efile1}), Errc::no_key);
  add_key();
  add_key_of(8);
  EXPECT_EQ(content("/edir1/efile1"), "1");
  EXPECT_EQ(content("/edir2/efile2"), "2");
  EXPECT_EQ(content("/udir/ufile"), "u");
}

class Generic419 : public Fstest {};
INSTANTIATE_TEST_SUITE_P(Setting, Generic419, ::testing::Bool(), setting_name);

TEST_P(Generic419, without_the_key_nothing_is_renamed_or_exchanged) {
  const InodeId edir = directory_under("/edir", add_key());
  put("/edir/a", "a");
  put("/edir/b", "b");
  reopen();
  const auto locked = names(edir);
  ASSERT_EQ(locked.size(), 2U);
  EXPECT_EQ(rename_error({edir, locked[0]}, {edir, locked[1]}), Errc::no_key);
  EXPECT_EQ(exchange_error({edir, locked[0]}, {edir, locked[1]}), Errc::no_key);
  EXPECT_EQ(rename_error({edir, locked[0]}, {edir, "c"}), Errc::no_key);
  EXPECT_EQ(rename_error({edir, locked[0]}, {kRootInode, "c"}), Errc::no_key);
  EXPECT_EQ(names(edir), locked);
  add_key();
  EXPECT_EQ(content("/edir/a"), "a");
  EXPECT_EQ(content("/edir/b"), "b");
}

}  // namespace
}  // namespace latchkey::tests
