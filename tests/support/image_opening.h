#pragma once
// Everything that one can do to an image of unknown origin, and small real stores to begin with.
// Whatever the image is: every call answers, none of them stops the process or takes long.

#include "tests/support/store_image.h"

namespace latchkey::tests {

// Checks it, with data; opens it read-only, without its key and with it, and looks at everything;
// opens it for writing (which reaps orphans), changes some of everything, closes, checks again.
// Returns how many files were read whole under the key without an error.
u32 open_everything(const StoreImage& image);

// Repairs it, stops the process if that made anything worse: a finding more, a file less that can
// be read; or if a second repair finds something to do. Returns whether it mended anything.
bool repair_everything(const StoreImage& image);

// Plain and encrypted files, large and small, with holes; orphans; nodes of 4 and 16 KiB; trees of
// one and two levels; one region of free space and two. The same at every call.
std::vector<StoreImage> seed_images();

}  // namespace latchkey::tests
