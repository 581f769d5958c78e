#pragma once
// What torture remembers of one file, and how it is looked for on the device afterwards.
//
// Every acknowledged write call is a record: an offset, a size, and a seed that its bytes are made
// from. A record may be overwritten in place; then the write call that is looked for is the last
// acknowledged one, and what an earlier or a refused one wrote tells old from garbage. A file whose
// end went back (a removal that drops what is dirty takes the size back, too) has lost the records
// beyond it.

#include <string>
#include <vector>

#include "base/result.h"
#include "volume/volume.h"

namespace latchkey::cli {

inline constexpr u32 kTortureWriteBytesMax = 48 * kKiB;

// The bytes of a write call.
void fill_from_seed(MutableBytes bytes, u32 seed);

struct TortureRecord {
  u64 offset = 0;
  u32 size = 0;
  u32 seed = 0;               // of the last acknowledged write call
  std::vector<u32> refused;   // since then; each page may be of one of these as well
  std::vector<u32> replaced;  // before it
  u64 end() const { return offset + size; }
};

struct TortureFile {
  std::string name;
  std::vector<TortureRecord> records;  // by offset; none overlaps another
  bool loss_told = false;              // fsync or close of a handle said so
  u64 cut_writes = 0, cut_bytes = 0;   // lost when the file's end went back

  void appended(u64 offset, u32 size, u32 seed);
  static void overwritten(TortureRecord& record, u32 seed);
  static void overwrite_refused(TortureRecord& record, u32 seed);
};

// Looks for the records in a volume that was opened anew. A write call is lost when a page of it
// holds an older write call's bytes or none; that is reported when a handle of the file said so, or
// while `bytes_told`, what the removals' reports counted, covers it. What no mode loses is lost
// silently whatever was told: a name, a page that does not verify, a page of bytes that nobody
// wrote.
class TortureCount {
 public:
  TortureCount(volume::Volume& volume, volume::Caller who, u64 bytes_told);
  // Errors: the device's and the key's. not_found and damage are losses.
  Result<void> look_for(const TortureFile& file, const std::string& path);

  u64 reported_lost = 0;
  u64 silently_lost = 0;  // write calls, both

 private:
  enum class Page : u8 { there, lost, garbage };
  Result<void> look_for(const TortureFile& file, const TortureRecord& record,
                        volume::HandleId handle);
  // Reads into read_; the bytes up to the end of the file.
  Result<u64> read_record(volume::HandleId handle, const TortureRecord& record);
  Page judge(const TortureRecord& record, u64 first, u64 size, u64 got);
  bool is_from(const std::vector<u32>& seeds, const TortureRecord& record, u64 first, u64 size);
  void count_lost(const TortureFile& file, u64 writes, u64 bytes);

  volume::Volume& volume_;
  const volume::Caller who_;
  const u64 bytes_told_;
  u64 bytes_missing_ = 0;
  std::vector<std::byte> read_, wanted_, other_;
};

}  // namespace latchkey::cli
