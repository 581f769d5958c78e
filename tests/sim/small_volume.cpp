#include "tests/sim/small_volume.h"

#include <gtest/gtest.h>

#include "tests/sim/env.h"
#include "tests/support/keys.h"
#include "volume/paths.h"

namespace latchkey::tests::small {

using namespace volume;  // NOLINT: the whole file is about it

SecretBytes the_key() { return in_arena(Heap(64, std::byte{7})); }

SimImage image_of(const std::vector<std::string>& files) {
  SimEnv env(7);
  SimDevice device({.size_bytes = kDeviceBytes, .shuffle = false});
  MkfsOptions mkfs;
  mkfs.node_bytes = 4096;
  LK_CHECK(Volume::mkfs(device, mkfs, env));
  const auto volume = must(Volume::open(device, {.inline_writeback = true}, env));
  const crypto::KeyId id = must(volume->add_key(kUser, the_key()));
  const InodeId dir = must(make_directory(*volume, kUser, "/dir"));
  LK_CHECK(volume->set_policy(kUser, dir, id));
  for (const std::string& name : files)
    must(volume->make_node(kUser, dir, name, {.kind = FileKind::regular, .mode = 0600}));
  LK_CHECK(volume->close());
  return device.snapshot();
}

void expect_clean(const SimDevice& device, const char* when) {
  SimDevice copy({.size_bytes = kDeviceBytes, .shuffle = false});
  copy.restore(device.snapshot());
  SimEnv env(1);
  engine::CheckOptions options;
  options.data = true;
  const auto check = check_volume(copy, options, env);
  ASSERT_TRUE(check) << when << ": " << check.error().what;
  for (const engine::Finding& finding : check->findings)
    ADD_FAILURE() << when << ": " << finding.where << ": " << finding.what;
}

}  // namespace latchkey::tests::small
