// Goal: a clone shares blocks of the device under their keys and costs metadata only; afterwards
// the two files are as independent as copies; a crash at any write leaves each of them whole.
// Method: a volume on a SimDevice, checked offline when each test ends; random operations, and a
// power cut at every write, against a model of bytes.

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "tests/support/ledger.h"
#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using volume::HandleId;

constexpr u64 kPage = 4096;

class VolumeClone : public VolumeTest {
 protected:
  void write(HandleId handle, u64 offset, u64 size, char fill = 'x') {
    const auto wrote = volume_->write(handle, offset, bytes_of(std::string(size, fill)));
    ASSERT_TRUE(wrote) << wrote.error().what;
  }
  HandleId make(std::string_view path, u64 size, char fill = 'x') {
    const HandleId handle = open(path);
    write(handle, 0, size, fill);
    return handle;
  }
  Errc clone(HandleId from, u64 from_offset, HandleId to, u64 to_offset, u64 length) {
    const auto cloned = volume_->clone_range(from, from_offset, to, to_offset, length);
    return code_of(cloned);
  }
  void expect_clone(HandleId from, HandleId to) {
    const auto cloned = volume_->clone_range(from, 0, to, 0, 0);
    EXPECT_TRUE(cloned) << cloned.error().what;
  }
  std::vector<volume::MapRow> map(HandleId handle) {
    auto rows = volume_->map(handle);
    EXPECT_TRUE(rows);
    return rows ? *rows : std::vector<volume::MapRow>{};
  }
  // Device offset and nonce of each page.
  std::map<u64, std::pair<u64, crypto::Nonce>> pages(HandleId handle) {
    std::map<u64, std::pair<u64, crypto::Nonce>> found;
    for (const volume::MapRow& row : map(handle))
      for (u64 at = 0; at < row.length; at += kPage)
        found[row.file_offset + at] = {row.device_offset + at, row.nonce};
    return found;
  }
  void flush() {
    const auto synced = volume_->sync();
    ASSERT_TRUE(synced) << synced.error().what;
  }
  u64 used() { return volume_->facts().space.blocks_used; }
};

TEST_F(VolumeClone, one_block_of_ciphertext_serves_both_until_one_is_written) {
  const crypto::KeyId id = vault();
  ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/below"));
  const HandleId from = make("/vault/from", 40 * kPage, 'a');
  const HandleId to = open("/vault/below/to");
  expect_clone(from, to);  // what is dirty goes down first
  const auto shared = pages(from);
  ASSERT_EQ(shared.size(), 40U);
  EXPECT_EQ(pages(to), shared);
  EXPECT_EQ(map(to).front().key_id, id);
  EXPECT_EQ(content(to), std::string(40 * kPage, 'a'));

  write(to, 7 * kPage, kPage, 'b');
  write(from, 9 * kPage, 2 * kPage, 'c');
  const auto now_from = pages(from), now_to = pages(to);
  std::set<crypto::Nonce> fresh;
  for (u64 page = 0; page < 40; ++page) {
    const u64 at = page * kPage;
    EXPECT_EQ(now_to.at(at) == shared.at(at), page != 7) << page;
    EXPECT_EQ(now_from.at(at) == shared.at(at), page != 9 && page != 10) << page;
  }
  EXPECT_NE(now_to.at(7 * kPage).second, shared.at(7 * kPage).second);
  EXPECT_NE(now_from.at(9 * kPage).second, shared.at(9 * kPage).second);
  EXPECT_NE(now_to.at(7 * kPage).second, now_from.at(9 * kPage).second);
  std::string expected(40 * kPage, 'a');
  expected.replace(7 * kPage, kPage, kPage, 'b');
  EXPECT_EQ(content(to), expected);
  expected.assign(40 * kPage, 'a');
  expected.replace(9 * kPage, 2 * kPage, 2 * kPage, 'c');
  EXPECT_EQ(content(from), expected);
  close(from);
  close(to);
}

TEST_F(VolumeClone, a_clone_outlives_its_source_and_the_last_one_frees_the_blocks) {
  vault();
  auto vault = resolve(*volume_, "/vault");
  ASSERT_TRUE(vault);
  flush();
  flush();
  const u64 before = used();
  HandleId from = make("/vault/from", 300 * kPage, 'a');
  HandleId to = open("/vault/to");
  expect_clone(from, to);
  close(from);
  close(to);
  flush();
  const u64 with_both = used();
  EXPECT_LT(with_both, before + 300 + 100);
  ASSERT_TRUE(volume_->unlink(*vault, "from"));
  reopen();
  add_key();
  EXPECT_EQ(content("/vault/to"), std::string(300 * kPage, 'a'));
  EXPECT_GE(used() + 100, with_both);
  ASSERT_TRUE(volume_->unlink(*vault, "to"));
  flush();
  EXPECT_LT(used(), before + 100);
}

TEST_F(VolumeClone, the_rules_are_those_of_the_kernel) {
  vault();
  ASSERT_TRUE(make_directory(*volume_, kUser, "/other"));
  const auto other = volume_->add_key(kUser, master_key(8));
  ASSERT_TRUE(volume_->set_policy(kUser, *resolve(*volume_, "/other"), *other));
  const HandleId from = make("/vault/from", 10 * kPage + 10);
  const HandleId to = make("/vault/to", 20 * kPage, 'y');
  const HandleId plain = make("/plain", 4 * kPage);
  const HandleId foreign = make("/other/file", 4 * kPage);

  EXPECT_EQ(clone(from, 1, to, 0, kPage), Errc::invalid);
  EXPECT_EQ(clone(from, 0, to, 1, kPage), Errc::invalid);
  EXPECT_EQ(clone(from, 0, to, 0, kPage + 1), Errc::invalid);
  EXPECT_EQ(clone(from, 0, to, 0, 11 * kPage), Errc::invalid);  // beyond the source
  EXPECT_EQ(clone(from, 20 * kPage, to, 0, 0), Errc::invalid);
  EXPECT_EQ(clone(from, 0, to, 0, 0), Errc::invalid);              // a part amid the target
  EXPECT_EQ(clone(from, 10 * kPage, to, 20 * kPage, 10), Errc{});  // at the end of both
  EXPECT_EQ(volume_->stat(to)->size, 20 * kPage + 10);
  EXPECT_EQ(clone(from, 0, from, 2 * kPage, 3 * kPage), Errc::invalid);  // overlap
  EXPECT_EQ(clone(from, 0, from, 3 * kPage, 3 * kPage), Errc{});
  EXPECT_EQ(clone(from, 0, to, u64{1} << 62, kPage), Errc::too_big);
  EXPECT_EQ(clone(from, 0, plain, 0, kPage), Errc::invalid);
  EXPECT_EQ(clone(plain, 0, to, 0, kPage), Errc::invalid);
  EXPECT_EQ(clone(from, 0, foreign, 0, kPage), Errc::cross_key);
  EXPECT_EQ(clone(foreign, 0, to, 0, kPage), Errc::cross_key);
  const HandleId reader = open("/vault/to", {});
  EXPECT_EQ(clone(from, 0, reader, 0, kPage), Errc::bad_handle);
  const HandleId writer = open("/vault/from", {.read = false, .write = true});
  EXPECT_EQ(clone(writer, 0, to, 0, kPage), Errc::bad_handle);
  const HandleId appender = open("/vault/to", {.write = true, .append = true});
  EXPECT_EQ(clone(from, 0, appender, 0, kPage), Errc::bad_handle);
  const auto directory = volume_->open_directory(kUser, *resolve(*volume_, "/vault"), "/vault");
  EXPECT_EQ(clone(*directory, 0, to, 0, kPage), Errc::is_dir);
  for (const HandleId handle : {from, to, plain, foreign, reader, writer, appender, *directory})
    close(handle);
}

TEST_F(VolumeClone, a_locked_file_is_not_cloned) {
  const crypto::KeyId id = vault();
  const HandleId from = make("/vault/from", 4 * kPage);
  const HandleId to = make("/vault/to", kPage);
  flush();
  remove(id, keymgr::RemovalMode::hard);
  EXPECT_EQ(clone(from, 0, to, 0, 0), Errc::no_key);
  add_key();
  EXPECT_EQ(clone(from, 0, to, 0, 0), Errc{});
  close(from);
  close(to);
  EXPECT_EQ(content("/vault/to"), std::string(4 * kPage, 'x'));
}

TEST_F(VolumeClone, under_a_soft_removal_who_is_inside_may_clone) {
  const crypto::KeyId id = vault();
  const HandleId from = make("/vault/from", 4 * kPage);
  const HandleId to = make("/vault/to", 8 * kPage, 'y');
  EXPECT_TRUE(remove(id).files_busy);
  EXPECT_EQ(clone(from, 0, to, 4 * kPage, 0), Errc{});
  EXPECT_EQ(content(to), std::string(4 * kPage, 'y') + std::string(4 * kPage, 'x'));
  close(from);
  close(to);
  EXPECT_EQ(state(id), keymgr::KeyState::absent);
}

TEST_F(VolumeClone, dirty_pages_of_the_target_do_not_come_back) {
  vault();
  const HandleId from = make("/vault/from", 4 * kPage, 'a');
  const HandleId to = open("/vault/to");
  write(to, 2 * kPage, 10 * kPage, 'b');  // dirty, and the size is known in memory only
  ASSERT_EQ(clone(from, 0, to, 4 * kPage, 0), Errc{});
  std::string expected(12 * kPage, 'b');
  expected.replace(0, 2 * kPage, 2 * kPage, '\0');
  expected.replace(4 * kPage, 4 * kPage, 4 * kPage, 'a');
  EXPECT_EQ(content(to), expected);
  EXPECT_TRUE(volume_->fsync(to));
  crash(3);
  add_key();
  EXPECT_EQ(content("/vault/to"), expected);
}

TEST_F(VolumeClone, holes_and_promises_are_holes_in_the_clone) {
  vault();
  const HandleId from = open("/vault/from");
  write(from, 5 * kPage, kPage, 'a');
  ASSERT_TRUE(volume_->allocate(from, 0, 8 * kPage));
  ASSERT_TRUE(volume_->truncate(from, 100 * kPage));
  const HandleId to = make("/vault/to", 50 * kPage, 'b');
  expect_clone(from, to);
  EXPECT_EQ(volume_->facts().space.blocks_promised, 7U);
  EXPECT_EQ(volume_->stat(to)->blocks, 1U);
  EXPECT_EQ(volume_->stat(to)->size, 100 * kPage);
  EXPECT_EQ(content(to), content(from));
  close(from);
  close(to);
}

TEST_F(VolumeClone, a_clone_of_a_clone_shares_further) {
  vault();
  const HandleId first = make("/vault/0", 64 * kPage, 'a');
  const auto shared = pages(first);
  for (int i = 1; i < 20; ++i) {
    const HandleId from = open("/vault/" + std::to_string(i - 1), {});
    const HandleId to = open("/vault/" + std::to_string(i));
    expect_clone(from, to);
    EXPECT_EQ(pages(to), shared);
    close(from);
    close(to);
  }
  close(first);
  auto vault = resolve(*volume_, "/vault");
  for (int i = 0; i < 19; ++i) ASSERT_TRUE(volume_->unlink(*vault, std::to_string(i)));
  EXPECT_EQ(content("/vault/19"), std::string(64 * kPage, 'a'));
}

// As many extents as a file of 1 GiB has, each of one block: what a clone costs is trees.
TEST_F(VolumeClone, a_clone_costs_metadata_only) {
  options_.extent_bytes = kPage;
  reopen();
  vault();
  const HandleId from = open("/vault/from");
  for (u64 at = 0; at < 32 * kMiB; at += kMiB) write(from, at, kMiB, static_cast<char>(at >> 20));
  EXPECT_TRUE(volume_->fsync(from));
  const HandleId to = open("/vault/to");
  flush();
  const u64 extents = map(from).size();
  EXPECT_EQ(extents, 8192U);
  const SimCounters before = device_.counters();
  expect_clone(from, to);
  EXPECT_TRUE(volume_->fsync(to));
  const SimCounters after = device_.counters();
  const u64 bytes = after.bytes_written - before.bytes_written;
  std::printf("clone of %llu extents: %llu bytes written, %llu read\n",
              static_cast<unsigned long long>(extents), static_cast<unsigned long long>(bytes),
              static_cast<unsigned long long>(after.bytes_read - before.bytes_read));
  // A map record and an extent record, in nodes that may be half full, in two places; and for each
  // commit on the way the path to them, superblocks and bitmaps.
  EXPECT_LE(bytes, 2'000'000 + extents * 2 * 2 * (37 + 95));
  EXPECT_EQ(after.bytes_read, before.bytes_read);  // trees are in memory, data is not touched
  EXPECT_EQ(pages(to), pages(from));
  close(from);
  close(to);
}

// As much of the range as there was room for, and a size that goes with it.
TEST_F(VolumeClone, one_that_a_full_store_stops_leaves_the_front_of_the_range) {
  options_.inline_writeback = true;
  options_.commit_interval_ms = 0;
  reopen();
  vault();
  const HandleId from = open("/vault/from"), to = open("/vault/to"), filler = open("/vault/filler");
  write_map_of_many_nodes(from);
  flush();
  const std::string source = content(from), bytes(64 * kPage, 'f');
  for (u64 size = bytes.size(); size >= kPage;)
    if (!volume_->append(filler, Bytes(bytes_of(bytes)).first(size))) size /= 2;
  flush();
  u64 in_part = 0;
  const u64 step = 32 * kPage;  // less than what the trees of the whole clone take
  for (u64 filled = volume_->stat(filler)->size;; filled -= step) {
    const Errc done = clone(from, 0, to, 0, 0);
    const u64 size = volume_->stat(to)->size;
    ASSERT_EQ(content(to), source.substr(0, size));
    if (done == Errc{}) break;
    ASSERT_EQ(done, Errc::no_space);
    in_part += size != 0 ? 1 : 0;
    ASSERT_TRUE(volume_->truncate(to, 0));
    ASSERT_GT(filled, step);
    ASSERT_TRUE(volume_->truncate(filler, filled - step));
  }
  EXPECT_GT(in_part, 0U);
  EXPECT_EQ(content(to), source);
  for (const HandleId handle : {from, to, filler}) close(handle);
}

// --- models --------------------------------------------------------------------------------------

struct Model {
  std::array<std::string, 3> files;
  bool operator==(const Model&) const = default;
};

// With the zeros behind the end of the file.
std::string block_of(const std::string& file, u64 at) {
  std::string block = at < file.size() ? file.substr(at, kPage) : std::string();
  block.resize(kPage);
  return block;
}

// The same steps for the volume and for the model, from one generator.
class Steps {
 public:
  explicit Steps(u64 seed) : random_(seed) {}

  // False: the device refused; the step may have been done in part.
  bool next(volume::Volume& volume, std::array<HandleId, 3>& handles, Model& model) {
    const u64 a = random_() % 3, b = random_() % 3;
    const u64 from = random_() % 30 * kPage, to = random_() % 30 * kPage;
    const u64 length = (1 + random_() % 20) * kPage;
    const char fill = static_cast<char>('a' + random_() % 26);
    std::string &source = model.files[a], &target = model.files[b];
    switch (random_() % 8) {
      case 0:
      case 1: {
        const u64 at = from + random_() % kPage;
        target.resize(std::max(target.size(), at + length));
        target.replace(at, length, length, fill);
        return volume.write(handles[b], at, bytes_of(std::string(length, fill))).has_value();
      }
      case 2: {
        const u64 size = random_() % (30 * kPage);
        target.resize(size);
        return volume.truncate(handles[b], size).has_value();
      }
      case 3:
        if (from < target.size())
          target.replace(from, length, std::min(length, target.size() - from), '\0');
        return volume.punch(handles[b], from, length).has_value();
      case 4:
        return volume.fsync(handles[b]).has_value();
      default: {
        const bool overlaps = a == b && from < to + length && to < from + length;
        if (overlaps || from + length > source.size()) return true;
        const std::string bytes = source.substr(from, length);
        target.resize(std::max(target.size(), to + length));
        target.replace(to, length, bytes);
        return volume.clone_range(handles[a], from, handles[b], to, length).has_value();
      }
    }
  }

 private:
  std::mt19937_64 random_;
};

class VolumeCloneModel : public VolumeClone {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeClone::SetUp();
  }
  std::array<HandleId, 3> open_files() {
    return {open("/vault/0"), open("/vault/1"), open("/vault/2")};
  }
};

TEST_F(VolumeCloneModel, random_operations_agree_with_a_model) {
  vault();
  for (const u64 seed : seeds(4)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    auto handles = open_files();
    for (const HandleId handle : handles) ASSERT_TRUE(volume_->truncate(handle, 0));
    Model model;
    Steps steps(seed);
    for (int step = 0; step < 250; ++step) {
      ASSERT_TRUE(steps.next(*volume_, handles, model)) << "step " << step;
      if (step % 25 != 24) continue;
      for (u32 i = 0; i < 3; ++i) ASSERT_EQ(content(handles[i]), model.files[i]) << "step " << step;
    }
    for (const HandleId handle : handles) close(handle);
    reopen();
    expect_clean();
    add_key();
    for (u32 i = 0; i < 3; ++i) ASSERT_EQ(content("/vault/" + std::to_string(i)), model.files[i]);
  }
}

// The power goes at every write and flush of a clone that is made durable. The source is what it
// was; each block of the target is old or new, and new is a front part of the range.
TEST_F(VolumeCloneModel, a_crash_at_every_write_leaves_both_files_whole) {
  vault();
  const HandleId from = open("/vault/from"), to = open("/vault/to");
  std::string source, target(100 * kPage, 't');
  for (u64 page = 0; page < 150; ++page) {  // no two pages side by side: five steps of the clone
    const std::string bytes(kPage, static_cast<char>('A' + page % 50));
    ASSERT_TRUE(volume_->write(from, 2 * page * kPage, bytes_of(bytes)));
    source += bytes;
    if (page != 149) source += std::string(kPage, '\0');
  }
  write(to, 0, 100 * kPage, 't');
  flush();
  volume_.reset();
  const SimImage start = device_.snapshot();
  NonceLedger ledger;
  bool done = false;
  u64 cuts = 0;
  for (u64 cut = 0; !done; ++cut) {
    SCOPED_TRACE(testing::Message() << "power cut after " << cut);
    device_.restore(start);
    open_again();
    add_key();
    device_.cut_after(cut);
    const auto a = open_path(*volume_, kUser, "/vault/from", {});
    const auto b = open_path(*volume_, kUser, "/vault/to", {.write = true});
    ASSERT_TRUE(a && b);
    done = volume_->clone_range(*a, 0, *b, 0, 0) && volume_->fsync(*b);
    cuts += done ? 0 : 1;
    volume_.reset();
    device_.crash(cut);
    open_again();
    add_key();
    ASSERT_EQ(content("/vault/from"), source);
    const std::string got = content("/vault/to");
    u64 cloned = 0;
    while (cloned < got.size() && cloned < source.size() &&
           got.compare(cloned, kPage, source, cloned, kPage) == 0)
      cloned += kPage;
    ASSERT_TRUE(got.size() == std::max<u64>(cloned, target.size())) << got.size();
    if (cloned < target.size()) {
      ASSERT_EQ(got.substr(cloned), target.substr(cloned));
    }
    if (done) {
      ASSERT_EQ(got, source);
    }
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    const auto observed = observe_device(ledger, device_);
    ASSERT_TRUE(observed && observed->empty());
    expect_clean();
    if (HasFailure()) return;
  }
  EXPECT_GT(cuts, 10U);
  open_again();
}

// Of each block of each file there is a state that it had at some step.
TEST_F(VolumeCloneModel, random_crashes_of_files_that_share) {
  vault();
  flush();
  volume_.reset();
  NonceLedger ledger;
  const SimImage empty = device_.snapshot();
  for (const u64 seed : seeds(12)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    device_.restore(empty);
    open_again();
    add_key();
    auto handles = open_files();
    flush();
    Model model;
    Steps steps(seed);
    std::vector<Model> history{model};
    device_.cut_after(random() % 300);
    for (int step = 0; step < 100; ++step) {
      const bool went = steps.next(*volume_, handles, model);
      history.push_back(model);
      if (!went || (step % 10 == 9 && !volume_->sync())) break;
    }
    volume_.reset();
    device_.crash(seed);
    const auto observed = observe_device(ledger, device_);
    ASSERT_TRUE(observed) << observed.error().what;
    ASSERT_TRUE(observed->empty()) << observed->front();
    expect_clean();
    open_again();
    add_key();
    for (u32 i = 0; i < 3; ++i) {
      const std::string got = content("/vault/" + std::to_string(i));
      for (u64 at = 0; at < got.size(); at += kPage) {
        const bool known = std::ranges::any_of(history, [&](const Model& then) {
          return block_of(then.files[i], at) == block_of(got, at);
        });
        ASSERT_TRUE(known) << "file " << i << ", offset " << at;
      }
    }
    if (HasFailure()) return;
    ASSERT_TRUE(volume_->close());
    volume_.reset();
  }
  open_again();
}

}  // namespace
}  // namespace latchkey::tests
