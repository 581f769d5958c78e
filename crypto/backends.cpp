#include "crypto/backends.h"

#include <kcapi.h>

#include <cerrno>
#include <cstring>

#include "crypto/xts.h"

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
      if (name == nullptr || what == nullptr) return "errno " + std::to_string(os_errno);
      return std::string(name) + ": " + what;
    }
  }
}

BackendInfo probe_af_alg() {
  kcapi_set_verbosity(KCAPI_LOG_NONE);  // it would print the refusal that we report
  kcapi_handle* handle = nullptr;
  const int result = kcapi_cipher_init(&handle, "xts(aes)", 0);
  if (result < 0) return {"af_alg", false, af_alg_reason(-result)};
  kcapi_cipher_destroy(handle);
  return {"af_alg", true, ""};
}

}  // namespace

std::vector<BackendInfo> probe_backends() {
  std::vector<BackendInfo> backends;
  for (const KernelInfo& kernel : xts_kernels())
    backends.push_back({std::string(kernel.name), kernel.usable,
                        kernel.usable ? "" : "this CPU or this build lacks its instructions"});
  backends.push_back(probe_af_alg());
  return backends;
}

}  // namespace latchkey::crypto
