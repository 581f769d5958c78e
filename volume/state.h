#pragma once
// What is behind Volume. Lock order: a directory's names_mutex (one for the volume) -> an inode's
// locks (inode.h) -> table_mutex (a leaf) and dirty_mutex (a leaf).

#include <deque>
#include <thread>
#include <unordered_map>

#include "base/env.h"
#include "base/mutex.h"
#include "base/wait.h"
#include "keymgr/slots.h"
#include "volume/inode.h"
#include "volume/volume.h"
#include "writeback/pipeline.h"

namespace latchkey::volume {

using InodePtr = std::shared_ptr<Inode>;

struct Handle {
  InodePtr inode;
  OpenFlags flags;
  u32 uid = 0;
  std::string path;
  u64 since_ns = 0;
  bool directory = false;
  std::atomic<bool> stop_told{false};  // D4: it heard once that the volume stopped
};

// A directory's names while its key is held: derived for one operation, wiped after it.
struct NameAccess {
  bool encrypted = false;
  bool unlocked = true;
  Secret<crypto::NameKey> key;

  std::string stored(std::string_view name) const;
  Result<std::string> shown(std::string_view stored) const;  // plain or no-key name
};

struct Volume::State final : DirtyBudget {
  State(engine::Device& device_in, const VolumeOptions& options_in, Env& env_in)
      : device(device_in), options(options_in), env(env_in) {}
  ~State() override;

  engine::Device& device;
  const VolumeOptions options;
  Env& env;
  std::unique_ptr<engine::Store> store;
  std::unique_ptr<writeback::Pipeline> pipeline;
  keymgr::Keyring keyring;
  std::unique_ptr<keymgr::SlotTable> slots;

  // One operation on names at a time: creates, unlinks, renames see a directory that stands still.
  Mutex names_mutex;

  Mutex table_mutex LK_AFTER(names_mutex);
  std::unordered_map<InodeNumber, InodePtr> inodes LK_GUARDED_BY(table_mutex);
  std::unordered_map<u64, std::shared_ptr<Handle>> handles LK_GUARDED_BY(table_mutex);
  u64 next_handle LK_GUARDED_BY(table_mutex) = 1;
  InodeNumber next_inode LK_GUARDED_BY(table_mutex) = kRootInode + 1;
  InodeNumber inode_limit LK_GUARDED_BY(table_mutex) = 0;  // the counter on disk

  Mutex dirty_mutex;
  CondVar dirty_changed;
  u64 pages_in_memory LK_GUARDED_BY(dirty_mutex) = 0;
  bool stopping LK_GUARDED_BY(dirty_mutex) = false;
  std::vector<std::thread> workers;

  // --- open.cpp
  Result<void> start();
  void stop_workers();
  void work();
  Result<void> reap_orphans();
  Result<void> reap(InodeNumber inode);

  // --- inodes (handles.cpp)
  Result<InodePtr> get(InodeNumber number);    // in memory, or read and put there
  void forget_if_idle(const InodePtr& inode);  // no handle, clean: out of the table, lease returned
  Result<std::shared_ptr<Handle>> find(HandleId id);
  HandleId add_handle(std::shared_ptr<Handle> handle);
  std::vector<InodePtr> dirty_inodes();
  Result<void> unlock_inode(Inode& inode);  // takes its lease if it needs one and has none
  void return_lease(Inode& inode);

  // --- writeback (file_write.cpp)
  Result<void> flush(Inode& inode);  // with flush_mutex held by nobody
  Result<void> flush_locked(Inode& inode) LK_REQUIRES(inode.flush_mutex);
  void pages_gone(u64 count) override;
  void wait_for_room();
  Result<void> tell_errors(Handle& handle);
  Result<void> write_at(Handle& handle, u64 offset, Bytes from);
  Result<void> truncate(Inode& inode, u64 size);

  // --- reading (file_read.cpp)
  Result<void> read_blocks(Inode& inode, u64 first_block, MutableBytes into);
  Result<u64> read(Handle& handle, u64 offset, MutableBytes into);

  // --- names (names.cpp)
  Result<NameAccess> names_of(InodeNumber directory, const Attributes& attributes);
  Result<Attributes> directory_attributes(InodeNumber directory);
  Result<std::optional<Entry>> find_stored(const engine::View& view, InodeNumber directory,
                                           std::string_view stored);
  Result<Entry> find_entry(InodeNumber directory, std::string_view name);
  Result<std::vector<DirEntry>> list(InodeNumber directory);
  Result<InodeNumber> make(Caller caller, InodeNumber directory, std::string_view name,
                           FileKind kind, u32 mode);
  Result<void> remove_name(InodeNumber directory, std::string_view name, FileKind kind);
  Result<InodeNumber> new_number(u64& counter_to_put);
  Result<void> change_attributes(InodeNumber inode,
                                 const std::function<Result<void>(Attributes&)>& fn);

  // --- keys (keys.cpp)
  std::vector<Holder> holders(const crypto::KeyId& id);
  void settle_inodes(keymgr::Removal& removal, RemovalReport& report);
  KeyReport key_report(const crypto::KeyId& id, u32 uid);
};

}  // namespace latchkey::volume
