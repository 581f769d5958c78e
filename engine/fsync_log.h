#pragma once
// The fsync log: a chain of blocks behind a generation's superblock, each with records of what was
// inserted into single objects since, and of objects that were made. One block and one flush make
// an fsync durable; the next commit makes the log void. Replay enters the records into the tree
// again and commits once.
//
//   L1  Only an object of a subvolume tree is logged of which the running transaction has changed
//       nothing but what its records say: so it is in the committed tree, or a record before those
//       makes it, and whoever changes anything else of it, or its whole tree, makes its fsync a
//       commit. That is seen where records are put and erased, and needs nobody to remember it.
//   L2  Blocks of the log and the data of its records are free in the committed generation, and
//       nobody gets them before the generation that ends the log is durable (the data: E2; the
//       log's own: one generation longer). On disk they are free.
//   L3  A block is written when the flush of the one before it has succeeded: the chain ends at a
//       block that does not verify. One that is followed by one that does was acknowledged: then it
//       is damage, and is not gone around. So each block names two places.
//   L4  The data of a block's records is verified only where no later block says that it was
//       flushed; data that rots afterwards is met by its reader, as any other.
//
//   L5  Names keep their order. A new object is logged only if since the commit no name has changed
//       but by such ones, its directory in no other way than by their names, and behind all of
//       them: so what replay makes of the names is what they were at one time, and no name that it
//       enters is in the way of another.
//
// Nothing in it is secret: contexts, checksums, and what the tree holds as well.

#include <array>
#include <deque>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "engine/format.h"
#include "engine/io_buffer.h"
#include "engine/superblock.h"

namespace latchkey::engine {

inline constexpr std::array<char, 8> kLogMagic = {'l', 'k', 'f', 's', 'y', 'l', 'o', 'g'};

struct LogBlockDisk {
  std::array<char, 8> magic;
  VolumeId volume_id;
  Le64 generation;    // of the superblock that it follows
  Le64 sequence;      // 0 is the first of its log
  Le64 next[2];       // where the next two blocks will lie
  Checksum previous;  // that of the block before it; 0 of the first
  Le32 records;
  Le32 bytes;         // of the records, which follow
  Checksum root;      // that of the root pointer: tells generations of one number apart
  Checksum checksum;  // of the whole block with this field zero
};
LK_DISK_STRUCT(LogBlockDisk, 160);
LK_DISK_FIELD(LogBlockDisk, previous, 56);
LK_DISK_FIELD(LogBlockDisk, checksum, 128);
inline constexpr u64 kLogBodyBytes = kBlockBytes - sizeof(LogBlockDisk);

// The note follows, then for each extent its first block (Le64) and its record of tree 2.
struct LogRecordDisk {
  Le64 tree;
  Le64 object;
  Le16 extents;  // 1 or more; of a create 0
  Le16 note_size;
  u8 kind;  // LogKind
  std::array<u8, 3> reserved;
};
LK_DISK_STRUCT(LogRecordDisk, 24);
LK_DISK_FIELD(LogRecordDisk, kind, 20);

// Appends; extents of more than kRecordBlocksMax blocks become several.
void encode_log_record(const LogRecord& record, std::vector<std::byte>& out);
// As many as `bytes` holds; malformed for anything that encode would not write.
Result<std::vector<LogRecord>> decode_log_records(Bytes bytes, u32 count);

struct LogBlock {
  u64 generation = 0;
  u64 sequence = 0;
  std::array<u64, 2> next{};
  Checksum previous{};
  Checksum root{};
};
// A whole block; returns its checksum.
Checksum encode_log_block(const VolumeId& volume, const LogBlock& block, u32 records, Bytes body,
                          MutableBytes into);

// The log of a superblock, as far as it counts.
struct LogFound {
  std::vector<LogRecord> records;
  std::vector<u64> places;    // of its blocks, in order
  std::array<u64, 2> next{};  // where the two after them would lie; 0: there is no log
  bool damaged = false;       // more was acknowledged than can be read
  // Behind the last one lies something of a block that was not finished. It never was acknowledged,
  // and must never count, whatever is written beside it: the next open for writing begins a new
  // log.
  bool unfinished = false;
};
using ReadBlocks = std::function<Result<void>(u64 block, MutableBytes into)>;
// Errors: io, as read() has them; malformed for well checksummed nonsense.
Result<LogFound> read_log(const Superblock& superblock, const ReadBlocks& read);

struct ObjectId {
  TreeId tree = 0;
  u64 object = 0;
  auto operator<=>(const ObjectId&) const = default;
};

// What the running transaction has changed since the last commit, and what of it a log may carry.
// Lock: a leaf.
class LogChanges {
 public:
  // By those who hold the forest lock exclusively.
  void changed(ObjectId id) LK_EXCLUDES(mutex_);  // otherwise than by inserted()
  void changed_tree(TreeId tree) LK_EXCLUDES(mutex_);
  // `logged`: this log has the record already, from take_with().
  void inserted(const LogRecord& record, bool logged) LK_EXCLUDES(mutex_);
  void created(const LogRecord& record, u64 directory) LK_EXCLUDES(mutex_);
  void names_changed() LK_EXCLUDES(mutex_);  // otherwise than by created()
  void frozen() LK_EXCLUDES(mutex_);         // all of it goes with a commit
  // Whether the superblock that the log follows says that it may have such records.
  void allow_creates(bool allowed) LK_EXCLUDES(mutex_);

  // How many records of the object there were; what has as many in the log is durable.
  u64 count(ObjectId id) const LK_EXCLUDES(mutex_);
  enum class Needs : u8 { nothing, log, commit };
  Needs needs(ObjectId id, u64 records) const LK_EXCLUDES(mutex_);
  void want(ObjectId id) LK_EXCLUDES(mutex_);  // goes with the next block, where there is room

  struct Body {
    std::vector<std::byte> bytes;
    u32 records = 0;
  };
  // What the next block carries: of `id` all that is not in the log yet, and of who waits. Nothing
  // of an object that needs a commit by now.
  Body take(ObjectId id) LK_EXCLUDES(mutex_);
  // The same with a record that is about to be inserted; none if its object needs a commit, or has
  // more than a block holds.
  std::optional<Body> take_with(const LogRecord& record) LK_EXCLUDES(mutex_);
  // What was taken last may not be durable, and nothing can be written behind it: all that has
  // changed needs a commit.
  void log_broken() LK_EXCLUDES(mutex_);

 private:
  struct Change {
    bool plain = true;
    u64 records = 0;  // inserted so far
    u64 taken = 0;    // of those
    std::vector<std::byte> waiting;
    u64 name = 0;  // which of all creates made it, or the last one in it; 0: none
  };
  struct Hash {
    std::size_t operator()(const ObjectId& id) const {
      return static_cast<std::size_t>(id.object * 0x9e3779b97f4a7c15ULL + id.tree);
    }
  };
  u64 bytes_to_take(const Change& change) const LK_REQUIRES(mutex_);
  void take_names(u64 through, Body& body) LK_REQUIRES(mutex_);
  void take_into(ObjectId id, Body& body) LK_REQUIRES(mutex_);
  void take_wanted(Body& body) LK_REQUIRES(mutex_);
  void give_up(Change& change) LK_REQUIRES(mutex_);

  mutable Mutex mutex_;
  std::unordered_map<ObjectId, Change, Hash> changes_ LK_GUARDED_BY(mutex_);
  std::set<TreeId> trees_ LK_GUARDED_BY(mutex_);
  std::vector<ObjectId> wanted_ LK_GUARDED_BY(mutex_);
  u64 bytes_ LK_GUARDED_BY(mutex_) = 0;  // of inserts that wait
  // Records of creates, in their order: those that wait, and how many went before them.
  std::deque<std::vector<std::byte>> names_ LK_GUARDED_BY(mutex_);
  u64 names_taken_ LK_GUARDED_BY(mutex_) = 0;
  bool in_order_ LK_GUARDED_BY(mutex_) = true;  // L5: creates from now on may be logged
  bool creates_allowed_ LK_GUARDED_BY(mutex_) = false;
  bool broken_ LK_GUARDED_BY(mutex_) = false;
};

// Where the log of this generation lies, and the one before. Of who holds the commit (`committing`)
// but for what says otherwise; all blocks here are allocated in free space and used nowhere.
struct LogPlaces {
  // For blocks to come; the superblock, or the last block, names the first two.
  std::deque<u64> ready;
  std::vector<u64> written;  // by the log of the durable generation
  std::vector<u64> before;   // by the one before it
  Checksum last{};           // of the last block written
  u64 sequence = 0;          // of the next
  u64 blocks_max = 0;        // of one log; 0: there is none
  IoBuffer buffer;           // of one block
  // Under space_mutex.
  u64 blocks = 0;         // of all three
  bool squeezed = false;  // somebody needs the room
};

}  // namespace latchkey::engine
