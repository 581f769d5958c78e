#pragma once
// Clang's thread-safety analysis; nothing under g++. The lock order is one table in
// docs/architecture.md.

#if defined(__clang__)
#define LK_TSA(x) __attribute__((x))
#else
#define LK_TSA(x)
#endif

#define LK_CAPABILITY(name) LK_TSA(capability(name))
#define LK_SCOPED_CAPABILITY LK_TSA(scoped_lockable)
#define LK_GUARDED_BY(mutex) LK_TSA(guarded_by(mutex))
#define LK_PT_GUARDED_BY(mutex) LK_TSA(pt_guarded_by(mutex))
#define LK_REQUIRES(...) LK_TSA(requires_capability(__VA_ARGS__))
#define LK_REQUIRES_SHARED(...) LK_TSA(requires_shared_capability(__VA_ARGS__))
#define LK_EXCLUDES(...) LK_TSA(locks_excluded(__VA_ARGS__))
#define LK_ACQUIRE(...) LK_TSA(acquire_capability(__VA_ARGS__))
#define LK_ACQUIRE_SHARED(...) LK_TSA(acquire_shared_capability(__VA_ARGS__))
#define LK_RELEASE(...) LK_TSA(release_capability(__VA_ARGS__))
#define LK_RELEASE_SHARED(...) LK_TSA(release_shared_capability(__VA_ARGS__))
#define LK_RELEASE_GENERIC(...) LK_TSA(release_generic_capability(__VA_ARGS__))
#define LK_TRY_ACQUIRE(...) LK_TSA(try_acquire_capability(__VA_ARGS__))
#define LK_BEFORE(...) LK_TSA(acquired_before(__VA_ARGS__))
#define LK_AFTER(...) LK_TSA(acquired_after(__VA_ARGS__))
#define LK_ASSERT_HELD(...) LK_TSA(assert_capability(__VA_ARGS__))
#define LK_NO_ANALYSIS LK_TSA(no_thread_safety_analysis)
