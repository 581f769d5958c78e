#pragma once
// Looks for secrets in this process's own memory. Nothing outside a process can read memfd_secret,
// so the process looks itself: at the arena with plain loads, at every other mapping through
// process_vm_readv.
//
// A needle is eight bytes: half of a round key or of a lane, and too many to be met by chance. The
// needles must not be hits themselves: each is kept masked with random bytes, and what is found
// first is a hash. A secret may lie at any address, so every byte is a beginning.

#include <array>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/env.h"
#include "base/result.h"

namespace latchkey::cli {

class MemoryScan {
 public:
  explicit MemoryScan(Env& env) : env_(env) {}

  // Adds every 8-byte piece of `secret` under the group's name.
  void add(const std::string& group, Bytes secret);

  struct Group {
    std::string name;
    u64 needles = 0;
    u64 found_now = 0;   // needles with at least one hit in the last scan
    u64 found_ever = 0;  // in any scan: a needle never found proves nothing
  };
  Result<std::vector<Group>> scan();
  // The arena alone: quick, and needs no memory but the answer's.
  std::vector<Group> scan_arena();

 private:
  struct Needle {
    u64 masked = 0, mask = 0;
    u32 group = 0;
    bool now = false, ever = false;
  };
  void look(const std::byte* data, std::size_t size);
  void look_through(MutableBytes buffer, u64 first, u64 end);
  std::vector<Group> groups() const;
  static u64 hash(u64 word);

  Env& env_;
  std::vector<std::string> groups_;
  std::vector<Needle> needles_;
  std::vector<u64> filter_ = std::vector<u64>(16384);  // a bit for each hash
  std::unordered_multimap<u64, std::size_t> by_hash_;
};

}  // namespace latchkey::cli
