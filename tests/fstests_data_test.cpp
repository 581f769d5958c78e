// Goal: what fstests generic/399, 421, 582 (548 with v2 policies) and 613 ask of what lies on the
// device is true of ours: it cannot be compressed, readers and removals do not meet in a bad way,
// an independent implementation makes the same ciphertext, nonces are random and come once.
// Method: their steps through the library, in words of our own; suites bear their numbers. What
// differs between our answers and the kernel's plays no part here.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>
#include <thread>

#include "base/disk.h"
#include "tests/support/libcrypto.h"
#include "tests/support/random.h"
#include "tests/support/randomness.h"
#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"
#include "volume/format.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;
using keymgr::RemovalMode;

constexpr u64 kBlock = engine::kBlockBytes;

Heap random_bytes(SplitMix64& random, std::size_t size) {
  Heap bytes((size + 7) / 8 * 8);
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(u64)) {
    const u64 word = random();
    std::memcpy(&bytes[at], &word, sizeof word);
  }
  bytes.resize(size);
  return bytes;
}

TEST(Randomness, is_told_from_what_is_not_random) {
  SplitMix64 random(1);
  const Heap good = random_bytes(random, 256 * 1024);
  EXPECT_EQ(what_is_not_random(good), "");
  const auto changed = [&](auto&& change) {
    Heap bytes = good;
    change(bytes);
    return what_is_not_random(bytes);
  };
  EXPECT_NE(changed([](Heap& bytes) { std::ranges::fill(bytes, std::byte{0}); }), "");
  EXPECT_NE(changed([](Heap& bytes) { std::copy_n(bytes.begin(), 16, bytes.end() - 16); }), "");
  EXPECT_NE(changed([](Heap& bytes) {
              for (std::size_t at = 0; at < bytes.size(); at += 16) bytes[at] &= std::byte{0x7f};
            }),
            "");
  EXPECT_NE(changed([](Heap& bytes) {  // every sixteenth byte is a letter
              for (std::size_t at = 0; at < bytes.size(); at += 16) bytes[at + 3] = std::byte{'e'};
            }),
            "");
  EXPECT_NE(changed([&](Heap& bytes) {  // every value as often as any other
              for (std::size_t at = 0; at < bytes.size(); ++at) bytes[at] = std::byte(at & 255);
              std::ranges::shuffle(bytes, random);
            }),
            "");
  EXPECT_LT(deflated_size(Heap(kMiB)), 10'000U);
}

class Ciphertext : public VolumeTest {
 protected:
  using VolumeTest::VolumeTest;
  std::vector<MapRow> rows(HandleId handle) {
    auto rows = volume_->map(handle);
    EXPECT_TRUE(rows) << rows.error().what;
    return rows.value_or(std::vector<MapRow>{});
  }
  Heap on_device(const MapRow& row) {
    Heap bytes(row.length);
    device_.peek(row.device_offset, bytes);
    return bytes;
  }
  InodeId directory_under(std::string_view path, const crypto::KeyId& id) {
    const auto made = make_directory(*volume_, kUser, path);
    EXPECT_TRUE(made);
    EXPECT_TRUE(volume_->set_policy(kUser, *made, id));
    return made.value_or(InodeId{});
  }
};

class Generic399 : public Ciphertext {
 protected:
  Generic399() : Ciphertext({.size_bytes = 32 * kMiB}) {}
};

TEST_F(Generic399, a_device_full_of_encrypted_zeros_cannot_be_compressed) {
  vault();
  const Heap zeros(kMiB);
  Heap ciphertext;
  u64 written = 0;
  for (int i = 0;; ++i) {
    const HandleId handle = open("/vault/file" + std::to_string(i));
    const auto wrote = volume_->write(handle, 0, zeros);
    if (wrote) {
      written += kMiB;
      for (const MapRow& row : rows(handle)) {
        const Heap piece = on_device(row);
        ciphertext.insert(ciphertext.end(), piece.begin(), piece.end());
      }
    }
    close(handle);
    if (!wrote) {
      EXPECT_EQ(code_of(wrote), Errc::no_space);
      break;
    }
  }
  EXPECT_GT(written, 20 * kMiB);
  EXPECT_EQ(ciphertext.size(), written);
  EXPECT_EQ(what_is_not_random(ciphertext), "");
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  Heap image(32 * kMiB);
  device_.peek(0, image);
  EXPECT_GE(deflated_size(image), written);
  expect_clean();
}

TEST_F(Generic399, one_symlink_in_two_directories_has_two_names_and_targets) {
  vault();
  for (const char* path : {"/vault/subdir1", "/vault/subdir2"}) {
    const auto made = make_directory(*volume_, kUser, path);
    ASSERT_TRUE(made);
    ASSERT_TRUE(volume_->symlink(kUser, *made, "symlink", "symlink_target"));
  }
  reopen();
  std::set<std::string> names, targets;
  const auto directories = volume_->read_directory(*resolve(*volume_, "/vault"));
  ASSERT_TRUE(directories);
  for (const DirEntry& directory : *directories) {
    const auto listed = volume_->read_directory(directory.inode);
    ASSERT_TRUE(listed && listed->size() == 1);
    names.insert(listed->front().name);
    targets.insert(volume_->read_link(listed->front().inode).value_or("?"));
  }
  EXPECT_EQ(names.size(), 2U);
  EXPECT_EQ(targets.size(), 2U);
}

class Generic421 : public Ciphertext, public ::testing::WithParamInterface<RemovalMode> {
 protected:
  static constexpr u64 kSlice = 2 * kMiB;
  static constexpr int kReaders = 4;

  void SetUp() override {
    Ciphertext::SetUp();
    id_ = vault();
    SplitMix64 random(seed_base() + 1);
    content_ = random_bytes(random, kReaders * kSlice);
    const HandleId handle = open("/vault/file");
    ASSERT_TRUE(volume_->write(handle, 0, content_));
    ASSERT_TRUE(volume_->fsync(handle));
    close(handle);
    directory_ = *resolve(*volume_, "/vault");
  }
  void read_slice(HandleId handle, u64 at, Heap& slice) {
    const auto count = volume_->read(handle, at, slice);
    const bool right = count && std::memcmp(slice.data(), &content_[at], *count) == 0;
    if (right && *count == kSlice)
      ++whole_;
    else if (code_of(count) == Errc::no_key || (right && *count != 0))  // what came before it
      ++refused_;
    else
      ++wrong_;
  }
  // Over and over its own slice: through a handle that was open before, or a new one each time.
  void read_kept(int number, HandleId handle) {
    Heap slice(kSlice);
    while (!stop_) read_slice(handle, static_cast<u64>(number) * kSlice, slice);
    if (!volume_->close_handle(handle)) ++wrong_;
  }
  void read_anew(int number) {
    Heap slice(kSlice);
    while (!stop_) {
      const auto handle = volume_->open_file(kUser, directory_, "file", {}, 0, "file");
      if (!handle) {
        if (code_of(handle) != Errc::no_key) ++wrong_;
        continue;
      }
      read_slice(*handle, static_cast<u64>(number) * kSlice, slice);
      if (!volume_->close_handle(*handle)) ++wrong_;
    }
  }
  void await(const std::atomic<u64>& counter) {
    const u64 wanted = counter + 6, end = system_env().monotonic_ns() + 20'000'000'000;
    while (counter < wanted) {
      ASSERT_LT(system_env().monotonic_ns(), end);
      std::this_thread::yield();
    }
  }
  crypto::KeyId id_;
  Heap content_;
  InodeId directory_;
  std::atomic<bool> stop_{false};
  std::atomic<u64> whole_{0}, refused_{0}, wrong_{0};
};

// All but safe, which the readers' handles refuse.
INSTANTIATE_TEST_SUITE_P(Mode, Generic421,
                         ::testing::Values(RemovalMode::soft, RemovalMode::sealed,
                                           RemovalMode::sync, RemovalMode::freeze,
                                           RemovalMode::deny, RemovalMode::hard,
                                           RemovalMode::suspend),
                         [](const auto& mode) {
                           return std::string(keymgr::removal_row(mode.param).name);
                         });

TEST_P(Generic421, readers_read_what_is_there_or_hear_that_the_key_is_gone) {
  std::vector<std::thread> readers;
  readers.reserve(kReaders);
  for (int i = 0; i < kReaders; ++i) {
    if (i % 2 != 0)
      readers.emplace_back([this, i] { read_anew(i); });
    else
      readers.emplace_back([this, i, handle = open("/vault/file")] { read_kept(i, handle); });
  }
  for (int round = 0; round < 3; ++round) {
    await(whole_);
    remove(id_, GetParam());
    EXPECT_EQ(open_error("/vault/file"), Errc::no_key);
    if (keymgr::removal_row(GetParam()).later_io == keymgr::LaterIo::no_key) await(refused_);
    add_key();
  }
  await(whole_);
  stop_ = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong_, 0U);
}

class Generic582 : public Ciphertext {
 protected:
  Generic582() : random_(seed_base() + 582) {}
  const Heap master_ = Heap(64, std::byte{7});
  Heap derive(u8 context, Bytes info, std::size_t size) {
    return fscrypt_derive(master_, context, info, size);
  }
  // Every block of the file as the device has it; returns the first units of its pieces.
  std::set<u64> expect_same(std::string_view path, Heap plain) {
    SCOPED_TRACE(path);
    std::set<u64> first_units;
    plain.resize((plain.size() + kBlock - 1) / kBlock * kBlock);
    const HandleId handle = open(path, {});
    u64 compared = 0;
    for (const MapRow& row : rows(handle)) {
      EXPECT_EQ(row.mode, crypto::Mode::aes_256_xts);
      EXPECT_EQ(row.key_id, id_);
      const Heap key = derive(9, row.nonce.span(), 64);
      const Heap sealed = on_device(row);
      for (u64 at = 0; at < row.length; at += kBlock, compared += kBlock) {
        const Heap wanted = xts_seal(key, row.first_unit + at / kBlock,
                                     Bytes(plain).subspan(row.file_offset + at, kBlock));
        EXPECT_TRUE(std::ranges::equal(wanted, Bytes(sealed).subspan(at, kBlock)))
            << "file offset " << row.file_offset + at << ", seed " << seed_base();
      }
      first_units.insert(row.first_unit);
    }
    EXPECT_EQ(compared, plain.size());
    close(handle);
    return first_units;
  }
  Heap put_random(std::string_view path, u64 size) {
    const Heap plain = random_bytes(random_, size);
    const HandleId handle = open(path);
    EXPECT_TRUE(volume_->write(handle, 0, plain));
    close(handle);
    return plain;
  }
  void write_at(HandleId handle, Heap& plain, u64 offset, u64 size) {
    const Heap piece = random_bytes(random_, size);
    EXPECT_TRUE(volume_->write(handle, offset, piece));
    std::ranges::copy(piece, plain.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  // What the store has under a key of that inode: values of the records of one type, in order.
  std::vector<std::string> records(InodeId inode, u8 type) {
    std::vector<std::string> values;
    auto store = engine::Store::open(device_, {}, system_env());
    EXPECT_TRUE(store);
    EXPECT_TRUE((*store)->view().scan(
        inode.subvolume, {inode.number, type, 0}, {inode.number, type, ~u64{0}},
        [&](const engine::Key&, Bytes value) {
          values.emplace_back(reinterpret_cast<const char*>(value.data()), value.size());
          return true;
        }));
    EXPECT_TRUE((*store)->close());
    return values;
  }
  SplitMix64 random_;
  crypto::KeyId id_;
};

TEST_F(Generic582, the_identifier_is_the_independent_ones) {
  id_ = vault();
  EXPECT_TRUE(std::ranges::equal(derive(1, {}, 16), id_.span()));
}

TEST_F(Generic582, data_is_what_the_independent_implementation_seals) {
  id_ = vault();
  for (const u64 size : {u64{1}, u64{15}, u64{16}, kBlock - 1, kBlock, kBlock + 1, 16 * kBlock,
                         u64{200'001}, kMiB + 5}) {
    const std::string path = "/vault/" + std::to_string(size);
    expect_same(path, put_random(path, size));
  }
}

TEST_F(Generic582, so_it_is_after_overwrites_clones_and_moves) {
  id_ = vault();
  Heap plain = put_random("/vault/cut", kMiB);
  const HandleId cut = open("/vault/cut", {.write = true});
  ASSERT_TRUE(volume_->fsync(cut));
  write_at(cut, plain, 5 * kBlock, 3 * kBlock);
  write_at(cut, plain, 300'000, 10);
  for (u64 page = 128; page < 256; page += 2) write_at(cut, plain, page * kBlock, 100);
  const std::set<u64> cut_units = expect_same("/vault/cut", plain);
  EXPECT_GT(*cut_units.rbegin(), 0U);  // what is left of an extent keeps its tweaks
  // A clone elsewhere in another file has the same blocks.
  const HandleId clone = open("/vault/clone");
  const Heap front = random_bytes(random_, kBlock);
  ASSERT_TRUE(volume_->write(clone, 0, front));
  ASSERT_TRUE(volume_->clone_range(cut, 0, clone, kBlock, 0));
  Heap cloned = front;
  cloned.insert(cloned.end(), plain.begin(), plain.end());
  expect_same("/vault/clone", cloned);
  close(clone);
  close(cut);
  const InodeId vault = *resolve(*volume_, "/vault");
  ASSERT_TRUE(volume_->rename(vault, "cut", kRootInode, "moved"));
  expect_same("/moved", plain);
  reopen();
  add_key();
  expect_same("/moved", plain);
}

// Under the write key of a sealed inode, whose tweaks go on from one extent to the next.
TEST_F(Generic582, so_it_is_of_what_was_written_after_the_master_was_wiped) {
  id_ = vault();
  Heap plain = put_random("/vault/open", 40 * kBlock);
  const HandleId handle = open("/vault/open", {.write = true});
  EXPECT_TRUE(remove(id_, RemovalMode::sealed).files_busy);
  for (u64 page = 0; page < 30; page += 10) {
    write_at(handle, plain, page * kBlock, 3 * kBlock);
    ASSERT_TRUE(volume_->fsync(handle));
  }
  close(handle);
  EXPECT_EQ(state(id_), KeyState::absent);
  add_key();
  const std::set<u64> units = expect_same("/vault/open", plain);
  EXPECT_GT(*units.rbegin(), 0U);
}

TEST_F(Generic582, names_are_what_the_independent_implementation_seals) {
  id_ = vault();
  const InodeId directory = *resolve(*volume_, "/vault");
  const auto nonce = volume_->stat(directory)->nonce;
  const Heap key = derive(2, nonce.span(), 32);
  std::set<std::string> wanted, wanted_forms;
  for (const std::size_t length : {1, 3, 15, 16, 17, 32, 100, 128, 129, 254, 255}) {
    std::string name(length, 'n');
    name.back() = static_cast<char>('a' + length % 26);
    put("/vault/" + name, "");
    wanted.insert(cts_seal(key, name, 255));
    wanted_forms.insert(no_key_form(cts_seal(key, name, 255)));
  }
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  std::set<std::string> stored;
  for (const std::string& record : records(directory, kEntryType))
    stored.insert(record.substr(sizeof(EntryDisk)));
  EXPECT_TRUE(stored == wanted);
  open_again();
  const auto listed = volume_->read_directory(directory);
  ASSERT_TRUE(listed);
  std::set<std::string> forms;
  for (const DirEntry& entry : *listed) forms.insert(entry.name);
  EXPECT_EQ(forms, wanted_forms);
}

TEST_F(Generic582, targets_of_symlinks_are_what_the_independent_implementation_seals) {
  id_ = vault();
  const InodeId directory = *resolve(*volume_, "/vault");
  std::vector<std::pair<InodeId, std::string>> wanted;
  for (const std::size_t length : {1, 16, 33, 1000, 4093}) {
    const std::string target(length, static_cast<char>('a' + length % 26));
    const auto made = volume_->symlink(kUser, directory, std::to_string(length), target);
    ASSERT_TRUE(made);
    const auto nonce = volume_->stat(*made)->nonce;
    wanted.emplace_back(*made, cts_seal(derive(2, nonce.span(), 32), target, 4093));
  }
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  for (const auto& [inode, sealed] : wanted) {
    std::string stored;
    for (const std::string& piece : records(inode, kTargetType)) stored += piece;
    ASSERT_GT(stored.size(), sizeof(Le16));
    const u16 size = load_disk<Le16>(std::as_bytes(std::span(stored)));
    EXPECT_EQ(size, sealed.size());
    EXPECT_TRUE(stored.substr(sizeof(Le16)) == sealed) << to_text(inode);
  }
}

class Generic613 : public Ciphertext {
 protected:
  void add(const crypto::Nonce& nonce) {
    nonces_.insert(nonces_.end(), nonce.bytes.begin(), nonce.bytes.end());
  }
  Heap nonces_;
};

// Of directories that were given a policy, of inodes that inherited one, of extents and of extents
// that took their places.
TEST_F(Generic613, nonces_come_once_and_cannot_be_compressed) {
  const crypto::KeyId id = vault();
  for (int i = 0; i < 100; ++i)
    add(volume_->stat(directory_under("/policy" + std::to_string(i), id))->nonce);
  const InodeId vault = *resolve(*volume_, "/vault");
  for (const FileKind kind : {FileKind::directory, FileKind::symlink})
    for (int i = 0; i < 200; ++i) {
      const std::string name = (kind == FileKind::symlink ? "l" : "d") + std::to_string(i);
      const auto made = kind == FileKind::symlink ? volume_->symlink(kUser, vault, name, "target")
                                                  : volume_->mkdir(kUser, vault, name, 0700);
      ASSERT_TRUE(made);
      add(volume_->stat(*made)->nonce);
    }
  constexpr int kFiles = 2000;
  for (int version = 0; version < 2; ++version) {
    std::vector<HandleId> handles;
    for (int i = 0; i < kFiles; ++i) {
      handles.push_back(open("/vault/f" + std::to_string(i)));
      ASSERT_TRUE(volume_->write(handles.back(), 0, bytes_of("the same in each")));
    }
    ASSERT_TRUE(volume_->sync());
    for (const HandleId handle : handles) {
      if (version == 0) add(volume_->stat(handle)->nonce);
      for (const MapRow& row : rows(handle)) add(row.nonce);
      close(handle);
    }
  }
  EXPECT_EQ(nonces_.size() / 16, 100U + 400U + 3 * kFiles);
  EXPECT_EQ(what_is_not_random(nonces_), "");
}

}  // namespace
}  // namespace latchkey::tests
