// The log's format, how its chain is read, and what waits to be logged.

#include "engine/fsync_log.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/extent_table.h"

namespace latchkey::engine {

namespace {

// Memory of all that waits; what comes beyond is for the commit.
constexpr u64 kWaitingBytesMax = 4 * kMiB;

Checksum checksum_of(Bytes block) {
  std::vector<std::byte> copy(block.begin(), block.end());
  std::ranges::fill(MutableBytes(copy).subspan(offsetof(LogBlockDisk, checksum), sizeof(Checksum)),
                    std::byte{0});
  return checksum128(copy);
}

std::unexpected<Error> malformed() {
  return fail(Errc::malformed, "a record of the fsync log is malformed");
}

void append(std::vector<std::byte>& out, Bytes bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

template <class T>
void append_disk(std::vector<std::byte>& out, const T& value) {
  append(out, std::as_bytes(std::span(&value, 1)));
}

// Takes `size` bytes off the front.
Result<Bytes> cut(Bytes& bytes, u64 size) {
  if (bytes.size() < size) return malformed();
  const Bytes front = bytes.first(size);
  bytes = bytes.subspan(size);
  return front;
}

Result<ExtentRecord> cut_extent(Bytes& bytes) {
  LK_TRY(const Bytes first, cut(bytes, sizeof(Le64)));
  if (bytes.size() < sizeof(ExtentHeadDisk)) return malformed();
  const auto head = load_disk<ExtentHeadDisk>(bytes);
  LK_TRY(const Bytes value,
         cut(bytes, sizeof head + u64{head.context_size} + u64{head.blocks} * sizeof(Le32)));
  LK_TRY(ExtentRecord extent, decode_extent({load_disk<Le64>(first), kExtentRecordType, 0}, value));
  if (extent.references != 1) return malformed();
  return extent;
}

Result<LogRecord> cut_record(Bytes& bytes) {
  LK_TRY(const Bytes head_bytes, cut(bytes, sizeof(LogRecordDisk)));
  const auto head = load_disk<LogRecordDisk>(head_bytes);
  const bool create = head.kind == static_cast<u8>(LogKind::create);
  if (!is_subvolume(head.tree) || (head.extents == 0) != create ||
      head.kind > static_cast<u8>(LogKind::create) || head.reserved != std::array<u8, 3>{})
    return malformed();
  LogRecord record;
  record.tree = head.tree;
  record.object = head.object;
  record.kind = static_cast<LogKind>(head.kind);
  LK_TRY(const Bytes note, cut(bytes, head.note_size));
  record.note.assign(note.begin(), note.end());
  for (u32 i = 0; i < head.extents; ++i) {
    LK_TRY(ExtentRecord extent, cut_extent(bytes));
    record.extents.push_back(std::move(extent));
  }
  return record;
}

}  // namespace

void encode_log_record(const LogRecord& record, std::vector<std::byte>& out) {
  std::vector<std::byte> extents;
  u32 count = 0;
  for (const ExtentRecord& extent : record.extents) {
    for (u32 from = 0; from < extent.run.count; from += kRecordBlocksMax, ++count) {
      const ExtentRecord part =
          part_of(extent, from, std::min(extent.run.count, from + kRecordBlocksMax));
      append_disk(extents, Le64(part.run.block));
      append(extents, encode_extent(part));
    }
  }
  LK_CHECK(count <= 0xffff && record.note.size() <= 0xffff);
  append_disk(out, LogRecordDisk{record.tree,
                                 record.object,
                                 static_cast<u16>(count),
                                 static_cast<u16>(record.note.size()),
                                 static_cast<u8>(record.kind),
                                 {}});
  append(out, record.note);
  append(out, extents);
}

Result<std::vector<LogRecord>> decode_log_records(Bytes bytes, u32 count) {
  std::vector<LogRecord> records;
  for (u32 i = 0; i < count; ++i) {
    LK_TRY(LogRecord record, cut_record(bytes));
    records.push_back(std::move(record));
  }
  if (!bytes.empty() || records.empty()) return malformed();
  return records;
}

Checksum encode_log_block(const VolumeId& volume, const LogBlock& block, u32 records, Bytes body,
                          MutableBytes into) {
  LK_CHECK(into.size() == kBlockBytes && body.size() <= kLogBodyBytes);
  std::ranges::fill(into, std::byte{0});
  LogBlockDisk head{};
  head.magic = kLogMagic;
  head.volume_id = volume;
  head.generation = block.generation;
  head.sequence = block.sequence;
  head.next[0] = block.next[0];
  head.next[1] = block.next[1];
  head.previous = block.previous;
  head.root = block.root;
  head.records = records;
  head.bytes = static_cast<u32>(body.size());
  std::ranges::copy(body, into.subspan(sizeof head).begin());
  store_disk(into, head);
  head.checksum = checksum128(into);  // its own field is still zero
  store_disk(into, head);
  return head.checksum;
}

namespace {

class Reader {
 public:
  Reader(const Superblock& superblock, const ReadBlocks& read)
      : superblock_(superblock), read_(read) {}

  Result<LogFound> run() {
    LogFound found;
    found.next = superblock_.log_head;
    if (found.next[0] == 0) return found;
    LK_TRY(buffer_, IoBuffer::create(u64{kRecordBlocksMax} * kBlockBytes));
    Checksum last{};
    LK_TRY(auto here, block_at(found.next[0], 0));
    for (u64 sequence = 0;; ++sequence) {
      LK_TRY(auto after, block_at(found.next[1], sequence + 1));
      const bool follows = here && here->head.previous == last && named(*here, found.next[1]);
      if (!follows) {
        found.damaged = after.has_value();
        found.unfinished = torn_ || here.has_value();
        return found;
      }
      LK_TRY(std::vector<LogRecord> records, decode_log_records(here->body, here->head.records));
      // What a later block says of it counts only if that one follows it.
      const bool flushed = after && after->head.previous == here->head.checksum;
      if (!flushed) {
        LK_TRY(const bool whole, data_verifies(records));
        if (!whole) {
          found.unfinished = true;
          return found;
        }
      }
      std::ranges::move(records, std::back_inserter(found.records));
      found.places.push_back(found.next[0]);
      found.next = {here->head.next[0], here->head.next[1]};
      last = here->head.checksum;
      here = std::move(after);
    }
  }

 private:
  struct Block {
    LogBlockDisk head;
    std::vector<std::byte> body;
  };

  bool inside(u64 block) const {
    return block != 0 && block < superblock_.size_bytes / kBlockBytes;
  }
  bool named(const Block& block, u64 place) const {
    return block.head.next[0] == place && inside(block.head.next[1]);
  }

  // What lies there, if it is the block of this log with that number. What does not verify is read
  // once more before it is believed that nobody was told of it: a read may be wrong, too.
  Result<std::optional<Block>> block_at(u64 place, u64 sequence) {
    if (!inside(place)) return fail(Errc::malformed, "the fsync log leads past the store's end");
    const bool torn = torn_;
    for (const bool last : {false, true}) {
      torn_ = torn;
      LK_TRY(auto block, block_read(place, sequence));
      if (block || last) return block;
    }
    return std::optional<Block>{};
  }
  Result<std::optional<Block>> block_read(u64 place, u64 sequence) {
    const MutableBytes bytes = buffer_.bytes().first(kBlockBytes);
    LK_TRYV(read_(place, bytes));
    Block block{load_disk<LogBlockDisk>(bytes), {}};
    const LogBlockDisk& head = block.head;
    if (head.magic != kLogMagic || head.volume_id != superblock_.volume_id ||
        head.generation != superblock_.generation || head.root != superblock_.root.checksum)
      return std::optional<Block>{};
    if (head.sequence != sequence || head.bytes > kLogBodyBytes ||
        head.checksum != checksum_of(bytes)) {
      torn_ = true;
      return std::optional<Block>{};
    }
    const Bytes body = bytes.subspan(sizeof head, head.bytes);
    block.body.assign(body.begin(), body.end());
    return std::optional(std::move(block));
  }

  Result<bool> data_verifies(const std::vector<LogRecord>& records) {
    for (const LogRecord& record : records)
      for (const ExtentRecord& extent : record.extents) {
        if (!inside(extent.run.block) || !inside(extent.run.end() - 1)) return malformed();
        LK_TRY(const bool whole, data_verifies(extent));
        if (whole) continue;
        LK_TRY(const bool read_again, data_verifies(extent));
        if (!read_again) return false;
      }
    return true;
  }
  Result<bool> data_verifies(const ExtentRecord& extent) {
    const MutableBytes data = buffer_.bytes().first(extent.run.count * kBlockBytes);
    LK_TRYV(read_(extent.run.block, data));
    for (u32 i = 0; i < extent.run.count; ++i)
      if (crc32c(data.subspan(i * kBlockBytes, kBlockBytes)) != extent.checksums[i]) return false;
    return true;
  }

  const Superblock& superblock_;
  const ReadBlocks& read_;
  IoBuffer buffer_;
  bool torn_ = false;  // something of this log that does not verify was met
};

}  // namespace

Result<LogFound> read_log(const Superblock& superblock, const ReadBlocks& read) {
  return Reader(superblock, read).run();
}

// --- what waits ---------------------------------------------------------------------------------

void LogChanges::give_up(Change& change) {
  change.plain = false;
  bytes_ -= change.waiting.size();
  change.waiting = {};
}

void LogChanges::changed(ObjectId id) {
  Lock lock(mutex_);
  give_up(changes_[id]);
}

void LogChanges::changed_tree(TreeId tree) {
  Lock lock(mutex_);
  trees_.insert(tree);
}

void LogChanges::inserted(const LogRecord& record, bool logged) {
  Lock lock(mutex_);
  Change& change = changes_[{record.tree, record.object}];
  ++change.records;
  if (!change.plain) return;
  if (logged) {
    LK_CHECK(change.waiting.empty());
    change.taken = change.records;
    return;
  }
  const u64 before = change.waiting.size();
  encode_log_record(record, change.waiting);
  bytes_ += change.waiting.size() - before;
  if (change.waiting.size() > kLogBodyBytes || bytes_ > kWaitingBytesMax) give_up(change);
}

// What waits for the log goes into one block, so no more than that is kept.
void LogChanges::created(const LogRecord& record, u64 directory) {
  Lock lock(mutex_);
  Change& above = changes_[{record.tree, directory}];
  Change& made = changes_[{record.tree, record.object}];
  std::vector<std::byte> bytes;
  encode_log_record(record, bytes);
  u64 waiting = bytes.size();
  for (const std::vector<std::byte>& name : names_) waiting += name.size();
  const bool fresh = made.plain && made.records == 0 && made.name == 0;
  const bool carried = creates_allowed_ && in_order_ && above.plain && fresh &&
                       !trees_.contains(record.tree) && waiting <= kLogBodyBytes;
  if (!carried) {
    in_order_ = false;
    give_up(above);
    give_up(made);
    return;
  }
  names_.push_back(std::move(bytes));
  above.name = made.name = names_taken_ + names_.size();
}

// What was made before that is still in order.
void LogChanges::names_changed() {
  Lock lock(mutex_);
  in_order_ = false;
}

void LogChanges::allow_creates(bool allowed) {
  Lock lock(mutex_);
  creates_allowed_ = allowed;
}

void LogChanges::frozen() {
  Lock lock(mutex_);
  changes_.clear();
  trees_.clear();
  wanted_.clear();
  names_.clear();
  names_taken_ = 0;
  bytes_ = 0;
  in_order_ = true;
  broken_ = false;
}

void LogChanges::log_broken() {
  Lock lock(mutex_);
  broken_ = true;
}

u64 LogChanges::count(ObjectId id) const {
  Lock lock(mutex_);
  const auto it = changes_.find(id);
  return it == changes_.end() ? 0 : it->second.records;
}

LogChanges::Needs LogChanges::needs(ObjectId id, u64 records) const {
  Lock lock(mutex_);
  if (trees_.contains(id.tree)) return Needs::commit;
  const auto it = changes_.find(id);
  if (it == changes_.end()) return Needs::nothing;
  const Change& change = it->second;
  if (!change.plain || broken_) return Needs::commit;
  if (change.taken >= records && change.name <= names_taken_) return Needs::nothing;
  return bytes_to_take(change) <= kLogBodyBytes ? Needs::log : Needs::commit;
}

void LogChanges::want(ObjectId id) {
  Lock lock(mutex_);
  if (std::ranges::find(wanted_, id) == wanted_.end()) wanted_.push_back(id);
}

// Of its inserts, and of the creates up to its own.
u64 LogChanges::bytes_to_take(const Change& change) const {
  u64 bytes = change.waiting.size();
  for (u64 i = names_taken_; i < change.name; ++i) bytes += names_[i - names_taken_].size();
  return bytes;
}

void LogChanges::take_names(u64 through, Body& body) {
  for (; names_taken_ < through; ++names_taken_, ++body.records) {
    append(body.bytes, names_.front());
    names_.pop_front();
  }
}

void LogChanges::take_into(ObjectId id, Body& body) {
  const auto it = changes_.find(id);
  if (it == changes_.end() || !it->second.plain || trees_.contains(id.tree)) return;
  Change& change = it->second;
  if (body.bytes.size() + bytes_to_take(change) > kLogBodyBytes) return;
  take_names(change.name, body);
  body.records += static_cast<u32>(change.records - change.taken);
  append(body.bytes, change.waiting);
  bytes_ -= change.waiting.size();
  change.waiting.clear();
  change.taken = change.records;
}

LogChanges::Body LogChanges::take(ObjectId id) {
  Lock lock(mutex_);
  Body body;
  take_into(id, body);
  take_wanted(body);
  return body;
}

void LogChanges::take_wanted(Body& body) {
  for (const ObjectId other : wanted_) take_into(other, body);
  wanted_.clear();
}

std::optional<LogChanges::Body> LogChanges::take_with(const LogRecord& record) {
  Lock lock(mutex_);
  const ObjectId id{record.tree, record.object};
  if (broken_ || trees_.contains(id.tree)) return {};
  std::vector<std::byte> bytes;
  encode_log_record(record, bytes);
  const auto it = changes_.find(id);
  const u64 before = it == changes_.end() ? 0 : bytes_to_take(it->second);
  const bool plain = it == changes_.end() || it->second.plain;
  if (!plain || before + bytes.size() > kLogBodyBytes) return {};
  Body body;
  take_into(id, body);
  append(body.bytes, bytes);
  ++body.records;
  take_wanted(body);
  return body;
}

}  // namespace latchkey::engine
