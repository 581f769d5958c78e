// Goal: files behave as POSIX says and keep the promises V1 to V4, with and without a key, through
// soft and hard removal. Method: a SimDevice; one file against a std::string by seeded random
// operations; each rule of the removal's table that works today by name.

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "tests/support/sim_device.h"
#include "volume/paths.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr Caller kUser{1000};

SecretBytes master_key(u8 tag) {
  auto secret = SecretBytes::create(64);
  EXPECT_TRUE(secret);
  std::memset(secret->bytes().data(), tag, 64);
  return std::move(*secret);
}

Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

template <class T>
Errc code_of(const Result<T>& result) {
  return result ? Errc{} : result.error().code;
}

class VolumeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = Volume::mkfs(device_, {}, system_env());
    ASSERT_TRUE(made) << made.error().what;
    reopen();
  }
  void TearDown() override {
    if (!volume_) return;
    EXPECT_TRUE(volume_->close());
    volume_.reset();
    expect_clean();
  }
  void reopen() {
    if (volume_) {
      EXPECT_TRUE(volume_->close());
    }
    volume_.reset();
    auto opened = Volume::open(device_, options_, system_env());
    ASSERT_TRUE(opened) << opened.error().what;
    volume_ = std::move(*opened);
  }
  void expect_clean() {
    engine::CheckOptions options;
    options.data = true;
    auto check = check_volume(device_, options, system_env());
    ASSERT_TRUE(check) << check.error().what;
    for (const engine::Finding& finding : check->findings)
      ADD_FAILURE() << finding.where << ": " << finding.what;
  }
  crypto::KeyId vault() {
    auto id = volume_->add_key(kUser, master_key(7));
    EXPECT_TRUE(id);
    auto directory = make_directory(*volume_, kUser, "/vault");
    EXPECT_TRUE(directory);
    auto set = volume_->set_policy(kUser, *directory, *id);
    EXPECT_TRUE(set);
    return *id;
  }
  HandleId open(std::string_view path) {
    OpenFlags flags;
    flags.write = flags.create = true;
    auto handle = open_path(*volume_, kUser, path, flags);
    EXPECT_TRUE(handle) << handle.error().what;
    return handle ? *handle : HandleId{};
  }
  void put(std::string_view path, std::string_view text) {
    const HandleId handle = open(path);
    EXPECT_TRUE(volume_->write(handle, 0, bytes_of(text)));
    EXPECT_TRUE(volume_->close_handle(handle));
  }
  std::string content(HandleId handle) {
    auto stat = volume_->stat(handle);
    EXPECT_TRUE(stat);
    std::string text(stat->size, '?');
    auto read = volume_->read(handle, 0, std::as_writable_bytes(std::span(text)));
    EXPECT_TRUE(read) << read.error().what;
    return text;
  }
  std::string content(std::string_view path) {
    auto handle = open_path(*volume_, kUser, path, {});
    EXPECT_TRUE(handle) << handle.error().what;
    if (!handle) return "";
    std::string text = content(*handle);
    EXPECT_TRUE(volume_->close_handle(*handle));
    return text;
  }

  SimDevice device_{SimConfig{.size_bytes = 128 * kMiB}};
  VolumeOptions options_;
  std::unique_ptr<Volume> volume_;
};

TEST_F(VolumeTest, one_file_equals_a_string_through_writes_truncates_and_reopening) {
  const u64 seed = 42;
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

TEST_F(VolumeTest, soft_removal_lets_those_inside_finish_and_the_last_one_out_wipes) {
  const crypto::KeyId id = vault();
  put("/vault/closed", "closed");
  const HandleId handle = open("/vault/open");
  ASSERT_TRUE(volume_->append(handle, bytes_of("before ")));
  auto report = volume_->remove_key(kUser, id, keymgr::RemovalMode::soft);
  ASSERT_TRUE(report) << report.error().what;
  EXPECT_TRUE(report->files_busy);
  EXPECT_EQ(report->state, keymgr::KeyState::incompletely_removed);
  ASSERT_EQ(report->holders.size(), 1U);
  EXPECT_EQ(report->holders[0].path, "/vault/open");
  EXPECT_EQ(report->holders[0].uid, 1000U);
  EXPECT_EQ(code_of(open_path(*volume_, kUser, "/vault/closed", {})), Errc::no_key);
  EXPECT_EQ(code_of(open_path(*volume_, kUser, "/vault/open", {})), Errc::no_key);
  ASSERT_TRUE(volume_->append(handle, bytes_of("after")));
  ASSERT_TRUE(volume_->fsync(handle));
  EXPECT_EQ(content(handle), "before after");
  ASSERT_TRUE(volume_->append(handle, bytes_of("!")));
  ASSERT_TRUE(volume_->close_handle(handle));
  EXPECT_EQ(volume_->key_status(kUser, id).state, keymgr::KeyState::absent);
  ASSERT_TRUE(volume_->add_key(kUser, master_key(7)));
  EXPECT_EQ(content("/vault/open"), "before after!");
  EXPECT_EQ(content("/vault/closed"), "closed");
}

TEST_F(VolumeTest, soft_removal_with_nobody_inside_wipes_in_the_call) {
  const crypto::KeyId id = vault();
  put("/vault/x", "dirty until now");
  auto report = volume_->remove_key(kUser, id, keymgr::RemovalMode::soft);
  ASSERT_TRUE(report);
  EXPECT_FALSE(report->files_busy);
  EXPECT_EQ(report->state, keymgr::KeyState::absent);
  EXPECT_EQ(report->bytes_lost, 0U);
  reopen();
  ASSERT_TRUE(volume_->add_key(kUser, master_key(7)));
  EXPECT_EQ(content("/vault/x"), "dirty until now");
}

TEST_F(VolumeTest, hard_removal_counts_what_it_loses_and_tells_the_handle) {
  options_.commit_interval_ms = 0;
  reopen();
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/x");
  ASSERT_TRUE(volume_->append(handle, bytes_of(std::string(8192, 'a'))));
  ASSERT_TRUE(volume_->fsync(handle));
  ASSERT_TRUE(volume_->append(handle, bytes_of(std::string(5000, 'b'))));
  auto report = volume_->remove_key(kUser, id, keymgr::RemovalMode::hard);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->state, keymgr::KeyState::absent);
  EXPECT_EQ(report->files_lost, 1U);
  EXPECT_EQ(report->bytes_lost, 8192U);  // two dirty pages
  std::byte byte{};
  EXPECT_FALSE(volume_->read(handle, 0, {&byte, 1}));
  EXPECT_FALSE(volume_->append(handle, bytes_of("c")));
  ASSERT_TRUE(volume_->add_key(kUser, master_key(7)));
  EXPECT_EQ(code_of(volume_->append(handle, bytes_of("c"))), Errc::io);
  EXPECT_FALSE(volume_->close_handle(handle));
  EXPECT_EQ(content("/vault/x").substr(0, 8192), std::string(8192, 'a'));
}

TEST_F(VolumeTest, every_accepted_byte_survives_keys_that_come_and_go) {
  const crypto::KeyId id = vault();
  put("/vault/log", "");
  const auto directory = resolve(*volume_, "/vault");
  std::atomic<bool> stop{false};
  std::thread remover([&] {
    while (!stop) {
      (void)volume_->remove_key(kUser, id, keymgr::RemovalMode::soft);
      (void)volume_->add_key(kUser, master_key(7));
      // The door is open for a moment, else nobody ever gets in.
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  u64 accepted = 0, refused = 0;
  const u64 end = system_env().monotonic_ns() + 1'500'000'000;
  OpenFlags flags;
  flags.write = true;
  while (system_env().monotonic_ns() < end) {
    auto handle = volume_->open_file(kUser, *directory, "log", flags, 0, "log");
    if (!handle) {
      ASSERT_EQ(handle.error().code, Errc::no_key) << handle.error().what;
      ++refused;
      continue;
    }
    const bool wrote = volume_->append(*handle, bytes_of("X")).has_value();
    const bool closed = volume_->close_handle(*handle).has_value();
    if (wrote && closed) ++accepted;
    ASSERT_TRUE(wrote && closed);
  }
  stop = true;
  remover.join();
  reopen();
  ASSERT_TRUE(volume_->add_key(kUser, master_key(7)));
  EXPECT_EQ(content("/vault/log"), std::string(accepted, 'X')) << refused << " refused";
  EXPECT_GT(accepted, 50U);
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
