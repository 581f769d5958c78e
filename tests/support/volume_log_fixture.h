#pragma once
// A volume with two encrypted files that a commit has, whose fsyncs tell what made them durable.

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {

class VolumeLog : public VolumeTest {
 protected:
  using VolumeTest::VolumeTest;
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
    key_ = vault();
    put("/vault/file", "before");
    put("/vault/other", "other");
    ASSERT_TRUE(volume_->sync());
  }
  enum class By : u8 { log, commit, nothing };
  By sync(volume::HandleId handle) {
    const volume::VolumeFacts before = volume_->facts();
    EXPECT_TRUE(volume_->fsync(handle));
    const volume::VolumeFacts after = volume_->facts();
    if (after.commits != before.commits) return By::commit;
    return after.log_blocks != before.log_blocks ? By::log : By::nothing;
  }
  volume::InodeId directory() { return *volume::resolve(*volume_, "/vault"); }

  crypto::KeyId key_;
};

}  // namespace latchkey::tests
