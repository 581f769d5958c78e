#pragma once
// Where std::bad_alloc ends. It leaves calls of the library as it is; what must go on all the same
// (a commit that others wait for, a flush, a worker) turns it into an error here.

#include <new>
#include <type_traits>

#include "base/result.h"

namespace latchkey {

namespace no_memory {
template <class T>
struct Answer {
  using Type = Result<T>;
};
template <class T>
struct Answer<Result<T>> {
  using Type = Result<T>;
};
}  // namespace no_memory

// What the call returns, as a Result if it is none.
template <class Call>
auto or_no_memory(const Call& call) ->
    typename no_memory::Answer<std::invoke_result_t<const Call&>>::Type {
  try {
    if constexpr (std::is_void_v<std::invoke_result_t<const Call&>>) {
      call();
      return {};
    } else {
      return call();
    }
  } catch (const std::bad_alloc&) {
    return fail(Errc::no_memory, "not enough memory");
  }
}

}  // namespace latchkey
