// Several threads at one key. The counts differ from run to run; what is told is what must not.

#include <array>
#include <atomic>
#include <random>
#include <thread>

#include "tests/support/conformance_world.h"

namespace latchkey::tests {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::RemovalMode;

namespace {

constexpr u32 kRemovals = 1000;
constexpr u32 kClaimers = 4;
constexpr u32 kClaimsEach = 2000;

struct Appends {
  u64 acknowledged = 0, missing = 0, failed = 0, others = 0;
};

// Opens, creates if need be, appends one byte and closes, until told to stop. Whoever comes while
// the key is away is turned away.
Appends append_until(Volume& volume, Caller caller, InodeId directory, const std::string& name,
                     const std::atomic<bool>& stop, std::atomic<u64>& closed) {
  Appends appends;
  const std::byte a{'a'};
  while (!stop) {
    const auto handle = volume.open_file(
        caller, directory, name, {.write = true, .append = true, .create = true}, 0666, name);
    if (!handle) {
      const Errc code = handle.error().code;
      if (code == Errc::not_found)
        ++appends.missing;
      else if (code != Errc::no_key)
        ++appends.others;
      continue;
    }
    ++(volume.append(*handle, {&a, 1}) ? appends.acknowledged : appends.failed);
    if (!volume.close_handle(*handle)) ++appends.failed;
    ++closed;
  }
  return appends;
}

}  // namespace

// Every fourth time the key stays until the writer was inside, so that it gets on.
Outcome ConformanceWorld::race_writer(const Words& words) {
  Key& raced = key(words.at(1));
  const auto at = place(words.at(2));
  if (!at) return outcome_of(at);
  std::atomic<bool> stop{false};
  std::atomic<u64> closed{0};
  Appends appends;
  std::thread writer([&, caller = caller_] {
    appends = append_until(*volume_, caller, at->directory, at->name, stop, closed);
  });
  u32 failed = 0;
  for (u32 i = 0; i < kRemovals; ++i) {
    const u64 before = closed;
    if (!add(caller_, raced)) ++failed;
    while (i % 4 == 0 && closed == before) std::this_thread::yield();
    if (!volume_->remove_key(caller_, raced.id, RemovalMode::soft)) ++failed;
  }
  stop = true;
  writer.join();
  told_["removals"] = "failed=" + std::to_string(failed);
  told_["writer"] = "ENOENT=" + std::to_string(appends.missing) +
                    " write_fail=" + std::to_string(appends.failed) +
                    " other=" + std::to_string(appends.others);
  race_appends_ = appends.acknowledged;
  return {"0"};
}

// Each thread is a user who knows what it has claimed.
Outcome ConformanceWorld::race_claims(const Words& words) {
  Key& raced = key(words.at(1));
  struct Claimer {
    bool claimed = false;
    u32 failed_adds = 0;
  };
  std::array<Claimer, kClaimers> claimers;
  std::vector<std::thread> threads;
  threads.reserve(kClaimers);
  for (u32 i = 0; i < kClaimers; ++i)
    threads.emplace_back([&, i] {
      std::mt19937 random(i);
      const Caller caller{2001 + i};
      for (u32 call = 0; call < kClaimsEach; ++call) {
        Key own = raced;
        if ((random() & 1) != 0) {
          const bool added = add(caller, own).has_value();
          claimers[i].claimed = claimers[i].claimed || added;
          claimers[i].failed_adds += added ? 0 : 1;
        } else if (volume_->remove_key(caller, own.id, RemovalMode::soft)) {
          claimers[i].claimed = false;
        }
      }
    });
  u32 failed = 0;
  race_claims_ = 1;  // the one that was there before
  for (u32 i = 0; i < kClaimers; ++i) {
    threads[i].join();
    failed += claimers[i].failed_adds;
    race_claims_ += claimers[i].claimed ? 1 : 0;
  }
  told_["adds"] = "failed=" + std::to_string(failed);
  return {"0"};
}

Outcome ConformanceWorld::race_told(const Words& words) { return {"0", told_.at(words.at(1))}; }

Outcome ConformanceWorld::race_size(const Words& words) {
  const auto found = inode(words.at(1));
  if (!found) return outcome_of(found);
  const auto stat = volume_->stat(*found);
  const bool equal = stat && stat->size == race_appends_;
  return {outcome_of(stat).result, equal ? "equal=1" : "equal=0"};
}

Outcome ConformanceWorld::race_content(const Words& words) {
  const auto text = get_text(words.at(1), race_appends_ + 1);
  if (!text) return outcome_of(text);
  u64 bad = 0;
  for (const char c : *text) bad += c == 'a' ? 0 : 1;
  return {"0", "bad_bytes=" + std::to_string(bad)};
}

Outcome ConformanceWorld::race_users(const Words& words) {
  const KeyReport report = volume_->key_status(caller_, key(words.at(1)).id);
  return {"0", report.user_count == race_claims_ ? "equal=1" : "equal=0"};
}

}  // namespace latchkey::tests
