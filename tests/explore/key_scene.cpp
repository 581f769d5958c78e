#include "tests/explore/key_scene.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "base/check.h"
#include "tests/support/keys.h"

namespace latchkey::tests {

namespace {

constexpr u64 kDoorWord = 1;  // of an open's own lease

const Heap& raw_secret() {
  static const Heap raw = raw_key(1);
  return raw;
}

// The front of what the keyring keeps of it.
const std::array<std::byte, 16>& front_of_state() {
  static const auto front = [] {
    std::array<std::byte, 16> bytes;
    std::ranges::copy_n(needles_of(raw_secret()).hkdf_inner.begin(), bytes.size(), bytes.begin());
    return bytes;
  }();
  return front;
}

}  // namespace

bool KeyScene::holds_front(const void* bytes) {
  return std::memcmp(bytes, front_of_state().data(), front_of_state().size()) == 0;
}

void KeyScene::Reopening::begin_or_end(int change) {
  scene_.reopening_ += static_cast<u32>(change);
  ++scene_.epoch_;
  scene_.shut_ = scene_.leaving_ = scene_.cut_off_ = scene_.gone_ = false;
}

KeyScene::KeyScene(const KeyPlan& plan)
    : plan_(plan), env_(system_env()), handles_(plan.callers.size()) {
  (void)front_of_state();
  for (const u32 uid : plan.claims) add(uid);
  for (std::size_t i = 0; i < handles_.size(); ++i)
    if (plan.has_file_open[i]) LK_CHECK(open(handles_[i]).has_value());
  if (plan.dirty) {
    Handle handle;
    LK_CHECK(open(handle) && write_once(handle));
    close(handle);
  }
  for (const auto& caller : plan.callers)
    for (const Act& act : caller) waits_ |= act.verb == Verb::await_removal;
}

KeyScene::~KeyScene() {
  may_lose_ = true;
  for (Handle& handle : handles_)
    if (handle.inode != nullptr) close(handle);
  if (const InodePtr inode = in_memory()) {
    lose(*inode);
    forget_if_idle(inode);
  }
}

std::vector<std::function<void()>> KeyScene::actors() {
  std::vector<std::function<void()>> bodies;
  bodies.reserve(plan_.callers.size());
  for (u32 caller = 0; caller < plan_.callers.size(); ++caller)
    bodies.emplace_back([this, caller] {
      for (const Act& next : plan_.callers[caller]) {
        ++acting_;
        act(caller, next);
        --acting_;
      }
      if (caller != 0) return;
      Lock lock(ended_mutex_);
      removal_ended_ = true;
      ended_.notify_all();
    });
  return bodies;
}

void KeyScene::act(u32 caller, const Act& act) {
  Handle& handle = handles_[caller];
  switch (act.verb) {
    case Verb::open:
      return open_and_look(handle);
    case Verb::write:
      if (handle.inode != nullptr) write(handle);
      return;
    case Verb::close:
      if (handle.inode != nullptr) close(handle);
      return;
    case Verb::writeback:
      return writeback();
    case Verb::add:
      return add(act.uid);
    case Verb::remove:
    case Verb::remove_all:
      return remove(act, plan_.flush_fails && caller == 0);
    case Verb::store:
      if (handle.inode != nullptr) store(handle);
      return;
    case Verb::write_back:
      return write_back();
    case Verb::await_removal: {
      --acting_;  // nothing of the key
      Lock lock(ended_mutex_);
      while (!removal_ended_) ended_.wait(ended_mutex_);
      ++acting_;
      return;
    }
  }
}

// --- the verbs -----------------------------------------------------------------------------------

Result<void> KeyScene::open(Handle& handle) {
  const InodePtr inode = use();
  {
    Lock lock(table_mutex_);
    ++inode->handles;
  }
  keymgr::Lease door;
  auto opened = lease(kDoorWord, door);
  if (opened) {
    opened = unlock(*inode);
    ring_.release(door);
  }
  if (!opened) {
    {
      Lock lock(table_mutex_);
      --inode->handles;
    }
    (void)end_use(inode);
    return opened;
  }
  handle = {inode, inode->losses};
  return {};
}

void KeyScene::open_and_look(Handle& handle) {
  const u32 epoch = epoch_;
  const bool shut = shut_;
  const auto opened = open(handle);
  note(opened ? "opened" : "not opened");
  must(!opened || !shut || epoch != epoch_, "opened between a removal and the next add (I3)");
}

Result<void> KeyScene::write_once(Handle& handle) {
  Inode& inode = *handle.inode;
  LK_TRYV(unlock(inode));
  for (keymgr::HeldGate held;; held.wait()) {
    SharedLock lock(inode.lease_lock);
    const auto pass = keymgr::GatePass::try_enter(inode.key_lease, held);
    if (!pass && pass.error().code == Errc::busy) continue;
    if (!pass) return std::unexpected(pass.error());
    if (inode.losses != handle.losses) return fail(Errc::io, "data of this file was lost");
    point();  // the copy
    inode.cached = ++written_;
    inode.dirty = true;
    return {};
  }
}

void KeyScene::write(Handle& handle) {
  const u32 epoch = epoch_;
  const bool cut_off = cut_off_;
  keymgr::Suspensions& suspensions = ring_.suspensions();
  for (;;) {
    const u64 seen = suspensions.changes();
    const auto wrote = write_once(handle);
    note(wrote ? "wrote" : "write refused");
    must(!wrote || !cut_off || epoch != epoch_, "written through a handle that was cut off");
    if (wrote) return;
    const bool again = waits_ && wrote.error().code == Errc::no_key &&
                       (suspensions.suspended(id_) || suspensions.changes() != seen);
    if (!again) return must(may_refuse_, "a write was refused where it works as before");
    (void)suspensions.wait(id_, env_);
  }
}

void KeyScene::close(Handle& handle) {
  leave_page();
  const u32 epoch = epoch_;
  const bool leaving = leaving_;
  const InodePtr inode = std::exchange(handle.inode, nullptr);
  {
    Lock lock(table_mutex_);
    --inode->handles;
  }
  const bool last = end_use(inode);
  note("closed");
  // Who else is inside of a call may be the one to let the lease go.
  if (last && leaving && epoch == epoch_ && acting_ == 1) gone_ = true;
}

void KeyScene::writeback() {
  const InodePtr inode = in_memory();
  if (inode == nullptr) return;
  const auto flushed = flush(*inode);
  note(flushed ? "written back" : "not written back");
  must(flushed || may_refuse_, "a writeback was refused where it works as before");
  forget_if_idle(inode);
}

void KeyScene::add(u32 uid) {
  const Reopening reopening(*this);
  std::optional<u64> unsealed;
  const auto added = ring_.add(uid, in_arena(raw_secret()), &unsealed);
  LK_CHECK(added.has_value());
  id_ = *added;
  note("added");
  if (unsealed) unseal(0, *unsealed);
}

// --- checks --------------------------------------------------------------------------------------

// Called in every state, so of most places the first word says enough.
bool KeyScene::secret_in_memory() {
  struct Search {
    u64 first = 0;
    bool found = false;
  } search;
  std::memcpy(&search.first, front_of_state().data(), sizeof search.first);
  arena_visit(
      [](void* context, MutableBytes piece) {
        auto& wanted = *static_cast<Search*>(context);
        for (std::size_t at = 0; at < piece.size(); at += 64) {  // secrets begin on such a border
          u64 word = 0;
          std::memcpy(&word, piece.data() + at, sizeof word);
          if (word == wanted.first && holds_front(piece.data() + at)) wanted.found = true;
        }
      },
      &search);
  return search.found;
}

const char* KeyScene::look() {
  // A key that is added while an older one's wipe waits for a batch is another key, and may be
  // absent again before that wipe, which is inside of a call, has ended.
  if (gone_ && acting_ == 0 && secret_in_memory())
    return "the secret is in memory after it had to be gone (I1)";
  return nullptr;
}

const char* KeyScene::end() {
  write_back();
  const InodePtr inode = in_memory();
  if (inode != nullptr && inode->dirty && !flush(*inode))
    return "a dirty page is left that nothing can seal any more";
  if (stored_ != written_ && lost_ != written_)
    return "an acknowledged write was lost silently (I2)";
  const keymgr::KeyStatus status = ring_.status(id_, 0);
  u32 claims = 0;
  for (const u32 uid : {0U, 1U, 2U, 3U}) claims += ring_.status(id_, uid).claimed_by_caller ? 1 : 0;
  if (claims != status.claims) return "the number of claims is not that of those who have one (I4)";
  if (handles_open() == 0 && status.state == KeyState::incompletely_removed)
    return "nobody is inside, and the key is still there (I5, I6)";
  const bool has_secret = status.state != KeyState::absent && !status.sealed;
  if (secret_in_memory() != has_secret)
    return has_secret ? "the secret is gone although the key is there"
                      : "the secret is in memory although the key is not (I1)";
  return nullptr;
}

}  // namespace latchkey::tests
