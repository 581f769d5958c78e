#pragma once
// Where something is mounted, so that it can be taken away and nothing else that is there by then.

#include <optional>
#include <string>

#include "base/types.h"

namespace latchkey::mount {

class Place {
 public:
  // What is mounted at that directory now. Asks no server.
  static std::optional<Place> of(const std::string& directory);

  // Whether it is still what one finds there.
  bool is_there() const;
  // Takes it away: gently, else though programs are inside, from whom root cuts it off. For who is
  // not root fusermount3 does it. False: it is there no more, or stays.
  bool take_away() const;

 private:
  std::string directory_;
  u64 device_ = 0;
  u64 mount_ = 0;  // the kernel's number of the mount
};

}  // namespace latchkey::mount
