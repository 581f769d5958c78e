#pragma once
// The store: a crash-safe copy-on-write forest of opaque records, and blocks of opaque bytes with
// an extent table. It cannot name a key.
//
// Invariants (design D1 to D4, S2 to S5)
//   E1  Nothing that a committed tree refers to is overwritten: node, bitmap slot or data block.
//   E2  A block freed in transaction f is allocated again only when f + 1 is durable and no ReadPin
//       taken in a transaction <= f is left.
//   E3  Data writes whose extents a transaction inserts have completed before the insert; a commit
//       flushes, writes one superblock set, flushes.
//   E4  On disk a block is used exactly when a committed tree, a superblock or a bitmap slot uses
//   it:
//       blocks that were allocated but never inserted are free again after a crash.
//   E5  A failed flush or a failed metadata write is sticky: that transaction is lost, the store
//   turns
//       read-only, failure() says why, every later commit returns it.
//
// Threads: everything here is thread-safe. Lookups (View) share, changes (Transaction) exclude each
// other for the few microseconds of one operation; commits write without holding either. A thread
// holds at most one View or Transaction at a time and does not wait for anything but node reads
// while it does.

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/result.h"
#include "engine/io.h"
#include "engine/types.h"

namespace latchkey::engine {

class Store;
class LogTurn;      // engine/log_turn.h
struct StoreState;  // private: engine/store_state.h

using VolumeId = std::array<std::byte, 16>;
inline constexpr std::size_t kContextBytesMax = 64;

struct FormatOptions {
  VolumeId volume_id{};    // random, from the caller
  u32 node_bytes = 16384;  // 4096 to 65536, a power of two
  u32 extent_blocks_max =
      32;             // longest extent that writers make: 1 to 256 blocks (128 KiB default)
  std::string label;  // up to 63 bytes, UTF-8
};

// Which data blocks a record of a subvolume's tree refers to, if it does: all that the engine needs
// to understand of it, since a copy of a shared leaf refers to them as well. Must be a function of
// the two and of nothing else, and call nothing of the store. Absent: no record refers to any.
using RunsOf = std::function<std::optional<BlockRun>(const Key&, Bytes)>;

// Whether a record of a subvolume's tree, by its key, gives an object a name. Names change in one
// order, which the fsync log keeps. As RunsOf. Absent: each may.
using IsName = std::function<bool(const Key&)>;

class ReadAround;
class RingPool;
class Transaction;
struct LogRecord;
// Enters one record of the fsync log again, as its insert or create did: the note says how. Errors:
// malformed for a note that none would have made.
using Replay = std::function<Result<void>(Transaction&, const LogRecord&)>;

struct OpenOptions {
  bool read_only = false;
  // Read-only, for rescue: the older superblock set, or the one that can be read.
  bool previous_generation = false;
  bool repair = false;          // damaged free space is no reason to refuse: engine/repair.h
  u64 cache_bytes = 64 * kMiB;  // clean nodes kept in memory
  u32 read_rings = 4;           // rings that readers borrow
  u64 read_ring_buffer_bytes = 1 * kMiB;
  bool register_buffers = true;  // of those rings
  RunsOf runs_of = {};
  IsName is_name = {};
  // For what was synced after the last commit. A store that has such records is not opened for
  // writing without it (unsupported). Read-only they are entered in memory; without it the store
  // is that of the last commit, and logged() has them.
  Replay replay = {};
  bool fsync_log = true;  // else every sync is a commit
  // Tells the device which blocks nobody needs any more, once they may be reused (E2) and before
  // they are: by the thread that commits, after its commit is durable. A device that knows no
  // discard is not asked. Not told: what is freed while the store is open without this, or just
  // before a crash.
  bool discard = false;
};

struct StoreFacts {
  VolumeId volume_id{};
  std::string label;
  u32 node_bytes = 0;
  u32 extent_blocks_max = 0;
  u64 generation = 0;  // last durable commit
  u64 size_bytes = 0;
  u64 features_compat = 0, features_ro_compat = 0, features_incompat = 0;
  // At the open neither copy of the other superblock set verified: a commit was torn before anybody
  // was told of it, or the newest generation is lost (docs/limits.md).
  bool stepped_back = false;
  u64 log_replayed = 0;      // records of the fsync log that this open entered
  bool log_damaged = false;  // it was opened for repair or reading, and acknowledged ones are lost
};

struct SpaceFacts {
  u64 blocks_total = 0;
  u64 blocks_used = 0;      // by the running transaction's trees and data
  u64 blocks_pinned = 0;    // freed, not yet reusable
  u64 blocks_reserved = 0;  // promised to writers
  u64 blocks_promised = 0;  // to ranges of files: see Transaction::promise
  u64 blocks_log = 0;       // of the fsync log: free on disk, and free when the room is needed
  // What reserve() can still promise to data: to the block, when nothing is pinned.
  u64 blocks_available = 0;
  u64 blocks_discarded = 0;  // since the open
};

// What an operation will need at most. Tree space is counted in records and their bytes; the store
// turns it into nodes (both places, splits, copies of shared nodes).
struct SpaceNeed {
  u64 data_blocks = 0;
  u32 records = 0;       // put or split
  u64 record_bytes = 0;  // sum of their values
  // Where trees share nodes: how many leaves of subvolume trees are changed at most; each may have
  // to be copied with all that leads to it. 0: as many as records.
  u32 leaves = 0;
  bool clone = false;       // clone_tree: from then on changes of either tree need more
  u64 promised_blocks = 0;  // of the data blocks, those that are promised where they will lie
};

// What one block of data may need at most when it is inserted by itself: map entry and its cut
// neighbours, extent record, what the file says of itself.
inline constexpr u32 kRecordsABlock = 4;
inline constexpr u32 kRecordBytesABlock = 220;

// Promised blocks that somebody holds a reservation for, because data is about to lie there. What
// is left at its end is a promise like the others again. Move-only; not thread-safe.
class DrawnPromise {
 public:
  DrawnPromise() = default;
  DrawnPromise(DrawnPromise&& other) noexcept;
  DrawnPromise& operator=(DrawnPromise&& other) noexcept;
  ~DrawnPromise();

  void merge(DrawnPromise&& other);
  DrawnPromise take(u64 blocks);  // at most what is there
  u64 blocks() const { return blocks_; }

 private:
  friend class Reservation;
  friend class Store;
  friend class Transaction;
  Store* store_ = nullptr;
  u64 blocks_ = 0;
};

// A promise of space; gives back in its destructor what was not used. Move-only; not thread-safe.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();

  void merge(Reservation&& other);  // other of the same store
  // Moves a part out (at most what is there): a plan takes its pages' share along.
  Reservation take(u64 data_blocks, u64 tree_blocks);
  // Of its data blocks, those that came out of promises; take() leaves them to take_drawn().
  DrawnPromise take_drawn(u64 blocks) { return drawn_.take(blocks); }
  u64 drawn_blocks() const { return drawn_.blocks(); }
  u64 data_blocks() const { return data_blocks_; }
  u64 tree_blocks() const { return tree_blocks_; }
  bool empty() const { return data_blocks_ == 0 && tree_blocks_ == 0 && clones_ == 0; }

 private:
  friend class Store;
  friend class Transaction;
  Store* store_ = nullptr;
  u64 data_blocks_ = 0;
  u64 tree_blocks_ = 0;
  u64 leaves_ = 0;  // 0 only if there are no tree blocks
  u64 clones_ = 0;
  DrawnPromise drawn_;
};

// Keeps the blocks that were looked up since it was taken from being reused, while I/O reads them.
class ReadPin {
 public:
  ReadPin() = default;
  ReadPin(ReadPin&& other) noexcept;
  ReadPin& operator=(ReadPin&& other) noexcept;
  ~ReadPin();

 private:
  friend class Store;
  Store* store_ = nullptr;
  u64 transaction_ = 0;
};

struct Record {
  Key key;
  std::vector<std::byte> value;
};

// One record of the extent table, or the part of it that was asked for.
struct ExtentRecord {
  BlockRun run;
  u32 references = 0;
  u64 first_unit = 0;              // tweak of run.block's unit
  std::vector<std::byte> context;  // opaque; empty for a clear extent
  std::vector<u32> checksums;      // crc32c of each block's bytes on the device
};

// One insert into an object, or how it was made, as the fsync log carries it.
enum class LogKind : u8 { insert = 0, create = 1 };
struct LogRecord {
  TreeId tree = 0;
  u64 object = 0;
  std::vector<ExtentRecord> extents;  // one reference each; of a create none
  std::vector<std::byte> note;        // the caller's
  LogKind kind = LogKind::insert;
};

// A consistent picture of the running transaction. Holds the forest shared.
class View {
 public:
  View(View&& other) noexcept;
  View& operator=(View&&) = delete;
  ~View();

  Result<std::optional<Record>> get(TreeId tree, Key key) const;
  // The first record at or after `key`, the last one at or before it; of any object.
  Result<std::optional<Record>> at_or_after(TreeId tree, Key key) const;
  Result<std::optional<Record>> at_or_before(TreeId tree, Key key) const;
  // Records from `first` to `last`, both included, in order, until fn returns false. The value is
  // valid during the call only; fn must not use the store.
  Result<void> scan(TreeId tree, Key first, Key last,
                    const std::function<bool(const Key&, Bytes)>& fn) const;
  // What holds `block`, clipped to [block, block + blocks_max): the first unit is that of `block`.
  // Errc::damaged if no record contains it: a map that points nowhere.
  Result<ExtentRecord> extent_at(u64 block, u32 blocks_max) const;
  // The records of all subvolumes' trees, those that trees share once, with one of the trees that
  // have it; in no order; until fn returns false. An extent has one reference for each of these
  // that refers to it.
  Result<void> scan_distinct(const std::function<bool(TreeId, const Key&, Bytes)>& fn) const;
  Result<bool> tree_exists(TreeId tree) const;
  bool shares_nodes() const;  // trees do: a change of one may copy leaves, see OpenOptions::runs_of

 protected:
  friend class Store;
  View(Store& store, bool exclusive);
  Store* store_ = nullptr;
  bool exclusive_ = false;
};

// Joined to the running transaction: every change made through one Transaction object is in the
// same commit, whole or not at all. A change fails with no_space only if its need was understated,
// with io or damaged if a node cannot be read; after such a failure the store is in failure (E5),
// since half an operation cannot be taken back: look up what you need first. So it is if an
// exception (of memory: std::bad_alloc) leaves the life of a Transaction that has changed anything.
class Transaction : public View {
 public:
  Transaction(Transaction&& other) noexcept = default;
  ~Transaction();

  u64 id() const;  // wait_durable(id()) waits for these changes
  Result<void> put(TreeId tree, Key key,
                   Bytes value);             // inserts or replaces; <= record_bytes_max()
  Result<bool> erase(TreeId tree, Key key);  // false: was not there
  Result<void> create_tree(TreeId tree);     // exists if there is one
  // Of what this transaction changes, a build that does not know this bit of features_incompat
  // would not make sense: from its commit on the superblock has it, for good.
  void need_feature(u64 bit);

  // `to`, which is new (exists otherwise), becomes a copy of the subvolume tree `from` and shares
  // every node with it, and so every data block: later changes of one are not seen in the other.
  // Costs the same whatever their size. Its space is reserved with SpaceNeed::clone. not_found:
  // there is no tree `from`.
  Result<void> clone_tree(TreeId from, TreeId to);
  // Frees what only the subvolume tree `tree` has, about nodes_max nodes of it, and says whether
  // the tree is gone. In between the tree is consistent and has lost records from its end: nobody
  // should read it any more. It goes on in any later transaction, after a crash too. The
  // reservation is of reserve({}, true).
  Result<bool> drop_tree_step(TreeId tree, u32 nodes_max);

  // `run` came from allocate() and its data writes have completed. checksums.size() == run.count.
  // Longer runs become several records under one context.
  Result<void> insert_extent(BlockRun run, u64 first_unit, Bytes context,
                             std::span<const u32> checksums);
  Result<void> share_extent(BlockRun run);  // one more reference to each block
  // One less; blocks without any are freed. Change the record that referred to them first: if its
  // leaf was shared, the leaf's copy takes references of its own then.
  Result<void> release_extent(BlockRun run);

  // So many blocks of the tree's records are promised from now on, across commits: what that costs
  // (Store::promise_cost) comes out of `space`. The store counts promises; where they lie, the
  // caller's records say.
  Result<void> promise(TreeId tree, u64 blocks, Reservation& space);
  // Promises are kept, those of `drawn`, which uses them up, or given up. malformed: the tree has
  // less.
  Result<void> end_promise(TreeId tree, u64 blocks, DrawnPromise& drawn);
  // For a repair: the tree's records promise so many blocks, whatever was counted.
  Result<void> recount_promises(TreeId tree, u64 blocks);

  // This transaction enters extents of so many `blocks` into that object of a subvolume's tree and
  // changes nothing of any other; OpenOptions::replay can do it again from the note. What is not
  // declared in this way makes sync_object() of the objects concerned a commit.
  void declare_insert(TreeId tree, u64 object, std::vector<std::byte> note, u64 blocks);
  // This transaction makes `object` of the subvolume's `tree` with a name in `directory`, by that
  // many changes of records of these two, and changes nothing else but records of `counts`, which
  // any number of creates may change in any order. As declare_insert().
  struct Create {
    TreeId tree = 0;
    u64 object = 0;
    u64 directory = 0;
    u64 counts = 0;
    u32 changes = 0;
  };
  void declare_create(const Create& create, std::vector<std::byte> note);
  // What was declared is in the log of that generation (LogTurn); does not matter any more if
  // another one runs.
  void already_logged(u64 generation) { logged_ = generation; }

 private:
  friend class Store;
  struct Touched {
    TreeId tree = 0;
    u64 object = 0;
    u32 changes = 0;
    bool is(TreeId of, u64 number) const { return tree == of && object == number; }
  };
  Transaction(Store& store, Reservation&& tree_space);
  StoreState& change();  // of the store, from here on
  Result<void> free_blocks(const std::vector<BlockRun>& freed);
  void touch(TreeId tree, const Key& key);
  void touch_tree(TreeId tree);
  bool is_create() const;
  void note_changes();
  Reservation tree_space_;
  std::vector<Touched> touched_;  // objects of subvolumes' trees, neighbours once
  LogRecord inserted_;            // as declared
  std::optional<Create> create_;  // as declared, with
  std::vector<std::byte> create_note_;
  u64 blocks_declared_ = 0;
  u64 logged_ = 0;           // the generation whose log has it
  bool undeclared_ = false;  // it changed what no declaration covers
  bool named_ = false;       // it changed a name
  bool changed_ = false;
  int exceptions_ = 0;  // under way when it began
};

// A ring borrowed from one of the readers' pools; returned by the destructor. Waits when all are
// out.
class BorrowedIo {
 public:
  BorrowedIo(BorrowedIo&& other) noexcept;
  BorrowedIo& operator=(BorrowedIo&&) = delete;
  ~BorrowedIo();
  Io& operator*() const { return *io_; }
  Io* operator->() const { return io_; }

 private:
  friend class Store;
  BorrowedIo() = default;
  RingPool* pool_ = nullptr;
  Io* io_ = nullptr;
};

class Store {
 public:
  // Writes an empty store: root, extent and key trees and the tree of subvolume kFirstSubvolume, as
  // generation 1. Errors: wrong_device (too small: less than 16 MiB), read_only, io.
  static Result<void> format(Device& device, const FormatOptions& options);
  // Errors: wrong_device (no superblock; device shorter than the store), format_version, damaged
  // (no superblock copy verifies, or a root does not), read_only, io (also where the newest
  // superblock set may be one that cannot be read), unavailable. The device outlives it.
  static Result<std::unique_ptr<Store>> open(Device& device, const OpenOptions& options, Env& env);
  ~Store();              // does not commit: call commit() or close()
  Result<void> close();  // commits; the store accepts nothing afterwards

  StoreFacts facts() const;
  // Bits of features_incompat, the running transaction's included.
  bool has_feature(u64 bits) const;
  SpaceFacts space() const;
  // Reads every bitmap; those that are damaged are left out.
  FreeRuns free_runs() const;
  std::optional<Error> failure() const;
  // The failure once for each `seen` flag: handles report a stopped store once (D4).
  Device& device() const;

  View view() const;
  ReadPin pin() const;  // take it before the View whose blocks it shall protect is dropped
  // With a buffer for so many bytes, or else one of read_ring_buffer_bytes. Of those for little
  // there are more, so that many can read beside each other; they are made when they are needed.
  BorrowedIo borrow_io(u64 bytes = ~u64{0}) const;
  // For those who read extents: what the device has around small reads. See there.
  ReadAround& read_around() const;

  // no_space after a commit (two, if blocks are pinned) has been tried; waits for those, so call it
  // with no View, Transaction or key gate held. `use_reserve`: delete, truncate, removal, commit;
  // what only keeps promises may use it too.
  Result<Reservation> reserve(const SpaceNeed& need, bool use_reserve = false);
  // Data blocks that a promise of so many takes: theirs, and room for the records of each.
  u64 promise_cost(u64 blocks) const;
  u64 promised_blocks() const;  // of all trees
  // tree blocks that `need` stands for: to split reservations by page.
  u64 tree_blocks_for(u32 records, u64 record_bytes) const;
  // Up to blocks_wanted neighbouring blocks, at least one, out of the reservation's data blocks,
  // which shrink. Never fails while the reservation has blocks.
  BlockRun allocate(Reservation& reservation, u32 blocks_wanted);
  // Gives back what allocate() handed out and nothing inserted (the data may have been written).
  // With `back` the blocks return to their reservation, so that a retry can have others.
  void cancel(BlockRun run, Reservation* back = nullptr);

  // Joins the running transaction; tree space comes from `space`. Waits while a transaction is too
  // large (it commits first). Errors: read_only, the sticky failure; no_space, before anything is
  // changed, if trees share nodes and what is free lies in pieces too small for copies of them.
  Result<Transaction> begin(Reservation&& space);
  // Others wait for a View or Transaction: who makes many in a row lets them go first, since nobody
  // queues for one.
  bool wanted() const;

  // Everything whose Transaction ended before the call is durable on return. Several callers share
  // one commit. Nothing to commit: returns at once (but reports a sticky failure).
  Result<void> commit();
  // Waits until transaction `id` is durable, committing it if it still runs.
  Result<void> wait_durable(u64 id);
  // What transactions that have ended changed of an object of a subvolume's tree is durable on
  // return: by a block of the fsync log, which several share, or by a commit.
  Result<void> sync_object(TreeId tree, u64 object);
  // Records of the log that the open found and did not enter; for a check.
  std::vector<LogRecord> logged() const;
  // By who has found that memory and device cannot agree any more (E5): nothing more is written.
  void stop(const Error& why);
  u64 running_transaction() const;
  u64 commits() const;     // counter
  u64 log_blocks() const;  // counter: written

 private:
  friend class View;
  friend class Transaction;
  friend class DrawnPromise;
  friend class Reservation;
  friend class ReadPin;
  friend class BorrowedIo;
  friend class LogTurn;
  explicit Store(std::unique_ptr<StoreState> state);
  Result<void> open_log(bool space_known);
  // `first`: changes that come before the log's, in the same transaction. What is waiting in the
  // log is claimed before either, and nothing is committed in between.
  Result<void> replay_log(const std::function<Result<void>(Transaction&)>& first = {});
  friend Result<struct CheckResult> check_store(Store& store, const struct CheckOptions& options);
  friend Result<struct RepairResult> repair_store(Store& store);
  friend Result<struct ScrubResult> scrub_store(Store& store, const struct ScrubOptions& options);
  std::unique_ptr<StoreState> state_;
};

// Offline check of everything the engine knows: superblocks, every node in both places, extent
// records, bitmaps against the reachable set. Uses only reads.
struct Finding {
  std::string what;   // "node checksum does not match in its second place"
  std::string where;  // "tree 256, level 0, device offset 1605632"
  bool repairable = false;
};
struct CheckOptions {
  bool data = false;  // read every data block and verify its checksum
  std::function<void(u64 done, u64 total)> progress;
};
struct CheckResult {
  std::vector<Finding> findings;
  // What a commit that was interrupted leaves as well as rot does, and what the next commits mend:
  // superblock copies that do not verify while another does.
  std::vector<Finding> notes;
  u64 nodes = 0, extents = 0, data_blocks = 0;
};
Result<CheckResult> check_store(Store& store, const CheckOptions& options);

}  // namespace latchkey::engine
