#pragma once
// What can encrypt on this machine, for `latchkey info`: the kernels of xts.h, the operating
// system's over AF_ALG among them, and why one cannot.

#include <string>
#include <vector>

namespace latchkey::crypto {

struct BackendInfo {
  std::string name;  // as in xts.h
  bool usable = false;
  std::string reason;  // why it is not usable, errno's name first; empty if it is
};

// The first call opens and closes AF_ALG sockets.
std::vector<BackendInfo> probe_backends();

}  // namespace latchkey::crypto
