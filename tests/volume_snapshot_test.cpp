// Goal: a subvolume is a tree of its own with one name; a snapshot holds what was there when it was
// made, shares every block with what it is of, and neither sees what the other becomes; a removed
// one frees exactly what nobody else has. Method: the library's calls on a SimDevice; maps tell
// which blocks two files have; the offline check with all data at every test's end.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr u64 kBlock = engine::kBlockBytes;

class VolumeSnapshot : public VolumeTest {
 protected:
  InodeId at(std::string_view path) { return resolve(*volume_, path).value_or(InodeId{}); }
  InodeId subvolume(std::string_view path) {
    const auto parent = resolve_parent(*volume_, path);
    auto made = volume_->create_subvolume(kUser, parent->directory, parent->name, 0755);
    EXPECT_TRUE(made) << made.error().what;
    return made.value_or(InodeId{});
  }
  InodeId snapshot(std::string_view of, std::string_view path, bool read_only = false) {
    const auto parent = resolve_parent(*volume_, path);
    auto made = volume_->snapshot(kUser, at(of), parent->directory, parent->name, read_only);
    EXPECT_TRUE(made) << made.error().what;
    return made.value_or(InodeId{});
  }
  Errc remove(std::string_view path, std::vector<Holder>* holders = nullptr) {
    const auto parent = resolve_parent(*volume_, path);
    return code_of(volume_->remove_subvolume(parent->directory, parent->name, holders));
  }
  std::vector<MapRow> rows(std::string_view path) {
    const HandleId handle = open(path, {});
    auto map = volume_->map(handle);
    EXPECT_TRUE(map);
    close(handle);
    return map.value_or(std::vector<MapRow>{});
  }
  static std::set<std::string> nonces(const std::vector<MapRow>& rows) {
    std::set<std::string> all;
    for (const MapRow& row : rows)
      all.emplace(reinterpret_cast<const char*>(row.nonce.bytes.data()), row.nonce.bytes.size());
    return all;
  }
  void overwrite(std::string_view path, u64 offset, std::string_view text) {
    const HandleId handle = open(path, {.write = true});
    EXPECT_TRUE(volume_->write(handle, offset, bytes_of(text)));
    EXPECT_TRUE(volume_->fsync(handle));
    close(handle);
  }
  u64 used() {
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(volume_->sync());
    return volume_->facts().space.blocks_used;
  }
  std::vector<std::string> names(std::string_view path) {
    std::vector<std::string> all;
    const auto entries = volume_->read_directory(at(path));
    EXPECT_TRUE(entries) << path;
    if (entries)
      for (const DirEntry& entry : *entries) all.push_back(entry.name);
    std::ranges::sort(all);
    return all;
  }
};

TEST_F(VolumeSnapshot, subvolume_is_a_tree_of_its_own_that_paths_cross) {
  const InodeId made = subvolume("/area");
  EXPECT_EQ(at("/area"), made);
  EXPECT_NE(made.subvolume, kRootInode.subvolume);
  EXPECT_EQ(made.number, kRootNumber);
  put("/area/file", "inside");
  put("/file", "outside");
  EXPECT_EQ(at("/area/file").subvolume, made.subvolume);
  EXPECT_EQ(volume_->stat(made)->kind, FileKind::directory);
  const auto entries = volume_->read_directory(kRootInode);
  const auto entry = std::ranges::find(*entries, "area", &DirEntry::name);
  EXPECT_EQ(entry->kind, FileKind::subvolume);
  EXPECT_EQ(entry->inode, made);
  reopen();
  EXPECT_EQ(content("/area/file"), "inside");
  EXPECT_EQ(content("/file"), "outside");
  EXPECT_NE(subvolume("/area/inner").subvolume, made.subvolume);
  const auto list = *volume_->list_subvolumes();
  ASSERT_EQ(list.size(), 3U);
  EXPECT_EQ(list[1].path, "/area");
  EXPECT_EQ(list[2].path, "/area/inner");
  EXPECT_EQ(list[2].parent, made.subvolume);
}

TEST_F(VolumeSnapshot, names_do_not_cross_the_border) {
  const InodeId home = subvolume("/area");
  put("/file", "f");
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "file", home, "file")), Errc::cross_key);
  EXPECT_EQ(code_of(volume_->link(at("/file"), home, "file")), Errc::cross_key);
  EXPECT_EQ(code_of(volume_->rmdir(kRootInode, "area")), Errc::not_permitted);
  EXPECT_EQ(code_of(volume_->unlink(kRootInode, "area")), Errc::is_dir);
  EXPECT_EQ(code_of(remove_tree(*volume_, "/area")), Errc::not_permitted);
  ASSERT_TRUE(make_directory(*volume_, kUser, "/dir"));
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "dir", kRootInode, "area")), Errc::not_permitted);
  // The name itself moves within the subvolume that has it.
  EXPECT_TRUE(volume_->rename(kRootInode, "area", at("/dir"), "moved"));
  EXPECT_EQ(at("/dir/moved"), home);
  EXPECT_TRUE(volume_->rename(at("/dir"), "moved", kRootInode, "file", {.exchange = true}));
  EXPECT_EQ(at("/file"), home);
  EXPECT_EQ(content("/dir/moved"), "f");
  reopen();
  EXPECT_EQ((*volume_->list_subvolumes())[1].path, "/file");
}

TEST_F(VolumeSnapshot, shares_every_block_and_diverges_under_new_nonces) {
  vault();
  const InodeId source = subvolume("/vault/area");
  put("/vault/area/file", std::string(8 * kBlock, 'o'));
  const auto before = rows("/vault/area/file");
  const InodeId copy = snapshot("/vault/area", "/vault/copy");
  EXPECT_NE(copy.subvolume, source.subvolume);
  const auto shared = rows("/vault/copy/file");
  ASSERT_EQ(shared.size(), before.size());
  for (std::size_t i = 0; i < shared.size(); ++i) {
    EXPECT_EQ(shared[i].device_offset, before[i].device_offset) << "one ciphertext, two files";
    EXPECT_EQ(shared[i].nonce.bytes, before[i].nonce.bytes);
  }
  overwrite("/vault/area/file", kBlock, std::string(kBlock, 'a'));
  overwrite("/vault/copy/file", kBlock, std::string(kBlock, 'b'));
  const auto first = nonces(rows("/vault/area/file")), second = nonces(rows("/vault/copy/file"));
  std::vector<std::string> both;
  std::ranges::set_intersection(first, second, std::back_inserter(both));
  EXPECT_EQ(both.size(), 1U) << "the old extent's is all they have in common";
  EXPECT_EQ(first.size(), 2U);
  EXPECT_EQ(second.size(), 2U);
  reopen();
  add_key();
  std::string text(8 * kBlock, 'o');
  EXPECT_EQ(content("/vault/area/file"), text.replace(kBlock, kBlock, std::string(kBlock, 'a')));
  EXPECT_EQ(content("/vault/copy/file"), text.replace(kBlock, kBlock, std::string(kBlock, 'b')));
}

TEST_F(VolumeSnapshot, holds_what_was_written_before_it_and_nothing_later) {
  const HandleId handle = open("/file");
  append(handle, "before");
  snapshot("/", "/then");
  append(handle, ", after");
  EXPECT_EQ(content("/then/file"), "before");
  put("/later", "x");
  EXPECT_EQ(names("/then"), (std::vector<std::string>{"file"})) << "nor does it hold itself";
  put("/then/own", "y");
  EXPECT_EQ(names("/"), (std::vector<std::string>{"file", "later", "then"}));
  EXPECT_EQ(content(handle), "before, after");
  // Numbers go on by themselves in both.
  EXPECT_EQ(at("/later").number, at("/file").number + 1);
  EXPECT_NE(at("/then/own").number, at("/then/file").number);
}

TEST_F(VolumeSnapshot, needs_no_key) {
  const crypto::KeyId id = vault();
  put("/vault/file", "secret");
  const HandleId busy = open("/vault/open");
  append(busy, "dirty under a lease");
  VolumeTest::remove(id);
  EXPECT_EQ(state(id), keymgr::KeyState::incompletely_removed);
  snapshot("/", "/locked");
  close(busy);
  EXPECT_EQ(state(id), keymgr::KeyState::absent);
  snapshot("/", "/absent", true);
  EXPECT_EQ(open_error("/locked/vault/file"), Errc::no_key);
  EXPECT_EQ(names("/locked/vault").size(), 2U);
  add_key();
  EXPECT_EQ(content("/locked/vault/file"), "secret");
  EXPECT_EQ(content("/locked/vault/open"), "dirty under a lease");
  EXPECT_EQ(content("/absent/vault/open"), "dirty under a lease");
}

TEST_F(VolumeSnapshot, must_have_the_policy_of_the_directory) {
  vault();
  subvolume("/plain");
  EXPECT_EQ(code_of(volume_->snapshot(kUser, at("/plain"), at("/vault"), "copy", false)),
            Errc::cross_key);
  EXPECT_TRUE(volume_->stat(subvolume("/vault/inner"))->key_id) << "it inherits";
  EXPECT_EQ(code_of(volume_->snapshot(kUser, at("/vault"), kRootInode, "x", false)), Errc::invalid);
}

TEST_F(VolumeSnapshot, read_only_one_refuses_every_change) {
  put("/file", "text");
  ASSERT_TRUE(make_directory(*volume_, kUser, "/dir"));
  const InodeId copy = snapshot("/", "/frozen", true);
  EXPECT_EQ(content("/frozen/file"), "text");
  EXPECT_EQ(code_of(open_path(*volume_, kUser, "/frozen/file", {.write = true})), Errc::read_only);
  EXPECT_EQ(code_of(open_path(*volume_, kUser, "/frozen/new", {.create = true})), Errc::read_only);
  EXPECT_EQ(code_of(volume_->mkdir(kUser, copy, "new", 0755)), Errc::read_only);
  EXPECT_EQ(code_of(volume_->unlink(copy, "file")), Errc::read_only);
  EXPECT_EQ(code_of(volume_->rmdir(copy, "dir")), Errc::read_only);
  EXPECT_EQ(code_of(volume_->rename(copy, "file", copy, "other")), Errc::read_only);
  EXPECT_EQ(code_of(volume_->link(at("/frozen/file"), copy, "other")), Errc::read_only);
  EXPECT_EQ(code_of(volume_->symlink(kUser, copy, "link", "x")), Errc::read_only);
  EXPECT_EQ(code_of(volume_->set_mode(at("/frozen/file"), 0600)), Errc::read_only);
  EXPECT_EQ(code_of(volume_->create_subvolume(kUser, copy, "sub", 0755)), Errc::read_only);
  EXPECT_EQ(code_of(volume_->snapshot(kUser, kRootInode, copy, "sub", false)), Errc::read_only);
  reopen();
  EXPECT_EQ(code_of(volume_->set_mode(at("/frozen/file"), 0600)), Errc::read_only);
  // A writable snapshot of it can be changed.
  snapshot("/frozen", "/thawed");
  put("/thawed/file", "TEXT");
  EXPECT_EQ(content("/frozen/file"), "text");
}

TEST_F(VolumeSnapshot, subvolumes_below_are_empty_directories_in_it) {
  subvolume("/sub");
  put("/sub/file", "f");
  const InodeId copy = snapshot("/", "/copy");
  EXPECT_TRUE(names("/copy/sub").empty());
  EXPECT_EQ(volume_->stat(at("/copy/sub"))->kind, FileKind::directory);
  EXPECT_EQ(code_of(volume_->mkdir(kUser, at("/copy/sub"), "x", 0755)), Errc::read_only);
  EXPECT_EQ(code_of(volume_->rename(copy, "sub", copy, "other")), Errc::not_permitted);
  EXPECT_EQ(remove("/copy/sub"), Errc::invalid);
  EXPECT_EQ(remove("/copy"), Errc{}) << "nothing lies below";
  snapshot("/", "/again");
  EXPECT_TRUE(volume_->rmdir(at("/again"), "sub"));
  EXPECT_EQ(names("/again"), (std::vector<std::string>{}));
  EXPECT_EQ(content("/sub/file"), "f");
}

TEST_F(VolumeSnapshot, file_that_was_open_without_a_name_leaves_nothing_in_it) {
  const HandleId handle = open("/gone");
  append(handle, std::string(50 * kBlock, 'g'));
  ASSERT_TRUE(volume_->unlink(kRootInode, "gone"));
  snapshot("/", "/copy");
  EXPECT_EQ(content(handle).size(), 50 * kBlock);
  close(handle);
  const u64 before = used();
  EXPECT_EQ(remove("/copy"), Errc{});
  ASSERT_TRUE(volume_->finish_removals());
  EXPECT_LT(before - used(), 40U) << "its blocks had gone with its last handle";
}

TEST_F(VolumeSnapshot, removal_frees_what_nobody_else_has) {
  put("/kept", std::string(100 * kBlock, 'k'));
  subvolume("/dir");
  for (int i = 0; i < 300; ++i) put("/dir/file" + std::to_string(i), std::string(kBlock, 'x'));
  const u64 before = used();
  snapshot("/", "/copy");
  snapshot("/dir", "/dircopy");
  EXPECT_LT(used() - before, 150U) << "metadata alone: the data is 400 blocks";
  overwrite("/copy/kept", 0, std::string(60 * kBlock, 'n'));
  overwrite("/dircopy/file0", 0, std::string(kBlock, 'n'));
  EXPECT_GT(used() - before, 60U);
  EXPECT_EQ(remove("/copy"), Errc{});
  EXPECT_EQ(open_error("/copy/kept"), Errc::not_found);
  EXPECT_EQ(remove("/dir"), Errc{});
  EXPECT_EQ(remove("/dircopy"), Errc{});
  ASSERT_TRUE(volume_->finish_removals());
  EXPECT_EQ(volume_->list_subvolumes()->size(), 1U);
  EXPECT_LT(used(), before - 250);
  EXPECT_EQ(content("/kept"), std::string(100 * kBlock, 'k'));
  const InodeId next = subvolume("/next");
  EXPECT_EQ(next.subvolume, 260U) << "no id comes twice";
}

TEST_F(VolumeSnapshot, is_not_removed_under_its_users) {
  const InodeId home = subvolume("/area");
  const HandleId handle = open("/area/file");
  append(handle, "text");
  std::vector<Holder> holders;
  EXPECT_EQ(remove("/area", &holders), Errc::busy);
  ASSERT_EQ(holders.size(), 1U);
  EXPECT_EQ(holders[0].path, "/area/file");
  append(handle, ", more");
  close(handle);
  subvolume("/area/inner");
  EXPECT_EQ(remove("/area"), Errc::not_empty);
  EXPECT_EQ(remove("/area/inner"), Errc{});
  EXPECT_EQ(content("/area/file"), "text, more");
  EXPECT_EQ(remove("/area"), Errc{});
  EXPECT_EQ(code_of(volume_->stat(home)), Errc::not_found);
  EXPECT_EQ(code_of(volume_->mkdir(kUser, home, "x", 0755)), Errc::not_found);
  EXPECT_EQ(code_of(volume_->snapshot(kUser, home, kRootInode, "x", false)), Errc::not_found);
  EXPECT_TRUE(volume_->finish_removals());
  EXPECT_EQ(code_of(volume_->read_directory(home)), Errc::not_found);
}

// The removed trees are dropped by the workers meanwhile.
TEST_F(VolumeSnapshot, come_and_go_under_writers) {
  constexpr u64 kPages = 64;
  put("/file", std::string(kPages * kBlock, 'a'));
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    const HandleId handle = open("/file", {.write = true});
    for (u64 i = 0; !stop; ++i) {
      // Each write is one page of one letter, from page 0 on again and again.
      const std::string page(kBlock, static_cast<char>('a' + i / kPages % 26));
      EXPECT_TRUE(volume_->write(handle, i % kPages * kBlock, bytes_of(page)));
    }
    close(handle);
  });
  for (int i = 0; i < 12; ++i) {
    const std::string path = "/copy" + std::to_string(i);
    snapshot("/", path);
    const std::string text = content(path + "/file");
    EXPECT_EQ(text.size(), kPages * kBlock);
    for (u64 page = 0; page < kPages && text.size() == kPages * kBlock; ++page)
      EXPECT_EQ(text.substr(page * kBlock, kBlock), std::string(kBlock, text[page * kBlock]));
    EXPECT_EQ(content(path + "/file"), text) << "and stays so";
    if (i % 3 != 0) {
      EXPECT_EQ(remove(path), Errc{});
    }
  }
  stop = true;
  writer.join();
  EXPECT_TRUE(volume_->finish_removals());
  EXPECT_EQ(volume_->list_subvolumes()->size(), 5U);
}

// A cut at every write and flush of a life that makes a snapshot, lets both sides change and
// removes one of them: what was acknowledged is there, each step is whole or absent, the structure
// is clean, and the next open goes on with the removal.
class SnapshotCrash : public ::testing::Test {
 protected:
  static constexpr int kSteps = 5;
  static std::unique_ptr<Volume> open_it(SimDevice& device) {
    VolumeOptions options;
    options.inline_writeback = true;
    options.commit_interval_ms = 0;
    auto volume = Volume::open(device, options, system_env());
    EXPECT_TRUE(volume) << volume.error().what;
    return volume ? std::move(*volume) : nullptr;
  }
  static bool write(Volume& volume, std::string_view path, std::string_view text) {
    auto handle = open_path(volume, kUser, path, {.write = true, .create = true});
    if (!handle) return false;
    const bool done =
        volume.write(*handle, 0, bytes_of(text)).has_value() && volume.fsync(*handle).has_value();
    return volume.close_handle(*handle).has_value() && done;
  }
  // How many steps were acknowledged.
  static int live(Volume& volume) {
    if (!volume.snapshot(kUser, kRootInode, kRootInode, "copy", false)) return 0;
    if (!write(volume, "/f3", std::string(2 * kBlock, 'n'))) return 1;
    if (!write(volume, "/copy/f3", std::string(2 * kBlock, 'c'))) return 2;
    if (!volume.remove_subvolume(kRootInode, "copy") || !volume.sync()) return 3;
    if (!volume.finish_removals() || !volume.sync()) return 4;
    return kSteps;
  }
  static std::string text_of(Volume& volume, const std::string& path) {
    auto handle = open_path(volume, kUser, path, {});
    if (!handle) return "none";
    std::string text(3 * kBlock, '?');
    const auto size = volume.read(*handle, 0, std::as_writable_bytes(std::span(text)));
    text.resize(size.value_or(0));
    EXPECT_TRUE(volume.close_handle(*handle));
    return text;
  }
  static void expect_state(Volume& volume, int done) {
    const std::string old(2 * kBlock, 'o'), source(2 * kBlock, 'n'), copy(2 * kBlock, 'c');
    for (int i = 0; i < 40; ++i) {
      const std::string name = "/f" + std::to_string(i);
      const std::string now = text_of(volume, name), then = text_of(volume, "/copy" + name);
      const bool changed = i == 3;
      EXPECT_TRUE(now == old || (changed && done <= 1) || (changed && now == source)) << name;
      if (changed && done >= 2) {
        EXPECT_EQ(now, source);
      }
      if (done >= 4) {
        EXPECT_EQ(then, "none");
      }
      if (done == 0 || done == 3) continue;  // there or not
      if (done < 3 && !changed) {
        EXPECT_EQ(then, old) << name;
      }
      if (changed && done == 1) {
        EXPECT_EQ(then, old);
      }
    }
  }
};

TEST_F(SnapshotCrash, every_cut_leaves_whole_steps) {
  SimDevice fresh({.size_bytes = 16 * kMiB});
  MkfsOptions mkfs;
  mkfs.node_bytes = 4096;
  ASSERT_TRUE(Volume::mkfs(fresh, mkfs, system_env()));
  {
    auto volume = open_it(fresh);
    for (int i = 0; i < 40; ++i)
      ASSERT_TRUE(write(*volume, "/f" + std::to_string(i), std::string(2 * kBlock, 'o')));
    ASSERT_TRUE(volume->close());
  }
  const SimImage image = fresh.snapshot();
  for (u64 cut = 0;; ++cut) {
    SCOPED_TRACE(testing::Message() << "cut after " << cut);
    SimDevice device({.size_bytes = 16 * kMiB, .seed = cut + 1});
    device.restore(image);
    auto volume = open_it(device);
    ASSERT_TRUE(volume);
    device.cut_after(cut);
    const int done = live(*volume);
    const bool over = !device.power_off();
    volume.reset();
    device.restore(device.crash_image(cut));
    auto again = open_it(device);
    ASSERT_TRUE(again);
    expect_state(*again, done);
    const auto list = again->list_subvolumes();
    ASSERT_TRUE(list);
    for (const SubvolumeInfo& info : *list) EXPECT_FALSE(info.removed) << "the open went on";
    ASSERT_TRUE(again->close());
    again.reset();
    const auto check = check_volume(device, {}, system_env());
    ASSERT_TRUE(check) << check.error().what;
    for (const engine::Finding& finding : check->findings)
      ADD_FAILURE() << finding.where << ": " << finding.what;
    if (over || HasFailure()) break;
  }
}

}  // namespace
}  // namespace latchkey::tests
