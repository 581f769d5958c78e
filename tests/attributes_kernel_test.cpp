// Goal: with compat_fscrypt user.* attributes of encrypted files and directories answer as on the
// kernel's ext4, with the key and without. Method: the same random calls on both, and every answer
// must be the same. Needs root, a loop device, mkfs.ext4 and a kernel with CONFIG_FS_ENCRYPTION.

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <array>
#include <set>

#include "tests/support/ext4_image.h"
#include "tests/support/kernel_fscrypt.h"
#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

constexpr u64 kImageBytes = 32 * kMiB;
constexpr std::array<const char*, 3> kNames{"user.a", "user.b", "user.c"};
constexpr volume::Caller kRoot{0};

std::string listed(std::set<std::string> names) {
  std::string text;
  for (const std::string& name : names)
    if (name.starts_with("user.")) text += name + ' ';
  return text;
}

class AttributesKernel : public VolumeTest {
 protected:
  AttributesKernel() { options_.compat_fscrypt = true; }
  void SetUp() override {
    VolumeTest::SetUp();
    const std::string missing = ext4_.make(kImageBytes, 4096);
    if (!missing.empty()) GTEST_SKIP() << missing;
    const int refused = kernel::add_key(ext4_.open().get(), master_, id_);
    if (const char* lacks = kernel::missing(refused)) GTEST_SKIP() << lacks;
    ASSERT_EQ(refused, 0);
    ASSERT_EQ(*volume_->add_key(kRoot, in_arena(master_)), id_);
    // Attributes from before the policy.
    ASSERT_EQ(::mkdir(theirs(true).c_str(), 0700), 0);
    ASSERT_EQ(::setxattr(theirs(true).c_str(), "user.early", "e", 1, 0), 0);
    auto directory = make_directory(*volume_, kRoot, "/vault");
    ASSERT_TRUE(directory);
    ASSERT_TRUE(volume_->set_xattr(*directory, "user.early", bytes_of("e")));
    const fscrypt_policy_v2 policy = kernel::policy_of(id_, FSCRYPT_POLICY_FLAGS_PAD_32);
    ASSERT_EQ(kernel::set_policy(ext4_.open("vault").get(), policy), 0);
    ASSERT_TRUE(volume_->set_policy(kRoot, *directory, id_));
    ASSERT_EQ(::mknod((theirs(true) + "/file").c_str(), S_IFREG | 0600, 0), 0);
    put("/vault/file", "");
    ours_ = {*resolve(*volume_, "/vault/file"), *directory};
  }
  void TearDown() override {
    VolumeTest::TearDown();
    if (!ext4_.mounted()) return;
    EXPECT_EQ(ext4_.unmount(), 0);
  }

  // The only file in the vault, by whatever name.
  std::string theirs(bool of_directory) const {
    std::string path = ext4_.path("vault");
    if (of_directory) return path;
    DIR* const directory = ::opendir(path.c_str());
    LK_CHECK(directory != nullptr);
    std::string name;
    while (const dirent* entry = ::readdir(directory))
      if (entry->d_name[0] != '.') name = entry->d_name;
    ::closedir(directory);
    return path + '/' + name;
  }
  void lock() {
    u32 flags = 0;
    ASSERT_EQ(kernel::remove_key(ext4_.open().get(), id_, false, flags), 0);
    ASSERT_EQ(flags, 0U) << "absent at once, for nothing is open";
    ASSERT_TRUE(volume_->remove_key(kRoot, id_, keymgr::RemovalMode::soft));
    ASSERT_EQ(volume_->key_status(kRoot, id_).state, keymgr::KeyState::absent);
  }
  void unlock() {
    crypto::KeyId again;
    ASSERT_EQ(kernel::add_key(ext4_.open().get(), master_, again), 0);
    ASSERT_TRUE(volume_->add_key(kRoot, in_arena(master_)));
  }
  template <class T>
  static int error_of(const Result<T>& result) {
    return result ? 0 : posix_errno(result.error());
  }
  u64 below(u64 count) { return random_() % count; }

  void compare_set(const std::string& path, volume::InodeId inode, const char* name) {
    const std::string value(below(4) == 0 ? below(400) : below(12), static_cast<char>(random_()));
    const u64 how = below(3);
    const int flags = how == 0 ? 0 : how == 1 ? XATTR_CREATE : XATTR_REPLACE;
    const int kernels =
        ::setxattr(path.c_str(), name, value.data(), value.size(), flags) == 0 ? 0 : errno;
    EXPECT_EQ(error_of(volume_->set_xattr(inode, name, bytes_of(value),
                                          {.create = how == 1, .replace = how == 2})),
              kernels);
  }
  void compare_get(const std::string& path, volume::InodeId inode, const char* name) {
    std::string value(1000, '\0');
    const ssize_t size = ::getxattr(path.c_str(), name, value.data(), value.size());
    const int error = size < 0 ? errno : 0;
    const auto found = volume_->get_xattr(inode, name);
    EXPECT_EQ(error_of(found), error);
    if (size < 0 || !found) return;
    value.resize(static_cast<std::size_t>(size));
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(found->data()), found->size()), value);
    ++read_;
  }
  void compare_names(const std::string& path, volume::InodeId inode) {
    std::array<char, 1000> names{};
    const ssize_t size = ::listxattr(path.c_str(), names.data(), names.size());
    ASSERT_GE(size, 0);
    std::set<std::string> kernels;
    for (const char* name = names.data(); name < names.data() + size; name += strlen(name) + 1)
      kernels.insert(name);
    const auto found = volume_->list_xattrs(inode);
    ASSERT_TRUE(found);
    EXPECT_EQ(listed({found->begin(), found->end()}), listed(kernels));
  }

  const u64 seed_ = seed_base() + 20261122;
  std::mt19937_64 random_{seed_};
  const Heap master_ = raw_key(seed_);
  Ext4Image ext4_{TempFolder::memory_folder()};
  crypto::KeyId id_;
  std::array<volume::InodeId, 2> ours_;  // the file, the directory
  u64 read_ = 0;
};

TEST_F(AttributesKernel, answer_alike_with_the_key_and_without) {
  u64 read_locked = 0;
  bool locked = false;
  for (u64 i = 0; i < cases(2000); ++i) {
    SCOPED_TRACE(testing::Message() << "seed " << seed_ << ", call " << i << ", locked " << locked);
    if (below(10) == 0) {
      ASSERT_NO_FATAL_FAILURE(locked ? unlock() : lock());
      locked = !locked;
    }
    const bool of_directory = below(3) == 0;
    const std::string path = theirs(of_directory);
    const volume::InodeId inode = ours_[of_directory ? 1 : 0];
    const char* const name = of_directory && below(5) == 0 ? "user.early" : kNames[below(3)];
    const u64 before = read_;
    switch (below(4)) {
      case 0:
        compare_set(path, inode, name);
        break;
      case 1:
        compare_get(path, inode, name);
        break;
      case 2:
        compare_names(path, inode);
        break;
      default:
        EXPECT_EQ(error_of(volume_->remove_xattr(inode, name)),
                  ::removexattr(path.c_str(), name) == 0 ? 0 : errno);
    }
    if (locked) read_locked += read_ - before;
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_GT(read_locked, 20U);
}

}  // namespace
}  // namespace latchkey::tests
