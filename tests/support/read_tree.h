#pragma once
// What a deterministic reader has seen, so that it need not look twice. A reader that asks for page
// after page of an image, and decides by what it read which page it asks for next, comes to the
// same end on every image that gives it the same answers. So its runs make a tree: at each node one
// page is asked for, each branch is one content of that page, and at the end lies what came out.
// Two crash states that differ only in pages that are not asked for are one and the same here.
//
// Not thread-safe.

#include <memory>
#include <unordered_map>
#include <vector>

#include "tests/support/crash_states.h"

namespace latchkey::tests {

template <class Outcome>
class ReadTree {
  struct Node;

 public:
  using OutcomePtr = std::shared_ptr<const Outcome>;

  // The walk of one epoch's states: what no write of the epoch touches is asked once.
  class Walk {
   public:
    Walk(ReadTree& tree, const Epoch& epoch) : tree_(tree), epoch_(epoch) {}
    // Null: nobody has seen such an image yet.
    OutcomePtr find(const Fates& fates) {
      const Node* node = skip(tree_.root_.get());
      while (node != nullptr && !node->outcome)
        node = skip(node->child(epoch_.page_hash(node->page, fates)));
      return node == nullptr ? nullptr : node->outcome;
    }

   private:
    // On to the next node whose page the epoch touches, or to the end.
    const Node* skip(const Node* from) {
      if (from == nullptr || from->outcome || epoch_.touches(from->page)) return from;
      if (const auto known = skipped_.find(from); known != skipped_.end()) return known->second;
      const Node* node = from;
      while (node != nullptr && !node->outcome && !epoch_.touches(node->page))
        node = node->child(epoch_.page_hash(node->page, {}));
      if (node != nullptr) skipped_[from] = node;
      return node;
    }
    ReadTree& tree_;
    const Epoch& epoch_;
    std::unordered_map<const Node*, const Node*> skipped_;
  };

  // `log`: of the run on `image` that had this outcome, its reads in it. False: the reader asked
  // for another page after the same answers, so it is not what is promised above.
  [[nodiscard]] bool add(const SimImage& image, const DeviceLog& log, OutcomePtr outcome) {
    std::unique_ptr<Node>* place = &root_;
    std::unordered_map<u64, bool> known;  // what it read or wrote before
    for (const LogEvent& event : log.events) {
      const bool reads = event.kind == LogEvent::Kind::read;
      if (!reads && event.kind != LogEvent::Kind::write) continue;
      for (u64 page = event.first_page; page < event.first_page + event.page_count; ++page) {
        if (!known.emplace(page, true).second || !reads) continue;
        if (*place == nullptr) *place = std::make_unique<Node>(page);
        if ((*place)->page != page || (*place)->outcome) return false;
        place = &(*place)->branches[hash_of(image.page(page))];
      }
    }
    if (*place != nullptr) return false;
    *place = std::make_unique<Node>(0);
    (*place)->outcome = std::move(outcome);
    return true;
  }

 private:
  struct Node {
    explicit Node(u64 page_in) : page(page_in) {}
    const Node* child(u64 hash) const {
      const auto it = branches.find(hash);
      return it == branches.end() ? nullptr : it->second.get();
    }
    u64 page;
    std::unordered_map<u64, std::unique_ptr<Node>> branches;
    OutcomePtr outcome;  // or the end
  };
  std::unique_ptr<Node> root_;
};

}  // namespace latchkey::tests
