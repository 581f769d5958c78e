#include "tests/support/ledger.h"

#include <fmt/format.h>

#include <cstring>

#include "base/hex.h"
#include "engine/extent_table.h"
#include "engine/format.h"

namespace latchkey::tests {

NonceLedger::Hash NonceLedger::hash(Bytes bytes) {
  const Checksum sum = checksum128(bytes);
  Hash hash;
  std::memcpy(hash.data(), sum.data(), sizeof hash);
  return hash;
}

std::optional<std::string> NonceLedger::observe(Bytes key_name, u64 unit, Bytes ciphertext) {
  std::vector<std::byte> name(key_name.begin(), key_name.end());
  name.resize(key_name.size() + sizeof unit);
  std::memcpy(name.data() + key_name.size(), &unit, sizeof unit);
  const Hash pair = hash(name);
  const Hash sealed = hash(ciphertext);

  const auto [known, is_new] = sealed_.try_emplace(pair, sealed);
  if (!is_new && known->second == sealed) {
    ++repeats_;
    return std::nullopt;
  }
  if (!is_new) {
    ++violations_;
    return fmt::format("key {}, unit {}, has sealed another plaintext before", to_hex(key_name),
                       unit);
  }
  const auto [place, is_first] = places_.try_emplace(sealed, pair);
  if (is_first) return std::nullopt;
  ++violations_;
  return fmt::format("the ciphertext under key {}, unit {}, stands under another pair too",
                     to_hex(key_name), unit);
}

Result<std::vector<std::string>> observe_store(NonceLedger& ledger, engine::Store& store) {
  using namespace engine;  // NOLINT: the function is about it
  std::vector<ExtentRecord> extents;
  std::optional<Error> malformed;
  const ReadPin pin = store.pin();
  LK_TRYV(
      store.view().scan(kExtentTree, {}, {~u64{0}, 255, ~u64{0}}, [&](const Key& key, Bytes value) {
        if (key.type == kNodeRecordType) return true;
        auto record = decode_extent(key, value);
        if (record)
          extents.push_back(std::move(*record));
        else
          malformed = record.error();
        return !malformed;
      }));
  if (malformed) return std::unexpected(*malformed);
  for (const LogRecord& record : store.logged())  // sealed, flushed, and not in the tree yet
    extents.insert(extents.end(), record.extents.begin(), record.extents.end());

  std::vector<std::string> violations;
  const BorrowedIo io = store.borrow_io();
  const MutableBytes block = io->buffer().first(kBlockBytes);
  for (const ExtentRecord& extent : extents) {
    if (extent.context.empty()) continue;
    for (u32 i = 0; i < extent.run.count; ++i) {
      const u64 at = (extent.run.block + i) * kBlockBytes;
      LK_TRYV(read_sync(*io, at, block));
      if (auto wrong = ledger.observe(extent.context, extent.first_unit + i, block))
        violations.push_back(fmt::format("device offset {}: {}", at, *wrong));
    }
  }
  return violations;
}

Result<std::vector<std::string>> observe_device(NonceLedger& ledger, engine::Device& device) {
  engine::OpenOptions options;
  options.read_only = true;
  LK_TRY(const auto store, engine::Store::open(device, options, system_env()));
  return observe_store(ledger, *store);
}

}  // namespace latchkey::tests
