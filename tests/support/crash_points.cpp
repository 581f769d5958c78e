#include "tests/support/crash_points.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "base/check.h"
#include "engine/file_device.h"
#include "engine/superblock.h"
#include "tests/support/sim_device.h"
#include "volume/paths.h"

namespace latchkey::tests {

using namespace volume;  // NOLINT: the whole file is about it

VolumeOptions point_volume_options() {
  VolumeOptions options;
  options.inline_writeback = true;
  options.commit_interval_ms = 0;
  options.dirty_bytes_max = kMiB;
  options.key_slots = 16;
  options.writeback_workers = 1;
  return options;
}

namespace {

constexpr Caller kOwner{1000};
constexpr const char* kAfter = "/vault/after";  // made once a state has been recovered

// Chance and time from a seed: a run of one thread that is repeated writes the same bytes.
class SeededEnv final : public Env {
 public:
  explicit SeededEnv(u64 seed) : random_(seed) {}
  u64 monotonic_ns() override { return now_.fetch_add(1000, std::memory_order_relaxed); }
  u64 realtime_ns() override { return 1'700'000'000'000'000'000 + monotonic_ns(); }
  void random(MutableBytes bytes) override {
    Lock lock(mutex_);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_());
  }

 private:
  Mutex mutex_;
  std::mt19937_64 random_ LK_GUARDED_BY(mutex_);
  std::atomic<u64> now_ = 0;
};

bool is_superblock(u64 page) {
  for (u32 place = 0; place < 4; ++place)
    if (engine::superblock_place(place, kPointDeviceBytes) == page) return true;
  return false;
}

SimImage make_point_image() {
  SimDevice device({.size_bytes = kPointDeviceBytes, .shuffle = false});
  SeededEnv env(0);
  MkfsOptions options;
  options.node_bytes = 4096;
  LK_CHECK(Volume::mkfs(device, options, env).has_value());
  auto volume = Volume::open(device, point_volume_options(), env);
  LK_CHECK(volume.has_value());
  const auto key = add_point_key(**volume);
  LK_CHECK(key && make_point_tree(**volume, *key) && (*volume)->close());
  return device.durable();
}

Result<void> make_after(Volume& volume) {
  LK_TRY(const HandleId handle, open_path(volume, kOwner, kAfter, {.write = true, .create = true}));
  const std::vector<std::byte> text(5000, std::byte{'a'});
  LK_TRYV(volume.write(handle, 0, text));
  LK_TRYV(volume.fsync(handle));
  return volume.close_handle(handle);
}

}  // namespace

const SimImage& point_image() {
  static const SimImage image = make_point_image();
  return image;
}

std::string to_text(const PointSequence& sequence) {
  std::string text;
  for (const PointOperation* operation : sequence)
    text += (text.empty() ? "" : ", ") + std::string(operation->name);
  return text;
}

PointTotals& PointTotals::operator+=(const PointTotals& other) {
  sequences += other.sequences;
  states += other.states;
  images += other.images;
  opened += other.opened;
  recovery_states += other.recovery_states;
  findings.insert(findings.end(), other.findings.begin(), other.findings.end());
  return *this;
}

bool is_worthwhile(const PointSequence& sequence) {
  PointModel model = point_tree_model();
  for (const PointOperation* operation : sequence) {
    if (!operation->begun(model) && !model.locked()) return false;
    if (operation->done != nullptr) operation->done(model);
  }
  return true;
}

PointRun run_sequence(Volume& volume, const crypto::KeyId& key, RecordingDevice& device,
                      const PointSequence& sequence, bool compare_live) {
  PointActor actor{volume, key};
  PointRun run;
  PointModel model = point_tree_model();
  run.moments.push_back(model);
  for (const PointOperation* operation : sequence) {
    const PointModel before = model;
    const bool foreseen = operation->begun(model);
    if (!foreseen) model = before;
    run.moments.push_back(model);
    device.mark(run.moments.size() - 1);
    const Result<void> ran = operation->run(actor);
    if (ran.has_value() != foreseen)
      run.wrong.push_back(
          fmt::format("'{}' answers {}", operation->name,
                      ran ? "success, which the model does not" : ran.error().what));
    if (foreseen && operation->done != nullptr) operation->done(model);
    run.moments.push_back(model);
    device.mark(run.moments.size() - 1);
  }
  if (!compare_live) return run;
  if (!add_point_key(volume)) run.wrong.emplace_back("the key cannot be added");
  const auto found = read_found_tree(volume);
  if (!found)
    run.wrong.push_back(std::string("the running volume cannot be read: ") + found.error().what);
  else if (const auto differs = model.compare_live(*found))
    run.wrong.push_back("the running volume: " + *differs);
  return run;
}

// --- one sequence -----------------------------------------------------------------------------

struct CrashPoints::History {
  const std::vector<PointModel>* moments = nullptr;
  const FoundTree* recovered = nullptr;  // of a crash inside a recovery: what it must lead to
  PointTotals totals;
  NonceLedger ledger;
  Tree tree;
  std::unordered_set<u64> images;
  std::set<std::pair<const Outcome*, u64>> agreed;
  std::vector<OutcomePtr> fresh;  // outcomes whose recovery nobody has crashed yet
  u64 epochs = 0;
  u64 envs = 0;
};

struct CrashPoints::State {
  const Epoch& epoch;
  const Fates& fates;
};

void CrashPoints::report(const State& state, const std::string& what, History& history) {
  if (history.totals.findings.size() >= options_.findings_max) return;
  history.totals.findings.push_back(
      fmt::format("{}epoch {}, writes {}: {}", history.recovered ? "after a recovery: " : "",
                  history.epochs, to_text(state.epoch, state.fates), what));
}

namespace {

// Empty: nothing. The offline check with all data, and no pair of key and unit seen twice.
std::string check_image(engine::Device& device, NonceLedger& ledger, Env& env) {
  engine::CheckOptions options;
  options.data = true;
  const auto check = check_volume(device, options, env);
  if (!check) return std::string("check: ") + check.error().what;
  if (!check->findings.empty())
    return "check: " + check->findings[0].where + ": " + check->findings[0].what;
  const auto seen = observe_device(ledger, device);
  if (!seen) return std::string("ledger: ") + seen.error().what;
  return seen->empty() ? "" : "ledger: " + seen->front();
}

// The generation before, where it still has a superblock: nothing of it was reused (D1).
std::string look_at_generation_before(engine::Device& device, Env& env) {
  VolumeOptions options = point_volume_options();
  options.previous_generation = true;
  auto volume = Volume::open(device, options, env);
  if (!volume && volume.error().code == Errc::wrong_device) return "";  // there is none
  if (!volume) return std::string("the generation before: ") + volume.error().what;
  if (!add_point_key(**volume)) return "the key cannot be added";
  const auto tree = read_found_tree(**volume);
  return tree ? "" : std::string("the generation before cannot be read: ") + tree.error().what;
}

// Opens it as its owner would, and reads everything.
std::string recover(engine::Device& device, Env& env, FoundTree& found) {
  auto volume = Volume::open(device, point_volume_options(), env);
  if (!volume) return std::string("it does not open: ") + volume.error().what;
  if (!add_point_key(**volume)) return "the key cannot be added";
  auto tree = read_found_tree(**volume);
  if (!tree) return std::string("it cannot be read: ") + tree.error().what;
  found = std::move(*tree);
  found.erase(kAfter);
  if (const auto made = make_after(**volume); !made)
    return std::string("it takes no new file: ") + made.error().what;
  if (const auto closed = (*volume)->close(); !closed)
    return std::string("it does not close: ") + closed.error().what;
  return "";
}

}  // namespace

std::string inspect_point_image(const SimImage& image, NonceLedger& ledger, FoundTree& found) {
  SimDevice device({.size_bytes = kPointDeviceBytes, .shuffle = false});
  device.restore(image);
  std::string wrong = check_image(device, ledger, system_env());
  if (wrong.empty()) wrong = recover(device, system_env(), found);
  if (wrong.empty()) wrong = check_image(device, ledger, system_env());
  return wrong;
}

std::shared_ptr<CrashPoints::Outcome> CrashPoints::inspect(const SimImage& image, History& history,
                                                           DeviceLog& reads) {
  SimDevice sim({.size_bytes = kPointDeviceBytes, .shuffle = false});
  sim.restore(image);
  RecordingDevice device(sim);
  SeededEnv env(options_.seed * 1000003 + ++history.envs);
  auto outcome = std::make_shared<Outcome>();
  outcome->image = image;
  outcome->broken = check_image(device, history.ledger, env);
  if (outcome->broken.empty()) outcome->broken = look_at_generation_before(device, env);
  reads = device.take_log();
  if (outcome->broken.empty()) outcome->broken = recover(device, env, outcome->found);
  outcome->recovery = device.take_log();
  reads.events.insert(reads.events.end(), outcome->recovery.events.begin(),
                      outcome->recovery.events.end());
  return outcome;
}

CrashPoints::OutcomePtr CrashPoints::outcome_of(const State& state, Tree::Walk& walk,
                                                History& history) {
  if (OutcomePtr known = walk.find(state.fates)) return known;
  DeviceLog reads;
  const SimImage image = state.epoch.image(state.fates);
  std::shared_ptr<Outcome> outcome = inspect(image, history, reads);
  ++history.totals.opened;
  if (!history.tree.add(image, reads, outcome))
    outcome->broken += " (and its reader does not repeat itself)";
  if (!outcome->broken.empty()) report(state, outcome->broken, history);
  if (history.recovered == nullptr) history.fresh.push_back(outcome);
  return outcome;
}

void CrashPoints::look_at_epoch(const Epoch& epoch, const StateBudget& budget, History& history) {
  Tree::Walk walk(history.tree, epoch);
  for_each_state(epoch, budget, [&](const Fates& fates) {
    ++history.totals.states;
    if (history.recovered != nullptr) ++history.totals.recovery_states;
    history.images.insert(epoch.image_hash(fates) + history.epochs);
    const State state{epoch, fates};
    const OutcomePtr outcome = outcome_of(state, walk, history);
    if (!outcome->broken.empty()) return;
    if (history.recovered != nullptr) {
      if (outcome->found != *history.recovered)
        report(state,
               "was recovered otherwise:\n" + to_text(outcome->found) + "than before:\n" +
                   to_text(*history.recovered),
               history);
      return;
    }
    for (u64 moment = epoch.earliest(fates); moment <= epoch.end(); ++moment) {
      if (!history.agreed.emplace(outcome.get(), moment).second) continue;
      if (const auto wrong = (*history.moments)[moment].compare_recovered(outcome->found))
        report(state, fmt::format("moment {}: {}", moment, *wrong), history);
    }
  });
  ++history.epochs;
}

// The writes of a recovery, and of a file that is made after it, are lost in all ways: what the
// recovery found stays.
void CrashPoints::crash_recovery(const OutcomePtr& outcome, History& history) {
  history.recovered = &outcome->found;
  history.images.clear();
  StateBudget budget = options_.recovery_budget;
  budget.superblock = is_superblock;
  for_each_epoch(outcome->image, outcome->recovery,
                 [&](const Epoch& epoch) { look_at_epoch(epoch, budget, history); });
  history.totals.images += history.images.size();
  history.recovered = nullptr;
}

PointTotals CrashPoints::look_at(const DeviceLog& log, const SimImage& start,
                                 const std::vector<PointModel>& moments) {
  History history;
  history.moments = &moments;
  history.totals.sequences = 1;
  StateBudget budget = options_.budget;
  budget.superblock = is_superblock;
  budget.seed = options_.seed;
  for_each_epoch(start, log, [&](const Epoch& epoch) { look_at_epoch(epoch, budget, history); });
  history.totals.images = history.images.size();
  std::mt19937_64 random(options_.seed);
  std::shuffle(history.fresh.begin(), history.fresh.end(), random);
  history.fresh.resize(std::min<std::size_t>(history.fresh.size(), options_.recoveries));
  for (const OutcomePtr& outcome : std::exchange(history.fresh, {}))
    if (outcome->broken.empty()) crash_recovery(outcome, history);
  return std::move(history.totals);
}

PointTotals CrashPoints::record(engine::Device& below, const PointSequence& sequence,
                                const VolumeOptions& volume_options) {
  RecordingDevice device(below);
  SeededEnv env(options_.seed);
  PointRun run;
  {
    auto volume = Volume::open(device, volume_options, env);
    LK_CHECK_MSG(volume.has_value(), "the image of all sequences opens");
    const auto key = add_point_key(**volume);
    LK_CHECK(key.has_value());
    run = run_sequence(**volume, *key, device, sequence, true);
  }
  const DeviceLog log = device.take_log();
  PointTotals totals = look_at(log, point_image(), run.moments);
  totals.findings.insert(totals.findings.begin(), run.wrong.begin(), run.wrong.end());
  for (std::string& finding : totals.findings)
    finding = to_text(sequence) + " [seed " + std::to_string(options_.seed) + "]: " + finding;
  return totals;
}

PointTotals CrashPoints::run(const PointSequence& sequence) {
  SimDevice sim({.size_bytes = kPointDeviceBytes, .seed = options_.seed});
  sim.restore(point_image());
  return record(sim, sequence, point_volume_options());
}

namespace {

void write_image(const SimImage& image, const std::string& path) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  for (u64 index = 0; index < kPointDeviceBytes / kSimPage; ++index) {
    const SimPagePtr page = image.page(index);
    if (page == nullptr) continue;
    file.seekp(static_cast<std::streamoff>(index * kSimPage));
    file.write(reinterpret_cast<const char*>(page->data()), kSimPage);
  }
  file.close();
  LK_CHECK_MSG(file.good(), "an image is written to a file");
  std::filesystem::resize_file(path, kPointDeviceBytes);
}

}  // namespace

Result<PointTotals> CrashPoints::run_on_file(const PointSequence& sequence, const std::string& path,
                                             bool workers) {
  write_image(point_image(), path);
  LK_TRY(const auto device, engine::open_device(path, {}));
  LK_TRYV(device->make_io({}));  // asks whether io_uring may be used
  VolumeOptions volume_options = point_volume_options();
  volume_options.inline_writeback = !workers;
  volume_options.writeback_workers = 2;
  return record(*device, sequence, volume_options);
}

}  // namespace latchkey::tests
