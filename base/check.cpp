#include "base/check.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace latchkey {

void check_failed(const char* condition, const char* why, std::source_location where) {
  // No heap and no stream: the broken invariant may be theirs. So snprintf and not fmt, which
  // throws and, for what is long, allocates.
  char line[1024];
  const int length =
      std::snprintf(line, sizeof line, "latchkey: %s:%u: check failed: %s%s%s\n", where.file_name(),
                    static_cast<unsigned>(where.line()), condition, *why != '\0' ? ": " : "", why);
  if (length > 0) {
    const auto size = std::min(static_cast<std::size_t>(length), sizeof line - 1);
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line, size);
  }
  std::abort();
}

}  // namespace latchkey
