#include "engine/read_around.h"

#include <algorithm>
#include <cstring>

#include "base/no_memory.h"

namespace latchkey::engine {

namespace {

// So many reads near by before a window is read. One is what chance may bring in a small file.
constexpr i64 kNearReads = 2;

u64 window_of(u64 block) { return block / ReadAround::kWindowBlocks; }
bool is_in_one(BlockRun run) { return window_of(run.block) == window_of(run.end() - 1); }

}  // namespace

ReadAround::ReadAround(u64 blocks) : blocks_(blocks) { recent_.fill(kNone); }

bool ReadAround::is_near(u64 number) const {
  return std::ranges::count_if(recent_, [number](u64 other) {
           return other != kNone && (other > number ? other - number : number - other) <= 1;
         }) >= kNearReads;
}

std::optional<ReadAround::Found> ReadAround::find(BlockRun run) {
  if (run.count > kSmallBlocks || !is_in_one(run)) return {};
  const u64 number = window_of(run.block);
  Lock lock(mutex_);
  const auto window = std::ranges::find(windows_, number, &Window::number);
  if (window == windows_.end()) return {};
  recent_[next_recent_++ % recent_.size()] = number;
  const u64 from = (run.block - number * kWindowBlocks) * kBlockBytes;
  return Found{window->memory, Bytes(window->memory.get() + from, run.count * kBlockBytes)};
}

std::optional<ReadAround::Load> ReadAround::load(BlockRun run) {
  if (run.count > kSmallBlocks || !is_in_one(run)) return {};
  const u64 number = window_of(run.block);
  const BlockRun window{number * kWindowBlocks, kWindowBlocks};
  Lock lock(mutex_);
  const bool wanted = is_near(number) && number != refused_ && window.end() <= blocks_;
  recent_[next_recent_++ % recent_.size()] = number;
  const auto same = std::ranges::find(loading_, number, &Loading::number);
  const auto slot = std::ranges::find(loading_, kNone, &Loading::ticket);
  if (!wanted || same != loading_.end() || slot == loading_.end()) return {};
  *slot = {next_ticket_++, number};
  return Load(*this, window, slot->ticket);
}

void ReadAround::forget(BlockRun run) {
  const u64 first = window_of(run.block), last = window_of(run.end() - 1);
  Lock lock(mutex_);
  for (Window& window : windows_)
    if (window.number >= first && window.number <= last) window.number = kNone;
  for (Loading& loading : loading_)
    if (loading.number >= first && loading.number <= last) loading.number = kNone;
}

bool ReadAround::end_load(u64 ticket) {
  const auto slot = std::ranges::find(loading_, ticket, &Loading::ticket);
  return std::exchange(*slot, {}).number != kNone;
}

ReadAround::Load::~Load() {
  if (owner_ == nullptr) return;
  Lock lock(owner_->mutex_);
  owner_->end_load(ticket_);
}

void ReadAround::Load::keep(Bytes read) {
  ReadAround& owner = *std::exchange(owner_, nullptr);
  std::shared_ptr<std::byte[]> memory;
  (void)or_no_memory([&] { memory = std::make_shared_for_overwrite<std::byte[]>(kWindowBytes); });
  if (memory) std::memcpy(memory.get(), read.data(), kWindowBytes);
  Memory replaced;  // ends behind the lock
  Lock lock(owner.mutex_);
  if (!owner.end_load(ticket_) || !memory) return;
  Window& window = owner.windows_[owner.oldest_++ % owner.windows_.size()];
  replaced = std::exchange(window.memory, std::move(memory));
  window.number = window_of(window_.block);
}

void ReadAround::Load::refuse() {
  Lock lock(owner_->mutex_);
  owner_->refused_ = window_of(window_.block);
}

}  // namespace latchkey::engine
