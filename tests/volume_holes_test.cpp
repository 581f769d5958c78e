// Goal: holes are where nothing was written, and nowhere else; a promise of space is kept when the
// store is full, and across crashes; large sparse files cost what is in them. Method: a volume on a
// SimDevice, checked offline when each test ends; random operations against a model of bytes.

#include <random>

#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using volume::HandleId;
using volume::Seek;

constexpr u64 kPage = 4096;
constexpr u64 kNone = ~u64{0};

class VolumeHoles : public VolumeTest {
 protected:
  u64 seek(HandleId handle, u64 offset, Seek what) {
    const auto found = volume_->seek(handle, offset, what);
    EXPECT_TRUE(found) << found.error().what;
    return found ? found->value_or(kNone) : kNone;
  }
  void write(HandleId handle, u64 offset, u64 size, char fill = 'x') {
    const std::string bytes(size, fill);
    const auto wrote = volume_->write(handle, offset, bytes_of(bytes));
    ASSERT_TRUE(wrote) << wrote.error().what;
  }
  void flush() {
    const auto synced = volume_->sync();
    ASSERT_TRUE(synced) << synced.error().what;
  }
  volume::Stat stat(HandleId handle) {
    const auto stat = volume_->stat(handle);
    EXPECT_TRUE(stat);
    return stat.value_or(volume::Stat{});
  }
  // Of each page whether it is data.
  void expect_places(HandleId file, const std::vector<bool>& data) {
    for (u64 page = 0; page < data.size(); ++page) {
      const u64 at = page * kPage;
      ASSERT_EQ(seek(file, at, Seek::data) == at, bool{data[page]}) << "page " << page;
      ASSERT_EQ(seek(file, at, Seek::hole) == at, !data[page]) << "page " << page;
    }
  }
  u64 available() { return volume_->facts().space.blocks_available; }
  u64 promised() { return volume_->facts().space.blocks_promised; }
  // Writes to the file until the store is full.
  void fill(HandleId handle) {
    const std::string bytes(64 * kPage, 'f');
    for (u64 size = bytes.size(); size >= kPage;) {
      const auto wrote = volume_->append(handle, Bytes(bytes_of(bytes)).first(size));
      if (wrote) continue;
      ASSERT_EQ(wrote.error().code, Errc::no_space);
      size /= 2;
    }
  }
};

TEST_F(VolumeHoles, dirty_pages_are_data_as_flushed_ones_are) {
  vault();
  const HandleId file = open("/vault/file");
  write(file, 8 * kPage, 2 * kPage);
  write(file, 20 * kPage + 100, 1);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(seek(file, 0, Seek::data), 8 * kPage);
    EXPECT_EQ(seek(file, 0, Seek::hole), 0U);
    EXPECT_EQ(seek(file, 8 * kPage + 5, Seek::data), 8 * kPage + 5);
    EXPECT_EQ(seek(file, 8 * kPage, Seek::hole), 10 * kPage);
    EXPECT_EQ(seek(file, 10 * kPage, Seek::data), 20 * kPage);
    EXPECT_EQ(seek(file, 20 * kPage, Seek::hole), 20 * kPage + 101);  // the end of the file
    EXPECT_EQ(seek(file, 20 * kPage + 101, Seek::data), kNone);
    EXPECT_EQ(seek(file, 20 * kPage + 101, Seek::hole), kNone);
    if (round == 0) {
      EXPECT_TRUE(volume_->fsync(file));
      write(file, 9 * kPage, 1);  // one page of the two is dirty again
    }
  }
  ASSERT_TRUE(volume_->truncate(file, 100 * kPage));
  EXPECT_EQ(seek(file, 21 * kPage, Seek::data), kNone);
  EXPECT_EQ(seek(file, 21 * kPage, Seek::hole), 21 * kPage);
  close(file);
}

TEST_F(VolumeHoles, a_punched_range_reads_as_zeros_and_gives_its_blocks_back) {
  vault();
  const HandleId file = open("/vault/file");
  write(file, 0, 64 * kPage);
  flush();
  write(file, 30 * kPage, kPage, 'y');  // dirty, inside of what goes
  EXPECT_EQ(stat(file).blocks, 64U);
  ASSERT_TRUE(volume_->punch(file, 10 * kPage + 10, 40 * kPage));
  EXPECT_EQ(stat(file).blocks, 25U);
  EXPECT_EQ(stat(file).size, 64 * kPage);
  std::string expected(64 * kPage, 'x');
  expected.replace(10 * kPage + 10, 40 * kPage, 40 * kPage, '\0');
  EXPECT_EQ(content(file), expected);
  EXPECT_EQ(seek(file, 10 * kPage, Seek::hole), 11 * kPage);
  EXPECT_EQ(seek(file, 11 * kPage, Seek::data), 50 * kPage);
  // To the end of the file and beyond: the last block goes whole.
  ASSERT_TRUE(volume_->truncate(file, 63 * kPage + 7));
  ASSERT_TRUE(volume_->punch(file, 60 * kPage, 1000 * kPage));
  EXPECT_EQ(stat(file).blocks, 21U);
  EXPECT_EQ(stat(file).size, 63 * kPage + 7);
  EXPECT_EQ(code_of(volume_->punch(file, 5, 0)), Errc::invalid);
  close(file);
  reopen();
  add_key();
  expected.resize(63 * kPage + 7);
  expected.replace(60 * kPage, 3 * kPage + 7, 3 * kPage + 7, '\0');
  EXPECT_EQ(content("/vault/file"), expected);
}

TEST_F(VolumeHoles, a_promise_is_kept_on_a_full_store) {
  vault();
  const HandleId file = open("/vault/promised");
  const HandleId other = open("/vault/filler");
  const u64 before = available();
  ASSERT_TRUE(volume_->allocate(file, 0, 1024 * kPage));
  EXPECT_EQ(promised(), 1024U);
  EXPECT_LE(available() + 1024, before);
  EXPECT_EQ(stat(file).size, 1024 * kPage);
  EXPECT_EQ(stat(file).blocks, 1024U);
  EXPECT_EQ(seek(file, 0, Seek::data), kNone);
  fill(other);
  EXPECT_EQ(code_of(volume_->append(other, bytes_of(std::string(kPage, 'z')))), Errc::no_space);
  // Each block once, in no order, with flushes in between.
  std::mt19937_64 random(1);
  std::vector<u64> order(1024);
  for (u64 i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::shuffle(order, random);
  for (u64 i = 0; i < order.size(); ++i) {
    write(file, order[i] * kPage, kPage, 'p');
    if (i % 100 == 99) flush();
    if (HasFatalFailure()) return;
  }
  flush();
  EXPECT_EQ(promised(), 0U);
  EXPECT_EQ(content(file), std::string(1024 * kPage, 'p'));
  close(file);
  close(other);
}

TEST_F(VolumeHoles, a_promise_outlives_a_crash_between_write_and_flush) {
  vault();
  HandleId file = open("/vault/promised");
  ASSERT_TRUE(volume_->allocate(file, 0, 64 * kPage));
  const HandleId other = open("/vault/filler");
  fill(other);
  flush();
  for (u64 seed = 0; seed < 3; ++seed) {
    write(file, 0, 64 * kPage, 'p');  // in memory only
    crash(seed);
    add_key();
    EXPECT_EQ(promised(), 64U);
    file = open("/vault/promised", {.write = true});
  }
  write(file, 0, 64 * kPage, 'q');
  EXPECT_TRUE(volume_->fsync(file));
  EXPECT_EQ(promised(), 0U);
  EXPECT_EQ(content(file), std::string(64 * kPage, 'q'));
  close(file);
}

TEST_F(VolumeHoles, what_is_promised_and_not_wanted_is_free_again) {
  vault();
  const HandleId file = open("/vault/file");
  flush();
  const u64 before = available();
  write(file, 4 * kPage, 2 * kPage);
  ASSERT_TRUE(volume_->allocate(file, 0, 1000 * kPage, true));
  EXPECT_EQ(promised(), 998U);
  EXPECT_EQ(stat(file).size, 6 * kPage);  // the rest lies behind the end
  ASSERT_TRUE(volume_->allocate(file, 0, 1000 * kPage, true));
  EXPECT_EQ(promised(), 998U);  // nothing is promised twice
  ASSERT_TRUE(volume_->punch(file, 0, 2 * kPage));
  EXPECT_EQ(promised(), 996U);
  ASSERT_TRUE(volume_->truncate(file, 800 * kPage));
  ASSERT_TRUE(volume_->truncate(file, 500 * kPage));
  EXPECT_EQ(promised(), 496U);
  write(file, 100 * kPage, 4 * kPage);
  ASSERT_TRUE(volume_->truncate(file, 102 * kPage));  // two of those go before they are written
  EXPECT_EQ(promised(), 102U - 2 - 2 - 2);
  reopen();
  add_key();
  EXPECT_EQ(promised(), 96U);
  auto parent = resolve(*volume_, "/vault");
  ASSERT_TRUE(parent);
  ASSERT_TRUE(volume_->unlink(*parent, "file"));
  EXPECT_EQ(promised(), 0U);
  flush();
  flush();
  EXPECT_GE(available() + 16, before);
}

TEST_F(VolumeHoles, what_a_dropped_page_drew_can_be_promised_again) {
  vault();
  const HandleId file = open("/vault/file");
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(volume_->allocate(file, 0, 64 * kPage));
    write(file, 0, 64 * kPage, 'p');
    EXPECT_EQ(promised(), 64U);
    const auto cut = volume_->truncate(file, 0);
    ASSERT_TRUE(cut) << cut.error().what;
    EXPECT_EQ(promised(), 0U);
  }
  close(file);
}

TEST_F(VolumeHoles, more_than_there_is_cannot_be_promised) {
  vault();
  const HandleId file = open("/vault/file");
  EXPECT_EQ(code_of(volume_->allocate(file, 0, u64{1} << 40)), Errc::no_space);
  EXPECT_EQ(code_of(volume_->allocate(file, 0, available() * kPage)), Errc::no_space);
  EXPECT_EQ(code_of(volume_->allocate(file, u64{1} << 62, kPage)), Errc::too_big);
  EXPECT_EQ(promised(), 0U);
  EXPECT_EQ(stat(file).size, 0U);
  close(file);
  const HandleId reader = open("/vault/file", {});
  EXPECT_EQ(code_of(volume_->allocate(reader, 0, kPage)), Errc::bad_handle);
  EXPECT_EQ(code_of(volume_->punch(reader, 0, kPage)), Errc::bad_handle);
  close(reader);
}

TEST_F(VolumeHoles, a_write_that_fails_on_its_way_down_keeps_its_promise) {
  vault();
  const HandleId file = open("/vault/file");
  ASSERT_TRUE(volume_->allocate(file, 0, 32 * kPage));
  flush();
  write(file, 0, 8 * kPage, 'a');
  write(file, 4 * kPage, kPage, 'b');
  EXPECT_EQ(promised(), 32U);
  auto report = volume_->remove_key(kUser, *stat(file).key_id, keymgr::RemovalMode::hard);
  ASSERT_TRUE(report) << report.error().what;
  EXPECT_EQ(report->bytes_lost, 8 * kPage);
  EXPECT_EQ(promised(), 32U);
  EXPECT_FALSE(volume_->close_handle(file));
  add_key();
  const HandleId again = open("/vault/file", {.write = true});
  EXPECT_EQ(content(again), std::string(32 * kPage, '\0'));
  write(again, 0, 32 * kPage, 'c');
  flush();
  EXPECT_EQ(promised(), 0U);
  close(again);
}

TEST_F(VolumeHoles, a_write_that_the_device_refuses_once_uses_its_promise_once) {
  vault();
  const HandleId file = open("/vault/file");
  ASSERT_TRUE(volume_->allocate(file, 0, 8 * kPage));
  flush();
  write(file, 0, 8 * kPage, 'p');
  device_.inject({.kind = engine::OpKind::write});
  EXPECT_EQ(code_of(volume_->fsync(file)), Errc::io);
  EXPECT_EQ(promised(), 8U);
  EXPECT_TRUE(volume_->fsync(file));
  EXPECT_EQ(promised(), 0U);
  write(file, 8 * kPage, 8 * kPage, 'q');
  EXPECT_TRUE(volume_->fsync(file));
  EXPECT_EQ(content(file), std::string(8 * kPage, 'p') + std::string(8 * kPage, 'q'));
  close(file);
}

// --- a model of bytes ---------------------------------------------------------------------------

TEST_F(VolumeHoles, random_operations_agree_with_a_model) {
  options_.inline_writeback = true;
  options_.dirty_bytes_max = 256 * kPage;
  for (const u64 seed : seeds(3)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    reopen();
    if (!resolve(*volume_, "/vault"))
      vault();
    else
      add_key();
    std::mt19937_64 random(seed);
    const std::string path = "/vault/" + std::to_string(seed);
    const HandleId file = open(path);
    std::string model;
    std::vector<bool> data;  // of each page
    for (int step = 0; step < 400; ++step) {
      const u64 offset = random() % (100 * kPage);
      const u64 length = 1 + random() % (12 * kPage);
      switch (random() % 7) {
        case 0:
        case 1: {
          const char fill = static_cast<char>('a' + random() % 26);
          write(file, offset, length, fill);
          model.resize(std::max(model.size(), offset + length));
          model.replace(offset, length, length, fill);
          data.resize((model.size() + kPage - 1) / kPage);
          for (u64 page = offset / kPage; page * kPage < offset + length; ++page) data[page] = true;
          break;
        }
        case 2:
          ASSERT_TRUE(volume_->punch(file, offset, length));
          if (offset >= model.size()) break;
          model.replace(offset, length, std::min(length, model.size() - offset), '\0');
          for (u64 page = (offset + kPage - 1) / kPage; page < data.size(); ++page)
            if (std::min<u64>((page + 1) * kPage, model.size()) <= offset + length)
              data[page] = false;
          break;
        case 3:
          ASSERT_TRUE(volume_->allocate(file, offset, length, step % 2 == 0));
          if (step % 2 != 0) model.resize(std::max(model.size(), offset + length));
          data.resize((model.size() + kPage - 1) / kPage);
          break;
        case 4:
          ASSERT_TRUE(volume_->truncate(file, offset));
          model.resize(offset);
          data.resize((model.size() + kPage - 1) / kPage);
          break;
        case 5:
          ASSERT_TRUE(volume_->fsync(file));
          break;
        default:
          expect_places(file, data);
      }
      if (HasFatalFailure()) return;
      if (step % 20 != 19) continue;
      ASSERT_EQ(content(file), model) << "step " << step;
    }
    close(file);
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    expect_clean();
    open_again();
    add_key();
    EXPECT_EQ(content(path), model);
  }
}

// --- large and sparse ---------------------------------------------------------------------------

TEST_F(VolumeHoles, ten_blocks_in_a_file_of_a_tebibyte) {
  vault();
  constexpr u64 kSize = u64{1} << 40;
  const HandleId file = open("/vault/sparse");
  ASSERT_TRUE(volume_->truncate(file, kSize));
  for (u64 i = 0; i < 10; ++i) write(file, i * (kSize / 10) / kPage * kPage, kPage);
  for (int round = 0; round < 2; ++round) {
    u64 at = 0, found = 0;
    for (; (at = seek(file, at, Seek::data)) != kNone; at += kPage) {
      EXPECT_EQ(at, found * (kSize / 10) / kPage * kPage);
      ++found;
    }
    EXPECT_EQ(found, 10U);
    flush();
  }
  EXPECT_EQ(stat(file).blocks, 10U);
  EXPECT_EQ(stat(file).size, kSize);
  ASSERT_TRUE(volume_->truncate(file, kSize / 2 - kMiB));
  EXPECT_EQ(stat(file).blocks, 5U);
  close(file);
}

TEST_F(VolumeHoles, a_block_in_every_mebibyte_of_64_gibibytes) {
  // Room for the blocks is in a larger device.
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  SimDevice device({.size_bytes = 640 * kMiB});
  ASSERT_TRUE(volume::Volume::mkfs(device, {}, system_env()));
  options_.dirty_bytes_max = 4 * kMiB;
  const auto opened = volume::Volume::open(device, options_, system_env());
  ASSERT_TRUE(opened);
  volume::Volume& store = **opened;
  constexpr u64 kPieces = 65536;
  auto handle = open_path(store, kUser, "/sparse", {.write = true, .create = true});
  ASSERT_TRUE(handle);
  std::string page(kPage, '\0');
  for (u64 i = 0; i < kPieces; ++i) {
    std::memcpy(page.data(), &i, sizeof i);
    ASSERT_TRUE(store.write(*handle, i * kMiB, bytes_of(page)));
    if (i % 4096 == 0) {
      ASSERT_LE(store.facts().dirty_bytes, options_.dirty_bytes_max);
    }
  }
  ASSERT_TRUE(store.fsync(*handle));
  EXPECT_EQ(store.stat(*handle)->blocks, kPieces);
  // Packed: 65536 pages that are no neighbours, in extents of 32.
  EXPECT_LE(store.facts().extents_sealed, kPieces / 32 + kPieces / 64);
  for (u64 i = 0; i < kPieces; i += 61) {
    std::string got(2 * kPage, '?');
    ASSERT_EQ(store.read(*handle, i * kMiB, std::as_writable_bytes(std::span(got))).value_or(0),
              i + 1 == kPieces ? kPage : 2 * kPage);
    ASSERT_EQ(std::memcmp(got.data(), &i, sizeof i), 0);
    ASSERT_EQ(store.seek(*handle, i * kMiB + kPage, Seek::data)->value_or(kNone),
              i + 1 == kPieces ? kNone : (i + 1) * kMiB);
  }
  ASSERT_TRUE(store.truncate(*handle, 32 * u64{kGiB}));
  EXPECT_EQ(store.stat(*handle)->blocks, kPieces / 2);
  ASSERT_TRUE(store.close_handle(*handle));
  ASSERT_TRUE(store.unlink(volume::kRootInode, "sparse"));
  ASSERT_TRUE(store.sync());
  ASSERT_TRUE((*opened)->close());
  const auto check = volume::check_volume(device, {}, system_env());
  ASSERT_TRUE(check);
  EXPECT_TRUE(check->findings.empty());
  EXPECT_EQ(check->data_blocks, 0U);
}

}  // namespace
}  // namespace latchkey::tests
