// Goal: files behave as POSIX says and keep the promises V1, V3 and V4, with and without a key.
// Method: a SimDevice; one file against a std::string by seeded random operations; directories,
// limits, damage and failing writeouts by name.

#include <cstring>
#include <random>
#include <string>

#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

TEST_F(VolumeTest, one_file_equals_a_string_through_writes_truncates_and_reopening) {
  const u64 seed = seed_base() + 42;
  SCOPED_TRACE(seed);
  vault();
  for (const std::string path : {"/plain", "/vault/secret"}) {
    std::mt19937_64 random(seed);
    std::string model;
    HandleId handle = open(path);
    for (int step = 0; step < 300; ++step) {
      const u64 offset = random() % 200000;
      std::string piece(random() % 20000 + 1, '\0');
      for (char& c : piece) c = static_cast<char>(random());
      switch (random() % 8) {
        case 0: {
          const u64 size = random() % 220000;
          ASSERT_TRUE(volume_->truncate(handle, size));
          model.resize(size);
          break;
        }
        case 1:
          ASSERT_TRUE(volume_->fsync(handle));
          break;
        case 2: {
          ASSERT_TRUE(volume_->append(handle, bytes_of(piece)));
          model += piece;
          break;
        }
        default: {
          ASSERT_TRUE(volume_->write(handle, offset, bytes_of(piece)));
          if (model.size() < offset + piece.size()) model.resize(offset + piece.size());
          model.replace(offset, piece.size(), piece);
        }
      }
      if (random() % 10 == 0) {
        ASSERT_EQ(content(handle), model) << "step " << step;
      }
      if (random() % 60 == 0) {
        ASSERT_TRUE(volume_->close_handle(handle));
        reopen();
        ASSERT_TRUE(volume_->add_key(kUser, master_key(7)));
        handle = open(path);
        ASSERT_EQ(content(handle), model) << "reopened at step " << step;
      }
    }
    ASSERT_TRUE(volume_->close_handle(handle));
    EXPECT_EQ(content(path), model);
  }
}

TEST_F(VolumeTest, directories_follow_posix) {
  ASSERT_TRUE(make_directory(*volume_, kUser, "/a"));
  EXPECT_EQ(code_of(make_directory(*volume_, kUser, "/a")), Errc::exists);
  put("/a/x", "1");
  EXPECT_EQ(code_of(make_directory(*volume_, kUser, "/a/x/y")), Errc::not_dir);
  EXPECT_EQ(code_of(volume_->rmdir(kRootInode, "a")), Errc::not_empty);
  EXPECT_EQ(code_of(volume_->unlink(kRootInode, "a")), Errc::is_dir);
  EXPECT_EQ(code_of(resolve(*volume_, "/a/none")), Errc::not_found);
  EXPECT_EQ(code_of(volume_->lookup(kRootInode, std::string(256, 'n'))), Errc::name_too_long);
  EXPECT_EQ(code_of(volume_->lookup(kRootInode, "..")), Errc::invalid);
  ASSERT_TRUE(remove_tree(*volume_, "/a"));
  EXPECT_TRUE(volume_->read_directory(kRootInode)->empty());
}

TEST_F(VolumeTest, a_locked_directory_lists_no_key_names_that_can_be_removed) {
  vault();
  put("/vault/a-name-of-mine", "secret");
  ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/sub"));
  reopen();  // the key is gone
  EXPECT_EQ(code_of(resolve(*volume_, "/vault/a-name-of-mine")), Errc::no_key);
  EXPECT_EQ(code_of(make_directory(*volume_, kUser, "/vault/new")), Errc::no_key);
  const auto directory = resolve(*volume_, "/vault");
  ASSERT_TRUE(directory);
  const auto entries = volume_->read_directory(*directory);
  ASSERT_TRUE(entries);
  ASSERT_EQ(entries->size(), 2U);
  for (const DirEntry& entry : *entries) {
    EXPECT_EQ(entry.name.find("name"), std::string::npos);
    const auto found = volume_->lookup(*directory, entry.name);
    ASSERT_TRUE(found);
    EXPECT_TRUE(volume_->stat(*found)->locked);
    if (entry.kind == FileKind::directory) {
      EXPECT_TRUE(volume_->rmdir(*directory, entry.name));
      continue;
    }
    EXPECT_EQ(code_of(volume_->open_file(kUser, *directory, entry.name, {}, 0, "x")), Errc::no_key);
    EXPECT_TRUE(volume_->unlink(*directory, entry.name));
  }
  EXPECT_TRUE(volume_->read_directory(*directory)->empty());
}

TEST_F(VolumeTest, a_full_volume_says_so_at_write_and_loses_nothing) {
  const HandleId keep = open("/keep");
  ASSERT_TRUE(volume_->append(keep, bytes_of(std::string(100000, 'k'))));
  const HandleId handle = open("/big");
  const std::string megabyte(kMiB, 'b');
  u64 written = 0;
  for (;;) {
    auto wrote = volume_->append(handle, bytes_of(megabyte));
    if (!wrote) {
      EXPECT_EQ(code_of(wrote), Errc::no_space);
      break;
    }
    written += kMiB;
  }
  EXPECT_GT(written, 60 * kMiB);
  EXPECT_TRUE(volume_->fsync(handle));
  EXPECT_TRUE(volume_->fsync(keep));
  EXPECT_EQ(content(keep), std::string(100000, 'k'));
  ASSERT_TRUE(volume_->close_handle(handle));
  ASSERT_TRUE(volume_->unlink(kRootInode, "big"));
  ASSERT_TRUE(volume_->append(keep, bytes_of(megabyte)));
  ASSERT_TRUE(volume_->close_handle(keep));
}

TEST_F(VolumeTest, rot_is_an_error_for_what_it_hit_and_nothing_else) {
  vault();
  put("/vault/rot", std::string(600000, 'r'));
  put("/vault/good", "good");
  ASSERT_TRUE(volume_->sync());
  HandleId handle = open("/vault/rot");
  const auto rows = volume_->map(handle);
  ASSERT_TRUE(rows);
  const u64 at = rows->front().device_offset;
  device_.flip_bit(at + 10, 2);
  std::byte byte{};
  const auto read = volume_->read(handle, 0, {&byte, 1});
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::damaged);
  EXPECT_EQ(read.error().at, at);
  EXPECT_TRUE(volume_->read(handle, 500000, {&byte, 1}));
  EXPECT_EQ(content("/vault/good"), "good");
  ASSERT_TRUE(volume_->close_handle(handle));
  device_.flip_bit(at + 10, 2);
}

TEST_F(VolumeTest, names_and_data_of_an_encrypted_directory_are_not_on_the_device) {
  vault();
  ASSERT_TRUE(make_directory(*volume_, kUser, "/open"));
  put("/vault/a-very-telling-name", std::string(9000, 'q') + "the telling content of it");
  put("/open/a-very-open-name", std::string(9000, 'q') + "the open content of it");
  ASSERT_TRUE(volume_->sync());
  std::vector<std::byte> image(128 * kMiB);
  device_.peek(0, image);
  const std::string_view text(reinterpret_cast<const char*>(image.data()), image.size());
  EXPECT_NE(text.find("a-very-open-name"), std::string_view::npos);
  EXPECT_NE(text.find("the open content"), std::string_view::npos);
  EXPECT_EQ(text.find("a-very-telling-name"), std::string_view::npos);
  EXPECT_EQ(text.find("the telling content"), std::string_view::npos);
}

}  // namespace
}  // namespace latchkey::tests
