#pragma once
// The threads of torture that write, and what they share with the one that removes. A writer opens
// a file of its own, writes for a while, some calls followed by fsync, and closes it. Refused for
// want of the key it leaves, or stays inside until the key is back and writes on.

#include <atomic>
#include <optional>
#include <random>
#include <vector>

#include "cli/torture_ledger.h"

namespace latchkey::cli {

// How many handles the writers have open, and whether that has been none since somebody looked:
// one word, so that both are of the same moment.
class TortureInside {
 public:
  void enter() { word_ += 1; }
  void leave();
  u64 count() const { return word_ % kEmptied; }
  u64 word() const { return word_; }
  // Whether somebody was inside at each moment from one word to a later one.
  static bool stayed(u64 before, u64 after) {
    return before / kEmptied == after / kEmptied && before % kEmptied != 0 && after % kEmptied != 0;
  }

 private:
  static constexpr u64 kEmptied = u64{1} << 32;
  std::atomic<u64> word_{0};  // above the count: how often it came to none
};

struct TortureScene {
  volume::Volume& volume;
  volume::InodeId directory;
  std::atomic<u64> append_bytes;  // that may still be appended
  std::atomic<u64> epoch{0};      // odd from the return of a removal until the next add
  std::atomic<bool> rest{false};  // writers go out, and most stay there
  std::atomic<bool> stop{false};
  std::atomic<bool> broken{false};  // a writer gave up
  TortureInside inside{};

  bool may_append(u64 size);
};

struct TortureWrites {  // calls
  u64 acknowledged = 0;
  u64 after_removal = 0;  // begun and acknowledged between a removal and the next add
  u64 waited = 0;         // begun before an add, acknowledged after it
  u64 refused = 0;        // an attempt whose open was refused counts as one
};

class TortureWriter {
 public:
  TortureWriter(TortureScene& scene, u32 number, u64 seed);

  void run();

  std::vector<TortureFile> files;
  TortureWrites writes;
  std::optional<Error> broken;  // anything but a refusal or a told loss

 private:
  enum class Wrote : u8 { yes, refused, no };
  void visit(TortureFile& file);
  Wrote write(TortureFile& file, volume::HandleId handle);
  Result<void> append(TortureFile& file, volume::HandleId handle, u32 size, u32 seed);
  Result<void> overwrite(TortureRecord& record, volume::HandleId handle, u32 seed);
  bool stays_for_the_key();
  void acknowledged(u64 epoch_before);
  void told(TortureFile& file, const Error& error);

  TortureScene& scene_;
  std::mt19937_64 random_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kTortureWriteBytesMax);
};

}  // namespace latchkey::cli
