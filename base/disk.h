#pragma once
// On-disk integers and struct checks. Everything on disk is little endian, alignment 1, without
// padding or bit fields; docs/disk_format.md has a byte table for each struct.

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "base/types.h"

namespace latchkey {

template <std::unsigned_integral T>
class Le {
 public:
  constexpr Le() = default;
  constexpr Le(T value) { set(value); }  // NOLINT: assignment from the integer is the point
  constexpr operator T() const { return get(); }

  constexpr T get() const {
    T value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i)
      value = static_cast<T>(value | static_cast<T>(static_cast<T>(bytes_[i]) << (8 * i)));
    return value;
  }
  constexpr void set(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) bytes_[i] = static_cast<u8>(value >> (8 * i));
  }

 private:
  std::array<u8, sizeof(T)> bytes_{};
};

using Le16 = Le<u16>;
using Le32 = Le<u32>;
using Le64 = Le<u64>;

// Reads or writes a struct at the front of a buffer whose length the caller has checked; the builds
// with the address sanitizer check it again.
template <class T>
T load_disk(Bytes bytes) {
  T value;
  std::memcpy(&value, bytes.first(sizeof(T)).data(), sizeof(T));
  return value;
}
template <class T>
void store_disk(MutableBytes bytes, const T& value) {
  std::memcpy(bytes.first(sizeof(T)).data(), &value, sizeof(T));
}

}  // namespace latchkey

#define LK_DISK_STRUCT(type, size)                                          \
  static_assert(sizeof(type) == (size), #type " changed its size on disk"); \
  static_assert(alignof(type) == 1, #type " must have alignment 1");        \
  static_assert(std::is_trivially_copyable_v<type>);                        \
  static_assert(std::is_standard_layout_v<type>)

#define LK_DISK_FIELD(type, field, offset) \
  static_assert(offsetof(type, field) == (offset), #type "::" #field " moved on disk")
