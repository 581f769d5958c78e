#pragma once
// Which pages of one file were lost, so that none is counted twice.

#include <algorithm>
#include <iterator>
#include <map>

#include "base/types.h"

namespace latchkey::volume {

class LostPages {
 public:
  // Answers how many of them were not there.
  u64 add(u64 first, u64 pages) {
    u64 begin = first, end = first + pages, known = 0;
    auto next = ranges_.upper_bound(first);
    if (next != ranges_.begin() && std::prev(next)->second >= first) --next;
    while (next != ranges_.end() && next->first <= first + pages) {
      const u64 from = std::max(first, next->first), to = std::min(first + pages, next->second);
      known += to - from;
      begin = std::min(begin, next->first);
      end = std::max(end, next->second);
      next = ranges_.erase(next);
    }
    ranges_.emplace_hint(next, begin, end);
    return pages - known;
  }

 private:
  std::map<u64, u64> ranges_;  // first page -> behind the last; none touches another
};

}  // namespace latchkey::volume
