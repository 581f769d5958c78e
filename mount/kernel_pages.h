#pragma once
// The kernel as what stands in front of the volume (volume/front.h): which files it may have pages
// of, how they are taken back, and who waits for a key.

#include <deque>
#include <functional>
#include <optional>

#include "base/mutex.h"
#include "base/thread.h"
#include "mount/nodes.h"
#include "mount/notifier.h"
#include "mount/open_files.h"
#include "mount/parked.h"
#include "volume/front.h"

namespace latchkey::mount {

// Made before the volume is opened and outlives it. Between start() and stop() something is
// mounted; before and after there are no pages.
class KernelPages final : public volume::Front {
 public:
  explicit KernelPages(const Parked::Limits& limits) : parked_(limits), notifier_(parked_) {}
  ~KernelPages() override { stop(); }

  // `retry` answers a request that was parked, in a thread of this object's.
  void start(fuse_session* session, std::function<void(Io&&)> retry);
  void stop();

  u64 drop_pages(const crypto::KeyId& key, Which which) override;
  void try_again(const crypto::KeyId& key) override { parked_.try_again(key); }
  void drop_everything();  // of all keys, and of all that is open
  // One open of a file ends: `close` does the rest. Where the file's key is leaving, as `leaving`
  // says, that is done by a thread that may wait, and the pages go before. The node counts as
  // closed before that is asked: a removal that commits in between takes the pages itself.
  template <class Leaving, class Close>
  void release(u64 node, const Leaving& leaving, const Close& close) {
    nodes_.closed(node);
    if (leaving())
      drop_then_close(node, close);
    else
      close();
  }
  void drop_soon(u64 node) { notifier_.drop_soon(node); }
  // `then` is called behind it, by a thread that takes further pages back: it waits for nothing.
  void drop_then(u64 node, PageRange range, std::function<void()> then) {
    notifier_.drop_then(node, range, std::move(then));
  }

  Nodes& nodes() { return nodes_; }
  OpenFiles& open_files() { return open_files_; }
  Parked& parked() { return parked_; }

 private:
  void drop_then_close(u64 node, std::function<void()> close);
  void close_some();

  Nodes nodes_;
  OpenFiles open_files_;
  Parked parked_;
  Notifier notifier_;
  std::optional<Thread> retrying_, closing_;
  Mutex mutex_;
  CondVar changed_;  // with mutex_
  bool stopping_ LK_GUARDED_BY(mutex_) = false;
  std::deque<std::function<void()>> closes_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::mount
