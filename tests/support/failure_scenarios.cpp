#include "tests/support/failure_scenarios.h"

#include <fmt/format.h>

#include <random>

#include "base/check.h"
#include "tests/support/keys.h"
#include "volume/paths.h"

namespace latchkey::tests {

using namespace volume;  // NOLINT: the whole file is about it

namespace {

constexpr Caller kOwner{1000};
constexpr std::size_t kCandidatesMax = 512;

// What reads only; the model says nothing of it.
const PointOperation kReaders[] = {
    {"read everything",
     [](PointActor& a) -> Result<void> {
       LK_TRYV(read_found_tree(a.volume));
       return {};
     },
     [](PointModel& m) { return !m.locked(); }},
    {"scrub",
     [](PointActor& a) -> Result<void> {
       LK_TRYV(a.volume.scrub({}));
       return {};
     },
     [](PointModel&) { return true; }},
    {"map B/bar",
     [](PointActor& a) -> Result<void> {
       LK_TRY(const HandleId handle, open_path(a.volume, kOwner, "/vault/B/bar", {}));
       const auto rows = a.volume.map(handle);
       const auto closed = a.volume.close_handle(handle);
       LK_TRYV(rows);
       return closed;
     },
     [](PointModel& m) { return m.has_contents("/vault/B/bar"); }},
    {"list subvolumes",
     [](PointActor& a) -> Result<void> {
       LK_TRYV(a.volume.list_subvolumes());
       return {};
     },
     [](PointModel&) { return true; }},
    {"status of all keys",
     [](PointActor& a) -> Result<void> {
       LK_CHECK(a.volume.key_list(kOwner).size() < 2);
       return {};
     },
     [](PointModel&) { return true; }},
    {"finish removals", [](PointActor& a) { return a.volume.finish_removals(); },
     [](PointModel&) { return true; }},
};

std::vector<FailureScenario> make_scenarios() {
  std::vector<FailureScenario> scenarios;
  const auto add = [&](PointSequence sequence, bool check = false, bool repair = false) {
    if (!is_worthwhile(sequence)) return false;
    const std::string name =
        to_text(sequence) + (check ? ", after a check" : "") + (repair ? ", after a repair" : "");
    scenarios.push_back({name, std::move(sequence), check, repair});
    return true;
  };
  const PointOperation* sync = &point_operation("sync");
  const PointOperation* write = &point_operation("write B/bar whole");
  for (const PointOperation& operation : point_operations()) {
    add({&operation, sync});
    add({&operation, &point_operation("fsync B/bar"), sync});
  }
  for (const PointOperation& reader : kReaders) {
    add({&reader});
    add({write, &reader, sync});
  }
  add({}, true);
  add({}, false, true);
  add({write, sync}, true, true);
  std::mt19937_64 random(4);
  const auto rows = point_operations();
  while (scenarios.size() < 220) {
    PointSequence sequence{&rows[random() % rows.size()], &rows[random() % rows.size()]};
    if (random() % 2 == 0) sequence.push_back(&rows[random() % rows.size()]);
    if (random() % 4 == 0) sequence.push_back(&kReaders[random() % std::size(kReaders)]);
    sequence.push_back(sync);
    add(std::move(sequence));
  }
  return scenarios;
}

// What the volume may hold: calls that failed are there or not.
class Candidates {
 public:
  Candidates() : models_{point_tree_model()} {}

  void succeeded(const PointOperation& operation) {
    std::vector<PointModel> left;
    for (PointModel& model : models_) {
      if (!operation.begun(model)) continue;
      if (operation.done != nullptr) operation.done(model);
      left.push_back(std::move(model));
    }
    models_ = std::move(left);
  }
  // True: some model had foreseen that it works.
  bool failed(const PointOperation& operation) {
    std::vector<PointModel> left;
    bool foreseen = false;
    for (const PointModel& model : models_) {
      PointModel begun = model;
      if (!operation.begun(begun)) {
        left.push_back(model);
        continue;
      }
      foreseen = true;
      PointModel undone = begun;
      undone.take_names_of(model);
      left.push_back(model);
      left.push_back(std::move(undone));
      left.push_back(begun);
      if (operation.name == "punch A/foo") {  // its ends come first, one by one
        PointModel part = model;
        for (const u64 offset : {1000, 8192}) {
          part.punch("/vault/A/foo", offset, offset == 1000 ? 3096 : 1808);
          left.push_back(part);
        }
      }
      if (!operation.name.starts_with("remove key")) continue;
      begun.lose_dirty();
      begun.lock(true);
      left.push_back(std::move(begun));
    }
    if (left.size() > kCandidatesMax) left.resize(kCandidatesMax);
    models_ = std::move(left);
    return foreseen;
  }
  void closed() {
    for (PointModel& model : models_) model.sync();
  }
  bool none() const { return models_.empty(); }
  std::optional<std::string> compare(const FoundTree& found) const {
    std::optional<std::string> wrong;
    for (const PointModel& model : models_) {
      wrong = model.compare_recovered(found);
      if (!wrong) break;
    }
    return wrong;
  }

 private:
  std::vector<PointModel> models_;
};

std::string text_of(const Error& error) {
  return fmt::format("'{}' ({})", error.what, static_cast<int>(error.code));
}

// An error that no caller could make anything of.
bool says_nothing(const Error& error) {
  return error.what == nullptr || error.what[0] == '\0' ||
         (error.code != Errc::io && error.code != Errc::no_memory && error.code != Errc::damaged &&
          error.code != Errc::no_key && error.code != Errc::read_only &&
          error.code != Errc::not_found && error.code != Errc::no_attribute);
}

struct Life {
  const FailureScenario& scenario;
  const FailureRun& run;
  Candidates candidates = {};
  u64 errors = 0;

  std::string offline();
  std::string operate(PointActor& actor);
  std::string live();
};

std::string Life::offline() {
  if (scenario.check) {
    const auto checked = run.call([&]() -> Result<void> {
      engine::CheckOptions options;
      options.data = true;
      LK_TRYV(check_volume(run.device, options, system_env()));
      return {};
    });
    errors += checked ? 0 : 1;
  }
  if (scenario.repair) {
    const auto repaired = run.call([&]() -> Result<void> {
      LK_TRYV(repair_volume(run.device, system_env()));
      return {};
    });
    errors += repaired ? 0 : 1;
  }
  return "";
}

std::string Life::operate(PointActor& actor) {
  for (const PointOperation* operation : scenario.sequence) {
    const Result<void> done = run.call([&] { return operation->run(actor); });
    if (done) {
      candidates.succeeded(*operation);
      if (candidates.none()) return fmt::format("'{}' works, which it should not", operation->name);
    } else if (candidates.failed(*operation)) {
      ++errors;
      if (says_nothing(done.error()))
        return fmt::format("'{}' says {}", operation->name, text_of(done.error()));
    }
  }
  return "";
}

std::string Life::live() {
  std::unique_ptr<Volume> volume;
  const auto opened = run.call([&]() -> Result<void> {
    LK_TRY(volume, Volume::open(run.device, point_volume_options(), system_env()));
    return {};
  });
  if (!opened) {
    ++errors;
    return says_nothing(opened.error()) ? "open says " + text_of(opened.error()) : "";
  }
  crypto::KeyId key;
  const auto added = run.call([&]() -> Result<void> {
    LK_TRY(key, add_point_key(*volume));
    return {};
  });
  std::string wrong;
  if (added) {
    PointActor actor{*volume, key};
    wrong = operate(actor);
  } else {
    ++errors;
  }
  if (run.look && wrong.empty()) wrong = run.look(*volume);
  const auto closed = run.call([&] { return volume->close(); });
  if (closed)
    candidates.closed();
  else
    ++errors;
  volume.reset();
  return wrong;
}

}  // namespace

const std::vector<FailureScenario>& failure_scenarios() {
  static const std::vector<FailureScenario> scenarios = make_scenarios();
  return scenarios;
}

std::string run_failure_scenario(const FailureScenario& scenario, const FailureRun& run,
                                 u64& errors) {
  static const KeyNeedles needles = needles_of(Heap(64, std::byte{7}));
  Life life{scenario, run};
  std::string wrong = life.offline();
  if (wrong.empty()) wrong = life.live();
  errors = life.errors;
  run.cured();
  if (!wrong.empty()) return wrong;
  if (arena_holds(needles.master) || arena_holds(needles.hkdf_inner))
    return "the key is still in memory";
  run.medium.crash(run.seed);
  NonceLedger ledger;
  FoundTree found;
  wrong = inspect_point_image(run.medium.durable(), ledger, found);
  if (!wrong.empty()) return wrong;
  if (const auto differs = life.candidates.compare(found)) return "after a crash: " + *differs;
  return "";
}

}  // namespace latchkey::tests
