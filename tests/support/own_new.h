#pragma once
// operator new and delete of a program that has its own: every form of them, by way of two
// functions that the program defines. One file of a program includes it.

#include <cstddef>
#include <cstdlib>
#include <new>

namespace latchkey::tests {

// nullptr: there is none; who must not return that throws std::bad_alloc. Those of std::max_align_t
// and less ask for an alignment of 1.
void* own_allocate(std::size_t size, std::size_t align) noexcept;
[[gnu::noinline]] void own_release(void* allocated) noexcept;  // or the compiler sees free()

// What they come to where nothing is the matter. malloc() is the sanitizers' in their builds.
inline void* from_malloc(std::size_t size, std::size_t align) noexcept {
  if (align <= alignof(std::max_align_t)) return std::malloc(size == 0 ? 1 : size);
  return std::aligned_alloc(align, (size + align - 1) / align * align);
}

inline void* own_allocate_or_throw(std::size_t size, std::size_t align) {
  void* allocated = own_allocate(size, align);
  if (allocated == nullptr) throw std::bad_alloc();
  return allocated;
}

}  // namespace latchkey::tests

void* operator new(std::size_t size) { return latchkey::tests::own_allocate_or_throw(size, 1); }
void* operator new[](std::size_t size) { return latchkey::tests::own_allocate_or_throw(size, 1); }
void* operator new(std::size_t size, std::align_val_t align) {
  return latchkey::tests::own_allocate_or_throw(size, static_cast<std::size_t>(align));
}
void* operator new[](std::size_t size, std::align_val_t align) {
  return latchkey::tests::own_allocate_or_throw(size, static_cast<std::size_t>(align));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return latchkey::tests::own_allocate(size, 1);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return latchkey::tests::own_allocate(size, 1);
}
void operator delete(void* memory) noexcept { latchkey::tests::own_release(memory); }
void operator delete[](void* memory) noexcept { latchkey::tests::own_release(memory); }
void operator delete(void* memory, std::size_t) noexcept { latchkey::tests::own_release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { latchkey::tests::own_release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept {
  latchkey::tests::own_release(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  latchkey::tests::own_release(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  latchkey::tests::own_release(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  latchkey::tests::own_release(memory);
}
