#include "tests/support/sim_image.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace latchkey::tests {
namespace {

const SimPage kZeroPage{};

const SimPage& bytes_of(const SimPagePtr& page) { return page ? *page : kZeroPage; }

}  // namespace

SimPagePtr make_sim_page(Bytes bytes) {
  LK_CHECK(bytes.size() == kSimPage);
  if (std::memcmp(bytes.data(), kZeroPage.data(), kSimPage) == 0) return nullptr;
  auto page = std::make_shared<SimPage>();
  std::memcpy(page->data(), bytes.data(), kSimPage);
  return page;
}

SimPagePtr SimImage::page(u64 index) const {
  const u64 chunk = index / kChunkPages;
  if (chunk >= chunks_.size() || chunks_[chunk] == nullptr) return nullptr;
  return (*chunks_[chunk])[index % kChunkPages];
}

void SimImage::set_page(u64 index, SimPagePtr page) {
  const u64 chunk = index / kChunkPages;
  const bool present = chunk < chunks_.size() && chunks_[chunk] != nullptr;
  if (page == nullptr && !present) return;
  if (chunk >= chunks_.size()) chunks_.resize(chunk + 1);
  auto changed = present ? std::make_shared<Chunk>(*chunks_[chunk]) : std::make_shared<Chunk>();
  SimPagePtr& place = (*changed)[index % kChunkPages];
  pages_in_use_ -= place != nullptr ? 1 : 0;
  pages_in_use_ += page != nullptr ? 1 : 0;
  place = std::move(page);
  chunks_[chunk] = std::move(changed);
}

void SimImage::clear_pages(u64 first, u64 count) {
  for (u64 index = first; index < first + count;) {
    const u64 chunk = index / kChunkPages;
    if (chunk >= chunks_.size()) return;
    if (chunks_[chunk] == nullptr) {
      index = (chunk + 1) * kChunkPages;
    } else {
      set_page(index++, nullptr);
    }
  }
}

void SimImage::read(u64 offset, MutableBytes into) const {
  while (!into.empty()) {
    const u64 start = offset % kSimPage;
    const u64 size = std::min<u64>(kSimPage - start, into.size());
    std::memcpy(into.data(), bytes_of(page(offset / kSimPage)).data() + start, size);
    into = into.subspan(size);
    offset += size;
  }
}

void SimImage::write(u64 offset, Bytes from) {
  while (!from.empty()) {
    const u64 start = offset % kSimPage;
    const u64 size = std::min<u64>(kSimPage - start, from.size());
    SimPage changed = bytes_of(page(offset / kSimPage));
    std::memcpy(changed.data() + start, from.data(), size);
    set_page(offset / kSimPage, make_sim_page(changed));
    from = from.subspan(size);
    offset += size;
  }
}

bool SimImage::operator==(const SimImage& other) const {
  if (pages_in_use_ != other.pages_in_use_) return false;
  const u64 pages = std::max(chunks_.size(), other.chunks_.size()) * kChunkPages;
  for (u64 index = 0; index < pages; ++index) {
    const SimPagePtr mine = page(index);
    const SimPagePtr theirs = other.page(index);
    if (mine != theirs && bytes_of(mine) != bytes_of(theirs)) return false;
  }
  return true;
}

}  // namespace latchkey::tests
