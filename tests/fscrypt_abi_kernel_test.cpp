// Goal: to the same bytes a real kernel's ioctls and ours give the same answer: errno and what is
// written. Method: calls by chance (fscrypt_calls.h) on an ext4 with encryption and on a volume
// with compat_fscrypt. Needs root, a loop device, mkfs.ext4 and a kernel with CONFIG_FS_ENCRYPTION.

#include <algorithm>

#include "tests/support/fscrypt_alike.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

class FscryptAbiKernel : public FscryptAlike {
 protected:
  Seen by_us(const Call& call) override {
    Heap memory = call.memory;
    const std::size_t size = std::min(memory.size(), fscrypt_argument_bytes(call.command));
    const MutableBytes argument = MutableBytes(memory).first(size);
    const Bytes behind = Bytes(memory).subspan(size);
    FscryptCall asked{.command = call.command, .argument = argument};
    const std::size_t wanted = fscrypt_raw_key_bytes(call.command, argument);
    if (wanted != 0 && behind.size() >= wanted) asked.raw_key = in_arena(behind.first(wanted));
    const FscryptAnswer answer =
        fscrypt_ioctl(*volume_, {call.uid}, inodes_.at(call.target), std::move(asked));
    EXPECT_TRUE(std::ranges::equal(Bytes(memory).subspan(answer.bytes),
                                   Bytes(call.memory).subspan(answer.bytes)))
        << "written behind what goes back, or in spite of the error: " << to_text(call);
    return {answer.error, memory};
  }
};

TEST_F(FscryptAbiKernel, the_same_bytes_get_the_same_answers) {
  compare(seed_base() + 1, cases(20'000));
}

}  // namespace
}  // namespace latchkey::tests
