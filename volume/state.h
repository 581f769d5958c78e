#pragma once
// What is behind Volume.
//
// Lock order: move_mutex -> a directory's lock -> an inode's locks (inode.h) -> the engine's forest
// -> table_mutex -> an inode's `mutex` -> PageMemory's.

#include <array>
#include <deque>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/env.h"
#include "base/mutex.h"
#include "base/secret_work.h"
#include "base/thread.h"
#include "keymgr/slots.h"
#include "volume/block_counts.h"
#include "volume/inode.h"
#include "volume/subvolumes.h"
#include "volume/volume.h"
#include "writeback/pipeline.h"

namespace latchkey::volume {

using InodePtr = std::shared_ptr<Inode>;

inline constexpr u64 kNoOwner = 0;  // the owner word of an operation's own lease

struct Handle {
  InodePtr inode;
  OpenFlags flags;
  u32 uid = 0;
  u32 pid = 0;
  std::string path;
  u64 since_ns = 0, since_boot_ns = 0;
  bool directory = false;
  std::vector<InodePtr> above;         // compat: directories that it keeps in use
  u32 losses = 0;                      // of the inode when this was opened
  std::atomic<u64> errors_told{0};     // of the inode's errors
  std::atomic<bool> loss_told{false};  // by fsync or close
  std::atomic<bool> stop_told{false};  // D4: it heard once that the volume stopped
  bool listed = false;                 // among those of its key; under table_mutex

  Holder as_holder(HandleId id) const {
    return {path, uid, id, inode->dirty_bytes(), since_ns, pid, {}, since_boot_ns};
  }
};
using HandlePtr = std::shared_ptr<Handle>;

// The two forms of a directory's names, for one batch of them. While it has the key it is a KeyUse,
// so a wipe waits for it: no I/O, no lock and no wait while it lives.
class NameAccess {
 public:
  // Under `lease`, which outlives it; unlocked() is false when its secret is gone.
  static Result<NameAccess> with(const keymgr::Lease& lease, const crypto::Nonce& nonce);
  // Under the key that the directory itself has, which outlives it, in a SecretWork of the
  // caller's.
  static NameAccess with(const crypto::NameKey& key) {
    NameAccess access(true);
    access.own_ = &key;
    return access;
  }
  static NameAccess plain() { return NameAccess(false); }
  static NameAccess locked() { return NameAccess(true); }

  bool unlocked() const { return !encrypted_ || own_ != nullptr || use_.has_value(); }
  std::string stored(std::string_view name) const;
  Result<std::string> shown(std::string_view stored) const;  // plain or no-key name
  // The same of an encrypted symlink's target, under the key of its own nonce.
  std::string stored_target(std::string_view target) const;
  Result<std::string> shown_target(std::string_view sealed) const;

 private:
  explicit NameAccess(bool encrypted) : encrypted_(encrypted) {}
  const crypto::NameKey& key() const { return own_ != nullptr ? *own_ : *key_; }
  bool encrypted_;
  const crypto::NameKey* own_ = nullptr;
  std::optional<keymgr::KeyUse> use_;
  Secret<crypto::NameKey> key_;  // wiped before the use ends
};

inline std::unexpected<Error> would_wait() {
  return fail(Errc::would_wait, "the key is suspended, or its writers are held");
}

inline std::unexpected<Error> data_lost() {
  return fail(Errc::io, "data of this file was lost when its key was removed");
}

Result<void> check_name(std::string_view name);

// The locks of one to three directories: of the shards that they fall into, in order.
class DirectoryLocks {
 public:
  static constexpr u32 kShards = 64;
  using Shards = std::array<Mutex, kShards>;
  DirectoryLocks(Shards& shards, std::initializer_list<InodeId> directories);
  ~DirectoryLocks();
  DirectoryLocks(const DirectoryLocks&) = delete;
  DirectoryLocks& operator=(const DirectoryLocks&) = delete;

 private:
  std::array<Mutex*, 3> held_{};  // null from the first unused place on
};

struct Volume::State {
  class Use;
  class HandleUse;
  class NewHandle;
  class OwnLease;
  struct Rename;

  State(engine::Device& device_in, const VolumeOptions& options_in, Env& env_in);
  ~State();

  engine::Device& device;
  const VolumeOptions options;
  Env& env;
  std::unique_ptr<engine::Store> store;
  std::unique_ptr<writeback::Pipeline> pipeline;  // none where nothing is written
  keymgr::Keyring keyring;
  std::unique_ptr<keymgr::SlotTable> slots;
  PageMemory memory;
  BlockCounts block_counts;
  std::atomic<u64> maps_counted{0};

  // Moves between directories exclude each other, so that no two of them together make a loop.
  // Before any directory's lock.
  Mutex move_mutex;
  DirectoryLocks::Shards directories;  // changes of a directory's names exclude each other

  Mutex table_mutex;
  CondVar handle_closed;  // with table_mutex; for a safe removal that waits
  std::unordered_map<InodeId, InodePtr> inodes LK_GUARDED_BY(table_mutex);
  std::unordered_map<u64, HandlePtr> handles LK_GUARDED_BY(table_mutex);
  // Of each key, so that who is inside is told without a look at anybody else.
  std::unordered_map<crypto::KeyId, std::set<u64>, crypto::IdHash> handles_of_key
      LK_GUARDED_BY(table_mutex);
  // The same ones by their owner words, which their leases have.
  std::unordered_map<u64, Inode*> owners_by_word LK_GUARDED_BY(table_mutex);
  u64 next_owner_word LK_GUARDED_BY(table_mutex) = kNoOwner + 1;
  // As the tree of subvolumes has them; a removed one until its own tree is gone.
  std::unordered_map<engine::TreeId, Subvolume> subvolumes LK_GUARDED_BY(table_mutex);
  u64 next_handle LK_GUARDED_BY(table_mutex) = 1;
  // Of removals under way, with a front.
  struct Refusals {
    struct Write {
      InodePtr inode;
      u64 first_page = 0;
      u64 pages = 0;
    };
    crypto::KeyId id;
    std::vector<Write> writes;
    u64 unlisted_pages = 0;      // those that memory ended for
    std::optional<Error> error;  // the first one
  };
  std::vector<Refusals*> refusals LK_GUARDED_BY(table_mutex);
  std::atomic<u64> all_losses{0};  // how often dirty pages of an inode were dropped with their key
  std::unordered_map<InodeId, InodePtr> lingering LK_GUARDED_BY(table_mutex);  // compat; in use
  // Inodes that left the table, by their ids' hash: who read one from the tree meanwhile reads it
  // again.
  static constexpr u32 kForgottenShards = 64;
  std::array<u64, kForgottenShards> forgotten LK_GUARDED_BY(table_mutex){};
  u64& forgotten_count(InodeId id) LK_REQUIRES(table_mutex) {
    return forgotten[std::hash<InodeId>{}(id) % kForgottenShards];
  }

  // Numbers are handed out inside of a transaction, which excludes other ones.
  struct Counter {
    u64 next = 0;
    u64 limit = 0;  // the counter on disk
  };
  std::unordered_map<engine::TreeId, Counter> counters;  // of the subvolumes in use

  Mutex worker_mutex;
  bool stopping LK_GUARDED_BY(worker_mutex) = false;
  // Why a round of writeback got nothing down, and its number: who waits for room hears of a round
  // that failed and was begun since.
  std::optional<Error> stuck LK_GUARDED_BY(worker_mutex);
  u64 stuck_round LK_GUARDED_BY(worker_mutex) = 0;
  u64 rounds_begun LK_GUARDED_BY(worker_mutex) = 0;
  // Soft and sealed removals whose deadline is yet to come: a worker goes on with them in the mode
  // that the caller chose.
  struct Overdue {
    u64 at_ns = 0;  // monotonic
    Caller caller;
    crypto::KeyId id;
    RemovalRequest request;
  };
  std::vector<Overdue> overdue LK_GUARDED_BY(worker_mutex);
  std::atomic<u32> workers_away{0};  // waiting for the front: they make no room
  std::deque<engine::TreeId> to_drop LK_GUARDED_BY(worker_mutex);  // removed subvolumes
  bool dropping LK_GUARDED_BY(worker_mutex) = false;               // somebody takes a step
  CondVar dropped;                                                 // with worker_mutex
  std::vector<Thread> workers;

  bool writable() const { return pipeline != nullptr; }
  Result<void> must_be_writable() const;
  Result<void> must_be_writable(InodeId inode);  // nor is its subvolume read-only

  // --- open.cpp
  Result<void> start();
  Result<void> reap_orphans();
  Result<void> reap_orphans(engine::TreeId subvolume);
  void drop_everything();  // handles, pages, leases

  // --- inode_table.cpp
  // Counts a user of the inode, which is in memory then. not_found: there is none, or it is
  // unlinked.
  Result<Use> use(InodeId number);
  InodePtr in_memory(InodeId number);  // or nullptr
  InodePtr add_to_table(InodeId id, const Attributes& attributes) LK_REQUIRES(table_mutex);
  // Ends a use. The last one of an unlinked inode reaps it; the last one of a key that is being
  // removed flushes and lets the lease go. Reports what that met.
  Result<void> end_use(const InodePtr& inode);
  void leave_table(const Inode& inode) LK_REQUIRES(table_mutex);
  bool owes_atime(const Inode& inode) LK_REQUIRES(table_mutex);
  void forget_if_idle(const InodePtr& inode);  // no user, clean: out of the table, lease returned
  std::vector<InodePtr> dirty_inodes();        // by id
  Result<void> unlock_inode(Inode& inode);     // takes its lease if it needs one and has none
  void return_lease(Inode& inode);
  u64 lose_pages(Inode& inode) LK_REQUIRES(inode.flush_mutex);
  void let_in_again(const crypto::KeyId& id);  // the key was added: who has something open
  bool key_is_leaving(Inode& inode);
  Result<void> reap(Inode& inode);
  Result<void> reap(InodeId inode);

  // --- handles.cpp
  Result<HandleUse> find(HandleId id);
  HandleId add_handle(HandlePtr handle);
  void drop_handle(HandleId id);
  HandlePtr take_handle(HandleId id) LK_REQUIRES(table_mutex);  // out of the table; or nullptr
  void list_under_key(u64 id, Handle& handle) LK_REQUIRES(table_mutex);
  Result<void> pass_door(Inode& inode);
  // A file by a name of that directory, or without one.
  Result<HandleId> open_inode(Caller caller, InodeId directory, Use use, OpenFlags flags,
                              std::string path);
  Result<HandleId> open_directory(Caller caller, Use use, std::string path);
  Result<u64> blocks_of(InodeId inode);
  Result<void> ready(Handle& handle);  // its key is there and nothing of it was lost
  // The same for a read or a write, which waits while the key is suspended, or would_wait.
  Result<void> ready_for_io(Handle& handle, IoFlags flags);
  // Of a read or a write that met no_key: its key is suspended, or a suspension has begun or ended
  // since `seen` (Suspensions::changes), so that it looks again.
  bool begins_again(const Handle& handle, const Error& error, u64 seen);
  Result<void> tell_errors(Handle& handle);  // what fsync and close say, once for each handle

  // --- front.cpp
  void try_again(const crypto::KeyId& id);  // who got would_wait
  // A read that does not wait fills what is in front of the volume.
  Result<void> may_page_in(const Inode& inode, IoFlags flags);
  // A write of what was acknowledged in front of the volume: of these bytes none is here.
  void note_refused(const InodePtr& inode, u64 offset, u64 bytes, const Error& error);
  void suspend(const crypto::KeyId& id, std::set<u32> claimers, std::optional<u64> until);
  void end_late_suspensions();  // with a front nobody waits for their end

  // --- lingering.cpp
  std::vector<Use> pin_from(InodeId directory);
  Result<void> leave(const InodePtr& inode);
  void stop_lingering(const crypto::KeyId& id);
  void stop_lingering_if_unlinked(Inode& inode);

  // --- flush.cpp
  // `synced`: its fsync comes next.
  Result<void> flush(const InodePtr& inode, bool synced = false);
  Result<void> fsync(Handle& handle);
  bool may_pass(const Error& error);  // of a flush: the next one may find memory again
  // Flushes each, many files in one write. `wait`: also those that somebody else flushes just now.
  // Returns those that failed, and the first error.
  struct Flushed {
    u64 pages = 0;
    std::vector<InodePtr> failed;
    Result<void> result;
  };
  Flushed flush_many(std::span<const InodePtr> list, bool wait, bool synced = false);
  Result<Room> take_room(u64 pages);
  void stop_workers();
  void work();
  void work_once(u64 seen, u64& last_commit);
  bool should_stop();

  // --- file_write.cpp
  struct Written {
    u64 offset = 0;
    u64 bytes = 0;
  };
  // `done`: of an error, too.
  Result<u64> write(Handle& handle, std::optional<u64> offset, Bytes from, IoFlags flags,
                    u64& done);
  Result<Written> write(HandleId id, std::optional<u64> offset, Bytes from, IoFlags flags);
  struct WritePiece {
    u64 offset = 0;
    Bytes from;
    u32 losses = 0;  // of the inode when the caller looked at it
    bool use_reserve = false;
    IoFlags flags = {};
  };
  Result<void> write_piece(Inode& inode, const WritePiece& piece) LK_REQUIRES(inode.write_mutex);
  Result<std::vector<bool>> promised_pages(const Inode& inode, u64 first, u64 count)
      LK_REQUIRES(inode.write_mutex);

  // --- truncate.cpp
  Result<void> truncate(const InodePtr& inode, u64 size, u32 losses, IoFlags flags = {});
  Result<void> pass_gate(Inode& inode, IoFlags flags) LK_REQUIRES(inode.write_mutex);
  Result<void> cut_map(Inode& inode, u64 size) LK_REQUIRES(inode.flush_mutex);
  Result<void> cut_inside(Inode& inode, u64 size) LK_REQUIRES(inode.flush_mutex);
  Result<bool> cut_step(engine::Transaction& transaction, Inode& inode, u64 size,
                        std::span<const extent::MapEntry> last);

  // --- holes.cpp
  // A handle on a file that may be changed now.
  Result<HandleUse> find_for_change(HandleId id);
  Result<void> settle(const InodePtr& inode) LK_REQUIRES(inode->write_mutex);
  // The first block of the file (first block, blocks in all) where there is data, or none.
  Result<std::optional<u64>> seek_block(const Inode& inode, extent::FileRange file, bool data);
  Result<void> punch(const InodePtr& inode, u64 offset, u64 end, IoFlags flags);
  Result<void> zero_in_page(Inode& inode, u64 offset, u64 end, IoFlags flags)
      LK_REQUIRES(inode.write_mutex);
  Result<void> put_changed(engine::Transaction& transaction, Inode& inode, u64 size);
  Result<void> allocate(const InodePtr& inode, u64 offset, u64 end, bool keep_size);
  Result<void> promise_range(Inode& inode, u64 offset, u64 end, bool keep_size)
      LK_REQUIRES(inode.write_mutex);
  Result<extent::FileRange> promise_gaps(engine::Transaction& transaction, const Inode& inode,
                                         extent::FileRange range, engine::Reservation& space);

  // --- space.cpp
  // As Store::reserve, after a flush of everything if that was not enough. With no flush_mutex.
  Result<engine::Reservation> reserve(const engine::SpaceNeed& need, bool use_reserve = false);
  // Whether it was that the store is full, and what has been flushed now may have made room.
  bool made_room(const Error& error);

  // --- clone.cpp
  struct Clone {
    InodePtr from;
    u64 from_offset = 0;
    InodePtr to;
    u64 to_offset = 0;
    u64 length = 0;                      // 0: to the source's end
    u32 from_losses = 0, to_losses = 0;  // of the inodes when their handles were opened
  };
  static Result<u64> check_clone(const Clone& clone);
  static Result<void> nothing_lost(const Clone& clone);
  Result<void> clone(const Clone& clone) LK_NO_ANALYSIS;
  Result<u64> clone_step(engine::Transaction& transaction, InodeId from, extent::FileRange range,
                         InodeId to, u64 to_block);

  // --- file_read.cpp
  Result<u64> read_blocks(Inode& inode, u64 first_block, MutableBytes into);
  Result<u64> read(Inode& inode, u64 offset, MutableBytes into);

  // --- names.cpp
  Result<void> with_names(InodeId directory, const Attributes& attributes,
                          const std::function<Result<void>(const NameAccess&)>& fn);
  // As it is stored; nothing while the directory is locked.
  Result<std::optional<std::string>> stored_name(InodeId directory, const Attributes& attributes,
                                                 std::string_view name);
  Result<Attributes> directory_attributes(InodeId directory);
  Result<std::optional<Entry>> find_stored(const engine::View& view, InodeId directory,
                                           std::string_view stored);
  Result<std::optional<Entry>> find_no_key(InodeId directory, std::string_view name);
  Result<Entry> find_entry(InodeId directory, std::string_view name);
  Result<void> must_have_policy_of(const Attributes& item, InodeId directory);
  // From that place on (DirEntry::place), so many.
  Result<std::vector<DirEntry>> list(InodeId directory, u64 from = 0, u64 count_max = ~u64{0});

  // --- scrub.cpp
  Result<std::string> path_of(InodeId inode);

  // Under a lease of this call's own: with the locked form unless the item's key is present.
  Result<void> with_key(const Attributes& item,
                        const std::function<Result<void>(const NameAccess&)>& fn);
  Result<Attributes> attributes_of(InodeId inode);  // in use or not

  // --- directory.cpp
  // What a new inode is, but for what it has of its directory and its maker.
  struct Fresh {
    FileKind kind = FileKind::regular;
    u32 mode = 0;
    u64 device = 0;                // of a device
    std::string_view target = {};  // of a symlink
    NewHandle* handle = nullptr;   // of a file that is open before it has its name
  };
  Result<InodeId> make(Caller caller, InodeId directory, std::string_view name, const Fresh& what);
  Result<Attributes> inherit(Caller caller, const Attributes& above, const Fresh& what);
  Result<void> open_new(NewHandle& handle, InodeId made, const Attributes& fresh, u64 transaction);
  // A new name: where it goes, looked up in this order under the directory's lock.
  struct NewName {
    Attributes above;  // of the directory
    NameOfInode name;
    engine::Key entry, back;
  };
  static constexpr u32 kNameOpRecords = 8;
  static constexpr u32 kNameOpBytes = 1400;
  Result<void> must_be_free(InodeId directory, std::string_view name);
  Result<NewName> place_for_name(const Inode& parent, std::string_view name);
  Result<void> find_room(const engine::View& view, InodeId directory, NewName& place);
  Result<void> put_name(engine::Transaction& transaction, const NewName& place, InodeId inode,
                        FileKind kind);
  Result<void> touch_directory(engine::Transaction& transaction, Inode& directory, i64 now);
  Result<bool> is_empty(InodeId directory);
  Result<void> make_orphan(engine::Transaction& transaction, Inode& inode, i64 now);
  Result<void> remove_name(InodeId directory, std::string_view name, bool of_directory);
  Result<u64> free_place(const engine::View& view, InodeId directory, u64 base);
  Result<void> read_counter(const engine::View& view, engine::TreeId subvolume);
  Result<InodeId> new_number(engine::Transaction& transaction, engine::TreeId subvolume);
  Result<void> may_set_key(Caller caller, const crypto::KeyId& id);

  // --- attributes.cpp
  // Changes and puts the item, inside of a transaction.
  Result<void> put_changed(engine::Transaction& transaction, Inode& inode,
                           const std::function<void(Attributes&)>& fn);
  // `feature`: that a store with the change needs (engine::Transaction::need_feature).
  Result<void> change_attributes(Inode& inode, const std::function<void(Attributes&)>& fn,
                                 u64 feature = 0);
  Result<void> set_attributes(Inode& inode, const AttributeChange& wanted);
  Result<void> drop_privileges(Inode& inode, u32 uid);
  bool is_locked(const Inode& inode);
  void note_read(Inode& inode);
  void put_atime(Inode& inode);

  // --- xattrs.cpp
  enum class Access : u8 { by_inode, open_handle };
  Result<void> with_value_key(Inode& inode, Access access,
                              const std::function<Result<void>(const crypto::ValueKey&)>& fn);
  Result<void> set_xattr(Inode& inode, Access access, std::string_view name, Bytes value,
                         XattrFlags flags);
  Result<std::vector<std::byte>> get_xattr(Inode& inode, Access access, std::string_view name);
  Result<void> remove_xattr(Inode& inode, std::string_view name);

  // --- links.cpp
  Result<void> must_hold_key(Inode& inode);
  Result<void> may_link(const Inode& inode, const Attributes& into);
  Result<void> link(Inode& inode, InodeId directory, std::string_view name);
  Result<void> drop_link(engine::Transaction& transaction, Inode& inode, i64 now);
  Result<std::string> stored_target(const Attributes& item, std::string_view target);
  Result<std::string> target_of(InodeId inode, const Attributes& item);
  Result<Use> make_unnamed(Caller caller, InodeId directory, u32 mode);

  // --- rename.cpp
  Result<void> rename(InodeId from_directory, std::string_view from, InodeId to_directory,
                      std::string_view to, RenameFlags flags);

  // --- subvolumes.cpp
  Result<void> load_subvolumes();
  bool is_there(engine::TreeId subvolume) const LK_REQUIRES(table_mutex);
  Result<void> must_be_there(engine::TreeId subvolume);
  std::vector<engine::TreeId> all_subvolumes();  // in order, but for removed ones
  void cross(InodeId directory, Entry& entry);
  std::optional<NameOfInode> name_of_subvolume(InodeId& root);
  Result<void> name_subvolume(engine::Transaction& transaction, engine::TreeId id,
                              const NewName& place, const Subvolume& subvolume);
  Result<void> move_subvolume(engine::Transaction& transaction, engine::TreeId id,
                              InodeId directory, const std::string& stored);
  Result<void> flush_subvolume(engine::TreeId subvolume);
  Result<InodeId> clone_subvolume(const Inode& source, InodeId directory, std::string_view name,
                                  bool read_only);
  Result<void> shut_subvolume(engine::TreeId id, std::vector<Holder>* holders);
  Result<void> take_name(Inode& parent, const Entry& entry);
  void forget_subvolume(engine::TreeId id);
  Result<bool> drop_step();
  Result<bool> drop_some(engine::TreeId id);
  Result<void> finish_removals(const std::function<void(u64 steps)>& progress);

  // --- keys.cpp
  std::vector<Holder> holders(const crypto::KeyId& id) LK_REQUIRES(table_mutex);
  using OwnersOf = std::function<std::vector<u64>(u64& cursor, u32 count_max)>;
  std::vector<InodePtr> leased(const OwnersOf& next);
  KeyReport key_facts(const crypto::KeyId& id, u32 uid);  // without holders
  KeyReport key_report(const crypto::KeyId& id, u32 uid);

  // --- removal.cpp; `until` is on the monotonic clock
  using Until = std::optional<u64>;
  class Removing;
  Result<void> remove(Caller caller, const crypto::KeyId& id, RemovalRequest request, Until until,
                      RemovalReport& report);
  Result<keymgr::RemovalStart> begin_removal(Caller caller, const crypto::KeyId& id,
                                             const RemovalRequest& request, Until until,
                                             RemovalReport& report);
  bool end_suspension(Caller caller, const crypto::KeyId& id, const RemovalRequest& request,
                      Until until);
  Result<void> wait_until_gone(Caller caller, const crypto::KeyId& id,
                               const RemovalRequest& request, Until until, RemovalReport& report);
  void go_on_later(const Overdue& removal);
  u64 next_overdue_ns();  // from now
  void remove_overdue();

  // --- removal_dry.cpp
  Result<void> rehearse(Caller caller, const crypto::KeyId& id, const RemovalRequest& request,
                        RemovalReport& report);

  // --- seal.cpp
  Result<std::vector<crypto::Nonce>> extent_nonces(const Inode& inode, u64 count_max);
  Result<void> seal(Inode& inode, u64 number, RemovalReport& report);
  void unseal(const crypto::KeyId& id, u64 number);
  void unseal(std::span<const InodePtr> list, u64 first, u64 last);
};

// One user of an inode, ended by the destructor or, where errors matter, by end().
class Volume::State::Use {
 public:
  Use() = default;
  Use(State& state, InodePtr inode) : state_(&state), inode_(std::move(inode)) {}
  Use(Use&& other) noexcept = default;
  Use& operator=(Use&& other) noexcept {
    std::swap(state_, other.state_);
    std::swap(inode_, other.inode_);
    return *this;
  }
  ~Use() { (void)end(); }
  const InodePtr& inode() const { return inode_; }
  Inode& operator*() const { return *inode_; }
  Inode* operator->() const { return inode_.get(); }
  InodePtr keep() { return std::move(inode_); }  // somebody else ends it
  Result<void> end() {
    if (inode_ == nullptr) return {};
    return state_->end_use(std::exchange(inode_, nullptr));
  }

 private:
  State* state_ = nullptr;
  InodePtr inode_;
};

// A handle during one call. The call is a user of the inode: a close under it is not the last one,
// so what the call takes and dirties is flushed and given back by whoever ends last.
class Volume::State::HandleUse {
 public:
  HandleUse(HandlePtr handle, Use use) : handle_(std::move(handle)), use_(std::move(use)) {}
  Handle& operator*() const { return *handle_; }
  Handle* operator->() const { return handle_.get(); }
  Result<void> end() { return use_.end(); }
  Use take_use() { return std::move(use_); }

 private:
  HandlePtr handle_;
  Use use_;
};

// A handle on its way to the caller. It is listed before the door of its inode's key is tried, so
// that who is inside is always listed, and is gone again if nobody keeps it.
class Volume::State::NewHandle {
 public:
  // Opened through a name in `directory`.
  NewHandle(State& state, Caller caller, InodeId directory, OpenFlags flags, std::string path);
  NewHandle(const NewHandle&) = delete;
  NewHandle& operator=(const NewHandle&) = delete;
  ~NewHandle();
  void list(Use use);
  HandleId keep();  // of a listed one
  const InodePtr& inode() const { return use_.inode(); }

 private:
  State& state_;
  std::vector<Use> above_;
  HandlePtr handle_;
  Use use_;
  std::optional<HandleId> listed_;
};

// An operation's own lease of a key, given back when it ends.
class Volume::State::OwnLease {
 public:
  explicit OwnLease(State& state) : state_(state) {}
  OwnLease(const OwnLease&) = delete;
  OwnLease& operator=(const OwnLease&) = delete;
  ~OwnLease() {
    if (lease_.held() && state_.keyring.release(lease_)) state_.slots->evict_key(id_);
  }
  Result<void> take(const crypto::KeyId& id) {  // once
    id_ = id;
    return state_.keyring.lease(id, kNoOwner, lease_);
  }
  const keymgr::Lease& operator*() const { return lease_; }

 private:
  State& state_;
  crypto::KeyId id_{};
  keymgr::Lease lease_;
};

}  // namespace latchkey::volume
