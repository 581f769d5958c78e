#pragma once
// The nonce ledger (design K1): what every (key, tweak) pair has sealed, in all images ever seen.
// It lives outside the simulated machine, so it remembers what a crash, a reopening, a fork of the
// image made the machine forget. It needs no key: a pair seals two plaintexts exactly when two
// ciphertexts are seen under it.
//
// The key of a block is named by its extent's context bytes (version, mode, key identifier, nonce),
// the tweak is its unit. Contents are kept as 128-bit hashes. Not thread-safe.
//
// It sees what a record leads to: a block that was sealed and written, but whose extent no tree,
// not even the running one, ever named, stays unseen.

#include <array>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/checksum.h"
#include "engine/store.h"

namespace latchkey::tests {

class NonceLedger {
 public:
  // What is wrong, or nothing: the pair has another ciphertext already; or the same ciphertext
  // stands under another pair, which no cipher does whose key and tweak follow the nonce and the
  // unit.
  std::optional<std::string> observe(Bytes key_name, u64 unit, Bytes ciphertext);

  u64 pairs() const { return sealed_.size(); }
  u64 repeats() const { return repeats_; }  // a pair seen again with its own ciphertext
  u64 violations() const { return violations_; }

 private:
  using Hash = std::array<u64, 2>;
  struct HashOf {
    std::size_t operator()(const Hash& hash) const { return hash[0]; }
  };
  static Hash hash(Bytes bytes);

  std::unordered_map<Hash, Hash, HashOf> sealed_;  // (key, unit) -> ciphertext
  std::unordered_map<Hash, Hash, HashOf> places_;  // ciphertext -> (key, unit)
  u64 repeats_ = 0;
  u64 violations_ = 0;
};

// Shows the ledger every block of every sealed extent of the running transaction. Nobody
// changes the store meanwhile. Returns the violations, each with its place.
Result<std::vector<std::string>> observe_store(NonceLedger& ledger, engine::Store& store);
// The same of a device as it lies, which is opened read-only.
Result<std::vector<std::string>> observe_device(NonceLedger& ledger, engine::Device& device);

}  // namespace latchkey::tests
