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

// The other backends have one kernel each, of their name.
bool is_of(std::string_view backend, std::string_view kernel) {
  if (backend != "native") return kernel == backend;
  return kernel != kOpensslKernel.name && kernel != kKcapiKernel.name;
}

}  // namespace

std::vector<BackendInfo> probe_backends() {
  std::vector<BackendInfo> backends;
  for (const char* name : {"native", "openssl", "kcapi"}) {
    BackendInfo backend;
    backend.name = name;
    for (const KernelInfo& kernel : xts_kernels()) {
      if (!is_of(name, kernel.name)) continue;
      backend.kernels.push_back(kernel);
      backend.usable = backend.usable || kernel.usable;
    }
    if (!backend.usable) backend.reason = af_alg_reason(kcapi_refusal());
    backends.push_back(std::move(backend));
  }
  return backends;
}

std::string_view backend() {
  const std::string_view kernel = xts_kernel();
  return is_of("native", kernel) ? "native" : kernel;
}

bool use_backend(std::string_view name) {
  if (name != "native") return (name == "openssl" || name == "kcapi") && xts_force_kernel(name);
  for (const KernelInfo& kernel : xts_kernels())
    if (kernel.usable) return xts_force_kernel(kernel.name);
  return false;
}

}  // namespace latchkey::crypto
