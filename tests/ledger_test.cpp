// Goal: no (key, tweak) pair seals two plaintexts, in any image that a volume leaves: not after a
// rewrite, a crash, a reopening, a fork of the image (design K1); and the ledger would notice.
// Method: a volume on a SimDevice, seeded writes and syncs, crash images by seed and steps back to
// older images that then live on differently; every image is shown to one ledger. For the ledger's
// own sake the random source is then made to repeat itself, as that of a cloned machine does.

#include "tests/support/ledger.h"
#include "tests/support/seed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "tests/support/sim_device.h"
#include "volume/paths.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr Caller kUser{1000};
constexpr u64 kDeviceBytes = 16 * kMiB;

Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

TEST(NonceLedger, one_pair_has_one_ciphertext_and_one_ciphertext_one_pair) {
  NonceLedger ledger;
  EXPECT_FALSE(ledger.observe(bytes_of("k1"), 0, bytes_of("aaaa")));
  EXPECT_FALSE(ledger.observe(bytes_of("k1"), 1, bytes_of("bbbb")));
  EXPECT_FALSE(ledger.observe(bytes_of("k2"), 0, bytes_of("cccc")));
  EXPECT_FALSE(ledger.observe(bytes_of("k1"), 0, bytes_of("aaaa")));
  EXPECT_EQ(ledger.pairs(), 3U);
  EXPECT_EQ(ledger.repeats(), 1U);

  EXPECT_TRUE(ledger.observe(bytes_of("k1"), 0, bytes_of("dddd")));
  EXPECT_TRUE(ledger.observe(bytes_of("k2"), 1, bytes_of("aaaa")));
  EXPECT_EQ(ledger.violations(), 2U);
}

// Time and chance of a machine that can be set back: the same bytes come again.
class RepeatingEnv final : public Env {
 public:
  u64 monotonic_ns() override { return system_env().monotonic_ns(); }
  u64 realtime_ns() override { return system_env().realtime_ns(); }
  void random(MutableBytes bytes) override {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_());
  }
  void set_back() { random_.seed(1); }

 private:
  std::mt19937_64 random_{1};
};

// A machine with one encrypted directory: it works on an image, and is cut off.
class Machine {
 public:
  explicit Machine(u64 seed, Env& env) : random_(seed), env_(env) {
    auto device = new_device();
    MkfsOptions options;
    options.node_bytes = 4096;
    EXPECT_TRUE(Volume::mkfs(*device, options, env_));
    image = device->snapshot();
    run(0, true);
  }

  // `writes` random writes to four files, some synced. `close`: ends in good order, else by a
  // crash.
  void run(int writes, bool close) {
    auto device = new_device();
    device->restore(image);
    auto volume = open(*device);
    if (!volume) return;
    for (int i = 0; i < writes; ++i) write(*volume);
    EXPECT_TRUE(!close || volume->close());
    show(*device);  // what is not flushed, too
    image = device->crash_image(random_());
    volume.reset();
    device = new_device();
    device->restore(image);
    show(*device);
  }

  SimImage image;
  NonceLedger ledger;
  std::vector<std::string> violations;

 private:
  std::unique_ptr<SimDevice> new_device() {
    return std::make_unique<SimDevice>(SimConfig{.size_bytes = kDeviceBytes, .seed = random_()});
  }

  std::unique_ptr<Volume> open(SimDevice& device) {
    VolumeOptions options;
    options.inline_writeback = true;
    options.commit_interval_ms = 0;
    auto volume = Volume::open(device, options, env_);
    EXPECT_TRUE(volume) << volume.error().what;
    if (!volume) return nullptr;
    auto secret = SecretBytes::create(64);
    EXPECT_TRUE(secret);
    std::memset(secret->bytes().data(), 42, 64);
    const auto key = (*volume)->add_key(kUser, std::move(*secret));
    EXPECT_TRUE(key);
    if (!resolve(**volume, "/vault")) {
      const auto directory = make_directory(**volume, kUser, "/vault");
      EXPECT_TRUE(directory && (*volume)->set_policy(kUser, *directory, *key));
    }
    return std::move(*volume);
  }

  // Often the same bytes as before at the same place, often only zeros.
  void write(Volume& volume) {
    const std::string path = "/vault/" + std::to_string(random_() % 4);
    OpenFlags flags;
    flags.write = flags.create = true;
    auto handle = open_path(volume, kUser, path, flags);
    ASSERT_TRUE(handle) << handle.error().what;
    std::vector<std::byte> bytes(1 + random_() % 60000);
    if (random_() % 2 == 0)
      std::ranges::fill(bytes, static_cast<std::byte>(random_() % 4));
    else
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_());
    const u64 offset = random_() % 2 == 0 ? 0 : random_() % 200000;
    EXPECT_TRUE(volume.write(*handle, offset, bytes));
    EXPECT_TRUE(random_() % 4 != 0 || volume.truncate(*handle, random_() % 100000));
    EXPECT_TRUE(random_() % 2 != 0 || volume.fsync(*handle));
    EXPECT_TRUE(volume.close_handle(*handle));
  }

  void show(SimDevice& device) {
    const auto found = observe_device(ledger, device);
    ASSERT_TRUE(found) << found.error().what;
    violations.insert(violations.end(), found->begin(), found->end());
  }

  std::mt19937_64 random_;
  Env& env_;
};

TEST(NonceLedger, crashes_and_forks_of_an_image_never_seal_under_a_pair_twice) {
  for (const u64 seed : seeds(3)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(seed, system_env());
    std::mt19937_64 random(seed);
    std::vector<SimImage> images;
    for (int life = 0; life < 50; ++life) {
      images.push_back(machine.image);
      if (life % 3 == 2) machine.image = images[random() % images.size()];
      machine.run(12, random() % 2 == 0);
    }
    EXPECT_EQ(machine.violations, std::vector<std::string>{});
    EXPECT_GT(machine.ledger.pairs(), 1500U);
    EXPECT_GT(machine.ledger.repeats(), machine.ledger.pairs());
  }
}

TEST(NonceLedger, a_random_source_that_repeats_itself_is_noticed) {
  RepeatingEnv env;
  Machine machine(5, env);
  const SimImage image = machine.image;
  machine.run(8, true);
  EXPECT_EQ(machine.violations, std::vector<std::string>{});
  machine.image = image;
  env.set_back();
  machine.run(8, true);
  machine.image = image;
  env.set_back();
  machine.run(8, true);
  EXPECT_GT(machine.ledger.violations(), 0U);
  EXPECT_EQ(machine.violations.size(), machine.ledger.violations());
}

}  // namespace
}  // namespace latchkey::tests
