#include "mount/parked.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/no_memory.h"
#include "base/secret.h"
#include "mount/callers.h"
#include "mount/file_system.h"

namespace latchkey::mount {
namespace {

constexpr u64 kPage = 4096;
constexpr u64 kLookNs = 100'000'000;  // between two looks whether callers are ending

bool overlap(const PageRange& a, const PageRange& b) { return a.begin < b.end && b.begin < a.end; }

void on_interrupt(fuse_req_t req, void* id) {
  static_cast<FileSystem*>(fuse_req_userdata(req))->interrupted(reinterpret_cast<u64>(id));
}

}  // namespace

PrivateBytes& PrivateBytes::operator=(PrivateBytes&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

PrivateBytes::~PrivateBytes() { wipe(bytes_); }

PageRange Io::pages() const { return direct ? PageRange{0, 0} : touched(); }

PageRange Io::touched() const {
  return {offset / kPage * kPage, (offset + std::max<u64>(size, 1) + kPage - 1) / kPage * kPage};
}

u64 Parked::tries() {
  Lock lock(mutex_);
  return tries_;
}

bool Parked::has_room(const Io& io) {
  // Those that are on their way to another try have their places until then.
  return !stopped_ && entries_.size() + ready_.size() < limits_.count &&
         bytes_ + (io.write ? io.size : 0) <= limits_.bytes;
}

Io Parked::take(std::map<u64, Entry>::iterator entry) {
  Io io = std::move(entry->second.io);
  if (io.write) bytes_ -= io.size;
  entries_.erase(entry);
  return io;
}

// libfuse may call on_interrupt() from inside of fuse_req_interrupt_func(), which uses the request
// afterwards: so nobody may answer it before that has returned.
Parked::Place Parked::park(Io& io, u64 seen) {
  if (io.write && io.kept.bytes().empty() && !io.data.empty()) {
    io.kept = PrivateBytes(io.data);
    io.data = io.kept.bytes();
  }
  const fuse_req_t req = io.req;
  if (io.direct) io.caller = process_of(fuse_req_ctx(req)->pid);
  u64 id = 0;
  {
    Lock lock(mutex_);
    if (tries_ != seen && !stopped_) return Place::again;
    if (piece_ && piece_->node == io.node && overlap(piece_->range, io.pages())) {
      served_.push_back(io.pages());
      return Place::serve;
    }
    if (!has_room(io)) return Place::full;
    id = next_id_++;
    Entry& entry = entries_[id];
    if (io.write) bytes_ += io.size;
    entry.io = std::move(io);
    if (entry.io.caller != 0) ready_changed_.notify_all();  // next() looks from now on
  }
  fuse_req_interrupt_func(req, on_interrupt, reinterpret_cast<void*>(id));
  Lock lock(mutex_);
  const auto entry = entries_.find(id);
  entry->second.registering = false;
  const bool interrupted = entry->second.interrupted;
  if (!interrupted && tries_ == seen && !stopped_) return Place::parked;
  io = take(entry);
  return interrupted ? Place::interrupted : Place::again;
}

void Parked::interrupt(u64 id) {
  std::optional<Io> io;
  {
    Lock lock(mutex_);
    const auto entry = entries_.find(id);
    if (entry == entries_.end()) return;  // it is being tried again
    entry->second.interrupted = true;
    if (entry->second.registering) return;
    io = take(entry);
  }
  fuse_reply_err(io->req, EINTR);
}

void Parked::try_again(const crypto::KeyId& key) {
  Lock lock(mutex_);
  ++tries_;
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto at = entry++;
    if (at->second.registering || at->second.io.file->key != key) continue;
    ready_.push_back(take(at));
  }
  ready_changed_.notify_all();
}

std::optional<Io> Parked::next() {
  for (;;) {
    {
      Lock lock(mutex_);
      if (!ready_.empty()) {
        Io io = std::move(ready_.front());
        ready_.pop_front();
        return io;
      }
      if (stopped_) return std::nullopt;
      const bool watch = std::ranges::any_of(entries_, is_watched);
      if (!watch)
        ready_changed_.wait(mutex_);
      else
        ready_changed_.wait_for(mutex_, kLookNs);
    }
    (void)or_no_memory([this] { leave_with_callers(); });
  }
}

bool Parked::is_watched(const std::pair<const u64, Entry>& entry) {
  return entry.second.io.caller != 0;
}

void Parked::leave_with_callers() {
  std::map<pid_t, std::vector<u64>> of_callers;
  {
    Lock lock(mutex_);
    for (const auto& entry : entries_)
      if (is_watched(entry)) of_callers[entry.second.io.caller].push_back(entry.first);
  }
  for (const auto& [caller, entries] : of_callers)
    if (is_ending(caller)) std::ranges::for_each(entries, [this](u64 id) { interrupt(id); });
}

void Parked::stop() {
  Lock lock(mutex_);
  stopped_ = true;
  ++tries_;
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto at = entry++;
    if (!at->second.registering) ready_.push_back(take(at));
  }
  ready_changed_.notify_all();
}

// --- invalidation -------------------------------------------------------------------------------

PageRange Parked::begin_piece(u64 node, PageRange range) {
  Lock lock(mutex_);
  // Past what is held where it begins, then up to what is held next.
  for (bool moved = true; moved;) {
    moved = false;
    for (const auto& [id, entry] : entries_) {
      const PageRange held = entry.io.pages();
      if (entry.io.node != node || held.begin > range.begin || held.end <= range.begin) continue;
      range.begin = held.end;
      moved = true;
    }
  }
  for (const auto& [id, entry] : entries_) {
    const PageRange held = entry.io.pages();
    if (entry.io.node == node && !held.empty() && held.begin >= range.begin)
      range.end = std::min(range.end, held.begin);
  }
  if (!range.empty()) piece_ = Piece{node, range};
  return range;
}

void Parked::end_piece(std::vector<PageRange>& again) {
  Lock lock(mutex_);
  piece_.reset();
  again.insert(again.end(), served_.begin(), served_.end());
  served_.clear();
}

}  // namespace latchkey::mount
