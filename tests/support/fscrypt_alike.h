#pragma once
// An ext4 with encryption beside something of ours, with keys, directories and files that are
// alike, and calls by chance to both. Needs root, a loop device, mkfs.ext4 and a kernel with
// CONFIG_FS_ENCRYPTION.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <iostream>
#include <map>

#include "tests/support/ext4_image.h"
#include "tests/support/fscrypt_calls.h"
#include "tests/support/seed.h"

namespace latchkey::tests {

class FscryptAlike : public ::testing::Test {
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
    start_ours();
    if (!HasFailure() && !IsSkipped()) make_alike();
  }
  void TearDown() override {
    if (ext4_.mounted()) {
      EXPECT_EQ(ext4_.unmount(), 0);
    }
  }

  // Our side.
  virtual void start_ours() = 0;
  virtual void make_our_directory(const std::string& name, u32 uid) = 0;
  virtual void make_our_file(const std::string& name, u32 uid) = 0;
  virtual void add_our_key(const Heap& raw, const crypto::KeyId& id) = 0;
  virtual void set_our_policy(const std::string& name, const crypto::KeyId& id) = 0;

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

  static void make_directory_at(const std::string& path, u32 uid) {
    ASSERT_EQ(::mkdir(path.c_str(), 0777), 0) << path;
    ASSERT_EQ(::chown(path.c_str(), uid, uid), 0);
  }
  static void make_file_at(const std::string& path, u32 uid) {
    const engine::Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    ASSERT_TRUE(file.valid()) << path;
    ASSERT_EQ(::fchown(file.get(), uid, uid), 0);
  }
  void make_directory_of(const std::string& name, u32 uid) {
    make_directory_at(ext4_.path(name), uid);
    make_our_directory(name, uid);
  }

  void make_alike() {
    for (const char* name : {"vault", "full"}) make_directory_of(name, kOwner);
    for (u64 seed = 1; seed <= 3; ++seed) {
      const Heap raw = raw_key(seed);
      crypto::KeyId id;
      ASSERT_EQ(kernel::add_key(ext4_.open().get(), raw, id), 0);
      add_our_key(raw, id);
      known_.push_back(id);
    }
    ASSERT_EQ(kernel::set_policy(ext4_.open("vault").get(), kernel::policy_of(known_[0])), 0);
    set_our_policy("vault", known_[0]);
    for (const char* name : {"file", "full/file"}) {
      make_file_at(ext4_.path(name), kOwner);
      make_our_file(name, kOwner);
    }
    make_fresh();
  }

  Ext4Image ext4_{TempFolder::memory_folder()};
  EndingMemory memory_;
  std::vector<crypto::KeyId> known_;
  std::string fresh_;
  u64 made_ = 0;
};

}  // namespace latchkey::tests
