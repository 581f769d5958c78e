#pragma once
// An ext4 with encryption and a volume with compat_fscrypt whose keys, directories and files are
// alike. Needs root, a loop device, mkfs.ext4 and a kernel with CONFIG_FS_ENCRYPTION.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <iostream>
#include <map>

#include "tests/support/ext4_image.h"
#include "tests/support/fscrypt_calls.h"
#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {

class FscryptAlike : public VolumeTest {
 protected:
  void SetUp() override {
    const std::string missing = ext4_.make(64 * kMiB, 4096);
    if (!missing.empty()) GTEST_SKIP() << missing;
    crypto::KeyId id;
    const int refused = kernel::add_key(ext4_.open().get(), raw_key(1), id);
    if (const char* lacks = kernel::missing(refused)) GTEST_SKIP() << lacks;
    ASSERT_EQ(refused, 0);
    u32 flags = 0;
    ASSERT_EQ(kernel::remove_key(ext4_.open().get(), id, true, flags), 0);
    options_.compat_fscrypt = true;
    VolumeTest::SetUp();
    make_alike();
  }
  void TearDown() override {
    VolumeTest::TearDown();
    if (ext4_.mounted()) {
      EXPECT_EQ(ext4_.unmount(), 0);
    }
  }

  virtual Seen by_kernel(const Call& call) { return by_ioctl(ext4_.open(call.target), call); }

  Seen by_ioctl(const engine::Fd& target, const Call& call) {
    EXPECT_TRUE(target.valid()) << call.target;
    const MutableBytes memory = memory_.hold(call.memory);
    const long result =
        kernel::as(call.uid, [&] { return ::ioctl(target.get(), call.command, memory.data()); });
    return {result < 0 ? static_cast<int>(-result) : 0, Heap(memory.begin(), memory.end())};
  }

  virtual Seen by_us(const Call& call) = 0;
  // Our answer where it is another than the kernel's.
  virtual int error_of_ours(const Call&, int theirs) { return theirs; }

  void compare(u64 seed, u64 count) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Calls calls(seed);
    std::map<std::pair<u32, int>, u64> answers;
    for (u64 i = 0; i < count && !HasFailure(); ++i) {
      Call call = calls.next(known_);
      const bool fresh = call.target == "fresh";
      if (fresh) call.target = fresh_;
      const Seen ours = by_us(call);
      const Seen theirs = by_kernel(call);
      const int wanted = error_of_ours(call, theirs.error);
      EXPECT_EQ(errno_text(ours.error), errno_text(wanted)) << to_text(call);
      const bool drawn = call.command == FS_IOC_GET_ENCRYPTION_NONCE;  // each draws its own
      if (theirs.error == 0 && wanted == 0 && !drawn) {
        EXPECT_EQ(to_hex(ours.memory), to_hex(theirs.memory)) << to_text(call);
      }
      ++answers[{call.command & 0xff, theirs.error}];
      if (fresh && call.command == FS_IOC_SET_ENCRYPTION_POLICY && theirs.error == 0) make_fresh();
    }
    for (const auto& [answer, times] : answers)
      std::cout << "ioctl " << answer.first << " " << errno_text(answer.second) << ": " << times
                << "\n";
  }

  // One that was taken has a policy from now on, on both sides.
  void make_fresh() {
    fresh_ = "fresh" + std::to_string(made_++);
    make_directory_of(fresh_, kOwner);
  }

  void make_directory_of(const std::string& name, u32 uid) {
    ASSERT_EQ(::mkdir(ext4_.path(name).c_str(), 0777), 0);
    ASSERT_EQ(::chown(ext4_.path(name).c_str(), uid, uid), 0);
    const auto made = volume::make_directory(*volume_, {uid}, "/" + name, 0777);
    ASSERT_TRUE(made);
    inodes_[name] = *made;
  }

  void make_alike() {
    for (const char* name : {"vault", "full"}) make_directory_of(name, kOwner);
    for (u64 seed = 1; seed <= 3; ++seed) {
      const Heap raw = raw_key(seed);
      crypto::KeyId id;
      ASSERT_EQ(kernel::add_key(ext4_.open().get(), raw, id), 0);
      ASSERT_EQ(*volume_->add_key({0}, in_arena(raw)), id);
      known_.push_back(id);
    }
    ASSERT_EQ(kernel::set_policy(ext4_.open("vault").get(), kernel::policy_of(known_[0])), 0);
    ASSERT_TRUE(volume_->set_policy({0}, inodes_.at("vault"), known_[0]));
    for (const char* name : {"file", "full/file"}) {
      const engine::Fd file(::open(ext4_.path(name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
      ASSERT_TRUE(file.valid());
      ASSERT_EQ(::fchown(file.get(), kOwner, kOwner), 0);
      auto made = volume::open_path(*volume_, {kOwner}, std::string("/") + name,
                                    {.write = true, .create = true});
      ASSERT_TRUE(made);
      close(*made);
    }
    inodes_["file"] = *volume::resolve(*volume_, "/file");
    make_fresh();
  }

  Ext4Image ext4_{TempFolder::memory_folder()};
  EndingMemory memory_;
  std::map<std::string, volume::InodeId> inodes_;
  std::vector<crypto::KeyId> known_;
  std::string fresh_;
  u64 made_ = 0;
};

}  // namespace latchkey::tests
