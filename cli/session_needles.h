#pragma once
// What a key's secrets look like in memory, as needles of a MemoryScan: the master key, its HMAC
// states, extent keys and the round keys of all three schedules, name keys and theirs. Derived here
// from states that are kept masked, so that those of extents sealed after a removal can be had.
//
// Most of them lie in the arena while the key is there. Name keys come and go within a call: copies
// of those can be planted, to show that a scan would find one.

#include <array>
#include <string_view>
#include <vector>

#include "cli/memory_scan.h"
#include "crypto/names.h"

namespace latchkey::cli {

class SessionNeedles {
 public:
  explicit SessionNeedles(Env& env) : env_(env), scan_(env) {}

  // Groups "master" and "hkdf_state". What follows is derived from this key.
  Result<void> add_master(Bytes master);
  // Groups "extent_key" and "round_key", "name_key"; `whose` is put before: what is whose may stay
  // is not the same for all.
  Result<void> add_extent(const crypto::Nonce& nonce, std::string_view whose = "");
  Result<void> add_names(const crypto::Nonce& nonce, std::string_view whose = "");
  Result<void> plant();  // copies of the name keys lie in the arena
  void unplant() { planted_.clear(); }

  Result<std::vector<MemoryScan::Group>> scan() { return scan_.scan(); }
  std::vector<MemoryScan::Group> scan_arena() { return scan_.scan_arena(); }

 private:
  // The state, masked as the needles are, so that it is none itself.
  struct Masked {
    std::array<std::byte, sizeof(crypto::HkdfState)> masked, mask;
  };
  Result<Secret<crypto::HkdfState>> state() const;

  Env& env_;
  MemoryScan scan_;
  bool kept_ = false;
  Masked state_;
  std::vector<crypto::Nonce> extents_, names_;
  std::vector<Secret<crypto::NameKey>> planted_;
};

}  // namespace latchkey::cli
