#include "cli/master_watch.h"

#include <algorithm>

#include "base/secret.h"
#include "base/secret_work.h"
#include "crypto/hkdf.h"

namespace latchkey::cli {

Result<void> MasterWatch::begin(Bytes master) {
  LK_TRY(auto state, Secret<crypto::HkdfState>::create());
  {
    const SecretWork work;
    crypto::hkdf_extract(master, *state);
  }
  scan_.add("master", master);
  scan_.add("hkdf_state", std::as_bytes(std::span(&*state, 1)));
  for (const MemoryScan::Group& group : scan_.scan_arena())
    if (group.found_now != group.needles)
      return fail(Errc::unavailable, "the search of the arena is blind");
  return {};
}

bool MasterWatch::sees_it() {
  return std::ranges::any_of(scan_.scan_arena(),
                             [](const MemoryScan::Group& group) { return group.found_now != 0; });
}

}  // namespace latchkey::cli
