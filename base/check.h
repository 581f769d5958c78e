#pragma once
// Broken invariants stop the process, in release too: going on would turn a bug into damage.

#include <source_location>

namespace latchkey {

[[noreturn]] void check_failed(const char* condition, const char* why, std::source_location where);

}  // namespace latchkey

#define LK_CHECK(condition) LK_CHECK_MSG(condition, "")
#define LK_CHECK_MSG(condition, why) \
  (static_cast<bool>(condition)      \
       ? void(0)                     \
       : ::latchkey::check_failed(#condition, why, std::source_location::current()))
