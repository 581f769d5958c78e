// Goal: the real kernel is our judge. What it puts on a device under fscrypt is what our code
// computes: the key's identifier, each file's key, the ciphertext of data and of names, the names
// of a locked directory; and it reads what we sealed.
// Method: an ext4 with encryption on a loop device; files are written through the kernel, and their
// blocks are read from the image and compared with ours, by every cipher kernel of this machine.
// Needs root, a loop device, mkfs.ext4 and a kernel with CONFIG_FS_ENCRYPTION.

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <set>
#include <thread>

#include "base/disk.h"
#include "base/hex.h"
#include "crypto/cts.h"
#include "crypto/hkdf.h"
#include "crypto/names.h"
#include "crypto/xts.h"
#include "tests/support/ext4_image.h"
#include "tests/support/kernel_fscrypt.h"
#include "tests/support/keys.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

using crypto::KeyId;
using crypto::Nonce;

constexpr u64 kImageBytes = 32 * kMiB;

Nonce nonce_of_inode(int fd) {
  Nonce nonce;
  EXPECT_EQ(::ioctl(fd, FS_IOC_GET_ENCRYPTION_NONCE, nonce.bytes.data()), 0);
  return nonce;
}

// Where the bytes of a file or directory lie, in its order.
std::vector<fiemap_extent> extents_of(int fd) {
  constexpr u32 kMost = 256;
  std::vector<std::byte> memory(sizeof(fiemap) + kMost * sizeof(fiemap_extent));
  auto* const map = new (memory.data()) fiemap{};
  map->fm_length = FIEMAP_MAX_OFFSET;
  map->fm_flags = FIEMAP_FLAG_SYNC;
  map->fm_extent_count = kMost;
  EXPECT_EQ(::ioctl(fd, FS_IOC_FIEMAP, map), 0);
  const auto* const first = reinterpret_cast<const fiemap_extent*>(map + 1);
  std::vector<fiemap_extent> extents(first, first + map->fm_mapped_extents);
  constexpr u32 kNotInPlace = FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC |
                              FIEMAP_EXTENT_DATA_INLINE | FIEMAP_EXTENT_UNWRITTEN;
  for (const fiemap_extent& extent : extents) EXPECT_EQ(extent.fe_flags & kNotInPlace, 0U);
  return extents;
}

struct Setup {
  u32 block_bytes;  // of the file system, and so the data unit
  std::size_t master_bytes;
};
void PrintTo(const Setup& setup, std::ostream* out) {
  *out << "blocks of " << setup.block_bytes << ", a master key of " << setup.master_bytes;
}

class FscryptKernel : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    const std::string missing = ext4_.make(kImageBytes, GetParam().block_bytes);
    if (!missing.empty()) GTEST_SKIP() << missing;
    const int refused = kernel::add_key(ext4_.open().get(), master_, id_);
    if (const char* lacks = kernel::missing(refused)) GTEST_SKIP() << lacks;
    ASSERT_EQ(refused, 0);
    auto state = Secret<crypto::HkdfState>::create();
    ASSERT_TRUE(state);
    state_ = std::move(*state);
    SecretBytes secret = in_arena(master_);
    crypto::hkdf_extract(secret.bytes(), *state_);
  }

  // Nothing is left on the machine.
  void TearDown() override {
    if (!ext4_.mounted()) return;
    EXPECT_EQ(ext4_.unmount(), 0);
    for (int turn = 0; turn < 500 && ext4_.attached(); ++turn)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));  // some kernels detach later
    EXPECT_FALSE(ext4_.attached());
  }

  void make_folder(const std::string& name, u8 padding_flags = FSCRYPT_POLICY_FLAGS_PAD_32) {
    ASSERT_EQ(::mkdir(ext4_.path(name).c_str(), 0700), 0);
    const fscrypt_policy_v2 policy = kernel::policy_of(id_, padding_flags);
    ASSERT_EQ(kernel::set_policy(ext4_.open(name).get(), policy), 0);
  }
  void write_file(const std::string& name, u64 offset, Bytes data) {
    const engine::Fd file(::open(ext4_.path(name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_TRUE(file.valid()) << name << ": " << std::strerror(errno);
    ASSERT_EQ(::pwrite(file.get(), data.data(), data.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(data.size()));
  }
  Heap random_bytes(std::size_t size) {
    Heap data(size);
    for (std::byte& byte : data) byte = std::byte(random_());
    return data;
  }
  Secret<crypto::XtsKey> file_key(const Nonce& nonce) {
    auto raw = SecretBytes::create(crypto::kXtsKeyBytes);
    auto key = Secret<crypto::XtsKey>::create();
    LK_CHECK(raw.has_value() && key.has_value());
    crypto::hkdf_expand(*state_, crypto::Context::per_file, nonce.span(), raw->bytes());
    crypto::xts_expand(raw->bytes(), **key);
    return std::move(*key);
  }
  // The run that begins at a byte of a file.
  crypto::XtsRun run_at(u64 offset) const {
    return {.first_unit = offset / GetParam().block_bytes, .unit_bytes = GetParam().block_bytes};
  }
  u64 expect_same_ciphertext(const std::string& name, Bytes plain);
  // Stored names of a directory by inode number, as they lie in its blocks.
  std::map<u64, std::string> stored_names(const std::string& folder);

  const u64 seed_ = seed_base() + 20261124;
  std::mt19937_64 random_{seed_};
  const Heap master_ = raw_key(seed_, GetParam().master_bytes);
  Ext4Image ext4_;
  KeyId id_;
  Secret<crypto::HkdfState> state_;
};

INSTANTIATE_TEST_SUITE_P(, FscryptKernel, testing::Values(Setup{4096, 64}, Setup{1024, 32}),
                         [](const auto& setup) {
                           return "blocks_of_" + std::to_string(setup.param.block_bytes);
                         });

// Compares every block of a file, sealed and opened by the kernel that is chosen now. `plain` is
// all of it, with zeros to the end of its last block. Returns the bytes compared.
u64 FscryptKernel::expect_same_ciphertext(const std::string& name, Bytes plain) {
  const engine::Fd file = ext4_.open(name);
  const auto key = file_key(nonce_of_inode(file.get()));
  u64 compared = 0;
  for (const fiemap_extent& extent : extents_of(file.get())) {
    const Heap on_device = ext4_.read(extent.fe_physical, extent.fe_length);
    EXPECT_LE(extent.fe_logical + extent.fe_length, plain.size());
    const Bytes ours = plain.subspan(extent.fe_logical, extent.fe_length);
    Heap out(ours.size());
    crypto::xts_seal(*key, run_at(extent.fe_logical), ours, out);
    EXPECT_TRUE(out == on_device) << "sealed, at " << extent.fe_logical;
    crypto::xts_open(*key, run_at(extent.fe_logical), on_device, out);
    EXPECT_TRUE(std::ranges::equal(out, ours)) << "opened, at " << extent.fe_logical;
    compared += extent.fe_length;
  }
  return compared;
}

std::map<u64, std::string> FscryptKernel::stored_names(const std::string& folder) {
  std::map<u64, std::string> names;
  const engine::Fd directory = ext4_.open(folder);
  const u32 block_bytes = GetParam().block_bytes;
  for (const fiemap_extent& extent : extents_of(directory.get())) {
    const Heap blocks = ext4_.read(extent.fe_physical, extent.fe_length);
    // struct ext4_dir_entry_2: le32 inode, le16 length of the record, u8 length of the name, u8
    // type, name. Inode 0 is a gap, or the block's checksum.
    for (std::size_t at = 0, next = 0; at < blocks.size(); at = next) {
      Le32 inode;
      Le16 record_bytes;
      std::memcpy(&inode, &blocks[at], sizeof inode);
      std::memcpy(&record_bytes, &blocks[at + 4], sizeof record_bytes);
      const auto name_bytes = static_cast<std::size_t>(blocks[at + 6]);
      next = at + record_bytes;
      if (record_bytes < 8 + name_bytes || at / block_bytes != (next - 1) / block_bytes) {
        ADD_FAILURE() << "not an ext4 directory, at " << at;
        return names;
      }
      const std::string name(reinterpret_cast<const char*>(&blocks[at + 8]), name_bytes);
      if (inode != 0 && name != "." && name != "..") names[inode] = name;
    }
  }
  return names;
}

TEST_P(FscryptKernel, gives_a_key_the_same_identifier) {
  EXPECT_EQ(to_hex(id_.span()), to_hex(crypto::key_identifier(*state_).span()));
}

TEST_P(FscryptKernel, puts_the_same_ciphertext_on_the_device) {
  const u64 block = GetParam().block_bytes;
  make_folder("vault");
  ASSERT_EQ(::mkdir(ext4_.path("vault/inner").c_str(), 0700), 0);
  struct File {
    std::string name;
    u64 offset;  // a hole comes before it
    std::size_t size;
  };
  const std::vector<File> files{{"vault/one_byte", 0, 1},
                                {"vault/cipher_block", 0, 16},
                                {"vault/odd", 0, 12347},
                                {"vault/block", 0, block},
                                {"vault/block_less_one", 0, block - 1},
                                {"vault/block_and_one", 0, block + 1},
                                {"vault/inner/mebibyte", 0, kMiB},
                                {"vault/inner/mebibyte_and_odd", 0, kMiB + 777},
                                {"vault/behind_a_hole", 300 * block, 3 * block + 5}};
  std::map<std::string, Heap> plain;  // with zeros to the end of the last block
  for (const File& file : files) {
    const Heap data = random_bytes(file.size);
    write_file(file.name, file.offset, data);
    Heap& whole = plain[file.name];
    whole.resize((file.offset + file.size + block - 1) / block * block);
    std::ranges::copy(data, whole.begin() + static_cast<std::ptrdiff_t>(file.offset));
  }
  ext4_.sync();

  const std::string before(crypto::xts_kernel());
  u32 kernels = 0;
  for (const crypto::KernelInfo& kernel : crypto::xts_kernels()) {
    if (!kernel.usable) continue;
    ASSERT_TRUE(crypto::xts_force_kernel(kernel.name));
    ++kernels;
    for (const File& file : files) {
      SCOPED_TRACE(file.name + ", " + std::string(kernel.name) + ", seed " + std::to_string(seed_));
      const u64 written = plain[file.name].size() - file.offset;
      EXPECT_EQ(expect_same_ciphertext(file.name, plain[file.name]), written);
    }
  }
  EXPECT_GE(kernels, 1U);
  ASSERT_TRUE(crypto::xts_force_kernel(before));
}

// The name as it is padded before encryption: at least 16 bytes, then a multiple of `padding`.
std::string encrypted(const crypto::NameKey& key, std::string name, std::size_t padding) {
  const std::size_t least = std::max<std::size_t>(name.size(), crypto::kCtsBytesMin);
  name.resize(std::min((least + padding - 1) / padding * padding, crypto::kNameBytesMax), '\0');
  crypto::cts_encrypt(key, std::as_writable_bytes(std::span<char>(name)));
  return name;
}

TEST_P(FscryptKernel, stores_the_same_names) {
  for (const u8 flags : {FSCRYPT_POLICY_FLAGS_PAD_4, FSCRYPT_POLICY_FLAGS_PAD_8,
                         FSCRYPT_POLICY_FLAGS_PAD_16, FSCRYPT_POLICY_FLAGS_PAD_32}) {
    const std::size_t padding = std::size_t{4} << flags;
    const std::string folder = "padding_" + std::to_string(padding);
    SCOPED_TRACE(folder);
    make_folder(folder, flags);
    std::map<u64, std::string> names;
    for (const std::size_t length : {1, 3, 15, 16, 17, 31, 32, 33, 100, 254, 255}) {
      std::string name(length, 'n');
      for (char& letter : name) letter = static_cast<char>('a' + random_() % 26);
      write_file(folder + "/" + name, 0, {});
      struct stat found{};
      ASSERT_EQ(::stat(ext4_.path(folder + "/" + name).c_str(), &found), 0);
      names[found.st_ino] = name;
    }
    ASSERT_EQ(names.size(), 11U);
    ext4_.sync();

    auto key = Secret<crypto::NameKey>::create();
    ASSERT_TRUE(key);
    crypto::derive_name_key(*state_, nonce_of_inode(ext4_.open(folder).get()), **key);
    const std::map<u64, std::string> stored = stored_names(folder);
    EXPECT_EQ(stored.size(), names.size());
    for (const auto& [inode, name] : names) {
      SCOPED_TRACE(name);
      ASSERT_TRUE(stored.contains(inode));
      EXPECT_TRUE(encrypted(**key, name, padding) == stored.at(inode));
      EXPECT_EQ(crypto::decrypt_name(**key, stored.at(inode)).value_or("?"), name);
      if (padding == 32) {
        EXPECT_TRUE(crypto::encrypt_name(**key, name) == stored.at(inode));
      }
    }
  }
}

TEST_P(FscryptKernel, lists_a_locked_directory_under_the_same_names) {
  make_folder("vault");
  for (const std::size_t length : {1, 16, 33, 100, 149, 150, 160, 192, 255})
    write_file("vault/" + std::string(length, 'n'), 0, {});
  ext4_.sync();
  std::set<std::string> expected;
  for (const auto& [inode, stored] : stored_names("vault"))
    expected.insert(crypto::no_key_name(stored));
  ASSERT_EQ(expected.size(), 9U);

  u32 flags = 0;
  ASSERT_EQ(kernel::remove_key(ext4_.open().get(), id_, false, flags), 0);
  ASSERT_EQ(flags, 0U) << "absent at once, for nothing is open";
  std::set<std::string> listed;
  DIR* const directory = ::opendir(ext4_.path("vault").c_str());
  ASSERT_NE(directory, nullptr);
  while (const dirent* entry = ::readdir(directory)) listed.insert(entry->d_name);
  ::closedir(directory);
  EXPECT_EQ(listed.erase(".") + listed.erase(".."), 2U);
  EXPECT_EQ(listed, expected);
}

TEST_P(FscryptKernel, reads_what_we_sealed) {
  const u64 block = GetParam().block_bytes;
  make_folder("vault");
  write_file("vault/file", 0, random_bytes(7 * block));
  ext4_.sync();
  const Heap ours = random_bytes(7 * block);
  std::map<u64, Heap> sealed;  // by place in the image
  u64 sealed_bytes = 0;
  {
    const engine::Fd file = ext4_.open("vault/file");
    const auto key = file_key(nonce_of_inode(file.get()));
    for (const fiemap_extent& extent : extents_of(file.get())) {
      Heap& blocks = sealed[extent.fe_physical];
      blocks.resize(extent.fe_length);
      crypto::xts_seal(*key, run_at(extent.fe_logical),
                       Bytes(ours).subspan(extent.fe_logical, extent.fe_length), blocks);
      sealed_bytes += extent.fe_length;
    }
  }
  ASSERT_EQ(sealed_bytes, ours.size());
  ASSERT_EQ(ext4_.unmount(), 0);
  for (const auto& [offset, blocks] : sealed) ext4_.write(offset, blocks);
  ASSERT_EQ(ext4_.mount(), 0);
  KeyId again;
  ASSERT_EQ(kernel::add_key(ext4_.open().get(), master_, again), 0);
  EXPECT_EQ(again, id_);
  Heap read(ours.size());
  const engine::Fd file = ext4_.open("vault/file");
  ASSERT_EQ(::read(file.get(), read.data(), read.size()), static_cast<ssize_t>(read.size()));
  EXPECT_TRUE(read == ours) << "seed " << seed_;
}

}  // namespace
}  // namespace latchkey::tests
