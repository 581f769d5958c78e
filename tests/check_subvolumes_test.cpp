// Goal: the offline check knows every rule of subvolumes. Method: a store with a subvolume, a
// snapshot and what was in it; one record broken at a time, with right checksums.

#include "tests/support/check_fixture.h"
#include "volume/subvolumes.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using engine::kFirstSubvolume;
using engine::Transaction;

class CheckSubvolumes : public CheckTest {
 protected:
  void SetUp() override {
    CheckTest::SetUp();
    open_again();
    area_ = volume_->create_subvolume(kUser, kRootInode, "area", 0755)->subvolume;
    put("/area/file", "text");
    copy_ = volume_->snapshot(kUser, kRootInode, kRootInode, "copy", true)->subvolume;
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    whole_ = device_.durable();
    expect({});
  }
  void change_subvolume(engine::TreeId id, const std::function<void(Subvolume&)>& fn) {
    damage([&](Transaction& t) -> Result<void> {
      LK_TRY(const auto record, t.get(kSubvolumeTree, subvolume_key(id)));
      if (!record) return fail(Errc::not_found, "there is no such subvolume");
      LK_TRY(auto subvolume, decode_subvolume(record->value));
      fn(subvolume);
      return put_subvolume(t, id, subvolume);
    });
  }
  static std::string of(engine::TreeId id) { return "subvolume " + std::to_string(id); }

  engine::TreeId area_ = 0, copy_ = 0;
  SimImage whole_;
};

TEST_F(CheckSubvolumes, name_and_record_must_agree) {
  change_subvolume(area_, [](Subvolume& subvolume) { subvolume.stored = "other"; });
  expect({of(area_) + ": a subvolume and its name do not agree"});
  device_.restore(whole_);
  erase_record({kRootNumber, kEntryType, entry_offset("area")});
  expect({of(area_) + ": 0 names lead to a subvolume that has 1"});
  device_.restore(whole_);
  change_subvolume(copy_, [](Subvolume& subvolume) { subvolume.origin = 0; });
  expect({of(area_) + ": a name of a subvolume that is not there"});
  device_.restore(whole_);
  change_subvolume(area_, [&](Subvolume& subvolume) { subvolume.directory.subvolume = area_; });
  expect({of(area_) + ": 0 names lead to a subvolume that has 1",
          of(area_) + ": a name of a subvolume that is not there",
          of(area_) + ": a subvolume that cannot be reached from the first"});
}

TEST_F(CheckSubvolumes, records_and_trees_must_go_together) {
  damage([&](Transaction& t) -> Result<void> {
    const Le64 next(area_);
    return t.put(kSubvolumeTree, kSubvolumeIdKey, std::as_bytes(std::span(&next, 1)));
  });
  expect({of(area_) + ": a subvolume beyond the counter",
          of(copy_) + ": a subvolume beyond the counter"});
  device_.restore(whole_);
  damage(
      [&](Transaction& t) { return t.put(kSubvolumeTree, subvolume_key(area_), bytes_of("x")); });
  expect({of(area_) + ": the record of a subvolume is malformed",
          of(area_) + ": a name of a subvolume that is not there"});
  device_.restore(whole_);
  change_subvolume(area_, [](Subvolume& subvolume) { subvolume.removed = true; });
  expect({of(area_) + ": 1 names lead to a subvolume that has 0",
          of(area_) + ": a subvolume that can have no name has one"});
}

TEST_F(CheckSubvolumes, each_tree_keeps_the_rules_of_the_first) {
  damage([&](Transaction& t) -> Result<void> {
    LK_TRY(const bool there, t.erase(area_, inode_key(kRootNumber + 1)));
    EXPECT_TRUE(there);
    return {};
  });
  expect({of(area_) + ", inode 257: records of an inode without an inode item"});
}

}  // namespace
}  // namespace latchkey::tests
