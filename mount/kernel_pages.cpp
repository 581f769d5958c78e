#include "mount/kernel_pages.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/secret.h"
#include "mount/node_ids.h"

namespace latchkey::mount {

void KernelPages::start(fuse_session* session, std::function<void(Io&&)> retry) {
  notifier_.start(session);
  retrying_.emplace([this, retry = std::move(retry)] {
    while (auto io = parked_.next()) {
      retry(std::move(*io));
      burn_stack_and_registers();
    }
  });
  closing_.emplace([this] { close_some(); });
}

// What is parked is answered, what was to be closed is closed.
void KernelPages::stop() {
  parked_.stop();
  if (retrying_) retrying_->join();
  retrying_.reset();
  notifier_.stop();
  {
    Lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (closing_) closing_->join();
  closing_.reset();
}

u64 KernelPages::drop_pages(const crypto::KeyId& key, Which which) {
  return notifier_.drop(nodes_.of_key(key, which == Which::closed));
}

// What has dirty pages is open.
void KernelPages::drop_everything() {
  std::vector<u64> nodes = nodes_.all();
  for (const volume::InodeId inode : open_files_.inodes())
    if (const auto node = node_of(inode)) nodes.push_back(*node);
  std::ranges::sort(nodes);
  nodes.erase(std::ranges::unique(nodes).begin(), nodes.end());
  (void)notifier_.drop(nodes);
}

// Not by the notifier: the last close of a key flushes, and a removal that it meets may be waiting
// for the notifier.
void KernelPages::drop_then_close(u64 node, std::function<void()> close) {
  notifier_.drop_then(node, {}, [this, close = std::move(close)]() mutable {
    Lock lock(mutex_);
    closes_.push_back(std::move(close));
    changed_.notify_all();
  });
}

void KernelPages::close_some() {
  for (;;) {
    std::function<void()> close;
    {
      Lock lock(mutex_);
      while (closes_.empty() && !stopping_) changed_.wait(mutex_);
      if (closes_.empty()) return;
      close = std::move(closes_.front());
      closes_.pop_front();
    }
    close();
  }
}

}  // namespace latchkey::mount
