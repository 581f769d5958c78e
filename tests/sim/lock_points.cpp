// Scheduling points around every lock and gate. A program that links lk_sim is linked with
// --wrap for these functions (tests/CMakeLists.txt): what calls them calls the ones below, which
// call them. Their own code, and that of all their callers, is what ships.
//
// Signals are let in during work with secrets: two system calls for each derivation tell nothing
// here, and the mask is the thread's, not the fiber's.

#include "base/mutex.h"
#include "base/secret_work.h"
#include "keymgr/gate.h"
#include "tests/sim/scheduler.h"

namespace latchkey {

namespace {

using Place = tests::PointScheduler::Place;

void scheduling_point(Place place, const void* object) {
  if (auto* scheduler = tests::PointScheduler::current()) scheduler->at(place, object);
}

}  // namespace

void mutex_lock(Mutex* self) asm("__real__ZN8latchkey5Mutex4lockEv");
void point_mutex_lock(Mutex* self) asm("__wrap__ZN8latchkey5Mutex4lockEv");
void point_mutex_lock(Mutex* self) {
  scheduling_point(Place::lock, self);
  mutex_lock(self);
}

bool mutex_try_lock(Mutex* self) asm("__real__ZN8latchkey5Mutex8try_lockEv");
bool point_mutex_try_lock(Mutex* self) asm("__wrap__ZN8latchkey5Mutex8try_lockEv");
bool point_mutex_try_lock(Mutex* self) {
  scheduling_point(Place::enter_or_try, self);
  return mutex_try_lock(self);
}

void mutex_unlock(Mutex* self) asm("__real__ZN8latchkey5Mutex6unlockEv");
void point_mutex_unlock(Mutex* self) asm("__wrap__ZN8latchkey5Mutex6unlockEv");
void point_mutex_unlock(Mutex* self) {
  mutex_unlock(self);
  scheduling_point(Place::unlock, self);
}

void shared_lock(SharedMutex* self) asm("__real__ZN8latchkey11SharedMutex4lockEv");
void point_shared_lock(SharedMutex* self) asm("__wrap__ZN8latchkey11SharedMutex4lockEv");
void point_shared_lock(SharedMutex* self) {
  scheduling_point(Place::lock, self);
  shared_lock(self);
}

void shared_unlock(SharedMutex* self) asm("__real__ZN8latchkey11SharedMutex6unlockEv");
void point_shared_unlock(SharedMutex* self) asm("__wrap__ZN8latchkey11SharedMutex6unlockEv");
void point_shared_unlock(SharedMutex* self) {
  shared_unlock(self);
  scheduling_point(Place::unlock, self);
}

void shared_lock_shared(SharedMutex* self) asm("__real__ZN8latchkey11SharedMutex11lock_sharedEv");
void point_shared_lock_shared(SharedMutex* self) asm(
    "__wrap__ZN8latchkey11SharedMutex11lock_sharedEv");
void point_shared_lock_shared(SharedMutex* self) {
  scheduling_point(Place::lock_shared, self);
  shared_lock_shared(self);
}

void shared_unlock_shared(SharedMutex* self) asm(
    "__real__ZN8latchkey11SharedMutex13unlock_sharedEv");
void point_shared_unlock_shared(SharedMutex* self) asm(
    "__wrap__ZN8latchkey11SharedMutex13unlock_sharedEv");
void point_shared_unlock_shared(SharedMutex* self) {
  shared_unlock_shared(self);
  scheduling_point(Place::unlock, self);
}

bool gate_enter(keymgr::Gate* self) asm("__real__ZN8latchkey6keymgr4Gate5enterEv");
bool point_gate_enter(keymgr::Gate* self) asm("__wrap__ZN8latchkey6keymgr4Gate5enterEv");
bool point_gate_enter(keymgr::Gate* self) {
  scheduling_point(Place::enter_or_try, self);
  return gate_enter(self);
}

keymgr::Gate::State gate_try(keymgr::Gate* self) asm("__real__ZN8latchkey6keymgr4Gate9try_enterEv");
keymgr::Gate::State point_gate_try(keymgr::Gate* self) asm(
    "__wrap__ZN8latchkey6keymgr4Gate9try_enterEv");
keymgr::Gate::State point_gate_try(keymgr::Gate* self) {
  scheduling_point(Place::enter_or_try, self);
  return gate_try(self);
}

void gate_leave(keymgr::Gate* self) asm("__real__ZN8latchkey6keymgr4Gate5leaveEv");
void point_gate_leave(keymgr::Gate* self) asm("__wrap__ZN8latchkey6keymgr4Gate5leaveEv");
void point_gate_leave(keymgr::Gate* self) {
  gate_leave(self);
  scheduling_point(Place::leave, self);
}

void signals_stay_in() noexcept asm("__wrap__ZN8latchkey13block_signalsEv");
void signals_stay_in() noexcept {}
void signals_are_in() noexcept asm("__wrap__ZN8latchkey15restore_signalsEv");
void signals_are_in() noexcept {}

}  // namespace latchkey
