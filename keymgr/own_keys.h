#pragma once
// What a busy inode keeps of its key when a sealed removal wipes the master (design 3, "sealed"):
// the key of each extent that its map refers to, one key that all its later extents are written
// under, the keys of its names and of its attributes' values. From these nothing else can be
// derived: not another inode's keys, and not a new one of this inode.
//
// K1 under one write key: its nonce is drawn for it, it is never derived again for writing, and
// each data unit gets the next value of a counter that only rises.
//
// Owned by the inode, whose locks serialise everything but take_units(). What it holds is in the
// arena; destruction wipes it.

#include <atomic>
#include <memory>
#include <vector>

#include "base/result.h"
#include "base/secret.h"
#include "crypto/names.h"
#include "crypto/values.h"
#include "crypto/xts.h"
#include "keymgr/keyring.h"

namespace latchkey::keymgr {

class OwnKeys {
 public:
  struct Wanted {
    crypto::Nonce inode_nonce;           // of names and values
    crypto::Nonce write_nonce;           // drawn for this call
    std::vector<crypto::Nonce> extents;  // in any order, any number of times each
    u64 seal = 0;                        // which removal of the key this is for (Removal::number)
  };
  // Derives under KeyUses of `lease`, a bounded number of keys each. no_key, no_memory.
  static Result<std::unique_ptr<OwnKeys>> derive(const Lease& lease, Wanted&& wanted);
  // Bytes in the arena of one with so many different extents.
  static u64 bytes_for(u64 extents);

  u64 seal() const { return seal_; }
  u64 extents() const { return nonces_.size(); }
  // False: the extent is none of this inode's.
  bool extent_key(const crypto::Nonce& nonce, crypto::XtsKey& key) const;

  const crypto::Nonce& write_nonce() const { return write_nonce_; }
  const crypto::XtsKey& write_key() const { return fixed_->write; }
  // The first of `count` units that no other call gets.
  u64 take_units(u64 count) { return next_unit_.fetch_add(count, std::memory_order_relaxed); }

  const crypto::NameKey& name_key() const { return fixed_->names; }
  const crypto::ValueKey& value_key() const { return fixed_->values; }

 private:
  struct Fixed {
    crypto::XtsKey write;
    crypto::NameKey names;
    crypto::ValueKey values;
  };
  OwnKeys() = default;

  u64 seal_ = 0;
  crypto::Nonce write_nonce_;
  std::atomic<u64> next_unit_{0};
  Secret<Fixed> fixed_;
  std::vector<crypto::Nonce> nonces_;  // ascending
  SecretBytes raw_;                    // their keys, in that order
};

}  // namespace latchkey::keymgr
