#pragma once
// A process of a user, which does what it is told.

#include <sys/types.h>

#include <functional>
#include <string>

#include "base/types.h"
#include "mount/unique_fd.h"
#include "tests/support/conformance_table.h"

namespace latchkey::tests {

class Actor {
 public:
  using Work = std::function<Outcome(const std::string& operation)>;
  // `begin` gives what does it, and runs in the new process, which is the user's by then.
  Actor(u32 uid, const std::function<Work()>& begin);
  ~Actor();  // and whatever it has open is closed
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;

  Outcome ask(const std::string& operation) {
    tell(operation);
    return answer();
  }
  void tell(const std::string& operation);  // answer() follows
  Outcome answer();
  pid_t pid() const { return pid_; }

 private:
  mount::UniqueFd socket_;
  pid_t pid_ = -1;
};

}  // namespace latchkey::tests
