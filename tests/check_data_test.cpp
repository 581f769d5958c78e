// Goal: each rule of the offline check about files' maps and the extents that they refer to finds
// what breaks it, at its place, and nothing else; no bytes crash it. It needs no key.
// Method: one record after the other is changed, see check_fixture.h.

#include "crypto/hkdf.h"
#include "extent/context.h"
#include "tests/support/check_fixture.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using engine::ExtentRecord;
using engine::Key;
using engine::kFirstSubvolume;
using engine::Record;
using engine::Transaction;

constexpr Key kLast{~u64{0}, 255, ~u64{0}};
constexpr u64 kBlock = engine::kBlockBytes;

class CheckData : public CheckTest {};

// --- maps and extents ---------------------------------------------------------------------------

TEST_F(CheckData, piece_of_a_map_must_be_what_we_write) {
  const SimImage whole = device_.durable();
  const auto expect_one = [&](u64 file_block, const extent::MapDisk& disk, const char* what) {
    change_inode(plain_, [](InodeDisk& inode) { inode.size = u64{1} << 30; });
    put_record({plain_, kMapType, file_block * kBlock}, std::as_bytes(std::span(&disk, 1)));
    expect({at(plain_, file_block) + ": " + what});
    device_.restore(whole);
  };
  const u64 blocks = device_.info().size_bytes / kBlock;
  expect_one(100, {5000, 0, 0}, "map record: no blocks");
  expect_one(100, {5000, 1, 2}, "map record: unknown flags");
  expect_one(100, {~u64{0}, 2, 0}, "map record: out of range");
  expect_one(100, {blocks, 1, 0}, "a file refers past the end of the store");
  {
    change_inode(plain_, [](InodeDisk& inode) { inode.size = u64{1} << 30; });
    const extent::MapDisk disk{blocks - 1, 2, 0};
    put_record({plain_, kMapType, 100 * kBlock}, std::as_bytes(std::span(&disk, 1)));
    expect({at(plain_, 100) + ": a file refers past the end of the store",
            at(plain_, 100) + ", " + at_block(blocks - 1) +
                ": a file refers to a block that no extent record holds"});
    device_.restore(whole);
  }
  // A promise is no piece, but its tree counts it; another tree's is a hole here.
  const auto put_promise = [&](engine::TreeId tree) {
    const extent::MapDisk disk{tree, 7, extent::kMapPromised};
    put_record({plain_, kMapType, 409600}, std::as_bytes(std::span(&disk, 1)));
  };
  put_promise(kFirstSubvolume + 1);
  expect({});
  put_promise(kFirstSubvolume);
  expect({"tree 256: a tree counts 0 promised blocks, and its maps hold 7"});
  device_.restore(whole);
  put_record({plain_, kMapType, 409600}, bytes_of("short"));
  expect({at(plain_, 100) + ": map record: size"});
  device_.restore(whole);
  put_record({plain_, kMapType, 409601}, std::vector<std::byte>(16));
  expect({at(plain_) + ", file offset 409601: map record: offset inside a block"});
}

// A piece that refers to blocks of its own, counted, at `file_block` of the file.
TEST_F(CheckData, pieces_of_a_map_must_not_overlap_and_end_with_the_file) {
  const SimImage whole = device_.durable();
  const auto add_piece = [&](u64 file_block) {
    damage([&](Transaction& t) -> Result<void> {
      const ExtentRecord record = extent_of(t, plain_);
      LK_TRYV(t.share_extent({record.run.block, 1}));
      const extent::MapDisk disk{record.run.block, 1, 0};
      return t.put(kFirstSubvolume, {plain_, kMapType, file_block * kBlock},
                   std::as_bytes(std::span(&disk, 1)));
    });
  };
  add_piece(2);
  expect({at(plain_, 2) + ": two pieces of a file's map overlap"});
  device_.restore(whole);
  add_piece(3);
  expect({at(plain_) + ": a file's map reaches beyond its size"});
  device_.restore(whole);
  change_inode(plain_, [](InodeDisk& disk) { disk.size = 2 * kBlock; });
  expect({at(plain_) + ": a file's map reaches beyond its size"});
}

TEST_F(CheckData, references_are_counted_block_by_block) {
  const SimImage whole = device_.durable();
  const u64 block = extent_of(plain_).run.block;
  damage([&](Transaction& t) { return t.share_extent({block + 1, 1}); });
  expect({at_block(block + 1) + ": a block has 1 references and its extent record says 2"});
  device_.restore(whole);
  damage([&](Transaction& t) { return t.release_extent({block + 2, 1}); });
  expect({at(plain_, 0) + ", " + at_block(block) +
          ": a file refers to a block that no extent record holds"});
  device_.restore(whole);
  erase_record({plain_, kMapType, 0});
  expect({at_block(block) + ": a block has 0 references and its extent record says 1"});
}

TEST_F(CheckData, block_of_another_file_is_a_reference_too_many) {
  const ExtentRecord other = extent_of(small_);
  damage([&](Transaction& t) {
    const extent::MapDisk disk{other.run.block, 1, 0};
    return t.put(kFirstSubvolume, {plain_, kMapType, 0}, std::as_bytes(std::span(&disk, 1)));
  });
  const std::vector<std::string> all = findings();
  EXPECT_EQ(std::ranges::count(all, at_block(other.run.block) +
                                        ": a block has 2 references and its extent record says 1"),
            1);
}

TEST_F(CheckData, context_must_be_known_and_the_files) {
  const SimImage whole = device_.durable();
  const std::string where = at_block(extent_of(file_).run.block);
  for (const auto& [index, what] :
       {std::pair(0, "extent context: version"), std::pair(1, "extent context: mode")}) {
    change_extent(file_, [&](ExtentRecord& r) { r.context[index] = std::byte{9}; });
    expect({where + ": " + what});
    device_.restore(whole);
  }
  change_extent(file_, [](ExtentRecord& r) { r.context.resize(33); });
  expect({where + ": extent context: size"});
  device_.restore(whole);
  const std::string foreign =
      at(file_, 0) + ", " + where + ": an extent is not encrypted as its file is";
  change_extent(file_, [](ExtentRecord& r) { r.context[2] ^= std::byte{1}; });
  expect({foreign});
  device_.restore(whole);
  change_extent(file_, [](ExtentRecord& r) { r.context.clear(); });
  expect({foreign});
  device_.restore(whole);
  const ExtentRecord sealed = extent_of(file_);
  change_extent(plain_, [&](ExtentRecord& r) {
    r.context = sealed.context;
    r.first_unit = 1000;
  });
  expect({at(plain_, 0) + ", " + at_block(extent_of(plain_).run.block) +
          ": an extent is not encrypted as its file is"});
}

TEST_F(CheckData, blocks_that_are_not_encrypted_as_their_file_are_not_read) {
  const SimImage whole = device_.durable();
  const ExtentRecord sealed = extent_of(file_);
  const auto expect_damage = [&](const char* path) {
    open_again();
    add_key();
    EXPECT_EQ(read_error(open(path, {})), Errc::damaged);
    volume_.reset();
    device_.restore(whole);
  };
  change_extent(file_, [](ExtentRecord& r) { r.context.clear(); });
  expect_damage("/vault/file");
  change_extent(file_, [](ExtentRecord& r) { r.context[2] ^= std::byte{1}; });
  expect_damage("/vault/file");
  change_extent(plain_, [&](ExtentRecord& r) { r.context = sealed.context; });
  expect_damage("/plain");
}

using Registers = std::array<std::byte, 32 * 64>;

__attribute__((noinline)) void store_sse(Registers& to) {
  asm volatile(
      "movdqu %%xmm0, (%0)\n\tmovdqu %%xmm1, 16(%0)\n\tmovdqu %%xmm2, 32(%0)\n\t"
      "movdqu %%xmm3, 48(%0)\n\tmovdqu %%xmm4, 64(%0)\n\tmovdqu %%xmm5, 80(%0)\n\t"
      "movdqu %%xmm6, 96(%0)\n\tmovdqu %%xmm7, 112(%0)\n\tmovdqu %%xmm8, 128(%0)\n\t"
      "movdqu %%xmm9, 144(%0)\n\tmovdqu %%xmm10, 160(%0)\n\tmovdqu %%xmm11, 176(%0)\n\t"
      "movdqu %%xmm12, 192(%0)\n\tmovdqu %%xmm13, 208(%0)\n\tmovdqu %%xmm14, 224(%0)\n\t"
      "movdqu %%xmm15, 240(%0)" ::"r"(to.data())
      : "memory");
}

// A read that fails behind blocks that it has opened: the registers hold nothing of their key.
TEST_F(CheckData, failed_read_leaves_no_round_key_in_a_register) {
  const ExtentRecord first = extent_of(file_);
  const crypto::Nonce nonce = (*extent::decode_context(first.context))->nonce;
  damage([&](Transaction& t) -> Result<void> {  // the extent behind it, on the device too
    LK_TRY(ExtentRecord record, t.extent_at(first.run.block + first.run.count, first.run.count));
    record.context[2] ^= std::byte{1};
    return put_extent(t, record);
  });
  const auto key = [&] {
    auto state = Secret<crypto::HkdfState>::create();
    auto made = Secret<crypto::XtsKey>::create();
    SecretBytes raw = master_key(7);
    crypto::hkdf_extract(raw.bytes(), **state);
    crypto::derive_extent_key(**state, nonce, **made);
    return std::move(*made);
  }();
  open_again();
  add_key();
  const HandleId handle = open("/vault/file", {});
  std::vector<std::byte> into((first.run.count + 1) * kBlock);
  Registers registers{};
  const auto read = volume_->read(handle, 0, into);
  store_sse(registers);
  EXPECT_EQ(code_of(read), Errc::damaged);
  EXPECT_EQ(into[0], std::byte{'f'}) << "it opened the first piece";
  for (const auto& schedule : {key->encrypt, key->decrypt, key->tweak})
    for (std::size_t at = 0; at < schedule.size(); at += 16)
      EXPECT_EQ(::memmem(registers.data(), registers.size(), &schedule[at], 16), nullptr) << at;
  close(handle);
  volume_.reset();
}

TEST_F(CheckData, key_and_tweak_stand_over_one_block_only) {
  const SimImage whole = device_.durable();
  const ExtentRecord last = extent_of(last_);
  const ExtentRecord file = extent_of(file_);
  const auto pair = [](u64 a, u64 b) {
    return at_block(a) + " and " + at_block(b) + ": a key and tweak stand over two blocks";
  };
  // The first unit of the longer one, its last, and the one behind it.
  for (const u64 unit :
       {file.first_unit, file.first_unit + file.run.count - 1, file.first_unit + file.run.count}) {
    change_extent(last_, [&](ExtentRecord& r) {
      r.context = file.context;
      r.first_unit = unit;
    });
    if (unit == file.first_unit + file.run.count)
      expect({});
    else if (unit != file.first_unit || file.run.block < last.run.block)
      expect({pair(file.run.block, last.run.block)});
    else
      expect({pair(last.run.block, file.run.block)});
    device_.restore(whole);
  }
  change_extent(file_, [](ExtentRecord& r) { r.first_unit = ~u64{0} - 1; });
  expect({at_block(file.run.block) + ": the tweaks of an extent run over"});
}

// The engine's rules: a block is used exactly when something holds it, and held once.
TEST_F(CheckData, free_space_agrees_with_the_trees) {
  const SimImage whole = device_.durable();
  const ExtentRecord record = extent_of(small_);
  damage([&](Transaction& t) -> Result<void> {
    LK_TRYV(t.erase(kFirstSubvolume, {small_, kMapType, 0}));
    LK_TRYV(t.erase(engine::kExtentTree, {record.run.block, 1, 0}));
    return {};
  });
  expect({at_block(record.run.block) + ": a block is marked used but nothing refers to it"});
  device_.restore(whole);

  const u64 free = device_.info().size_bytes / kBlock - 100;
  damage([&](Transaction& t) -> Result<void> {
    ExtentRecord moved = record;
    moved.run.block = free;
    LK_TRYV(t.erase(engine::kExtentTree, {record.run.block, 1, 0}));
    LK_TRYV(put_extent(t, moved));
    const extent::MapDisk disk{free, 1, 0};
    return t.put(kFirstSubvolume, {small_, kMapType, 0}, std::as_bytes(std::span(&disk, 1)));
  });
  expect({at_block(record.run.block) + ": a block is marked used but nothing refers to it",
          at_block(free) + ": a block in use is marked free"});
  device_.restore(whole);

  const u64 middle = extent_of(plain_).run.block + 1;
  damage([&](Transaction& t) -> Result<void> {
    ExtentRecord twice = record;
    twice.run.block = middle;
    return put_extent(t, twice);
  });
  const std::vector<std::string> all = findings();
  EXPECT_EQ(std::ranges::count_if(all,
                                  [&](const std::string& line) {
                                    return line.ends_with(at_block(middle) +
                                                          ": a block is referred to twice");
                                  }),
            1);
}

TEST_F(CheckData, data_is_read_on_request_only) {
  const ExtentRecord record = extent_of(plain_);
  device_.flip_bit(record.run.block * kBlock + 77, 3);
  expect({});
  auto check = check_volume(device_, {.data = true, .progress = {}}, system_env());
  ASSERT_TRUE(check);
  ASSERT_EQ(check->findings.size(), 1U);
  EXPECT_EQ(check->findings[0].what, "a data block does not match its checksum");
  EXPECT_EQ(check->findings[0].where, at_block(record.run.block));
}

// --- any bytes ----------------------------------------------------------------------------------

// Bits of a record, of its key or its length, by seed; several at once.
TEST_F(CheckData, random_records_under_right_checksums_do_not_crash_it) {
  const SimImage whole = device_.durable();
  u64 with_findings = 0;
  constexpr u64 kSeeds = 300;
  for (const u64 seed : seeds(kSeeds)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    device_.restore(whole);
    damage([&](Transaction& t) -> Result<void> {
      for (u64 i = 0; i <= seed % 4; ++i) {
        const engine::TreeId tree = random() % 3 == 0 ? engine::kExtentTree : kFirstSubvolume;
        const std::vector<Record> all = records(t, tree, {}, kLast);
        Record record = all[random() % all.size()];
        const u64 what = random() % 8;
        if (what == 0) LK_TRYV(t.erase(tree, record.key));
        if (what == 1) record.key.object = what % 2 ? random() : record.key.object ^ 1;
        if (what == 2) record.key.type = static_cast<u8>(random() % 13);
        if (what == 3) record.key.offset ^= u64{1} << random() % 64;
        if (what == 4) record.value.resize(random() % 200);
        for (u64 bits = random() % 3; bits > 0 && !record.value.empty(); --bits)
          record.value[random() % record.value.size()] ^= std::byte(1U << random() % 8);
        if (what != 0) LK_TRYV(t.put(tree, record.key, record.value));
      }
      return {};
    });
    ASSERT_FALSE(HasFatalFailure());
    with_findings += findings().empty() ? 0 : 1;
  }
  EXPECT_GT(with_findings, kSeeds / 2);
}

}  // namespace
}  // namespace latchkey::tests
