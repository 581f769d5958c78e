// AES-256-XTS and CBC by the Linux kernel, over AF_ALG through libkcapi: a cross-check and a
// demonstration, never chosen unless it is asked for. AF_ALG is deprecated upstream, and each call
// costs system calls.
//
// A handle lives for one call: the kernel refuses another key once a handle was used (EBUSY), and
// forgets the key with the handle. A call of its own for each data unit, so of at most 64 KiB:
// beyond that libkcapi 1.4.0 starts the tweak again every 64 KiB and reports success.

#include <kcapi.h>

#include <cerrno>
#include <memory>

#include "base/check.h"
#include "base/disk.h"
#include "crypto/kernel.h"
#include "crypto/raw_key.h"

namespace latchkey::crypto {
namespace {

using raw_key::octets;

struct Destroy {
  void operator()(kcapi_handle* handle) const { kcapi_cipher_destroy(handle); }
};
using Handle = std::unique_ptr<kcapi_handle, Destroy>;

Handle keyed(const char* cipher, Bytes raw) {
  raw_key::check_expanded(raw);
  kcapi_handle* made = nullptr;
  LK_CHECK_MSG(kcapi_cipher_init(&made, cipher, 0) == 0, "AF_ALG gives no cipher");
  Handle handle(made);
  const int done = kcapi_cipher_setkey(handle.get(), octets(raw), static_cast<u32>(raw.size()));
  LK_CHECK_MSG(done == 0, "AF_ALG refuses the key");
  return handle;
}

// sendmsg, not vmsplice: the pages of secrets and of I/O buffers are not for the kernel to map.
void crypt(const Handle& handle, Bytes input, const unsigned char* iv, MutableBytes output,
           bool seal) {
  const auto call = seal ? kcapi_cipher_encrypt : kcapi_cipher_decrypt;
  const ssize_t done = call(handle.get(), octets(input), input.size(), iv, octets(output),
                            output.size(), KCAPI_ACCESS_SENDMSG);
  LK_CHECK_MSG(done >= 0 && static_cast<std::size_t>(done) == input.size(), "AF_ALG failed");
}

template <bool kSeal>
void crypt_run(const XtsKey& key, XtsRun run, const UnitSource& source, std::byte* output) {
  LK_CHECK_MSG(run.unit_bytes <= 64 * kKiB, "a unit that libkcapi would cut into two");
  const Handle handle = keyed("xts(aes)", key.raw);
  for (std::size_t unit = 0; unit < source.units; ++unit) {
    const std::array<Le64, 2> tweak{Le64(run.first_unit + unit), Le64(0)};
    crypt(handle, {source.at(unit), run.unit_bytes},
          reinterpret_cast<const unsigned char*>(tweak.data()),
          {output + unit * run.unit_bytes, run.unit_bytes}, kSeal);
  }
}

template <bool kSeal>
void cbc(const NameKey& key, MutableBytes blocks) {
  const unsigned char zero_iv[16] = {};
  crypt(keyed("cbc(aes)", key.raw), blocks, zero_iv, blocks, kSeal);
}

}  // namespace

int kcapi_refusal() {
  static const int refusal = [] {
    kcapi_set_verbosity(KCAPI_LOG_NONE);  // it would print what we report
    for (const char* cipher : {"xts(aes)", "cbc(aes)"}) {
      kcapi_handle* handle = nullptr;
      if (const int result = kcapi_cipher_init(&handle, cipher, 0); result < 0) return -result;
      kcapi_cipher_destroy(handle);
    }
    return 0;
  }();
  return refusal;
}

namespace {
bool usable() { return kcapi_refusal() == 0; }
}  // namespace

const Kernel kKcapiKernel{"kcapi",         usable,           raw_key::expand,
                          crypt_run<true>, crypt_run<false>, raw_key::expand_name,
                          cbc<true>,       cbc<false>};

}  // namespace latchkey::crypto
