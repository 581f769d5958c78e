#include "cli/torture_run.h"

#include <algorithm>
#include <thread>

#include "base/wait.h"
#include "cli/interrupt.h"

namespace latchkey::cli {

namespace {

constexpr u64 kMillisecond = 1'000'000;  // in ns
constexpr u64 kSecond = 1000 * kMillisecond;
// The rest is for blocks that a commit must give back first, and for what is there already.
constexpr u64 kShareOfSpace = 4;
constexpr u64 kBudgetBytesMin = kMiB;
constexpr u64 kAbsenceMax = 2 * kSecond;
constexpr u64 kAbsencePollNs = kMillisecond / 5;

}  // namespace

bool TortureRow::exercised() const {
  switch (keymgr::removal_row(mode).later_io) {
    case keymgr::LaterIo::succeeds:
      return writes.after_removal != 0;
    case keymgr::LaterIo::waits:
      return writes.waited != 0;
    case keymgr::LaterIo::no_key:
      return removals + removals_refused != 0;
  }
  return false;
}

// A write under a key that is gone can only have been acknowledged by mistake.
bool TortureRow::kept_its_word() const {
  const bool may_write = keymgr::removal_row(mode).later_io == keymgr::LaterIo::succeeds;
  return silently_lost == 0 && masters_left == 0 && (may_write || writes.after_removal == 0);
}

TortureRun::TortureRun(const Common& common, const TortureArgs& args, keymgr::RemovalMode mode)
    : common_(common),
      args_(args),
      row_(keymgr::removal_row(mode)),
      env_(system_env()),
      random_(args.seed),
      key_(ScratchKey::create(env_)),
      watch_(env_) {
  result_.mode = mode;
}

Result<TortureRow> TortureRun::run() {
  const std::string directory = scratch_directory("torture", env_);
  Result<void> wrote;
  {
    LK_TRY(Opened opened, open_volume(args_.image, {}));
    wrote = write_under_removal(*opened.volume, directory);
    auto closed = opened.volume->close();
    if (wrote) wrote = closed;
  }
  // Counting, from the device and never from the cache.
  LK_TRY(Opened opened, open_volume(args_.image, {}));
  LK_TRYV(key_.add(*opened.volume, caller()));
  if (wrote) wrote = count(*opened.volume, directory);
  auto removed = volume::remove_tree(*opened.volume, directory);
  auto closed = opened.volume->close();
  LK_TRYV(wrote);
  if (result_.silently_lost != 0) return result_;  // a damaged store may refuse the rest, too
  LK_TRYV(removed);
  LK_TRYV(closed);
  return result_;
}

Result<void> TortureRun::write_under_removal(volume::Volume& volume, const std::string& directory) {
  const u64 budget = volume.facts().space.blocks_available * engine::kBlockBytes / kShareOfSpace;
  if (budget < kBudgetBytesMin) return fail(Errc::no_space, "the store has too little room");
  {
    LK_TRY(const SecretBytes master, key_.in_arena());
    LK_TRYV(watch_.begin(master.bytes()));
  }
  LK_TRY(id_, key_.add(volume, caller()));
  LK_TRY(const auto inode, volume::make_directory(volume, caller(), directory));
  LK_TRYV(volume.set_policy(caller(), inode, id_));
  if (!watch_.sees_it()) return fail(Errc::unavailable, "the search of the arena is blind");
  TortureScene scene{volume, inode, budget};
  std::vector<std::thread> threads;
  for (u32 i = 0; i < args_.writers; ++i) {
    writers_.push_back(std::make_unique<TortureWriter>(scene, i, args_.seed));
    threads.emplace_back([writer = writers_.back().get()] { writer->run(); });
  }
  const auto removing = remove_and_add(scene);
  scene.stop = true;
  for (std::thread& thread : threads) thread.join();
  LK_TRYV(removing);
  for (const auto& writer : writers_) {
    if (writer->broken) return std::unexpected(*writer->broken);
    result_.writes.acknowledged += writer->writes.acknowledged;
    result_.writes.after_removal += writer->writes.after_removal;
    result_.writes.waited += writer->writes.waited;
    result_.writes.refused += writer->writes.refused;
  }
  std::ranges::sort(result_.absent_ns);
  return {};
}

void TortureRun::pause() { pause_for((5 + random_() % 60) * kMillisecond); }

Result<void> TortureRun::remove_and_add(TortureScene& scene) {
  Progress progress(common_, "torture " + std::string(row_.name));
  const u64 start = env_.monotonic_ns();
  const u64 duration = u64{args_.seconds} * kSecond;
  while (env_.monotonic_ns() - start < duration && !scene.broken) {
    if (interrupted()) return fail(Errc::canceled, "interrupted; nothing of it is left there");
    pause();
    LK_TRYV(remove_once(scene));
    progress.update((env_.monotonic_ns() - start) / kSecond, args_.seconds, "seconds");
  }
  return {};
}

Result<void> TortureRun::remove_once(TortureScene& scene) {
  if (row_.refuse_when_busy && random_() % 2 == 0) clear_the_room(scene);
  const u64 begun = env_.monotonic_ns();
  volume::RemovalReport report;
  const auto removed = scene.volume.remove_key(caller(), id_, request(), report);
  scene.rest = false;
  if (!removed) {
    const Errc code = removed.error().code;
    const bool no_room = row_.stays == keymgr::Stays::own_keys && code == Errc::no_memory;
    if (code != Errc::busy && !no_room) return removed;
    ++result_.removals_refused;
    return {};
  }
  ++result_.removals;
  ++scene.epoch;
  bytes_told_ += report.bytes_lost;
  if (random_() % 2 == 0) {
    wait_for_absence(scene, begun, report.state);
  } else {
    look_inside(scene);
    pause();
  }
  ++scene.epoch;
  LK_TRYV(key_.add(scene.volume, caller()));
  return {};
}

// Whoever waits for a suspended key does not do so for ever, and sometimes not for long.
volume::RemovalRequest TortureRun::request() {
  volume::RemovalRequest request{.mode = row_.mode};
  if (row_.later_io == keymgr::LaterIo::waits)
    request.deadline_ns = random_() % 2 == 0 ? 10 * kMillisecond : 10 * kSecond;
  return request;
}

// Most writers leave and stay away: one may come back just now.
void TortureRun::clear_the_room(TortureScene& scene) {
  scene.rest = true;
  const u64 begun = env_.monotonic_ns();
  while (scene.inside.count() != 0 && env_.monotonic_ns() - begun < kSecond / 5)
    pause_for(kMillisecond / 5);
}

void TortureRun::wait_for_absence(TortureScene& scene, u64 begun_ns, keymgr::KeyState state) {
  u64 now = env_.monotonic_ns();
  while (state != keymgr::KeyState::absent && now - begun_ns < kAbsenceMax && !scene.broken) {
    pause_for(kAbsencePollNs);
    state = scene.volume.key_status(caller(), id_).state;
    now = env_.monotonic_ns();
  }
  if (state != keymgr::KeyState::absent) return;
  result_.absent_ns.push_back(now - begun_ns);
  if (watch_.sees_it()) ++result_.masters_left;
}

void TortureRun::look_inside(TortureScene& scene) {
  const u64 before = scene.inside.word();
  const bool seen = watch_.sees_it();
  if (!TortureInside::stayed(before, scene.inside.word())) return;
  ++result_.looks;
  if (!seen) return;
  ++result_.looks_with_master;
  if (row_.stays != keymgr::Stays::master) ++result_.masters_left;
}

Result<void> TortureRun::count(volume::Volume& volume, const std::string& directory) {
  TortureCount count(volume, caller(), bytes_told_);
  for (const auto& writer : writers_)
    for (const TortureFile& file : writer->files)
      LK_TRYV(count.look_for(file, directory + "/" + file.name));
  result_.reported_lost = count.reported_lost;
  result_.silently_lost = count.silently_lost;
  return {};
}

}  // namespace latchkey::cli
