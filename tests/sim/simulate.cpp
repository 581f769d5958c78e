#include "tests/sim/simulate.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>

#include "base/check.h"
#include "base/thread.h"
#include "tests/sim/caller.h"
#include "tests/sim/env.h"

namespace latchkey::tests {

namespace {

constexpr u64 kDeviceBytes = 16 * kMiB;
constexpr u64 kFillerBytes = 11 * kMiB;

void must(const Result<void>& result) { LK_CHECK_MSG(result, "the first image cannot be made"); }

// The store that every schedule begins with; made once, its pages are shared. The filler is plain
// and zero, so it costs no memory.
SimImage make_first_image(bool nearly_full) {
  SimEnv env(7);
  SimDevice device({.size_bytes = kDeviceBytes, .shuffle = false});
  must(Files::format(device, env,
                     {{"/c0", true, true},
                      {"/c1", true, true},
                      {"/c2", true, true},
                      {"/plain", false, true},
                      {"/others"},
                      {"/plain_others", false},
                      {"/shared"},
                      {"/names"}}));
  auto files = Files::open(device, {.inline_writeback = true}, env);
  LK_CHECK(files);
  must((*files)->add_key(Files::kUser));
  const auto fill = [&](const std::string& path, u64 size) {
    const auto file = (*files)->open_file(path, {.write = true, .create = true});
    LK_CHECK(file);
    const std::vector<std::byte> zeros(size);
    must((*files)->write(*file, 0, zeros));
    must((*files)->close_file(*file));
  };
  for (u32 file = 0; file < SharedBlocks::kFiles; ++file)
    fill(SharedBlocks::path(file), SharedBlocks::kBlocks * SharedBlocks::kBlockBytes);
  if (nearly_full) fill("/filler", kFillerBytes);
  must((*files)->close());
  return device.snapshot();
}

const SimImage& first_image(bool nearly_full) {
  static const std::array<SimImage, 2> images = {make_first_image(false), make_first_image(true)};
  return images[nearly_full ? 1 : 0];
}

engine::OpKind op_of(SimFaultKind kind) {
  switch (kind) {
    case SimFaultKind::read_error:
    case SimFaultKind::misplaced_read:
    case SimFaultKind::stale_read:
      return engine::OpKind::read;
    case SimFaultKind::flush_error:
      return engine::OpKind::flush;
    default:
      return engine::OpKind::write;
  }
}

void inject(SimDevice& device, const SimFaultPlan& plan) {
  SimFault fault{.kind = op_of(plan.kind), .after = plan.after, .sticky = plan.sticky};
  switch (plan.kind) {
    case SimFaultKind::slow:
      fault.mishap = SimMishap::slow;
      fault.slow_ns = plan.seed % 8 == 0 ? 2'000'000'000 : plan.seed % 50'000'000;
      fault.kind = static_cast<engine::OpKind>(plan.seed / 8 % 3);
      break;
    case SimFaultKind::never:
      fault.mishap = SimMishap::slow;
      fault.slow_ns = 100'000'000'000;
      fault.kind = static_cast<engine::OpKind>(plan.seed % 3);
      break;
    case SimFaultKind::device_full:
      fault.os_errno = ENOSPC;
      break;
    case SimFaultKind::flush_error:
      fault.os_errno = plan.seed % 3 == 0 ? ENOSPC : EIO;
      break;
    case SimFaultKind::lost_write:
      fault.mishap = SimMishap::lost;
      break;
    case SimFaultKind::misplaced_write:
    case SimFaultKind::misplaced_read:
      fault.mishap = SimMishap::misplaced;
      break;
    case SimFaultKind::stale_read:
      fault.mishap = SimMishap::stale;
      break;
    default:
      break;
  }
  device.inject(fault);
}

class Simulation {
 public:
  explicit Simulation(const SimPlan& plan)
      : plan_(plan), world_(plan), env_(plan.seed), image_(first_image(plan.nearly_full)) {}

  SimOutcome run() {
    for (u32 life = 0; life < plan_.lives.size() && going_on(); ++life) live(life);
    if (going_on()) live(static_cast<u32>(plan_.lives.size()));
    if (world_.failure) outcome_.failure = *world_.failure;
    outcome_.calls = world_.calls;
    outcome_.done = world_.done;
    return outcome_;
  }

 private:
  bool going_on() const { return !world_.failure && !outcome_.detected; }
  bool silent() const { return plan_.promise() == SimPromise::detected; }
  bool last(u32 life) const { return life == plan_.lives.size(); }

  void live(u32 life);
  void bring_about_faults(u32 life, SimDevice& device, bool at_opening);
  void rot(SimDevice& device, const SimFaultPlan& fault);
  std::unique_ptr<Files> open(u32 life, SimDevice& device, FiberScheduler& scheduler);
  void be_alive(u32 life, SimDevice& device, FiberScheduler& scheduler);
  void work(SimMachine& machine);
  bool compare(u32 life, SimMachine& machine);  // false: what could not be read was not
  bool compare_own(SimMachine& machine, OwnFiles& own);
  bool compare_place(SimMachine& machine, Place& place);
  bool compare_blocks(SimMachine& machine);
  bool compare_names(SimMachine& machine);
  void look_at_image(u32 life);
  // Of an error that a comparison met: only detection may give one.
  bool expected(SimMachine& machine, const char* what, const Error& error);

  const SimPlan& plan_;
  SimWorld world_;
  SimEnv env_;
  NonceLedger ledger_;
  SimImage image_;
  SimOutcome outcome_;
  bool rotten_ = false;
};

// From an image to the one that its end leaves. The life after the last only looks.
void Simulation::live(u32 life) {
  const u64 crashes = life == 0 ? 0 : plan_.lives[life - 1].recovery_cuts;
  for (u64 attempt = 0; attempt <= crashes && going_on(); ++attempt) {
    const u64 seed = plan_.schedule * 0x9e3779b97f4a7c15U + life * 64 + attempt;
    FiberScheduler scheduler(
        {.seed = seed, .preempt_in_1024 = plan_.preempt_in_1024, .by_priority = plan_.by_priority});
    env_.set_clock(&scheduler);
    SimDevice device({.size_bytes = kDeviceBytes,
                      .seed = seed + 1,
                      .clock = &scheduler,
                      .latency = {.most_ns = plan_.slowest_ns, .flush_ns = plan_.slowest_ns / 2}});
    device.restore(image_);
    const bool crashes_inside = attempt < crashes;
    if (silent() || !crashes_inside) bring_about_faults(life, device, true);
    if (crashes_inside) device.cut_after(seed % 7);
    scheduler.run([&] {
      if (crashes_inside)
        (void)open(life, device, scheduler);
      else
        be_alive(life, device, scheduler);
    });
    outcome_.faults_met += device.faults_met();
    world_.harmed = world_.harmed || (silent() && device.faults_met() != 0);
    outcome_.steps += scheduler.steps();
    outcome_.virtual_ns += scheduler.now_ns();
    outcome_.trace = (outcome_.trace ^ scheduler.trace()) * 0x9e3779b97f4a7c15U;
    env_.set_clock(nullptr);
    image_ = device.crash_image(seed + 2);
  }
  if (going_on() && !last(life)) look_at_image(life);
}

// Of those that only need to be detected all come before the opening.
void Simulation::bring_about_faults(u32 life, SimDevice& device, bool at_opening) {
  for (const SimFaultPlan& fault : plan_.faults) {
    if (fault.life != life || (fault.at_opening || silent()) != at_opening) continue;
    if (fault.kind < SimFaultKind::rotten_bit)
      inject(device, fault);
    else if (!rotten_)
      rot(device, fault);
  }
}

void Simulation::rot(SimDevice& device, const SimFaultPlan& fault) {
  rotten_ = world_.harmed = true;
  ++outcome_.faults_met;
  u64 page = fault.seed % (kDeviceBytes / kSimPage);
  while (image_.page(page) == nullptr) page = (page + 1) % (kDeviceBytes / kSimPage);
  const u64 offset = page * kSimPage + fault.seed / 7 % 8 * 512;
  if (fault.kind == SimFaultKind::rotten_bit)
    device.flip_bit(offset + fault.seed / 64 % 512, static_cast<u32>(fault.seed / 9 % 8));
  else if (fault.kind == SimFaultKind::rotten_sector)
    device.rot(offset, 512, fault.seed);
  else if (fault.kind == SimFaultKind::rotten_block)
    device.rot(page * kSimPage, kSimPage, fault.seed);
  else
    device.rot(std::min(page * kSimPage, kDeviceBytes - kMiB), kMiB, fault.seed);
}

bool Simulation::expected(SimMachine& machine, const char* what, const Error& error) {
  if (machine.device.power_off()) return true;
  if (machine.faulty()) {
    outcome_.detected = outcome_.detected || silent();
    return true;
  }
  world_.fail(fmt::format("life {}: {}: {} ({}:{}): {}", machine.life, what, name_of(error.code),
                          error.where.file_name(), error.where.line(), error.what));
  return false;
}

std::unique_ptr<Files> Simulation::open(u32 life, SimDevice& device, FiberScheduler& scheduler) {
  auto files = Files::open(device, plan_.files, env_);
  scheduler.note(files ? 0 : static_cast<u64>(files.error().code));
  if (files) return std::move(*files);
  if (device.power_off()) return nullptr;
  const bool told = plan_.promise() != SimPromise::survived && device.faults_met() != 0;
  if (told || world_.harmed) {
    outcome_.detected = outcome_.detected || silent();
    return nullptr;
  }
  world_.fail(fmt::format("life {} does not open: {} ({}:{}): {}", life,
                          name_of(files.error().code), files.error().where.file_name(),
                          files.error().where.line(), files.error().what));
  return nullptr;
}

void Simulation::be_alive(u32 life, SimDevice& device, FiberScheduler& scheduler) {
  const auto files = open(life, device, scheduler);
  if (!files) return;
  SimMachine machine{plan_, life, world_, scheduler, device, *files};
  world_.key_was_removed = world_.data_was_dropped = false;
  if (const auto added = files->add_key(Files::kUser); !added) {
    expected(machine, "the key is not taken", added.error());
    return;
  }
  // What could not be compared cannot be gone on from; the next life looks again.
  if (life != 0 && !compare(life, machine)) return;
  if (last(life) || !going_on()) return;
  bring_about_faults(life, device, false);
  work(machine);
  if (machine.over()) return;
  if (plan_.lives[life].end != SimEnd::close) return;
  const auto closed = files->close();
  if (!closed) {
    const bool lost = world_.data_was_dropped && closed.error().code == Errc::io;
    const bool gone = world_.key_was_removed && closed.error().code == Errc::no_key;
    if (!lost && !gone) expected(machine, "it does not close", closed.error());
    return;
  }
  if (world_.data_was_dropped || machine.faulty() || world_.key_was_removed) return;
  for (OwnFiles& own : world_.own) {
    for (const auto& place : own.places)
      if (!place->names_unsure)
        place->model.sync([&](const Place::File& file) { return place->unsure.contains(file); });
    own.durable();
  }
}

// Callers and, beside them, the power.
void Simulation::work(SimMachine& machine) {
  const SimLife& life = plan_.lives[machine.life];
  if (life.end == SimEnd::cut_by_changes) machine.device.cut_after(life.cut);
  u32 working = plan_.callers;
  std::vector<Caller> callers;
  callers.reserve(plan_.callers);
  std::vector<Thread> threads;
  for (u32 i = 0; i < plan_.callers; ++i) callers.emplace_back(machine, i);
  for (Caller& caller : callers)
    threads.emplace_back([&caller, &working] {
      caller.run();
      --working;
    });
  if (life.end == SimEnd::cut_by_time)
    threads.emplace_back([&machine, &working, &life] {
      machine.scheduler.sleep_until(machine.scheduler.now_ns() + life.cut);
      const bool stuck = machine.plan.has_fault(SimFaultKind::never, machine.life);
      if (working != 0 || stuck) machine.device.vanish();
    });
  for (Thread& thread : threads) thread.join();
  if (machine.over()) return;
  if (const auto added = machine.files.add_key(Files::kUser); !added) {
    expected(machine, "the key is not taken again", added.error());
    return;
  }
  for (Caller& caller : callers) caller.compare_at_rest();
  if (!machine.over()) compare_names(machine);
}

// ---- after a crash

bool Simulation::compare(u32 life, SimMachine& machine) {
  ++outcome_.crashes;
  bool all = true;
  for (OwnFiles& own : world_.own) all = all && compare_own(machine, own);
  all = all && compare_blocks(machine);
  world_.names.unsure = true;
  all = all && compare_names(machine);
  if (world_.failure) world_.failure = fmt::format("after crash {}: {}", life, *world_.failure);
  return all && going_on() && !machine.device.power_off();
}

// What a crash leaves of a caller's places: those that are durable, and of the others what is there
// is whole.
bool Simulation::compare_own(SimMachine& machine, OwnFiles& own) {
  const auto listed = machine.files.list(own.others);
  if (!listed) {
    expected(machine, own.others.c_str(), listed.error());
    return false;
  }
  std::set<std::string> there;
  for (const auto& entry : *listed)
    if (entry.name.starts_with(own.prefix)) there.insert(own.others + "/" + entry.name);
  auto places = own.places;
  places.insert(places.end(), own.maybe.begin(), own.maybe.end());
  std::vector<std::shared_ptr<Place>> kept;
  for (const auto& place : places) {
    const bool found = place == own.places.front() || there.erase(place->root) != 0;
    const bool owed = !place->may_vanish && std::ranges::find(own.maybe, place) == own.maybe.end();
    if (!found && owed) world_.fail(place->root + " is missing");
    if (!found) continue;
    if (!compare_place(machine, *place)) return false;
    kept.push_back(place);
  }
  if (!there.empty()) world_.fail(*there.begin() + " is there and should not");
  own.places = kept;
  own.durable();
  return true;
}

bool Simulation::compare_place(SimMachine& machine, Place& place) {
  const auto contents = read_tree(machine.files.reader(place.root));
  if (!contents) {
    expected(machine, place.root.c_str(), contents.error());
    return false;
  }
  if (const auto wrong = place.model.compare_recovered(*contents)) {
    world_.fail(place.root + ": " + *wrong);
    return false;
  }
  place.model.adopt(*contents);
  place.unsure.clear();
  place.nameless.clear();
  place.names_unsure = false;
  return true;
}

bool Simulation::compare_blocks(SimMachine& machine) {
  for (u32 which = 0; which < SharedBlocks::kFiles; ++which) {
    const auto file = machine.files.open_file(SharedBlocks::path(which), {});
    if (!file) {
      expected(machine, "a shared file does not open", file.error());
      return false;
    }
    for (u32 block = 0; block < SharedBlocks::kBlocks; ++block) {
      std::vector<std::byte> bytes(SharedBlocks::kBlockBytes);
      const auto count = machine.files.read(*file, block * SharedBlocks::kBlockBytes, bytes);
      if (!count) {
        expected(machine, "a shared block is not read", count.error());
        return false;
      }
      if (const auto wrong = world_.blocks.explain_crash(which, block, bytes)) {
        world_.fail(fmt::format("block {} of shared file {} {}", block, which, *wrong));
        return false;
      }
      world_.blocks.adopt(which, block, bytes);
    }
    (void)machine.files.close_file(*file);
  }
  return true;
}

// As many names as calls have made, unless a crash or a fault came between.
bool Simulation::compare_names(SimMachine& machine) {
  const auto entries = machine.files.list(SharedNames::kPath);
  if (!entries) {
    expected(machine, "the shared names are not listed", entries.error());
    return false;
  }
  SharedNames& names = world_.names;
  const auto count = static_cast<i64>(entries->size());
  if (!names.unsure && !machine.faulty() && names.expected != count)
    world_.fail(fmt::format("{} shared names instead of {}", count, names.expected));
  names.expected = count;
  names.unsure = false;
  return true;
}

// Check and the ledger, offline. Of a device that lied a finding is what is wanted.
void Simulation::look_at_image(u32 life) {
  SimDevice device({.size_bytes = kDeviceBytes, .shuffle = false});
  device.restore(image_);
  const auto wrong = check_files(device, ledger_);
  if (world_.harmed && (!wrong || !wrong->empty())) return;
  if (!wrong)
    return world_.fail(fmt::format("after life {} the check fails: {}", life, wrong.error().what));
  if (!wrong->empty()) world_.fail(fmt::format("after life {}: {}", life, wrong->front()));
}

}  // namespace

SimOutcome simulate(const SimPlan& plan) { return Simulation(plan).run(); }

}  // namespace latchkey::tests
