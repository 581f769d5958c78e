// Goal: to the same bytes a real kernel's ioctls and ours give the same answer: errno and what is
// written. Method: calls by chance (fscrypt_calls.h) on an ext4 with encryption and on a volume
// with compat_fscrypt. Needs root, a loop device, mkfs.ext4 and a kernel with CONFIG_FS_ENCRYPTION.

#include <algorithm>
#include <map>

#include "tests/support/fscrypt_alike.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

class World : public VolumeTest {
 public:
  void start() {
    options_.compat_fscrypt = true;
    SetUp();
  }
  void end() { TearDown(); }
  using VolumeTest::volume_;

 private:
  void TestBody() override {}
};

class FscryptAbiKernel : public FscryptAlike {
 protected:
  void start_ours() override { world_.start(); }
  void TearDown() override {
    world_.end();
    FscryptAlike::TearDown();
  }
  void make_our_directory(const std::string& name, u32 uid) override {
    const auto made = make_directory(*world_.volume_, {uid}, "/" + name, 0777);
    ASSERT_TRUE(made);
    inodes_[name] = *made;
  }
  void make_our_file(const std::string& name, u32 uid) override {
    const std::string path = "/" + name;
    auto made = open_path(*world_.volume_, {uid}, path, {.write = true, .create = true});
    ASSERT_TRUE(made);
    ASSERT_TRUE(world_.volume_->close_handle(*made));
    inodes_[name] = *resolve(*world_.volume_, path);
  }
  void add_our_key(const Heap& raw, const crypto::KeyId& id) override {
    ASSERT_EQ(*world_.volume_->add_key({0}, in_arena(raw)), id);
  }
  void set_our_policy(const std::string& name, const crypto::KeyId& id) override {
    ASSERT_TRUE(world_.volume_->set_policy({0}, inodes_.at(name), id));
  }

  Seen by_us(const Call& call) override {
    Heap memory = call.memory;
    const std::size_t size = std::min(memory.size(), fscrypt_argument_bytes(call.command));
    const MutableBytes argument = MutableBytes(memory).first(size);
    const Bytes behind = Bytes(memory).subspan(size);
    FscryptCall asked{.command = call.command, .argument = argument};
    const std::size_t wanted = fscrypt_raw_key_bytes(call.command, argument);
    if (wanted != 0 && behind.size() >= wanted) asked.raw_key = in_arena(behind.first(wanted));
    const FscryptAnswer answer =
        fscrypt_ioctl(*world_.volume_, {call.uid}, inodes_.at(call.target), std::move(asked));
    EXPECT_TRUE(std::ranges::equal(Bytes(memory).subspan(answer.bytes),
                                   Bytes(call.memory).subspan(answer.bytes)))
        << "written behind what goes back, or in spite of the error: " << to_text(call);
    return {answer.error, memory};
  }

  World world_;
  std::map<std::string, InodeId> inodes_;
};

TEST_F(FscryptAbiKernel, the_same_bytes_get_the_same_answers) {
  compare(seed_base() + 1, cases(20'000));
}

}  // namespace
}  // namespace latchkey::tests
