#pragma once
// Who encrypts: `native`, the kernels of this project, the best that the CPU has; `openssl`, that
// library alone; `kcapi`, the operating system's ciphers over AF_ALG, as a cross-check and a
// demonstration. All give the same bytes. The choice is of the process and made once, before the
// first key is expanded.

#include <string>
#include <string_view>
#include <vector>

#include "crypto/xts.h"

namespace latchkey::crypto {

struct BackendInfo {
  std::string name;
  bool usable = false;
  std::string reason;               // why it is not usable, errno's name first; empty if it is
  std::vector<KernelInfo> kernels;  // best first; native takes the first usable one
};

// The first call opens and closes AF_ALG sockets.
std::vector<BackendInfo> probe_backends();

// What this process uses: native unless somebody chose.
std::string_view backend();
// False for a name that is none and for one that cannot be used here.
bool use_backend(std::string_view name);

}  // namespace latchkey::crypto
