#pragma once
// A key's life among three callers: the real keymgr, and around it the least volume that uses it as
// volume/ does (one file of one page, without disk or cipher). What it checks while it runs and at
// its end are the invariants that docs/removal.md names.
//
// The volume's own order of locks is kept: flush_mutex -> lease_lock -> the key's. Where volume/
// copies or waits for its device there is a scheduling point here.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/mutex.h"
#include "keymgr/keyring.h"
#include "tests/explore/explorer.h"

namespace latchkey::tests {

enum class Verb : u8 {
  open,
  write,
  close,
  writeback,  // what a worker does
  add,
  remove,
  remove_all,     // by root
  await_removal,  // of the first caller, to its end
  store,          // into the page that a front has of the file (volume/front.h)
  write_back,     // of that page
};

struct Act {
  Verb verb;
  u32 uid = 1;
  keymgr::RemovalMode mode = keymgr::RemovalMode::soft;  // of a removal
};

struct KeyPlan {
  std::string name = {};
  std::vector<u32> claims = {};  // of these users, from the beginning
  std::vector<std::vector<Act>> callers = {};
  std::vector<bool> has_file_open = {};  // of each caller, from the beginning
  bool dirty = false;                    // the file, which is closed then
  bool flush_fails = false;              // those of removals
  bool front = false;                    // all that is written is stored there
};

// Of removals in this mode: open, write, close, writeback and adds around them.
std::vector<KeyPlan> key_plans(keymgr::RemovalMode mode);

using keymgr::KeyState;

class KeyScene final : public Scene {
 public:
  explicit KeyScene(const KeyPlan& plan);
  ~KeyScene() override;
  std::vector<std::function<void()>> actors() override;
  const char* look() override;
  const char* end() override;

 private:
  struct Inode {
    explicit Inode(u64 word_in) : word(word_in) {}
    const u64 word;  // of its lease
    Mutex flush_mutex;
    SharedMutex lease_lock LK_AFTER(flush_mutex);
    keymgr::Lease key_lease;        // under lease_lock
    std::optional<u64> sealed_for;  // has keys of its own, of that seal; under lease_lock
    u32 users = 0;                  // under table_mutex_, and so the next
    u32 handles = 0;
    bool dirty = false;
    u32 cached = 0;  // what was written last, where it is dirty
    u32 losses = 0;
  };
  using InodePtr = std::shared_ptr<Inode>;
  struct Handle {
    InodePtr inode;  // none: closed
    u32 losses = 0;
  };
  // A call that may make the key usable again: the checks forget what they knew of removals.
  class Reopening {
   public:
    explicit Reopening(KeyScene& scene) : scene_(scene) { begin_or_end(1); }
    ~Reopening() { begin_or_end(-1); }
    Reopening(const Reopening&) = delete;
    Reopening& operator=(const Reopening&) = delete;

   private:
    void begin_or_end(int change);
    KeyScene& scene_;
  };

  void act(u32 caller, const Act& act);
  Result<void> open(Handle& handle);
  void open_and_look(Handle& handle);
  Result<void> write_once(Handle& handle);
  void write(Handle& handle);
  void close(Handle& handle);
  void writeback();
  void add(u32 uid);
  void remove(const Act& act, bool flush_fails);
  Result<keymgr::RemovalStart> begin_removal(u32 uid, bool all_users, keymgr::RemovalMode mode);
  Result<bool> run(keymgr::Removal& removal, bool flush_fails);
  Result<void> prepare(keymgr::Removal& removal, bool flush_fails);
  void drop_cut_off(keymgr::Removal& removal);
  void let_leave(keymgr::Removal& removal);

  void store(Handle& handle);
  Result<void> page_in(Inode& inode);
  void write_back();
  void write_page_down() LK_REQUIRES(page_mutex_);
  Result<void> write_from_front(Inode& inode, u32 value);
  void leave_page();
  void take_page(keymgr::Removal& removal);
  void drop_page(const keymgr::RemovalRow& row);

  InodePtr in_memory();
  InodePtr use();
  bool end_use(const InodePtr& inode);  // true: this was the last one
  void forget_if_idle(const InodePtr& inode);
  InodePtr owner(keymgr::Removal& removal);
  Result<void> lease(u64 word, keymgr::Lease& lease);
  Result<void> unlock(Inode& inode);
  void return_lease(Inode& inode);
  bool key_is_leaving(Inode& inode);
  Result<void> flush(Inode& inode);
  void lose(Inode& inode);
  Result<void> seal(Inode& inode, u64 number);
  void unseal(u64 first, u64 last);
  u32 handles_open() const;
  static bool secret_in_memory();
  static bool holds_front(const void* bytes);  // of the secret, as the keyring keeps it

  const KeyPlan& plan_;
  Env& env_;
  keymgr::Keyring ring_;
  crypto::KeyId id_{};
  std::vector<Handle> handles_;
  Mutex table_mutex_;
  InodePtr inode_ LK_GUARDED_BY(table_mutex_);
  u64 next_word_ = 2;
  Mutex ended_mutex_;
  CondVar ended_;  // with ended_mutex_
  bool removal_ended_ LK_GUARDED_BY(ended_mutex_) = false;

  Mutex page_mutex_;  // of the front's page: held while it is read in, written back and dropped
  bool page_there_ LK_GUARDED_BY(page_mutex_) = false;
  bool page_dirty_ LK_GUARDED_BY(page_mutex_) = false;
  u32 page_value_ LK_GUARDED_BY(page_mutex_) = 0;

  u32 stored_ = 0;   // what the device has
  u32 written_ = 0;  // writes so far, each of another value
  u32 lost_ = 0;     // the last value that was reported lost

  // What the callers can know, for the checks: read and set without a point in between.
  u32 acting_ = 0;  // callers inside of a verb
  u32 epoch_ = 0;   // changes where a Reopening begins or ends
  u32 reopening_ = 0;
  bool shut_ = false;        // a removal has closed the door, and no Reopening came after it
  bool leaving_ = false;     // a removal has ended and left the key to its last user, and so on
  bool cut_off_ = false;     // a removal that leaves nothing has ended, and so on
  bool gone_ = false;        // no byte of the secret may be left
  bool may_refuse_ = false;  // a removal that may refuse open files has begun
  bool may_lose_ = false;
  bool waits_ = false;  // suspended callers wait: the plan adds the key after the removal
};

}  // namespace latchkey::tests
