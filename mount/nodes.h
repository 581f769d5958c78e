#pragma once
// The encrypted files that the kernel knows, by key: those whose pages it may have. Others need no
// table (node_ids.h).

#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/mutex.h"
#include "volume/types.h"

namespace latchkey::mount {

class Nodes {
 public:
  // Before each reply that gives the kernel one reference more; nothing for what has no pages or
  // no key.
  void looked_up(u64 node, const volume::Stat& stat);
  void forgotten(u64 node, u64 references);
  std::optional<crypto::KeyId> key_of(u64 node);
  void opened(u64 node);
  void closed(u64 node);
  std::vector<u64> of_key(const crypto::KeyId& key, bool closed_only);
  std::vector<u64> all();

 private:
  struct Node {
    crypto::KeyId key;
    u64 references = 0;
    u64 opens = 0;
  };
  using Table = std::unordered_map<u64, Node>;
  void drop_if_unused(Table::iterator node) LK_REQUIRES(mutex_);

  Mutex mutex_;
  Table nodes_ LK_GUARDED_BY(mutex_);
  std::unordered_map<crypto::KeyId, std::unordered_set<u64>, crypto::IdHash> of_key_
      LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::mount
