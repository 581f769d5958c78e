// Goal: nothing is refused as full while what dirty pages hold, and will not take, would do for it.
// Method: dirty pages of files apart hold all that is available, nobody flushes them, and each call
// that needs space of its own finds it.

#include <functional>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr u64 kPage = engine::kBlockBytes;

struct Call {
  const char* name;
  std::function<Errc(Volume&, HandleId file)> make;
};

class VolumeFull : public VolumeTest, public ::testing::WithParamInterface<Call> {
 protected:
  VolumeFull() : VolumeTest({.size_bytes = 48 * kMiB}) {
    options_.dirty_bytes_max = 256 * kMiB;  // nobody waits for it
    options_.inline_writeback = true;       // and nobody flushes
  }
};

std::string shown(const ::testing::TestParamInfo<Call>& call) { return call.param.name; }

TEST_P(VolumeFull, a_call_is_not_refused_while_dirty_pages_hold_more_than_they_take) {
  put("/there", "there");
  ASSERT_TRUE(volume_->sync());
  const HandleId there = open("/there");
  const HandleId dirty = open("/dirty");
  // Every second page: no two are one extent.
  u64 page = 0;
  while (volume_->facts().space.blocks_available > 2) {
    const u64 free = volume_->facts().space.blocks_available;
    ASSERT_TRUE(volume_->write(dirty, 2 * page++ * kPage, bytes_of("x")));
    ASSERT_LT(volume_->facts().space.blocks_available, free) << "it was flushed, after " << page;
  }
  EXPECT_EQ(GetParam().make(*volume_, there), Errc{});
  close(there);
  close(dirty);
}

const Call kCalls[] = {
    {"mkdir", [](Volume& on, HandleId) { return code_of(on.mkdir(kUser, kRootInode, "d", 0755)); }},
    {"create",
     [](Volume& on, HandleId) {
       const auto made = open_path(on, kUser, "/new", {.write = true, .create = true});
       return made ? code_of(on.close_handle(*made)) : made.error().code;
     }},
    {"create_unnamed",
     [](Volume& on, HandleId) {
       const auto made = on.open_unnamed(kUser, kRootInode, {.write = true}, 0600, "unnamed");
       return made ? code_of(on.close_handle(*made)) : made.error().code;
     }},
    {"symlink",
     [](Volume& on, HandleId) { return code_of(on.symlink(kUser, kRootInode, "s", "there")); }},
    {"link", [](Volume& on, HandleId file) { return code_of(on.link(file, kRootInode, "l")); }},
    {"rename",
     [](Volume& on, HandleId) { return code_of(on.rename(kRootInode, "there", kRootInode, "r")); }},
    {"set_mode",
     [](Volume& on, HandleId file) { return code_of(on.set_attributes(file, {.mode = 0600})); }},
    {"set_xattr",
     [](Volume& on, HandleId file) {
       return code_of(on.set_xattr(file, "user.a", bytes_of("v")));
     }},
    {"create_subvolume",
     [](Volume& on, HandleId) {
       return code_of(on.create_subvolume(kUser, kRootInode, "v", 0755));
     }},
    {"allocate",
     [](Volume& on, HandleId file) { return code_of(on.allocate(file, kPage, 100 * kPage)); }},
    {"clone",
     [](Volume& on, HandleId file) { return code_of(on.clone_range(file, 0, file, kPage, 0)); }},
};

INSTANTIATE_TEST_SUITE_P(All, VolumeFull, ::testing::ValuesIn(kCalls), shown);

}  // namespace
}  // namespace latchkey::tests
