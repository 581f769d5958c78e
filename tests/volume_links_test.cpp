// Goal: an inode lives as long as a name or a handle leads to it, and no longer, whatever crashes;
// link, symlink, special and unnamed files keep fscrypt's rules. Method: each outcome by itself;
// crashes and threads are in volume_links_crash_test. Every test ends with the offline check.

#include "tests/support/check_fixture.h"
#include "tests/support/links_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

// --- hard links ---------------------------------------------------------------------------------

TEST_F(VolumeLinks, every_name_leads_to_the_same_file) {
  put("/a", "text");
  const InodeId sub = directory("/sub");
  EXPECT_EQ(link_in_root("/a", "b"), Errc{});
  EXPECT_EQ(link(inode("/a"), sub, "a"), Errc{});
  EXPECT_EQ(inode("/b"), inode("/a"));
  EXPECT_EQ(links("/sub/a"), 3U);
  const HandleId handle = open("/b");
  append(handle, " and more");
  EXPECT_EQ(content("/sub/a"), "text and more");
  close(handle);
  reopen();
  for (const std::string_view name : {"/a", "/b", "/sub/a"})
    EXPECT_EQ(content(name), "text and more") << name;
  EXPECT_EQ(links("/a"), 3U);
  ASSERT_TRUE(volume_->unlink(kRootInode, "a"));
  EXPECT_EQ(links("/b"), 2U);
  EXPECT_EQ(content("/sub/a"), "text and more");
  ASSERT_TRUE(volume_->unlink(kRootInode, "b"));
  const u64 before = blocks_used();
  put("/big", std::string(1 << 20, 'x'));
  ASSERT_TRUE(volume_->sync());
  EXPECT_EQ(link_in_root("/big", "big2"), Errc{});
  ASSERT_TRUE(volume_->unlink(kRootInode, "big"));
  EXPECT_GT(blocks_used(), before + 200) << "one name is left";
  ASSERT_TRUE(volume_->unlink(kRootInode, "big2"));
  EXPECT_LT(blocks_used(), before + 100);
}

TEST_F(VolumeLinks, a_link_changes_ctime_and_the_directorys_times_and_nothing_else) {
  put("/a", "text");
  const InodeId sub = directory("/sub"), file = inode("/a");
  const Stat before = *volume_->stat(file), above = *volume_->stat(sub);
  EXPECT_EQ(link(file, sub, "b"), Errc{});
  const Stat after = *volume_->stat(file), above_after = *volume_->stat(sub);
  EXPECT_EQ(after.mtime_ns, before.mtime_ns);
  EXPECT_GT(after.ctime_ns, before.ctime_ns);
  EXPECT_GT(above_after.mtime_ns, above.mtime_ns);
  EXPECT_EQ(above_after.links, above.links);
  ASSERT_TRUE(volume_->unlink(sub, "b"));
  EXPECT_GT(volume_->stat(file)->ctime_ns, after.ctime_ns);
  EXPECT_EQ(volume_->stat(file)->mtime_ns, before.mtime_ns);
}

TEST_F(VolumeLinks, what_link_refuses) {
  put("/a", "a");
  put("/b", "b");
  const InodeId sub = directory("/sub"), file = inode("/a");
  EXPECT_EQ(link(sub, kRootInode, "sub2"), Errc::not_permitted);
  EXPECT_EQ(link(sub, kRootInode, "a"), Errc::exists) << "as link(2): the name first";
  EXPECT_EQ(link(file, kRootInode, "b"), Errc::exists);
  EXPECT_EQ(link(file, kRootInode, ".."), Errc::invalid);
  EXPECT_EQ(link(file, kRootInode, std::string(256, 'x')), Errc::name_too_long);
  EXPECT_EQ(link(file, inode("/b"), "x"), Errc::not_dir);
  EXPECT_EQ(link({file.subvolume, 99999}, kRootInode, "x"), Errc::not_found);
  EXPECT_EQ(link({file.subvolume + 7, file.number}, kRootInode, "x"), Errc::not_found);
  ASSERT_TRUE(volume_->rmdir(kRootInode, "sub"));
  EXPECT_EQ(link(file, sub, "x"), Errc::not_found);
  const HandleId held = open("/a", {.write = true});
  ASSERT_TRUE(volume_->unlink(kRootInode, "a"));
  EXPECT_EQ(code_of(volume_->link(held, kRootInode, "x")), Errc::not_found) << "its last name went";
  EXPECT_EQ(link(file, kRootInode, "x"), Errc::not_found);
  close(held);
}

TEST_F(VolumeLinks, many_names_in_one_directory_and_in_many) {
  put("/a", "a");
  const InodeId file = inode("/a"), sub = directory("/sub");
  for (u32 i = 1; i < 300; ++i)
    ASSERT_EQ(link(file, i % 2 ? kRootInode : sub, std::to_string(i)), Errc{});
  EXPECT_EQ(links("/a"), 300U);
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  expect_clean();
  open_again();
  for (u32 i = 1; i < 300; ++i)
    ASSERT_TRUE(volume_->unlink(i % 2 ? kRootInode : sub, std::to_string(i)));
  EXPECT_EQ(links("/a"), 1U);
}

TEST_F(VolumeLinks, rename_of_two_names_of_one_file_does_nothing) {
  put("/a", "a");
  const InodeId sub = directory("/sub");
  ASSERT_EQ(link_in_root("/a", "b"), Errc{});
  ASSERT_EQ(link(inode("/a"), sub, "c"), Errc{});
  const Stat before = *volume_->stat(inode("/a"));
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "a", kRootInode, "b")), Errc{});
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "a", sub, "c")), Errc{});
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "a", sub, "c", {.exchange = true})), Errc{});
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "a", sub, "c", {.no_replace = true})),
            Errc::exists);
  for (const std::string_view name : {"/a", "/b", "/sub/c"}) EXPECT_EQ(content(name), "a");
  EXPECT_EQ(volume_->stat(inode("/a"))->ctime_ns, before.ctime_ns);
  EXPECT_EQ(links("/a"), 3U);
}

TEST_F(VolumeLinks, rename_over_one_of_several_names_leaves_the_others) {
  put("/a", "old");
  put("/new", "new");
  ASSERT_EQ(link_in_root("/a", "b"), Errc{});
  const HandleId held = open("/a", {});
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "new", kRootInode, "a")), Errc{});
  EXPECT_EQ(content("/a") + content("/b"), "newold");
  EXPECT_EQ(links("/b"), 1U);
  close(held);
  EXPECT_EQ(content("/b"), "old") << "nobody reaped it";
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "b", kRootInode, "c")), Errc{});
  EXPECT_EQ(content("/c"), "old");
}

// --- encrypted directories ----------------------------------------------------------------------

TEST_F(VolumeLinks, an_encrypted_directory_takes_links_of_its_policy_only) {
  vault();
  const InodeId vault = inode("/vault"), plain = directory("/plain"), sub = directory("/vault/sub");
  put("/vault/a", "secret");
  put("/plain/p", "p");
  auto other = volume_->add_key(kUser, master_key(9));
  ASSERT_TRUE(other);
  const InodeId second = directory("/second");
  ASSERT_TRUE(volume_->set_policy(kUser, second, *other));
  EXPECT_EQ(link(inode("/plain/p"), vault, "p"), Errc::cross_key);
  EXPECT_EQ(link(inode("/vault/a"), second, "a"), Errc::cross_key);
  EXPECT_EQ(link(inode("/vault/a"), sub, "b"), Errc{});
  EXPECT_EQ(link(inode("/vault/a"), plain, "a"), Errc{}) << "a plain one takes anything";
  EXPECT_EQ(content("/vault/sub/b"), "secret");
  EXPECT_EQ(content("/plain/a"), "secret");
  ASSERT_TRUE(volume_->make_node(kUser, plain, "pipe", {.kind = FileKind::fifo}));
  EXPECT_EQ(link(inode("/plain/pipe"), vault, "pipe"), Errc{}) << "what is never encrypted";
  EXPECT_EQ(code_of(volume_->rename(plain, "pipe", second, "pipe")), Errc{});
  reopen();
  EXPECT_EQ(open_error("/plain/a"), Errc::no_key) << "under its plain name";
  add_key();
  EXPECT_EQ(content("/plain/a"), "secret");
}

TEST_F(VolumeLinks, a_locked_directory_takes_no_name) {
  const crypto::KeyId id = vault();
  const InodeId vault = inode("/vault");
  put("/vault/a", "secret");
  const InodeId a = inode("/vault/a");
  ASSERT_EQ(link(a, kRootInode, "plain"), Errc{});
  auto held = volume_->open_directory(kUser, vault, "/vault");
  ASSERT_TRUE(held);
  const HandleId busy = open("/vault/a", {});
  EXPECT_EQ(remove(id).state, keymgr::KeyState::incompletely_removed);
  // Under an open handle what is named stays named; what needs a key of its own is refused.
  EXPECT_EQ(link(a, vault, "b"), Errc{});
  close(busy);
  EXPECT_EQ(link(a, vault, "c"), Errc::no_key);
  EXPECT_TRUE(volume_->make_node(kUser, vault, "pipe", {.kind = FileKind::fifo}));
  EXPECT_EQ(code_of(volume_->symlink(kUser, vault, "s", "t")), Errc::no_key);
  EXPECT_EQ(code_of(volume_->make_node(kUser, vault, "f", {.kind = FileKind::regular})),
            Errc::no_key);
  EXPECT_EQ(code_of(volume_->open_unnamed(kUser, vault, {.write = true}, 0600, "")), Errc::no_key);
  close(*held);
  EXPECT_EQ(link(a, vault, "c"), Errc::no_key);
  EXPECT_EQ(code_of(volume_->make_node(kUser, vault, "p", {.kind = FileKind::fifo})), Errc::no_key);
  EXPECT_EQ(code_of(volume_->symlink(kUser, vault, "s", "t")), Errc::no_key);
  const auto names = volume_->read_directory(vault);
  ASSERT_TRUE(names);
  EXPECT_EQ(names->size(), 3U);
  for (const DirEntry& entry : *names)
    EXPECT_EQ(code_of(volume_->link(a, vault, entry.name)), Errc::exists) << "a no-key name";
  EXPECT_EQ(link(a, kRootInode, "plain2"), Errc::no_key) << "out of it: as little";
  ASSERT_TRUE(volume_->unlink(kRootInode, "plain"));
  add_key();
  EXPECT_EQ(content("/vault/b"), "secret");
  EXPECT_EQ(links("/vault/a"), 2U);
}

// --- symlinks -----------------------------------------------------------------------------------

TEST_F(VolumeLinks, a_symlink_says_where_it_leads) {
  put("/a", "a");
  for (const std::string text : {"a", "/a/b/../c", "no such file", "\xff\x01"}) {
    const auto made = volume_->symlink(kUser, kRootInode, "link", text);
    ASSERT_TRUE(made);
    EXPECT_EQ(target("/link"), text);
    const Stat stat = *volume_->stat(*made);
    EXPECT_EQ(stat.kind, FileKind::symlink);
    EXPECT_EQ(stat.mode, 0777U);
    EXPECT_EQ(stat.size, text.size());
    EXPECT_EQ(stat.blocks, 0U);
    EXPECT_EQ(code_of(volume_->symlink(kUser, kRootInode, "link", "x")), Errc::exists);
    EXPECT_EQ(open_error("/link"), Errc::is_symlink);
    reopen();
    EXPECT_EQ(target("/link"), text);
    ASSERT_TRUE(volume_->unlink(kRootInode, "link"));
    EXPECT_EQ(code_of(volume_->read_link(*made)), Errc::not_found);
  }
  EXPECT_EQ(code_of(volume_->read_link(inode("/a"))), Errc::invalid);
  EXPECT_EQ(code_of(volume_->read_link(kRootInode)), Errc::invalid);
  EXPECT_EQ(code_of(volume_->symlink(kUser, kRootInode, "l", "")), Errc::not_found);
  EXPECT_EQ(code_of(volume_->symlink(kUser, kRootInode, "l", std::string("a\0b", 3))),
            Errc::invalid);
  EXPECT_EQ(code_of(volume_->symlink(kUser, inode("/a"), "l", "x")), Errc::not_dir);
  EXPECT_EQ(code_of(volume_->symlink(kUser, kRootInode, "a", "x")), Errc::exists);
}

TEST_F(VolumeLinks, targets_of_every_length_that_matters) {
  vault();
  const InodeId plain = directory("/plain"), vault = inode("/vault");
  for (const std::size_t length : {1,   15,  16,   17,   32,   33,   255,  256,  894,  895,
                                   896, 897, 2000, 4064, 4065, 4092, 4093, 4094, 4095, 4096}) {
    std::string text(length, 'x');
    text.back() = 'y';
    const std::string name = "l" + std::to_string(length);
    const Errc in_plain = code_of(volume_->symlink(kUser, plain, name, text));
    const Errc in_vault = code_of(volume_->symlink(kUser, vault, name, text));
    EXPECT_EQ(in_plain, length <= 4095 ? Errc{} : Errc::name_too_long) << length;
    EXPECT_EQ(in_vault, length <= 4093 ? Errc{} : Errc::name_too_long) << length;
    if (in_plain == Errc{}) {
      EXPECT_EQ(target("/plain/" + name), text);
    }
    if (in_vault == Errc{}) {
      EXPECT_EQ(target("/vault/" + name), text);
      EXPECT_EQ(volume_->stat(inode("/vault/" + name))->size, length);
    }
  }
}

TEST_F(VolumeLinks, a_locked_symlink_shows_its_no_key_form) {
  const crypto::KeyId id = vault();
  const InodeId vault = inode("/vault");
  const auto made = volume_->symlink(kUser, vault, "s", "a target in clear text");
  const auto same = volume_->symlink(kUser, vault, "same", "a target in clear text");
  const auto longer = volume_->symlink(kUser, vault, "longer", std::string(200, 't'));
  ASSERT_TRUE(made && same && longer);
  EXPECT_EQ(volume_->stat(*made)->size, 22U);
  EXPECT_EQ(remove(id).state, keymgr::KeyState::absent);
  const std::string locked = volume_->read_link(*made).value_or("?");
  EXPECT_EQ(locked.size(), (8 + 32) * 4 / 3 + 1U) << "of two zero words and 32 bytes, in base64";
  EXPECT_EQ(volume_->stat(*made)->size, locked.size()) << "what lstat says is what readlink gives";
  EXPECT_TRUE(volume_->stat(*made)->locked);
  EXPECT_NE(volume_->read_link(*same).value_or("?"), locked) << "each has a nonce of its own";
  EXPECT_EQ(volume_->read_link(*longer)->size(), crypto::kNoKeyNameBytesMax);
  const auto names = volume_->read_directory(vault);
  ASSERT_TRUE(names);
  ASSERT_EQ(names->size(), 3U);
  ASSERT_TRUE(volume_->unlink(vault, names->front().name)) << "needs no key";
  add_key();
  for (const DirEntry& entry : entries(vault))
    EXPECT_EQ(target("/vault/" + entry.name),
              entry.name == "longer" ? std::string(200, 't') : "a target in clear text");
}

TEST_F(VolumeLinks, no_target_of_an_encrypted_directory_is_on_the_device) {
  vault();
  const std::string secret = "a target that nobody may read";
  ASSERT_TRUE(volume_->symlink(kUser, inode("/vault"), "s", secret));
  ASSERT_TRUE(volume_->symlink(kUser, kRootInode, "s", "a target in clear text"));
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  std::string all(device_.info().size_bytes, '\0');
  device_.peek(0, std::as_writable_bytes(std::span(all)));
  EXPECT_EQ(all.find(secret), std::string::npos);
  EXPECT_NE(all.find("a target in clear text"), std::string::npos) << "else this test sees nothing";
}

// --- special files ------------------------------------------------------------------------------

TEST_F(VolumeLinks, special_files_keep_kind_and_number) {
  vault();
  const NewNode nodes[] = {{.kind = FileKind::fifo, .mode = 0620},
                           {.kind = FileKind::socket, .mode = 0600},
                           {.kind = FileKind::char_device, .mode = 0666, .device = 0x103},
                           {.kind = FileKind::block_device, .mode = 0600, .device = 0xffff'ffff},
                           {.kind = FileKind::regular, .mode = 0600}};
  for (const std::string_view parent : {"/", "/vault"}) {
    for (const NewNode& node : nodes) {
      const std::string name = "n" + std::to_string(static_cast<int>(node.kind));
      const std::string path = (parent == "/" ? "/" : "/vault/") + name;
      ASSERT_TRUE(volume_->make_node(kUser, inode(parent), name, node)) << path;
      const Stat stat = *volume_->stat(inode(path));
      EXPECT_EQ(stat.kind, node.kind);
      EXPECT_EQ(stat.mode, node.mode);
      EXPECT_EQ(stat.device, node.device);
      EXPECT_EQ(stat.size, 0U);
      const bool encrypted = parent == "/vault" && node.kind == FileKind::regular;
      EXPECT_EQ(stat.key_id.has_value(), encrypted) << "only files, directories and symlinks are";
      if (node.kind == FileKind::regular) continue;
      EXPECT_EQ(open_error(path), Errc::unsupported);
    }
  }
  reopen();
  EXPECT_EQ(volume_->stat(inode("/n7"))->device, 0xffff'ffffU);
  EXPECT_EQ(volume_->read_directory(kRootInode)->size(), 6U);
  ASSERT_EQ(link_in_root("/n4", "pipe"), Errc{});
  ASSERT_TRUE(volume_->unlink(kRootInode, "n4"));
  EXPECT_EQ(volume_->stat(inode("/pipe"))->kind, FileKind::fifo);
  const auto refused = [&](const NewNode& node) {
    return code_of(volume_->make_node(kUser, kRootInode, "x", node));
  };
  EXPECT_EQ(refused({.kind = FileKind::directory}), Errc::invalid);
  EXPECT_EQ(refused({.kind = FileKind::symlink}), Errc::invalid);
  EXPECT_EQ(refused({.kind = FileKind::fifo, .device = 1}), Errc::invalid);
  EXPECT_EQ(refused({.kind = FileKind::block_device, .device = u64{1} << 32}), Errc::invalid);
}

// --- files without a name -----------------------------------------------------------------------

TEST_F(VolumeLinks, an_unnamed_file_is_one_until_its_last_close) {
  const u64 before = blocks_used();
  const HandleId handle = unnamed(kRootInode, {.read = true, .write = true});
  append(handle, std::string(1 << 20, 'u'));
  ASSERT_TRUE(volume_->fsync(handle));
  EXPECT_EQ(content(handle), std::string(1 << 20, 'u'));
  EXPECT_EQ(volume_->stat(handle)->links, 0U);
  EXPECT_EQ(volume_->stat(handle)->mode, 0640U);
  EXPECT_TRUE(volume_->read_directory(kRootInode)->empty());
  EXPECT_GT(blocks_used(), before + 200);
  close(handle);
  EXPECT_LT(blocks_used(), before + 100);
  EXPECT_EQ(code_of(volume_->open_unnamed(kUser, kRootInode, {}, 0600, "")), Errc::invalid);
  put("/file", "f");
  EXPECT_EQ(code_of(volume_->open_unnamed(kUser, inode("/file"), {.write = true}, 0600, "")),
            Errc::not_dir);
}

TEST_F(VolumeLinks, an_unnamed_file_gets_a_name_by_link) {
  vault();
  for (const std::string_view parent : {"/", "/vault"}) {
    const InodeId into = inode(parent);
    const HandleId handle = unnamed(into, {.read = true, .write = true});
    append(handle, "text");
    EXPECT_EQ(code_of(volume_->link(handle, into, "named")), Errc{});
    EXPECT_EQ(code_of(volume_->link(handle, into, "named2")), Errc{}) << "it is as any other now";
    EXPECT_EQ(volume_->stat(handle)->links, 2U);
    append(handle, " and more");
    close(handle);
    const std::string path = (parent == "/" ? "" : "/vault") + std::string("/named");
    EXPECT_EQ(content(path), "text and more");
    reopen();
    add_key();
    EXPECT_EQ(content(path), "text and more");
    ASSERT_TRUE(volume_->unlink(into, "named2"));
    const HandleId again = open(path, {.write = true});
    ASSERT_TRUE(volume_->unlink(into, "named"));
    EXPECT_EQ(code_of(volume_->link(again, into, "back")), Errc::not_found) << "once only";
    close(again);
  }
}

TEST_F(VolumeLinks, an_exclusive_unnamed_file_never_gets_a_name) {
  const HandleId handle = unnamed(kRootInode, {.write = true, .exclusive = true});
  EXPECT_EQ(code_of(volume_->link(handle, kRootInode, "x")), Errc::not_found);
  close(handle);
  EXPECT_TRUE(volume_->read_directory(kRootInode)->empty());
}

TEST_F(VolumeLinks, an_unnamed_file_has_the_policy_of_its_directory) {
  const crypto::KeyId id = vault();
  const HandleId handle = unnamed(inode("/vault"), {.read = true, .write = true});
  EXPECT_EQ(volume_->stat(handle)->key_id, id);
  append(handle, "secret");
  ASSERT_TRUE(volume_->fsync(handle));
  auto other = volume_->add_key(kUser, master_key(9));
  ASSERT_TRUE(other);
  const InodeId second = directory("/second");
  ASSERT_TRUE(volume_->set_policy(kUser, second, *other));
  EXPECT_EQ(code_of(volume_->link(handle, second, "x")), Errc::cross_key);
  EXPECT_EQ(remove(id).state, keymgr::KeyState::incompletely_removed) << "it is busy";
  EXPECT_EQ(content(handle), "secret");
  EXPECT_EQ(code_of(volume_->link(handle, inode("/vault"), "x")), Errc::no_key);
  EXPECT_EQ(code_of(volume_->link(handle, kRootInode, "x")), Errc{});
  close(handle);
  EXPECT_EQ(state(id), keymgr::KeyState::absent);
  EXPECT_EQ(open_error("/x"), Errc::no_key);
  add_key();
  EXPECT_EQ(content("/x"), "secret");
}

TEST_F(VolumeLinks, files_without_a_name_are_gone_after_a_crash) {
  put("/file", std::string(1 << 20, 'f'));
  directory("/dir");
  ASSERT_TRUE(volume_->symlink(kUser, kRootInode, "s", std::string(3000, 's')));
  const u64 empty_but_file = blocks_used();
  const HandleId tmp = unnamed(kRootInode), file = open("/file", {});
  auto dir = volume_->open_directory(kUser, inode("/dir"), "/dir");
  ASSERT_TRUE(dir);
  append(tmp, std::string(1 << 20, 't'));
  ASSERT_TRUE(volume_->fsync(tmp));
  ASSERT_TRUE(volume_->unlink(kRootInode, "file"));
  ASSERT_TRUE(volume_->rmdir(kRootInode, "dir"));
  ASSERT_TRUE(volume_->sync());
  EXPECT_EQ(content(file).size(), u64{1} << 20);
  EXPECT_GT(blocks_used(), empty_but_file + 200);
  crash(1);
  EXPECT_EQ(volume_->read_directory(kRootInode)->size(), 1U);
  EXPECT_LT(blocks_used(), empty_but_file - 200);
}

// --- damage -------------------------------------------------------------------------------------

using DamagedLinks = CheckTest;

TEST_F(DamagedLinks, a_file_with_the_most_names_gets_no_more) {
  change_inode(small_, [](InodeDisk& disk) { disk.links = kLinksMax - 1; });
  open_again();
  EXPECT_EQ(code_of(volume_->link({kRootInode.subvolume, small_}, kRootInode, "last")), Errc{});
  EXPECT_EQ(code_of(volume_->link({kRootInode.subvolume, small_}, kRootInode, "one more")),
            Errc::too_many_links);
  volume_.reset();  // not for the check at the end: the names are not there
}

TEST_F(DamagedLinks, a_symlink_whose_target_is_not_whole_is_an_error) {
  open_again();
  const auto made = volume_->symlink(kUser, kRootInode, "s", std::string(2000, 's'));
  ASSERT_TRUE(made);
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  const SimImage whole = device_.durable();
  const auto refused = [&] {
    open_again();
    EXPECT_EQ(code_of(volume_->read_link(*made)), Errc::malformed);
    volume_.reset();
    device_.restore(whole);
  };
  erase_record({made->number, kTargetType, kTargetPieceBytes});
  refused();
  erase_record({made->number, kTargetType, 0});
  refused();
  put_record({made->number, kTargetType, 2000}, bytes_of("x"));
  refused();
  change_inode(made->number, [](InodeDisk& disk) { disk.size = 1999; });
  refused();
}

}  // namespace
}  // namespace latchkey::tests
