#pragma once
// Short programs of a volume's calls, written as bytes, for images of any content: what a fuzzer
// runs after it has changed an image.

#include "tests/support/store_image.h"

namespace latchkey::tests {

// Eight bytes are a call: which, three choices (directories, names, handles), a number. Any bytes
// are some program; only the first 64 calls are run.
inline constexpr std::size_t kCallBytes = 8;

// Checks the image, opens it with its key, makes the calls, closes it, checks again. Whatever the
// image is, every call answers. Stops the process if the image was without findings before and has
// some afterwards: then it was the calls that broke it.
void run_program(const StoreImage& image, Bytes program);

}  // namespace latchkey::tests
