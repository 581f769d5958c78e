#include "crypto/backends.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>

#include "crypto/kernel.h"

namespace latchkey::crypto {
namespace {

std::string af_alg_reason(int os_errno) {
  switch (os_errno) {
    case EAFNOSUPPORT:
      return "EAFNOSUPPORT: this kernel has no AF_ALG";
    case EOPNOTSUPP:
      return "EOPNOTSUPP: this kernel has no AF_ALG for block ciphers";
    case ENOENT:
      return "ENOENT: this kernel has no xts(aes)";
    default: {
      const char* name = strerrorname_np(os_errno);
      const char* what = strerrordesc_np(os_errno);
      if (name == nullptr || what == nullptr) return fmt::format("errno {}", os_errno);
      return fmt::format("{}: {}", name, what);
    }
  }
}

std::string why_not(const KernelInfo& kernel) {
  if (kernel.usable) return "";
  if (kernel.name == kKcapiKernel.name) return af_alg_reason(kcapi_refusal());
  return "this CPU or this build lacks its instructions";
}

}  // namespace

std::vector<BackendInfo> probe_backends() {
  std::vector<BackendInfo> backends;
  for (const KernelInfo& kernel : xts_kernels())
    backends.push_back({std::string(kernel.name), kernel.usable, why_not(kernel)});
  return backends;
}

}  // namespace latchkey::crypto
