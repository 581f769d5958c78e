// Goal: with the fsync log as without it, what was acknowledged survives a power cut at any
// instant, and what was not is old or new; the structure is clean before and after the replay, a
// replay that is cut begins again, and no key and tweak ever stand over two plaintexts. Method: one
// seeded life of few files that are written and synced again and again, changed otherwise now and
// then, or of ever new ones that are synced, whose names are changed otherwise now and then, is cut
// at each of its writes and flushes; the device drops, keeps and tears what was not flushed. The
// model without a disk says what may be there.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "tests/support/ledger.h"
#include "tests/support/model.h"
#include "tests/support/seed.h"
#include "tests/support/sim_device.h"
#include "tests/support/volume_fixture.h"
#include "volume/paths.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr u64 kFiles = 5;
constexpr u64 kPageBytes = engine::kBlockBytes;

struct Cuts {
  u64 seed = 0;
  int steps = 0;
  u64 device_bytes = 16 * kMiB;
  int crashes_a_cut = 2;
  u64 pages_free = 0;  // of a store that is nearly full
  bool new_files = false;
};

class LogLife {
 public:
  explicit LogLife(const Cuts& cuts) : cuts_(cuts) {
    SimDevice fresh({.size_bytes = cuts.device_bytes, .seed = cuts.seed});
    MkfsOptions mkfs;
    mkfs.node_bytes = 4096;
    EXPECT_TRUE(Volume::mkfs(fresh, mkfs, system_env()));
    auto volume = open(fresh);
    const auto key = volume->add_key(kUser, master_key(42));
    auto directory = make_directory(*volume, kUser, "/vault");
    EXPECT_TRUE(volume->set_policy(kUser, *directory, *key));
    for (u64 i = 0; i < kFiles; ++i) {
      const auto handle = open_path(*volume, kUser, path(name(i)), {.write = true, .create = true});
      EXPECT_TRUE(volume->close_handle(*handle));
    }
    if (cuts.pages_free != 0) fill(*volume);
    EXPECT_TRUE(volume->close());
    start_ = fresh.snapshot();
  }

  // False: the device survived.
  bool live(u64 cut) {
    SimDevice device({.size_bytes = cuts_.device_bytes, .seed = cuts_.seed});
    device.restore(start_);
    device.cut_after(cut);
    Model model;
    for (u64 i = 0; i < kFiles; ++i) model.create(name(i));
    model.sync();
    std::mt19937_64 random(cuts_.seed);
    if (auto volume = open(device)) {
      (void)volume->add_key(kUser, master_key(42));
      for (int i = 0; i < cuts_.steps; ++i)
        if (!(cuts_.new_files ? step_of_names(*volume, model, random)
                              : step(*volume, model, random)))
          break;
      logged += volume->facts().log_blocks;
    }
    const bool died = device.power_off();
    for (int i = 0; i < cuts_.crashes_a_cut; ++i) {
      const u64 seed = seed_base() + cut * 1000 + static_cast<u64>(i);
      SCOPED_TRACE(testing::Message()
                   << "seed " << cuts_.seed << ", cut " << cut << ", crash seed " << seed);
      const SimImage image = device.crash_image(seed);
      look_at(image, model, seed);
      if (cut % 7 == 0 && i == 0) cut_the_recovery(image, model, seed);
      if (testing::Test::HasFatalFailure()) return false;
    }
    return died;
  }

  u64 logged = 0, replayed = 0, recoveries_cut = 0, creates = 0;

 private:
  static std::string name(u64 i) { return "f" + std::to_string(i); }
  static std::string path(const std::string& name) { return "/vault/" + name; }

  static std::unique_ptr<Volume> open(SimDevice& device) {
    VolumeOptions options;
    options.inline_writeback = true;
    options.commit_interval_ms = 0;
    options.dirty_bytes_max = kMiB;
    auto volume = Volume::open(device, options, system_env());
    if (!volume) {
      EXPECT_TRUE(device.power_off()) << volume.error().what;
      return nullptr;
    }
    return std::move(*volume);
  }

  void fill(Volume& volume) const {
    const auto handle = open_path(volume, kUser, "/filler", {.write = true, .create = true});
    ASSERT_TRUE(handle);
    const std::vector<std::byte> bytes(16 * kPageBytes, std::byte{1});
    while (volume.facts().space.blocks_available > cuts_.pages_free + 16)
      if (!volume.append(*handle, bytes) || !volume.sync()) break;
    ASSERT_TRUE(volume.close_handle(*handle));
  }

  // False: the device refused. Calls that the power may cut are told to the model first.
  bool step(Volume& volume, Model& model, std::mt19937_64& random) {
    const std::string file = name(random() % kFiles);
    const u64 dice = random() % 40;
    if (dice == 0) {
      if (!volume.sync()) return false;
      model.sync();
      return true;
    }
    if (!model.exists(file)) {
      model.create(file);
      const auto made = open_path(volume, kUser, path(file), {.write = true, .create = true});
      return made && (volume.close_handle(*made) || true);
    }
    if (dice == 1) {
      model.unlink(file);
      const auto parent = resolve_parent(volume, path(file));
      return parent && volume.unlink(parent->directory, parent->name);
    }
    const auto handle = open_path(volume, kUser, path(file), {.write = true});
    if (!handle) return false;
    bool done = true;
    if (dice < 4) {
      const u64 size = random() % 20000;
      model.truncate(file, size);
      done = volume.truncate(*handle, size).has_value();
    } else if (dice < 22) {
      done = write(volume, *handle, model, file, random);
    }
    if (dice >= 14 && done) {
      done = volume.fsync(*handle).has_value();
      if (done) model.fsync(file);
    } else if (dice % 3 == 0 && done) {
      done = volume.map(*handle).has_value();  // flushes without a sync
    }
    (void)volume.close_handle(*handle);
    return done;
  }

  // Of 16 names in two directories, one of which comes and goes; most calls make a file and sync
  // it.
  bool step_of_names(Volume& volume, Model& model, std::mt19937_64& random) {
    const auto draw = [&random] {
      return (random() % 3 == 0 ? "d/" : "") + std::string("n") + std::to_string(random() % 8);
    };
    std::string file = draw();
    const bool below = model.is_directory("d");
    if (!below && file.starts_with("d/")) file = file.substr(2);
    const auto parent = resolve_parent(volume, path(file));
    if (!parent) return false;
    const u64 dice = random() % 40;
    if (dice == 0) {
      if (!volume.sync()) return false;
      model.sync();
      return true;
    }
    if (dice == 1 && (!below || model.is_empty("d"))) {
      const auto above = resolve(volume, "/vault");
      if (!above) return false;
      below ? model.rmdir("d") : model.mkdir("d");
      if (below) return volume.rmdir(*above, "d").has_value();
      return volume.mkdir(kUser, *above, "d", 0755).has_value();
    }
    if (model.exists(file) && dice < 24) {
      std::string to = draw();
      if (!below && to.starts_with("d/")) to = to.substr(2);
      if (dice < 6 && to != file) {
        const auto into = resolve_parent(volume, path(to));
        model.rename(file, to);
        return into && volume.rename(parent->directory, parent->name, into->directory, into->name);
      }
      model.unlink(file);
      return volume.unlink(parent->directory, parent->name).has_value();
    }
    if (!model.exists(file)) model.create(file);
    const auto handle = open_path(volume, kUser, path(file), {.write = true, .create = true});
    if (!handle) return false;
    bool done = dice % 5 == 0 || write(volume, *handle, model, file, random);
    if (done && dice % 4 != 0) {
      done = volume.fsync(*handle).has_value();
      if (done) model.fsync(file);
    }
    (void)volume.close_handle(*handle);
    return done;
  }

  static bool write(Volume& volume, HandleId handle, Model& model, const std::string& file,
                    std::mt19937_64& random) {
    const u64 size = model.size(file);
    u64 offset = random() % 40000;
    std::size_t count = 1 + random() % 9000;
    if (random() % 2 == 0) {  // in place, whole pages
      offset = random() % (size / kPageBytes + 1) * kPageBytes;
      count = kPageBytes;
    }
    std::vector<std::byte> bytes(count);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    model.write(file, offset, bytes);
    return volume.write(handle, offset, bytes).has_value();
  }

  static ModelReader reader_of(Volume& volume) {
    ModelReader reader;
    reader.list = [&volume](const std::string& in) -> Result<std::vector<ModelReader::Entry>> {
      LK_TRY(const auto directory, resolve(volume, path(in)));
      LK_TRY(const auto entries, volume.read_directory(directory));
      std::vector<ModelReader::Entry> out;
      for (const auto& entry : entries)
        out.push_back({entry.name, entry.kind == FileKind::directory});
      return out;
    };
    reader.read = [&volume](const std::string& file) -> Result<std::vector<std::byte>> {
      LK_TRY(const auto handle, open_path(volume, kUser, path(file), OpenFlags{}));
      LK_TRY(const auto stat, volume.stat(handle));
      std::vector<std::byte> bytes(stat.size);
      LK_TRY(const u64 count, volume.read(handle, 0, bytes));
      if (count != bytes.size()) return fail(Errc::io, "a short read");
      LK_TRYV(volume.close_handle(handle));
      return bytes;
    };
    return reader;
  }

  void expect_clean(SimDevice& device, bool data) {
    engine::CheckOptions options;
    options.data = data;
    const auto check = check_volume(device, options, system_env());
    ASSERT_TRUE(check) << check.error().what;
    for (const engine::Finding& finding : check->findings)
      ADD_FAILURE() << finding.where << ": " << finding.what;
  }

  // As the crash left it, then opened: read-only first, which must show the same.
  void look_at(const SimImage& image, const Model& model, u64 seed) {
    SimDevice device({.size_bytes = cuts_.device_bytes, .seed = seed});
    device.restore(image);
    expect_clean(device, false);
    creates += creates_in_log(device);
    const auto observed = observe_device(ledger_, device);
    ASSERT_TRUE(observed && observed->empty());
    auto volume = open(device);
    ASSERT_TRUE(volume);
    replayed += volume->facts().store.log_replayed;
    ASSERT_TRUE(volume->add_key(kUser, master_key(42)));
    const auto tree = read_tree(reader_of(*volume));
    ASSERT_TRUE(tree) << tree.error().what;
    const auto wrong = model.compare_recovered(*tree);
    ASSERT_FALSE(wrong) << *wrong;
    ASSERT_TRUE(volume->close());
    expect_clean(device, cuts_.pages_free == 0);
    const auto after = observe_device(ledger_, device);
    ASSERT_TRUE(after && after->empty());
  }

  static u64 creates_in_log(SimDevice& device) {
    engine::OpenOptions options;
    options.read_only = true;
    const auto store = engine::Store::open(device, options, system_env());
    if (!store) return 0;
    return static_cast<u64>(
        std::ranges::count((*store)->logged(), engine::LogKind::create, &engine::LogRecord::kind));
  }

  void cut_the_recovery(const SimImage& image, const Model& model, u64 seed) {
    for (u64 cut = 0;; ++cut) {
      SimDevice device({.size_bytes = cuts_.device_bytes, .seed = seed + cut});
      device.restore(image);
      device.cut_after(cut);
      const bool opened = open(device) != nullptr;
      SCOPED_TRACE(testing::Message() << "recovery cut " << cut);
      look_at(device.crash_image(seed + cut), model, seed);
      if (testing::Test::HasFatalFailure()) return;
      if (opened && !device.power_off()) return;
      ++recoveries_cut;
    }
  }

  const Cuts cuts_;
  SimImage start_;
  NonceLedger ledger_;
};

void cut_everywhere(const Cuts& cuts) {
  LogLife life(cuts);
  u64 cut = 0;
  while (life.live(cut)) ++cut;
  if (testing::Test::HasFatalFailure()) return;
  EXPECT_GT(cut, 40U);
  EXPECT_GT(life.logged, cut);
  EXPECT_GT(life.replayed, cut / 2);
  EXPECT_GT(life.recoveries_cut, cut / 7);
  if (cuts.new_files) {
    EXPECT_GT(life.creates, cut);
  }
}

TEST(VolumeLogCrash, every_cut_recovers_what_was_synced) {
  for (const u64 seed : seeds(4)) {
    cut_everywhere({seed, 60});
    if (HasFatalFailure()) return;
  }
}

TEST(VolumeLogCrash, every_cut_recovers_new_files_that_were_synced) {
  for (const u64 seed : seeds(3)) {
    cut_everywhere({.seed = seed + 100, .steps = 60, .new_files = true});
    if (HasFatalFailure()) return;
  }
}

// What is freed is reused as soon as it may be.
TEST(VolumeLogCrash, every_cut_recovers_where_blocks_are_few) {
  for (const u64 seed : seeds(1)) {
    cut_everywhere({seed + 50, 120, 16 * kMiB, 1, 340});
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace latchkey::tests
