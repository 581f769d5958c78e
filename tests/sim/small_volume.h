#pragma once
// A small volume for fibers: an image of /dir under a key, with files, and what every test of it
// needs. Errors of calls that cannot fail stop the process.

#include <string>
#include <vector>

#include "base/check.h"
#include "base/result.h"
#include "base/secret.h"
#include "tests/support/sim_device.h"
#include "volume/volume.h"

namespace latchkey::tests::small {

inline constexpr u64 kDeviceBytes = 16 * kMiB;
inline constexpr volume::Caller kUser{1000};

SecretBytes the_key();

template <class T>
T must(Result<T>&& result) {
  LK_CHECK_MSG(result, "a call that cannot fail has failed");
  return std::move(*result);
}

SimImage image_of(const std::vector<std::string>& files);

// That check finds nothing, data included, on what the device has now. `when` is for the failure.
void expect_clean(const SimDevice& device, const char* when);

}  // namespace latchkey::tests::small
