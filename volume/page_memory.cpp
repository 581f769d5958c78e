#include "volume/page_memory.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "base/check.h"
#include "base/no_wait.h"
#include "base/secret.h"

namespace latchkey::volume {

namespace {

constexpr u64 kChunkPages = 256;
constexpr u64 kStockPages = 64;

}  // namespace

// The lists never grow beyond what they have here, so what gives pages back needs no memory.
PageMemory::PageMemory(u64 pages_max) : pages_max_(pages_max) {
  free_.reserve(pages_max + kChunkPages);
  chunks_.reserve(pages_max / kChunkPages + 2);
}

u64 PageMemory::used() const {
  Lock lock(mutex_);
  return used_;
}

bool PageMemory::promise(u64 pages) {
  LK_CHECK(pages <= pages_max_);
  Lock lock(mutex_);
  const bool room = used_ + pages <= pages_max_;
  if (room) used_ += pages;
  if (!room || is_pressing(used_)) pressed();
  return room;
}

void PageMemory::unpromise(u64 pages) {
  Lock lock(mutex_);
  LK_CHECK(used_ >= pages);
  used_ -= pages;
  ++room_changes_;
  room_.notify_all();
}

void PageList::push(std::byte* page) {
  std::memcpy(page, static_cast<const void*>(&first_), sizeof first_);
  first_ = page;
}

std::byte* PageList::pop() {
  std::byte* page = first_;
  std::memcpy(static_cast<void*>(&first_), page, sizeof first_);
  std::fill_n(page, sizeof first_, std::byte{0});
  return page;
}

void PageMemory::take(u64 pages, std::vector<std::byte*>& into) {
  into.reserve(into.size() + pages);
  Lock lock(mutex_);
  while (free_.size() < pages) grow();
  for (; pages != 0; --pages) {
    into.push_back(free_.back());
    free_.pop_back();
  }
}

void PageMemory::grow() {
  const u64 pages = std::min(kChunkPages, pages_max_);
  auto chunk = engine::IoBuffer::create(pages * kPageBytes);
  if (!chunk) throw std::bad_alloc();
  for (u64 i = pages; i-- > 0;) free_.push_back(chunk->bytes().data() + i * kPageBytes);
  chunks_.push_back(std::move(*chunk));
}

void PageMemory::give_back(PageList pages) {
  if (pages.empty()) return;
  PageList wiped;
  while (!pages.empty()) {
    std::byte* page = pages.pop();
    wipe(page, kPageBytes);
    wiped.push(page);
  }
  Lock lock(mutex_);
  for (; !wiped.empty(); --used_) {
    LK_CHECK(used_ != 0);
    free_.push_back(wiped.pop());
  }
  ++room_changes_;
  room_.notify_all();
}

void PageMemory::give_back_unused(std::span<std::byte* const> pages) {
  if (pages.empty()) return;
  Lock lock(mutex_);
  LK_CHECK(used_ >= pages.size());
  free_.insert(free_.end(), pages.begin(), pages.end());
  used_ -= pages.size();
  ++room_changes_;
  room_.notify_all();
}

u64 PageMemory::room_changes() const {
  Lock lock(mutex_);
  return room_changes_;
}

u64 PageMemory::pressure_changes() const {
  Lock lock(mutex_);
  return pressure_changes_;
}

void PageMemory::wait_room(u64 seen, u64 timeout_ns) {
  check_may_wait();
  Lock lock(mutex_);
  if (room_changes_ == seen) room_.wait_for(mutex_, timeout_ns);
}

void PageMemory::wait_pressure(u64 seen, u64 timeout_ns) {
  Lock lock(mutex_);
  if (pressure_changes_ == seen) pressure_.wait_for(mutex_, timeout_ns);
}

void PageMemory::pressed() {
  ++pressure_changes_;
  pressure_.notify_all();
}

void PageMemory::kick() {
  Lock lock(mutex_);
  ++room_changes_;
  room_.notify_all();
  pressed();
}

std::byte* Room::take() {
  if (stock_.empty()) {
    LK_CHECK_MSG(pages_ != 0, "a write dirties more pages than it was promised");
    const u64 pages = std::min(pages_, kStockPages);
    memory_->take(pages, stock_);
    pages_ -= pages;
  }
  std::byte* page = stock_.back();
  stock_.pop_back();
  return page;
}

}  // namespace latchkey::volume
