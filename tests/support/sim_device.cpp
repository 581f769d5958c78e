#include "tests/support/sim_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/wait.h"
#include "tests/support/sim_io.h"

namespace latchkey::tests {

using engine::Op;
using engine::OpKind;

namespace {

constexpr u64 kSector = 512;
constexpr u64 kNever = ~u64{0};

bool overlap(u64 a, u64 a_size, u64 b, u64 b_size) { return a < b + b_size && b < a + a_size; }

u64 size_of(const Op& op) {
  if (op.kind == OpKind::flush) return 0;
  return op.kind == OpKind::discard ? op.discard_size : op.data.size();
}

}  // namespace

SimDevice::SimDevice(const SimConfig& config) : config_(config) {
  LK_CHECK(config.size_bytes % engine::kIoAlign == 0);
  info_.size_bytes = config.size_bytes;
  info_.read_only = config.read_only;
  info_.direct = true;
  info_.discard = config.discard;
  info_.kind = "simulated";
  info_.path = "simulated";
}

SimDevice::~SimDevice() = default;

Result<std::unique_ptr<engine::Io>> SimDevice::make_io(const engine::IoOptions& options) {
  u64 seed = 0;
  {
    Lock lock(mu_);
    if (io_refused_) {
      return fail_os(Errc::unavailable, EPERM, "the kernel refuses io_uring to this process");
    }
    seed = next_io_seed();
  }
  LK_TRY(engine::IoBuffer buffer, take_sim_buffer(options.buffer_bytes));
  return std::make_unique<SimIo>(*this, std::move(buffer), seed);
}

u64 SimDevice::next_io_seed() {
  Random random(config_.seed * 0x9e3779b97f4a7c15U + ios_made_++);
  return random();
}

SimDevice::Stamp SimDevice::stamp() {
  Lock lock(mu_);
  return {life_, sequence_, until_cut_ != 0};
}

i64 SimDevice::execute(const Op& op, const Stamp& stamp, Random& random) {
  i64 result = -EIO;
  bool went_off = false;
  {
    Lock lock(mu_);
    if (stamp.life != life_) return -EIO;
    const bool powered = until_cut_ != 0;
    result = execute_powered(op, stamp, random);
    went_off = powered && until_cut_ == 0;
    if (config_.trace) trace_.push_back({op.kind, op.offset, size_of(op), result});
  }
  if (went_off) announce_power();
  return result;
}

void SimDevice::announce_power() {
  power_changes_.fetch_add(1);
  wake_all(power_changes_);
}

// When an op that is submitted now takes effect.
u64 SimDevice::moment_of(const Op& op, Random& random) {
  const SimLatency& latency = config_.latency;
  u64 span = random() % (latency.most_ns - latency.least_ns + 1);
  if (random() % 64 == 0) span *= random() % 10 + 1;
  u64 moment = config_.clock->now_ns() + latency.least_ns + span;
  if (op.kind == OpKind::flush) moment += latency.flush_ns;
  Lock lock(mu_);
  for (ActiveFault& active : faults_) {
    if (active.fault.kind != op.kind || active.spent || active.fault.mishap != SimMishap::slow)
      continue;
    if (active.fault.after > 0) {
      --active.fault.after;
      continue;
    }
    active.spent = !active.fault.sticky;
    ++faults_met_;
    moment += active.fault.slow_ns;
  }
  return moment;
}

i64 SimDevice::execute_powered(const Op& op, const Stamp& stamp, Random& random) {
  const bool changes = op.kind == OpKind::write || op.kind == OpKind::discard;
  if (changes && config_.read_only) return -EROFS;
  const bool inside = op.offset <= info_.size_bytes && size_of(op) <= info_.size_bytes - op.offset;
  if (op.kind != OpKind::flush && !inside) return -EIO;
  if (op.kind != OpKind::flush && size_of(op) == 0) return 0;
  if (until_cut_ == 0) {
    if (op.kind == OpKind::write && stamp.powered) leave_in_cache(op);
    return -EIO;
  }
  if (op.kind != OpKind::read && until_cut_ != kNever) --until_cut_;
  count(op);
  const SimFault* fault = injected(op.kind);
  const bool fails = fault != nullptr && fault->mishap == SimMishap::fails;
  switch (op.kind) {
    case OpKind::read:
      return fails ? -fault->os_errno : read(op, fault, random);
    case OpKind::write:
      return write(op, fault, random);
    case OpKind::discard:
      return fails ? -fault->os_errno : discard(op, random);
    case OpKind::flush:
      return flush(stamp.sequence, fails ? fault->os_errno : 0, random);
  }
  return -EINVAL;
}

void SimDevice::count(const Op& op) {
  switch (op.kind) {
    case OpKind::read:
      ++counters_.reads;
      counters_.bytes_read += op.data.size();
      break;
    case OpKind::write:
      ++counters_.writes;
      counters_.bytes_written += op.data.size();
      break;
    case OpKind::flush:
      ++counters_.flushes;
      break;
    case OpKind::discard:
      ++counters_.discards;
      break;
  }
}

// Every fault of this kind sees the op; the first that is due decides.
const SimFault* SimDevice::injected(OpKind kind) {
  const SimFault* met = nullptr;
  for (ActiveFault& active : faults_) {
    if (active.fault.kind != kind || active.spent || active.fault.mishap == SimMishap::slow)
      continue;
    if (active.fault.after > 0) {
      --active.fault.after;
      continue;
    }
    if (met == nullptr) met = &active.fault;
    active.spent = !active.fault.sticky;
  }
  faults_met_ += met != nullptr ? 1 : 0;
  return met;
}

// Another place of the device for an op of that size.
u64 SimDevice::elsewhere(const Op& op, Random& random) const {
  const u64 places = (info_.size_bytes - op.data.size()) / kSimPage + 1;
  return random() % places * kSimPage;
}

i64 SimDevice::read(const Op& op, const SimFault* fault, Random& random) {
  for (const Range& bad : bad_ranges_) {
    if (overlap(bad.offset, bad.size, op.offset, op.data.size())) return -EIO;
  }
  const bool misplaced = fault != nullptr && fault->mishap == SimMishap::misplaced;
  const bool stale = fault != nullptr && fault->mishap == SimMishap::stale;
  (stale ? older_ : current_).read(misplaced ? elsewhere(op, random) : op.offset, op.data);
  return static_cast<i64>(op.data.size());
}

SimDevice::Record SimDevice::record_of(const Op& op) {
  Record record;
  record.sequence = sequence_++;
  record.first_page = op.offset / kSimPage;
  record.page_count = size_of(op) / kSimPage;
  if (op.kind == OpKind::discard) return record;
  record.pages.reserve(record.page_count);
  for (u64 i = 0; i < record.page_count; ++i) {
    record.pages.push_back(make_sim_page(op.data.subspan(i * kSimPage, kSimPage)));
  }
  return record;
}

void SimDevice::keep(Record record) {
  apply(record, current_);
  unflushed_.push_back(std::move(record));
}

i64 SimDevice::write(const Op& op, const SimFault* fault, Random& random) {
  if (fault == nullptr && !fits(op)) return -ENOSPC;
  Record record = record_of(op);
  if (fault == nullptr || fault->mishap != SimMishap::fails) {
    const bool lost = fault != nullptr && fault->mishap == SimMishap::lost;
    if (fault != nullptr && fault->mishap == SimMishap::misplaced)
      record.first_page = elsewhere(op, random) / kSimPage;
    if (!lost) keep(std::move(record));
    return static_cast<i64>(op.data.size());
  }
  // Old, new or torn: what is there now is unflushed like any other write.
  SimImage touched = current_;
  const u64 chance = random() % 3;
  if (chance == 1) apply(record, touched);
  if (chance == 2) apply_torn(record, touched, random);
  for (u64 i = 0; i < record.page_count; ++i) {
    record.pages[i] = touched.page(record.first_page + i);
  }
  current_ = std::move(touched);
  unflushed_.push_back(std::move(record));
  return -fault->os_errno;
}

bool SimDevice::fits(const Op& op) const {
  if (pages_max_ == kNever) return true;
  u64 fresh = 0;
  for (u64 at = 0; at < op.data.size(); at += kSimPage) {
    fresh += current_.page((op.offset + at) / kSimPage) == nullptr ? 1 : 0;
  }
  return fresh == 0 || current_.pages_in_use() + fresh <= pages_max_;
}

i64 SimDevice::discard(const Op& op, Random& random) {
  if (!config_.discard) return -EOPNOTSUPP;
  Record record = record_of(op);
  if (config_.garbage_after_discard) {
    SimPage garbage;
    for (u64 i = 0; i < record.page_count; ++i) {
      for (std::byte& byte : garbage) byte = static_cast<std::byte>(random());
      record.pages.push_back(make_sim_page(garbage));
    }
  }
  keep(std::move(record));
  return 0;
}

i64 SimDevice::flush(u64 sequence, i32 fault, Random& random) {
  auto covered = std::find_if(unflushed_.begin(), unflushed_.end(),
                              [&](const Record& record) { return record.sequence >= sequence; });
  if (fault != 0) {
    for (auto record = unflushed_.begin(); record != covered; ++record) {
      record->doomed = record->doomed || random() % 3 == 0;
    }
    return -fault;
  }
  older_ = durable_;
  for (auto record = unflushed_.begin(); record != covered; ++record) {
    if (!record->doomed) apply(*record, durable_);
  }
  unflushed_.erase(unflushed_.begin(), covered);
  return 0;
}

void SimDevice::leave_in_cache(const Op& op) { unflushed_.push_back(record_of(op)); }

void SimDevice::apply(const Record& record, SimImage& image) {
  if (record.pages.empty()) {
    image.clear_pages(record.first_page, record.page_count);
    return;
  }
  for (u64 i = 0; i < record.page_count; ++i) {
    image.set_page(record.first_page + i, record.pages[i]);
  }
}

// Half of the time a torn write is cut at one sector, else each sector has its own luck.
void SimDevice::apply_torn(const Record& record, SimImage& image, Random& random) {
  if (record.pages.empty()) {
    image.clear_pages(record.first_page, random() % (record.page_count + 1));
    return;
  }
  constexpr u64 kSectorsPerPage = kSimPage / kSector;
  const bool prefix = random() % 2 == 0;
  const u64 cut = random() % (record.page_count * kSectorsPerPage + 1);
  for (u64 i = 0; i < record.page_count; ++i) {
    SimPage fresh{};
    if (record.pages[i]) fresh = *record.pages[i];
    for (u64 sector = 0; sector < kSectorsPerPage; ++sector) {
      const bool keep = prefix ? i * kSectorsPerPage + sector < cut : random() % 2 == 0;
      if (!keep) continue;
      image.write((record.first_page + i) * kSimPage + sector * kSector,
                  Bytes(fresh).subspan(sector * kSector, kSector));
    }
  }
}

SimImage SimDevice::crash_image(u64 seed) const {
  Lock lock(mu_);
  Random random(seed ^ (config_.seed << 32U));
  SimImage image = durable_;
  // Some crashes are kind or cruel to all, so that the extremes are met often.
  const u64 temper = random() % 8;
  for (const Record& record : unflushed_) {
    const u64 fate = temper == 0 ? 0 : temper == 1 ? 1 : random() % 3;
    if (fate == 0 || record.doomed) continue;
    if (fate == 1) apply(record, image);
    if (fate == 2) apply_torn(record, image, random);
  }
  return image;
}

void SimDevice::crash(u64 seed) {
  SimImage image = crash_image(seed);
  Lock lock(mu_);
  replace(std::move(image));
}

void SimDevice::replace(SimImage image) {
  durable_ = std::move(image);
  older_ = current_ = durable_;
  unflushed_.clear();
  until_cut_ = kNever;
  ++life_;
}

void SimDevice::restore(const SimImage& image) {
  Lock lock(mu_);
  replace(image);
}

void SimDevice::load_from(Bytes bytes) {
  LK_CHECK(bytes.size() <= info_.size_bytes);
  SimImage image;
  image.write(0, bytes);
  restore(image);
}

SimImage SimDevice::snapshot() const {
  Lock lock(mu_);
  return current_;
}

SimImage SimDevice::durable() const {
  Lock lock(mu_);
  return durable_;
}

u64 SimDevice::unflushed() const {
  Lock lock(mu_);
  return unflushed_.size();
}

void SimDevice::refuse_io(bool refused) {
  Lock lock(mu_);
  io_refused_ = refused;
}

void SimDevice::inject(const SimFault& fault) {
  LK_CHECK(fault.os_errno > 0);
  Lock lock(mu_);
  faults_.push_back({fault, false});
}

void SimDevice::bad_range(u64 offset, u64 size) {
  Lock lock(mu_);
  bad_ranges_.push_back({offset, size});
}

void SimDevice::clear_faults() {
  Lock lock(mu_);
  faults_.clear();
  bad_ranges_.clear();
  if (until_cut_ != 0) until_cut_ = kNever;
}

u64 SimDevice::faults_met() const {
  Lock lock(mu_);
  return faults_met_;
}

void SimDevice::cut_after(u64 n) {
  {
    Lock lock(mu_);
    until_cut_ = n;
  }
  if (n == 0) announce_power();
}

bool SimDevice::power_off() const {
  Lock lock(mu_);
  return until_cut_ == 0;
}

void SimDevice::limit_pages(u64 pages) {
  Lock lock(mu_);
  pages_max_ = pages;
}

void SimDevice::flip_bit(u64 offset, u32 bit) {
  LK_CHECK(bit < 8);
  std::byte value{};
  peek(offset, {&value, 1});
  value ^= static_cast<std::byte>(1U << bit);
  overwrite(offset, {&value, 1});
}

void SimDevice::rot(u64 offset, u64 size, u64 seed) {
  Random random(seed);
  std::vector<std::byte> bytes(size);
  peek(offset, bytes);
  for (std::byte& byte : bytes) byte ^= static_cast<std::byte>(1 + random() % 255);
  overwrite(offset, bytes);
}

void SimDevice::overwrite(u64 offset, Bytes bytes) {
  LK_CHECK(offset + bytes.size() <= info_.size_bytes);
  Lock lock(mu_);
  current_.write(offset, bytes);
  durable_.write(offset, bytes);
}

void SimDevice::peek(u64 offset, MutableBytes into) const {
  Lock lock(mu_);
  current_.read(offset, into);
}

SimCounters SimDevice::counters() const {
  Lock lock(mu_);
  return counters_;
}

std::vector<SimTraceEntry> SimDevice::take_trace() {
  Lock lock(mu_);
  return std::exchange(trace_, {});
}

}  // namespace latchkey::tests
