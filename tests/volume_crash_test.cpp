// Goal: files survive a crash as promise V1 says: what was synced is there, an operation on names
// is whole or absent, of an unacknowledged write each block is old or new; the structure is clean;
// and no (key, tweak) pair ever stands over two ciphertexts, in all images together (K1). Method:
// six lives a seed on a SimDevice without threads; the power is cut at a random write or flush,
// what was not flushed is dropped, kept or torn. A model without a disk says what may be there, a
// ledger outside the machine remembers every block of every image.

#include <gtest/gtest.h>
#include <cstring>
#include <random>
#include "tests/support/ledger.h"
#include "tests/support/model.h"
#include "tests/support/seed.h"
#include "tests/support/sim_device.h"
#include "volume/paths.h"
namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr Caller kUser{1000};
ModelReader reader_of(Volume& v) {
  ModelReader r;
  r.list = [&v](const std::string& p) -> Result<std::vector<ModelReader::Entry>> {
    LK_TRY(auto dir, resolve(v, "/vault/" + p));
    LK_TRY(auto entries, v.read_directory(dir));
    std::vector<ModelReader::Entry> out;
    for (auto& e : entries) out.push_back({e.name, e.kind == FileKind::directory});
    return out;
  };
  r.read = [&v](const std::string& p) -> Result<std::vector<std::byte>> {
    LK_TRY(auto h, open_path(v, kUser, "/vault/" + p, OpenFlags{}));
    LK_TRY(auto st, v.stat(h));
    std::vector<std::byte> d(st.size);
    u64 at = 0;
    while (at < d.size()) {
      LK_TRY(u64 n, v.read(h, at, std::span(d).subspan(at)));
      if (n == 0) return fail(Errc::io, "short");
      at += n;
    }
    LK_TRYV(v.close_handle(h));
    return d;
  };
  return r;
}
std::unique_ptr<Volume> open_it(SimDevice& d) {
  VolumeOptions o;
  o.inline_writeback = true;
  o.commit_interval_ms = 0;
  o.dirty_bytes_max = 256 * kKiB;
  auto v = Volume::open(d, o, system_env());
  EXPECT_TRUE(v) << v.error().what;
  if (!v) return nullptr;
  auto s = SecretBytes::create(64);
  std::memset(s->bytes().data(), 42, 64);
  auto k = (*v)->add_key(kUser, std::move(*s));
  EXPECT_TRUE(k);
  if (!resolve(**v, "/vault")) {
    auto dir = make_directory(**v, kUser, "/vault");
    EXPECT_TRUE((*v)->set_policy(kUser, *dir, *k));
    EXPECT_TRUE((*v)->sync());
  }
  return std::move(*v);
}

// One volume in one life, and the model beside it. A step that fails must have met a dead device.
class Life {
 public:
  Life(Volume& volume, Model& model, std::mt19937_64& random)
      : volume_(volume), model_(model), random_(random) {}

  // False: the device refused.
  bool step() {
    const u64 dice = random_() % 20;
    const std::string name = some_name();
    if (dice < 3 && !model_.exists(name)) {
      model_.mkdir(name);
      return make_directory(volume_, kUser, "/vault/" + name).has_value();
    }
    if (dice < 6 && !model_.exists(name)) return create(name);
    if (dice < 7 && model_.exists(name)) return remove(name);
    if (dice == 7) {
      if (random_() % 3 != 0) return true;
      if (!volume_.sync()) return false;
      model_.sync();
      return true;
    }
    const auto files = model_.files();
    return files.empty() || change(files[random_() % files.size()], dice);
  }

 private:
  std::string some_name() {
    auto directories = model_.directories();
    directories.push_back("");
    const std::string directory = directories[random_() % directories.size()];
    const std::string leaf(1, static_cast<char>('a' + random_() % 4));
    return directory.empty() ? leaf : directory + "/" + leaf;
  }

  bool create(const std::string& name) {
    model_.create(name);
    OpenFlags flags;
    flags.write = flags.create = true;
    auto handle = open_path(volume_, kUser, "/vault/" + name, flags);
    return handle && (volume_.close_handle(*handle) || true);
  }

  bool remove(const std::string& name) {
    auto parent = resolve_parent(volume_, "/vault/" + name);
    if (!parent) return false;
    if (!model_.is_directory(name)) {
      model_.unlink(name);
      return volume_.unlink(parent->directory, parent->name).has_value();
    }
    if (!model_.is_empty(name)) return true;
    model_.rmdir(name);
    return volume_.rmdir(parent->directory, parent->name).has_value();
  }

  bool change(const std::string& name, u64 dice) {
    OpenFlags flags;
    flags.write = true;
    auto handle = open_path(volume_, kUser, "/vault/" + name, flags);
    if (!handle) return false;
    bool done = false;
    if (dice < 14) {
      std::vector<std::byte> bytes(1 + random_() % 20000);
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_());
      const u64 offset = random_() % 2 ? model_.size(name) : random_() % 50000;
      model_.write(name, offset, bytes);
      done = volume_.write(*handle, offset, bytes).has_value();
    } else if (dice < 16) {
      const u64 size = random_() % 50000;
      model_.truncate(name, size);
      done = volume_.truncate(*handle, size).has_value();
    } else {
      done = volume_.fsync(*handle).has_value();
      if (done) model_.fsync(name);
    }
    (void)volume_.close_handle(*handle);  // on a dead device it may fail; what counts is told above
    return done;
  }

  Volume& volume_;
  Model& model_;
  std::mt19937_64& random_;
};

// From an image to the image that its crash leaves.
void live(SimImage& image, Model& model, std::mt19937_64& random, bool first) {
  SimDevice device({.size_bytes = 16 * kMiB, .seed = random()});
  device.restore(image);
  auto volume = open_it(device);
  ASSERT_TRUE(volume);
  auto tree = read_tree(reader_of(*volume));
  ASSERT_TRUE(tree) << tree.error().what;
  const auto wrong = first ? std::nullopt : model.compare_recovered(*tree);
  ASSERT_FALSE(wrong) << *wrong;
  model.adopt(*tree);
  if (random() % 2) device.cut_after(random() % 200);
  Life life(*volume, model, random);
  for (int i = 0; i < 60; ++i) {
    if (!life.step()) {
      ASSERT_TRUE(device.power_off()) << "step " << i;
      break;
    }
    if (i % 8 != 7 || device.power_off()) continue;
    const auto now = read_tree(reader_of(*volume));
    if (device.power_off()) break;
    ASSERT_TRUE(now);
    const auto differs = model.compare_live(*now);
    ASSERT_FALSE(differs) << *differs;
  }
  image = device.crash_image(random());
}

void look_at(const SimImage& image, NonceLedger& ledger, u64 seed) {
  SimDevice device({.size_bytes = 16 * kMiB, .seed = seed});
  device.restore(image);
  const auto observed = observe_device(ledger, device);
  ASSERT_TRUE(observed) << observed.error().what;
  ASSERT_TRUE(observed->empty()) << observed->front();
  const auto check = check_volume(device, {}, system_env());
  ASSERT_TRUE(check) << check.error().what;
  for (const engine::Finding& finding : check->findings)
    ADD_FAILURE() << finding.where << ": " << finding.what;
}

TEST(VolumeCrash, every_life_recovers_what_the_model_allows) {
  NonceLedger ledger;
  for (const u64 seed : seeds(30)) {
    std::mt19937_64 random(seed);
    SimDevice fresh({.size_bytes = 16 * kMiB, .seed = seed});
    MkfsOptions options;
    options.node_bytes = 4096;
    ASSERT_TRUE(Volume::mkfs(fresh, options, system_env()));
    ASSERT_TRUE(open_it(fresh)->close());
    SimImage image = fresh.snapshot();
    Model model;
    for (int number = 0; number < 6; ++number) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", life " << number);
      live(image, model, random, number == 0);
      if (HasFatalFailure()) return;
      look_at(image, ledger, seed);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace latchkey::tests
