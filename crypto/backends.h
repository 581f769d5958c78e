#pragma once
// What can encrypt on this machine, for `latchkey info`: the kernels of xts.h, and the operating
// system's crypto over AF_ALG, which is probed but takes no data yet.

#include <string>
#include <vector>

namespace latchkey::crypto {

struct BackendInfo {
  std::string name;  // "aesni", "openssl", "af_alg"
  bool usable = false;
  std::string reason;  // why it is not usable, errno's name first; empty if it is
};

// Opens and closes an AF_ALG socket. Not for a data path.
std::vector<BackendInfo> probe_backends();

}  // namespace latchkey::crypto
