#include "keymgr/slots.h"

#include <bit>
#include <utility>
#include <vector>

#include "base/check.h"

namespace latchkey::keymgr {

namespace {
constexpr u32 kNone = ~u32{0};

Result<void> derive(const Lease& lease, const crypto::Nonce& nonce, crypto::XtsKey& key) {
  LK_TRY(const KeyUse use, KeyUse::begin(lease));
  use.extent_key(nonce, key);
  return {};
}

}  // namespace

// Slots are in exactly one of: the free list (wiped), the idle list (ready, unpinned, oldest
// first), or pinned. Linked ones can be found by (key, nonce); evict_key unlinks, and a slot that
// is not linked is wiped when its last pin goes.
struct SlotTable::State {
  struct Slot {
    crypto::KeyId id;
    crypto::Nonce nonce;
    u32 pins = 0;
    bool linked = false;
    bool filling = false;                // one pin derives; others wait for it
    u32 chain = kNone;                   // next of the same bucket
    u32 previous = kNone, next = kNone;  // idle list; next also in the free list
  };

  Slot& at(u32 slot) LK_REQUIRES(mutex) { return slots[slot]; }
  crypto::XtsKey& key(u32 slot) {
    return reinterpret_cast<crypto::XtsKey*>(memory.bytes().data())[slot];
  }
  u32& bucket(const crypto::KeyId& id, const crypto::Nonce& nonce) LK_REQUIRES(mutex) {
    // Both are uniformly random bytes.
    const u64 hash = crypto::IdHash()(id) ^ crypto::IdHash()(nonce);
    return buckets[hash & (buckets.size() - 1)];
  }

  u32 lookup(const crypto::KeyId& id, const crypto::Nonce& nonce) LK_REQUIRES(mutex);
  void link(u32 slot) LK_REQUIRES(mutex);
  void unlink(u32 slot) LK_REQUIRES(mutex);
  void idle_push(u32 slot) LK_REQUIRES(mutex);
  void idle_remove(u32 slot) LK_REQUIRES(mutex);
  u32 take() LK_REQUIRES(mutex);
  void free(u32 slot) LK_REQUIRES(mutex);
  void unpin(u32 slot) LK_EXCLUDES(mutex);
  bool pinned_after_unlink(const crypto::KeyId& id) LK_REQUIRES(mutex);

  SecretBytes memory;  // capacity schedules; a slot's bytes belong to its pins while it has any

  mutable Mutex mutex;
  std::vector<Slot> slots LK_GUARDED_BY(mutex);
  std::vector<u32> buckets LK_GUARDED_BY(mutex);  // first slot of each chain
  u32 free_first LK_GUARDED_BY(mutex) = kNone;
  u32 idle_first LK_GUARDED_BY(mutex) = kNone;
  u32 idle_last LK_GUARDED_BY(mutex) = kNone;
  u32 waiting LK_GUARDED_BY(mutex) = 0;
  SlotCounters counters LK_GUARDED_BY(mutex);
  CondVar changed;  // with mutex: a pin went or a slot was filled; notified only while waiting != 0

  void wait() LK_REQUIRES(mutex) {
    ++waiting;
    changed.wait(mutex);
    --waiting;
  }
  void notify() LK_REQUIRES(mutex) {
    if (waiting != 0) changed.notify_all();
  }
};

u32 SlotTable::State::lookup(const crypto::KeyId& id, const crypto::Nonce& nonce) {
  u32 slot = bucket(id, nonce);
  while (slot != kNone && !(at(slot).nonce == nonce && at(slot).id == id)) slot = at(slot).chain;
  return slot;
}

void SlotTable::State::link(u32 slot) {
  Slot& s = at(slot);
  u32& first = bucket(s.id, s.nonce);
  s.chain = first;
  first = slot;
  s.linked = true;
}

void SlotTable::State::unlink(u32 slot) {
  Slot& s = at(slot);
  LK_CHECK(s.linked);
  u32* from = &bucket(s.id, s.nonce);
  while (*from != slot) from = &at(*from).chain;
  *from = s.chain;
  s.chain = kNone;
  s.linked = false;
}

void SlotTable::State::idle_push(u32 slot) {
  Slot& s = at(slot);
  s.previous = idle_last;
  s.next = kNone;
  (idle_last == kNone ? idle_first : at(idle_last).next) = slot;
  idle_last = slot;
}

void SlotTable::State::idle_remove(u32 slot) {
  Slot& s = at(slot);
  (s.previous == kNone ? idle_first : at(s.previous).next) = s.next;
  (s.next == kNone ? idle_last : at(s.next).previous) = s.previous;
  s.previous = s.next = kNone;
}

// A wiped slot: a free one, else the idle one that was used longest ago; kNone when all are pinned.
u32 SlotTable::State::take() {
  if (free_first == kNone && idle_first != kNone) {
    const u32 oldest = idle_first;
    idle_remove(oldest);
    unlink(oldest);
    free(oldest);
    ++counters.evictions;
  }
  const u32 slot = free_first;
  if (slot != kNone) free_first = std::exchange(at(slot).next, kNone);
  return slot;
}

void SlotTable::State::free(u32 slot) {
  Slot& s = at(slot);
  LK_CHECK(s.pins == 0 && !s.linked);
  wipe(&key(slot), sizeof(crypto::XtsKey));
  s = Slot{};
  s.next = free_first;
  free_first = slot;
}

void SlotTable::State::unpin(u32 slot) {
  Lock lock(mutex);
  Slot& s = at(slot);
  LK_CHECK(s.pins != 0);
  if (--s.pins == 0) {
    if (s.linked)
      idle_push(slot);
    else
      free(slot);
  }
  notify();
}

bool SlotTable::State::pinned_after_unlink(const crypto::KeyId& id) {
  for (const Slot& s : slots)
    if (!s.linked && s.pins != 0 && s.id == id) return true;
  return false;
}

SlotPin::SlotPin(SlotPin&& other) noexcept
    : table_(std::exchange(other.table_, nullptr)), slot_(other.slot_) {}

SlotPin::~SlotPin() {
  if (table_ != nullptr) table_->state_->unpin(slot_);
}

const crypto::XtsKey& SlotPin::key() const {
  LK_CHECK(table_ != nullptr);
  return table_->state_->key(slot_);
}

SlotTable::SlotTable(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<SlotTable>> SlotTable::create(u32 slots) {
  LK_CHECK(slots != 0);
  auto state = std::make_unique<State>();
  LK_TRY(state->memory, SecretBytes::create(slots * sizeof(crypto::XtsKey)));
  {
    Lock lock(state->mutex);
    state->slots.resize(slots);
    state->counters.capacity = slots;
    state->buckets.assign(std::bit_ceil(std::size_t{slots} * 2), kNone);
    for (u32 slot = slots; slot-- != 0;) state->free(slot);
  }
  return std::unique_ptr<SlotTable>(new SlotTable(std::move(state)));
}

SlotTable::~SlotTable() {
  Lock lock(state_->mutex);
  for (const State::Slot& slot : state_->slots) LK_CHECK_MSG(slot.pins == 0, "a pinned slot");
  state_->memory.reset();
}

Result<SlotPin> SlotTable::get(const Lease& lease, const crypto::Nonce& nonce) {
  if (!lease.held() || lease.cut_off()) return fail(Errc::no_key, "the key's secret is gone");
  const crypto::KeyId id = lease.key_id();
  State& state = *state_;
  SlotPin pin;
  {
    Lock lock(state.mutex);
    for (;;) {
      u32 slot = state.lookup(id, nonce);
      if (slot != kNone && !state.at(slot).filling) {
        if (state.at(slot).pins++ == 0) state.idle_remove(slot);
        ++state.counters.hits;
        pin.table_ = this;
        pin.slot_ = slot;
        return pin;
      }
      if (slot == kNone && (slot = state.take()) != kNone) {
        State::Slot& reserved = state.at(slot);
        reserved.id = id;
        reserved.nonce = nonce;
        reserved.pins = 1;
        reserved.filling = true;
        state.link(slot);
        ++state.counters.misses;
        pin.table_ = this;
        pin.slot_ = slot;
        break;
      }
      state.wait();
    }
  }
  // The slot is ours alone while it is filling.
  const Result<void> derived = derive(lease, nonce, state.key(pin.slot_));
  Lock lock(state.mutex);
  State::Slot& filled = state.at(pin.slot_);
  filled.filling = false;
  // evict_key may have unlinked it meanwhile; without a key nobody shall find it. The last pin
  // wipes.
  if (!derived && filled.linked) state.unlink(pin.slot_);
  state.notify();
  if (!derived) return std::unexpected(derived.error());
  return pin;
}

void SlotTable::evict_key(const crypto::KeyId& id) {
  State& state = *state_;
  Lock lock(state.mutex);
  const u32 count = static_cast<u32>(state.slots.size());
  for (u32 slot = 0; slot < count; ++slot) {
    State::Slot& s = state.at(slot);
    if (!s.linked || s.id != id) continue;
    state.unlink(slot);
    if (s.pins != 0) continue;
    state.idle_remove(slot);
    state.free(slot);
  }
  state.notify();  // who waits for a slot
  while (state.pinned_after_unlink(id)) state.wait();
}

SlotCounters SlotTable::counters() const {
  Lock lock(state_->mutex);
  return state_->counters;
}

}  // namespace latchkey::keymgr
