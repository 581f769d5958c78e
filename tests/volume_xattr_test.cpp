// Goal: an extended attribute is what was set, whole or not at all, and nothing of a user.* value
// of an encrypted inode is on the device in the clear or twice under one nonce. Method: a volume on
// a SimDevice, checked after every test; a workload is cut at every write and flush that it makes,
// and what comes back is compared with a map that has no disk.

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "crypto/values.h"
#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"
#include "volume/xattr_records.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

using Value = std::vector<std::byte>;

Value value_of(std::size_t size, u8 tag) {
  std::mt19937_64 random(tag);
  Value value(size);
  for (std::byte& byte : value) byte = static_cast<std::byte>(random());
  return value;
}

class XattrTest : public VolumeTest {
 protected:
  InodeId inode(std::string_view path) {
    auto found = resolve(*volume_, path);
    EXPECT_TRUE(found) << path;
    return found.value_or(InodeId{});
  }
  Errc set(std::string_view path, std::string_view name, Bytes value, XattrFlags flags = {}) {
    return code_of(volume_->set_xattr(inode(path), name, value, flags));
  }
  Value get(std::string_view path, std::string_view name) {
    auto value = volume_->get_xattr(inode(path), name);
    EXPECT_TRUE(value) << name << ": " << value.error().what;
    return value.value_or(Value{});
  }
  Errc get_error(std::string_view path, std::string_view name) {
    return code_of(volume_->get_xattr(inode(path), name));
  }
  std::set<std::string> names(std::string_view path) {
    auto names = volume_->list_xattrs(inode(path));
    EXPECT_TRUE(names);
    std::set<std::string> sorted;
    if (names) sorted.insert(names->begin(), names->end());
    EXPECT_EQ(sorted.size(), names ? names->size() : 0);
    return sorted;
  }
  Stat item(std::string_view path) { return *volume_->stat(inode(path)); }
  bool on_device(Bytes needle) {
    std::vector<std::byte> raw(device_.info().size_bytes);
    device_.peek(0, raw);
    return ::memmem(raw.data(), raw.size(), needle.data(), needle.size()) != nullptr;
  }
};

TEST_F(XattrTest, they_are_what_was_set_in_plain_and_encrypted_inodes) {
  vault();
  put("/file", "x");
  put("/vault/file", "x");
  ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/sub"));
  for (const char* path : {"/file", "/vault/file", "/vault", "/vault/sub", "/"}) {
    SCOPED_TRACE(path);
    EXPECT_EQ(names(path), std::set<std::string>{});
    std::set<std::string> all;
    for (const char* name : {"user.one", "user.two", "trusted.one", "security.capability",
                             "system.posix_acl_access", "system.posix_acl_default"}) {
      EXPECT_EQ(get_error(path, name), Errc::no_attribute);
      EXPECT_EQ(set(path, name, value_of(30, 1)), Errc{});
      EXPECT_EQ(get(path, name), value_of(30, 1));
      EXPECT_EQ(set(path, name, value_of(31, 2)), Errc{});
      all.insert(name);
    }
    EXPECT_EQ(names(path), all);
    EXPECT_EQ(set(path, "user.empty", {}), Errc{});
    EXPECT_EQ(get(path, "user.empty"), Value{});
    ASSERT_TRUE(volume_->remove_xattr(inode(path), "user.empty"));
    EXPECT_EQ(code_of(volume_->remove_xattr(inode(path), "user.empty")), Errc::no_attribute);
  }
  reopen();
  add_key();
  for (const char* path : {"/file", "/vault/file", "/vault", "/vault/sub", "/"}) {
    EXPECT_EQ(names(path).size(), 6U);
    for (const std::string& name : names(path)) EXPECT_EQ(get(path, name), value_of(31, 2));
  }
}

TEST_F(XattrTest, create_and_replace_mean_what_they_say) {
  put("/file", "x");
  EXPECT_EQ(set("/file", "user.a", value_of(1, 1), {.replace = true}), Errc::no_attribute);
  EXPECT_EQ(set("/file", "user.a", value_of(1, 1), {.create = true}), Errc{});
  EXPECT_EQ(set("/file", "user.a", value_of(2, 2), {.create = true}), Errc::exists);
  EXPECT_EQ(get("/file", "user.a"), value_of(1, 1));
  EXPECT_EQ(set("/file", "user.a", value_of(3, 3), {.replace = true}), Errc{});
  EXPECT_EQ(get("/file", "user.a"), value_of(3, 3));
  EXPECT_EQ(set("/file", "user.a", {}, {.create = true, .replace = true}), Errc::invalid);
}

TEST_F(XattrTest, names_and_values_have_limits) {
  put("/file", "x");
  const std::string longest = "user." + std::string(250, 'n');
  EXPECT_EQ(set("/file", longest, value_of(5, 1)), Errc{});
  EXPECT_EQ(get("/file", longest), value_of(5, 1));
  EXPECT_EQ(set("/file", longest + "n", {}), Errc::out_of_range);
  EXPECT_EQ(set("/file", "", {}), Errc::out_of_range);
  EXPECT_EQ(set("/file", "user.", {}), Errc::invalid);
  EXPECT_EQ(set("/file", std::string_view("user.\0x", 7), {}), Errc::invalid);
  for (const char* name : {"other.x", "system.x", "system.posix_acl_access2", "user", "USER.x"}) {
    EXPECT_EQ(set("/file", name, {}), Errc::unsupported) << name;
    EXPECT_EQ(get_error("/file", name), Errc::unsupported) << name;
    EXPECT_EQ(code_of(volume_->remove_xattr(inode("/file"), name)), Errc::unsupported) << name;
  }
  EXPECT_EQ(set("/file", "user.big", value_of(kXattrValueBytesMax + 1, 1)), Errc::list_too_big);
  EXPECT_EQ(names("/file"), std::set<std::string>{longest});
}

// Longer than a record, about a record's end, and back.
TEST_F(XattrTest, values_of_any_size_replace_each_other) {
  vault();
  put("/file", "x");
  put("/vault/file", "x");
  const std::string name = "user." + std::string(200, 'n');
  const std::size_t sizes[] = {kXattrValueBytesMax,
                               0,
                               1,
                               3790,
                               3791,
                               3792,
                               3793,
                               kXattrValueBytesMax,
                               3819,
                               3820,
                               3821,
                               7850,
                               7851,
                               7852,
                               20000,
                               8064,
                               4032,
                               4033,
                               5};
  u8 tag = 0;
  for (const std::size_t size : sizes) {
    ++tag;
    for (const char* path : {"/file", "/vault/file"}) {
      ASSERT_EQ(set(path, name, value_of(size, tag)), Errc{}) << size;
      ASSERT_EQ(get(path, name), value_of(size, tag)) << size;
    }
  }
  reopen();
  EXPECT_EQ(get("/file", name), value_of(5, tag));
}

TEST_F(XattrTest, nothing_of_a_value_is_on_the_device_in_the_clear) {
  vault();
  put("/vault/file", "x");
  put("/file", "x");
  const Value secret = value_of(5000, 11);
  const Value open = value_of(5000, 111);
  EXPECT_EQ(set("/vault/file", "user.secret", secret), Errc{});
  EXPECT_EQ(set("/vault", "user.secret", secret), Errc{});
  EXPECT_EQ(set("/vault/file", "trusted.open", open), Errc{});
  ASSERT_TRUE(volume_->sync());
  for (std::size_t at = 0; at < secret.size(); at += 700)
    EXPECT_FALSE(on_device(Bytes(secret).subspan(at, 32))) << at;
  EXPECT_TRUE(on_device(Bytes(open).subspan(1000, 32)));
  EXPECT_TRUE(on_device(bytes_of("user.secret"))) << "names are plain";
}

TEST_F(XattrTest, without_the_key_values_hide_and_names_do_not) {
  const auto id = vault();
  put("/vault/file", "x");
  EXPECT_EQ(set("/vault/file", "user.a", value_of(9, 1)), Errc{});
  EXPECT_EQ(set("/vault/file", "trusted.b", value_of(9, 2)), Errc{});
  const InodeId file = inode("/vault/file");
  remove(id);
  ASSERT_EQ(state(id), keymgr::KeyState::absent);
  EXPECT_EQ(code_of(volume_->get_xattr(file, "user.a")), Errc::no_key);
  EXPECT_EQ(code_of(volume_->get_xattr(file, "user.none")), Errc::no_attribute);
  EXPECT_EQ(code_of(volume_->set_xattr(file, "user.a", {})), Errc::no_key);
  EXPECT_EQ(code_of(volume_->set_xattr(file, "user.c", {})), Errc::no_key);
  EXPECT_EQ(volume_->get_xattr(file, "trusted.b").value_or(Value{}), value_of(9, 2));
  EXPECT_EQ(code_of(volume_->set_xattr(file, "trusted.b", value_of(9, 3))), Errc{});
  EXPECT_EQ(volume_->list_xattrs(file)->size(), 2U);
  add_key();
  EXPECT_EQ(get("/vault/file", "user.a"), value_of(9, 1)) << "nothing was changed";
  remove(id);
  ASSERT_TRUE(volume_->remove_xattr(file, "user.a"));
  EXPECT_EQ(volume_->list_xattrs(file)->size(), 1U);
  EXPECT_EQ(state(id), keymgr::KeyState::absent) << "no lease is left out";
}

// As with its data: those inside go on, nobody new gets in.
TEST_F(XattrTest, an_open_handle_keeps_its_values_through_a_soft_removal) {
  const auto id = vault();
  put("/vault/file", "x");
  ASSERT_TRUE(volume_->sync());  // no data is lost below
  const HandleId handle = open("/vault/file");
  const InodeId file = inode("/vault/file");
  EXPECT_EQ(set("/vault/file", "user.a", value_of(9, 1)), Errc{});
  remove(id);
  ASSERT_EQ(state(id), keymgr::KeyState::incompletely_removed);
  EXPECT_EQ(volume_->get_xattr(handle, "user.a").value_or(Value{}), value_of(9, 1));
  ASSERT_TRUE(volume_->set_xattr(handle, "user.a", value_of(8, 2)));
  EXPECT_EQ(volume_->list_xattrs(handle)->size(), 1U);
  EXPECT_EQ(code_of(volume_->get_xattr(file, "user.a")), Errc::no_key);
  remove(id, keymgr::RemovalMode::hard);
  EXPECT_EQ(code_of(volume_->get_xattr(handle, "user.a")), Errc::no_key);
  EXPECT_EQ(code_of(volume_->set_xattr(handle, "user.a", {})), Errc::no_key);
  EXPECT_TRUE(volume_->close_handle(handle));
  EXPECT_EQ(state(id), keymgr::KeyState::absent);
  add_key();
  EXPECT_EQ(get("/vault/file", "user.a"), value_of(8, 2));
}

TEST_F(XattrTest, a_directory_with_user_attributes_gets_no_policy) {
  const auto id = add_key();
  auto made = make_directory(*volume_, kUser, "/new");
  ASSERT_TRUE(made);
  EXPECT_EQ(set("/new", "user.a", value_of(9, 1)), Errc{});
  EXPECT_EQ(set("/new", "system.posix_acl_default", value_of(9, 1)), Errc{});
  EXPECT_EQ(code_of(volume_->set_policy(kUser, *made, id)), Errc::not_empty);
  ASSERT_TRUE(volume_->remove_xattr(*made, "user.a"));
  ASSERT_TRUE(volume_->set_policy(kUser, *made, id));
  EXPECT_EQ(set("/new", "user.a", value_of(9, 1)), Errc{});
}

TEST_F(XattrTest, symlinks_and_special_files_have_no_user_attributes) {
  vault();
  const InodeId vault = inode("/vault");
  const auto link = volume_->symlink(kUser, vault, "link", "target");
  ASSERT_TRUE(link);
  EXPECT_EQ(code_of(volume_->set_xattr(*link, "user.a", value_of(3, 1))), Errc::not_permitted);
  ASSERT_TRUE(volume_->set_xattr(*link, "trusted.a", value_of(3, 1)));
  EXPECT_EQ(volume_->get_xattr(*link, "trusted.a").value_or(Value{}), value_of(3, 1));
  EXPECT_EQ(volume_->list_xattrs(*link)->size(), 1U);
  ASSERT_TRUE(volume_->unlink(vault, "link"));
}

TEST_F(XattrTest, ctime_moves_and_nothing_else) {
  put("/file", "x");
  ASSERT_TRUE(volume_->set_attributes(inode("/file"), {.mtime_ns = 5}));
  const Stat before = *volume_->stat(inode("/file"));
  EXPECT_EQ(set("/file", "user.a", {}), Errc{});
  const Stat set_at = *volume_->stat(inode("/file"));
  EXPECT_GT(set_at.ctime_ns, before.ctime_ns);
  EXPECT_EQ(set_at.mtime_ns, 5);
  ASSERT_TRUE(volume_->remove_xattr(inode("/file"), "user.a"));
  EXPECT_GT(volume_->stat(inode("/file"))->ctime_ns, set_at.ctime_ns);
}

// Each set draws a nonce: of the same value twice no 12 bytes are the same, and none comes again.
TEST_F(XattrTest, no_nonce_is_used_twice) {
  vault();
  put("/vault/file", "x");
  std::set<std::string> nonces;
  const InodeId file = inode("/vault/file");
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(set("/vault/file", i % 2 == 0 ? "user.a" : "user.b", value_of(20, 1)), Errc{});
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    auto store = engine::Store::open(device_, {.read_only = true}, system_env());
    ASSERT_TRUE(store);
    const auto found = find_xattr((*store)->view(), file, i % 2 == 0 ? "user.a" : "user.b");
    ASSERT_TRUE(found && *found);
    ASSERT_EQ((*found)->stored.size(), 20 + crypto::kValueOverhead);
    const auto* bytes = reinterpret_cast<const char*>((*found)->stored.data());
    EXPECT_TRUE(nonces.insert(std::string(bytes, sizeof(crypto::ValueNonce))).second) << i;
    store->reset();
    open_again();
    add_key();
  }
}

TEST_F(XattrTest, a_forged_value_is_damage) {
  vault();
  put("/vault/file", "x");
  const InodeId file = inode("/vault/file");
  EXPECT_EQ(set("/vault/file", "user.a", value_of(20, 1)), Errc{});
  EXPECT_EQ(set("/vault/file", "user.b", value_of(20, 2)), Errc{});
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  {
    // The value of one under the name of the other, as a store with rotten records would have it.
    auto store = engine::Store::open(device_, {}, system_env());
    ASSERT_TRUE(store);
    const auto a = find_xattr((*store)->view(), file, "user.a");
    auto b = find_xattr((*store)->view(), file, "user.b");
    ASSERT_TRUE(a && *a && b && *b);
    (*b)->stored = (*a)->stored;
    auto space = (*store)->reserve({0, 1, 500});
    ASSERT_TRUE(space);
    {
      auto transaction = (*store)->begin(std::move(*space));
      ASSERT_TRUE(transaction);
      ASSERT_TRUE(transaction->put(file.subvolume, {file.number, kXattrType, (*b)->offset},
                                   encode_xattr(**b, 4000).front()));
    }
    ASSERT_TRUE((*store)->close());
  }
  open_again();
  add_key();
  EXPECT_EQ(get("/vault/file", "user.a"), value_of(20, 1));
  EXPECT_EQ(get_error("/vault/file", "user.b"), Errc::damaged);
}

TEST_F(XattrTest, a_reaped_inode_leaves_none_however_many_it_had) {
  const u64 free = volume_->space()->blocks_free;
  vault();
  put("/vault/file", "x");
  for (int i = 0; i < 150; ++i)
    ASSERT_EQ(set("/vault/file", "user." + std::to_string(i), value_of(i * 60U, 1)), Errc{});
  EXPECT_EQ(names("/vault/file").size(), 150U);
  const auto id = *volume_->stat(inode("/vault"))->key_id;
  const HandleId handle = open("/vault/file");
  ASSERT_TRUE(volume_->unlink(inode("/vault"), "file"));
  EXPECT_EQ(volume_->list_xattrs(handle)->size(), 150U);
  ASSERT_TRUE(volume_->set_xattr(handle, "user.late", value_of(3, 1)));
  remove(id, keymgr::RemovalMode::hard);
  (void)volume_->close_handle(handle);
  ASSERT_TRUE(volume_->rmdir(kRootInode, "vault"));
  ASSERT_TRUE(volume_->sync());
  EXPECT_EQ(volume_->space()->blocks_free, free);
}

TEST_F(XattrTest, snapshots_have_their_own_and_a_read_only_one_takes_no_change) {
  vault();
  put("/vault/file", "x");
  ASSERT_EQ(set("/vault/file", "user.long", value_of(40'000, 1)), Errc{});
  ASSERT_EQ(set("/vault", "trusted.of-the-directory", value_of(9, 2)), Errc{});
  const Stat before = item("/vault/file");
  for (const bool read_only : {true, false}) {
    const std::string name = read_only ? "frozen" : "copy";
    ASSERT_TRUE(volume_->snapshot(kUser, kRootInode, kRootInode, name, read_only));
  }
  ASSERT_EQ(set("/vault/file", "user.long", value_of(3, 3)), Errc{});
  const std::string frozen = "/frozen/vault/file";
  EXPECT_EQ(get(frozen, "user.long"), value_of(40'000, 1));
  EXPECT_EQ(get("/frozen/vault", "trusted.of-the-directory"), value_of(9, 2));
  for (const char* name : {"user.long", "user.new", "trusted.new"})
    EXPECT_EQ(set(frozen, name, value_of(3, 1)), Errc::read_only);
  EXPECT_EQ(code_of(volume_->remove_xattr(inode(frozen), "user.long")), Errc::read_only);
  for (const AttributeChange& change :
       {AttributeChange{.mode = 0600}, {.uid = 1}, {.gid = 1}, {.atime_ns = 1}, {.mtime_ns = 1}})
    EXPECT_EQ(code_of(volume_->set_attributes(inode(frozen), change)), Errc::read_only);
  close(open(frozen, {}));  // nor is atime kept

  ASSERT_EQ(set("/copy/vault/file", "user.long", value_of(50'000, 4)), Errc{});
  ASSERT_TRUE(volume_->remove_xattr(inode("/copy/vault"), "trusted.of-the-directory"));
  reopen();
  add_key();
  EXPECT_EQ(get("/vault/file", "user.long"), value_of(3, 3));
  EXPECT_EQ(get(frozen, "user.long"), value_of(40'000, 1));
  EXPECT_EQ(get("/copy/vault/file", "user.long"), value_of(50'000, 4));
  EXPECT_EQ(names("/copy/vault"), (std::set<std::string>{}));
  EXPECT_EQ(names("/frozen/vault"), (std::set<std::string>{"trusted.of-the-directory"}));
  EXPECT_EQ(item(frozen).atime_ns, before.atime_ns);
  EXPECT_EQ(item(frozen).ctime_ns, before.ctime_ns);
  ASSERT_TRUE(volume_->remove_subvolume(kRootInode, "frozen"));
  ASSERT_TRUE(volume_->finish_removals());
}

TEST_F(XattrTest, a_full_store_refuses_and_changes_nothing) {
  put("/file", "x");
  EXPECT_EQ(set("/file", "user.a", value_of(100, 1)), Errc{});
  const HandleId filler = open("/filler");
  u64 at = 0;
  for (const std::size_t size : {kMiB, engine::kBlockBytes}) {
    const Value piece(size, std::byte{1});
    while (volume_->write(filler, at, piece)) at += size;
  }
  (void)volume_->fsync(filler);
  u32 refused = 0;
  for (int i = 0; i < 2000 && refused == 0; ++i) {
    const std::string name = "user.n" + std::to_string(i);
    const Errc code = set("/file", name, value_of(kXattrValueBytesMax, 1));
    if (code == Errc{}) continue;
    ASSERT_EQ(code, Errc::no_space);
    EXPECT_EQ(get_error("/file", name), Errc::no_attribute);
    EXPECT_EQ(set("/file", "user.a", value_of(kXattrValueBytesMax, 2)), Errc::no_space);
    ++refused;
  }
  EXPECT_EQ(refused, 1U);
  EXPECT_EQ(get("/file", "user.a"), value_of(100, 1));
  for (const std::string& name : names("/file"))
    ASSERT_TRUE(volume_->remove_xattr(inode("/file"), name)) << "removing always works";
  close(filler);
}

// --- a crash at every write --------------------------------------------------------------------

using Attributes = std::map<std::string, Value>;

struct CrashRun {
  std::vector<Attributes> states{{}};
  std::size_t synced = 0;  // states[synced] survives
};

// /vault/file exists. Until the steps are done or the device fails.
void change_attributes(Volume& volume, CrashRun& run, u64 seed) {
  std::mt19937_64 random(seed);
  const auto file = resolve(volume, "/vault/file");
  ASSERT_TRUE(file);
  for (int i = 0; i < 14; ++i) {
    Attributes next = run.states.back();
    const std::string name = "user." + std::to_string(random() % 3);
    const std::size_t size = random() % 3 == 0 ? random() % 20000 : random() % 100;
    const bool removes = next.contains(name) && random() % 3 == 0;
    const Value value = value_of(size, static_cast<u8>(i));
    if (removes)
      next.erase(name);
    else
      next[name] = value;
    run.states.push_back(next);
    const auto done =
        removes ? volume.remove_xattr(*file, name) : volume.set_xattr(*file, name, value);
    if (!done) return;
    if (i % 3 != 2) continue;
    if (!volume.sync()) return;
    run.synced = run.states.size() - 1;
  }
}

std::unique_ptr<Volume> open_inline(SimDevice& device) {
  VolumeOptions options;
  options.inline_writeback = true;
  options.commit_interval_ms = 0;
  auto opened = Volume::open(device, options, system_env());
  if (!opened) return nullptr;
  EXPECT_TRUE((*opened)->add_key(kUser, master_key(7)));
  return std::move(*opened);
}

void look_at(SimDevice& device, const CrashRun& run) {
  const auto check = check_volume(device, {}, system_env());
  ASSERT_TRUE(check);
  for (const engine::Finding& finding : check->findings)
    ADD_FAILURE() << finding.where << ": " << finding.what;
  const auto volume = open_inline(device);
  ASSERT_TRUE(volume);
  const auto file = resolve(*volume, "/vault/file");
  ASSERT_TRUE(file);
  Attributes found;
  const auto names = volume->list_xattrs(*file);
  ASSERT_TRUE(names);
  for (const std::string& name : *names) {
    auto value = volume->get_xattr(*file, name);
    ASSERT_TRUE(value) << name << ": " << value.error().what;
    found[name] = std::move(*value);
  }
  bool known = false;
  for (std::size_t i = run.synced; i < run.states.size(); ++i)
    known = known || run.states[i] == found;
  EXPECT_TRUE(known) << "not a state that was synced or came after";
}

TEST(XattrCrash, every_cut_leaves_each_attribute_old_or_new) {
  for (const u64 seed : seeds(3)) {
    SimDevice fresh({.size_bytes = 16 * kMiB, .seed = seed});
    MkfsOptions mkfs;
    mkfs.node_bytes = 4096;
    ASSERT_TRUE(Volume::mkfs(fresh, mkfs, system_env()));
    {
      const auto volume = open_inline(fresh);
      auto vault = make_directory(*volume, kUser, "/vault");
      ASSERT_TRUE(volume->set_policy(kUser, *vault, volume->key_list(kUser).front().key_id));
      auto handle = open_path(*volume, kUser, "/vault/file", {.write = true, .create = true});
      ASSERT_TRUE(handle && volume->close_handle(*handle) && volume->close());
    }
    const SimImage made = fresh.snapshot();
    u64 cut = 0;
    for (bool survived = false; !survived; ++cut) {
      SimDevice device({.size_bytes = 16 * kMiB, .seed = seed});
      device.restore(made);
      device.cut_after(cut);
      CrashRun run;
      if (const auto volume = open_inline(device)) change_attributes(*volume, run, seed);
      survived = !device.power_off();
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", cut " << cut);
      SimDevice after({.size_bytes = 16 * kMiB, .seed = seed});
      after.restore(device.crash_image(seed_base() + cut));
      ASSERT_NO_FATAL_FAILURE(look_at(after, run));
      if (testing::Test::HasFailure()) return;
    }
    EXPECT_GT(cut, 30U);
  }
}

}  // namespace
}  // namespace latchkey::tests
