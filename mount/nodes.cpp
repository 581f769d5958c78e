#include "mount/nodes.h"

namespace latchkey::mount {

void Nodes::looked_up(u64 node, const volume::Stat& stat) {
  if (!stat.key_id || stat.kind != volume::FileKind::regular) return;
  Lock lock(mutex_);
  const auto [at, fresh] = nodes_.try_emplace(node);
  if (fresh) {
    at->second.key = *stat.key_id;
    try {
      of_key_[*stat.key_id].insert(node);
    } catch (const std::bad_alloc&) {  // a removal has to find all that is here
      nodes_.erase(at);
      throw;
    }
  }
  ++at->second.references;
}

void Nodes::forgotten(u64 node, u64 references) {
  Lock lock(mutex_);
  const auto at = nodes_.find(node);
  if (at == nodes_.end()) return;
  at->second.references -= std::min(references, at->second.references);
  drop_if_unused(at);
}

std::optional<crypto::KeyId> Nodes::key_of(u64 node) {
  Lock lock(mutex_);
  const auto at = nodes_.find(node);
  if (at == nodes_.end()) return std::nullopt;
  return at->second.key;
}

void Nodes::opened(u64 node) {
  Lock lock(mutex_);
  if (const auto at = nodes_.find(node); at != nodes_.end()) ++at->second.opens;
}

void Nodes::closed(u64 node) {
  Lock lock(mutex_);
  const auto at = nodes_.find(node);
  if (at == nodes_.end()) return;
  --at->second.opens;
  drop_if_unused(at);
}

void Nodes::drop_if_unused(Table::iterator node) {
  if (node->second.references != 0 || node->second.opens != 0) return;
  const auto of_key = of_key_.find(node->second.key);
  of_key->second.erase(node->first);
  if (of_key->second.empty()) of_key_.erase(of_key);
  nodes_.erase(node);
}

std::vector<u64> Nodes::of_key(const crypto::KeyId& key, bool closed_only) {
  std::vector<u64> list;
  Lock lock(mutex_);
  const auto of_key = of_key_.find(key);
  if (of_key == of_key_.end()) return list;
  for (const u64 node : of_key->second)
    if (!closed_only || nodes_.at(node).opens == 0) list.push_back(node);
  return list;
}

std::vector<u64> Nodes::all() {
  std::vector<u64> list;
  Lock lock(mutex_);
  for (const auto& [node, row] : nodes_) list.push_back(node);
  return list;
}

}  // namespace latchkey::mount
