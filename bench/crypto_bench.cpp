// Ours beside OpenSSL and, where it is installed, libgcrypt: each pair alternating in one run. XTS
// by kernel, data unit, direction and memory: 128 KiB that stay in the second cache, or pieces of
// that size out of 256 MiB that were not touched for long; the others with a context keyed once and
// a tweak a unit. Extent keys derived and expanded, OpenSSL with an HKDF context kept and its
// cipher keyed again. The sides' bytes are compared before anything is timed. Data and keys of this
// program are not secret.

#include <benchmark/benchmark.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#if LK_HAVE_GCRYPT
#include <gcrypt.h>
#endif

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "base/check.h"
#include "bench/beside.h"
#include "bench/clock.h"
#include "crypto/hkdf.h"
#include "crypto/xts.h"

namespace latchkey {
namespace {

using bench::Beside;
using bench::cycles_per_ns;
using bench::timed;

constexpr std::size_t kRunBytes = 128 * kKiB;
constexpr std::size_t kDramBytes = 256 * kMiB;
constexpr u32 kKeysAPass = 64;

const unsigned char* octets(Bytes bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
unsigned char* octets(MutableBytes bytes) { return reinterpret_cast<unsigned char*>(bytes.data()); }

std::vector<std::byte> pattern(std::size_t size, u32 seed) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>((i + seed) * 2654435761U >> 24);
  return bytes;
}

template <class T>
Secret<T> secret() {
  auto made = Secret<T>::create();
  LK_CHECK_MSG(made.has_value(), "no locked memory");
  return std::move(*made);
}

// --- OpenSSL as its users are told to use it -----------------------------------------------------

class OpensslXts {
 public:
  OpensslXts(Bytes raw, bool seal)
      : cipher_(EVP_CIPHER_fetch(nullptr, "AES-256-XTS", nullptr)),
        context_(EVP_CIPHER_CTX_new()),
        seal_(seal) {
    LK_CHECK_MSG(cipher_ != nullptr && context_ != nullptr, "OpenSSL has no AES-256-XTS");
    rekey(raw);
  }
  ~OpensslXts() {
    EVP_CIPHER_CTX_free(context_);
    EVP_CIPHER_free(cipher_);
  }
  OpensslXts(const OpensslXts&) = delete;
  OpensslXts& operator=(const OpensslXts&) = delete;

  void rekey(Bytes raw) {
    LK_CHECK(EVP_CipherInit_ex(context_, cipher_, nullptr, octets(raw), nullptr, seal_) == 1);
  }
  void run(u64 first_unit, u32 unit_bytes, Bytes input, MutableBytes output) {
    for (std::size_t offset = 0; offset < input.size(); offset += unit_bytes) {
      unsigned char tweak[16] = {};
      const u64 unit = first_unit + offset / unit_bytes;
      for (int i = 0; i < 8; ++i) tweak[i] = static_cast<unsigned char>(unit >> (8 * i));
      LK_CHECK(EVP_CipherInit_ex(context_, nullptr, nullptr, nullptr, tweak, seal_) == 1);
      int written = 0;
      LK_CHECK(EVP_CipherUpdate(context_, octets(output.subspan(offset, unit_bytes)), &written,
                                octets(input.subspan(offset, unit_bytes)),
                                static_cast<int>(unit_bytes)) == 1);
    }
  }

 private:
  EVP_CIPHER* cipher_;
  EVP_CIPHER_CTX* context_;
  int seal_;
};

#if LK_HAVE_GCRYPT
class GcryptXts {
 public:
  GcryptXts(Bytes raw, bool seal) : seal_(seal) {
    LK_CHECK_MSG(gcry_check_version(nullptr) != nullptr, "libgcrypt cannot begin");
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
    LK_CHECK(gcry_cipher_open(&handle_, GCRY_CIPHER_AES256, GCRY_CIPHER_MODE_XTS, 0) == 0);
    LK_CHECK(gcry_cipher_setkey(handle_, raw.data(), raw.size()) == 0);
  }
  ~GcryptXts() { gcry_cipher_close(handle_); }
  GcryptXts(const GcryptXts&) = delete;
  GcryptXts& operator=(const GcryptXts&) = delete;

  void run(u64 first_unit, u32 unit_bytes, Bytes input, MutableBytes output) {
    const auto call = seal_ ? gcry_cipher_encrypt : gcry_cipher_decrypt;
    for (std::size_t offset = 0; offset < input.size(); offset += unit_bytes) {
      const u64 tweak[2] = {first_unit + offset / unit_bytes, 0};
      LK_CHECK(gcry_cipher_setiv(handle_, tweak, sizeof tweak) == 0);
      LK_CHECK(call(handle_, output.data() + offset, unit_bytes, input.data() + offset,
                    unit_bytes) == 0);
    }
  }

 private:
  gcry_cipher_hd_t handle_ = nullptr;
  const bool seal_;
};
#endif

// EVP_KDF "HKDF", expand only: the extract is done once a master key on both sides.
class OpensslHkdf {
 public:
  explicit OpensslHkdf(Bytes master) {
    EVP_KDF* kdf = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
    context_ = EVP_KDF_CTX_new(kdf);
    EVP_KDF_free(kdf);
    LK_CHECK_MSG(context_ != nullptr, "OpenSSL has no HKDF");
    std::vector<std::byte> pseudorandom(64), salt(64), input(master.begin(), master.end());
    set(EVP_KDF_HKDF_MODE_EXTRACT_ONLY, input, salt);
    LK_CHECK(EVP_KDF_derive(context_, octets(MutableBytes(pseudorandom)), pseudorandom.size(),
                            nullptr) == 1);
    set(EVP_KDF_HKDF_MODE_EXPAND_ONLY, pseudorandom, salt);
    std::memcpy(info_.data(), "fscrypt", 8);
    info_[8] = static_cast<std::byte>(crypto::Context::per_extent);
  }
  ~OpensslHkdf() { EVP_KDF_CTX_free(context_); }
  OpensslHkdf(const OpensslHkdf&) = delete;
  OpensslHkdf& operator=(const OpensslHkdf&) = delete;

  void extent_key(const crypto::Nonce& nonce, MutableBytes key) {
    std::memcpy(info_.data() + 9, nonce.bytes.data(), nonce.bytes.size());
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info_.data(), info_.size()),
        OSSL_PARAM_construct_end()};
    LK_CHECK(EVP_KDF_derive(context_, octets(key), key.size(), params) == 1);
  }

 private:
  void set(int mode, std::vector<std::byte>& key, std::vector<std::byte>& salt) {
    char digest[] = "SHA512";
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, key.data(), key.size()),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, salt.data(), salt.size()),
        OSSL_PARAM_construct_end()};
    LK_CHECK(EVP_KDF_CTX_set_params(context_, params) == 1);
  }

  EVP_KDF_CTX* context_ = nullptr;
  std::array<std::byte, 25> info_{};
};

// --- benchmarks ----------------------------------------------------------------------------------

// Pieces of kRunBytes for one pass after the other: always the same, or the next of many, so that
// the caches have forgotten it.
class Pieces {
 public:
  explicit Pieces(bool dram)
      : input_(pattern(dram ? kDramBytes : kRunBytes, 1)), output_(input_.size()) {}
  Bytes input() const { return Bytes(input_).subspan(at_, kRunBytes); }
  MutableBytes output() { return MutableBytes(output_).subspan(at_, kRunBytes); }
  void next() { at_ = (at_ + kRunBytes) % input_.size(); }

 private:
  std::vector<std::byte> input_, output_;
  std::size_t at_ = 0;
};

struct XtsCase {
  std::string_view kernel;
  bool seal = true;
  bool dram = false;
  std::string other;  // whom we run beside
};

using RunUnits = std::function<void(u64 first_unit, u32 unit_bytes, Bytes, MutableBytes)>;

RunUnits other_side(const XtsCase& what, Bytes raw) {
#if LK_HAVE_GCRYPT
  if (what.other == "libgcrypt") {
    auto gcrypt = std::make_shared<GcryptXts>(raw, what.seal);
    return [gcrypt](auto... run) { gcrypt->run(run...); };
  }
#endif
  auto openssl = std::make_shared<OpensslXts>(raw, what.seal);
  return [openssl](auto... run) { openssl->run(run...); };
}

void xts(benchmark::State& state, const XtsCase& what) {
  const std::string before(crypto::xts_kernel());
  LK_CHECK(crypto::xts_force_kernel(what.kernel));
  const auto raw = pattern(crypto::kXtsKeyBytes, 7);
  auto key = secret<crypto::XtsKey>();
  crypto::xts_expand(raw, *key);
  const RunUnits other = other_side(what, raw);
  const crypto::XtsRun run{.first_unit = 3, .unit_bytes = static_cast<u32>(state.range(0))};
  Pieces pieces(what.dram);
  const auto ours = [&] {
    (what.seal ? crypto::xts_seal : crypto::xts_open)(*key, run, pieces.input(), pieces.output());
    benchmark::ClobberMemory();
  };
  const auto theirs = [&] {
    other(run.first_unit, run.unit_bytes, pieces.input(), pieces.output());
    benchmark::ClobberMemory();
  };
  ours();
  const std::vector<std::byte> expected(pieces.output().begin(), pieces.output().end());
  theirs();
  if (!std::ranges::equal(expected, pieces.output())) state.SkipWithError("the two sides differ");
  const auto timed_next = [&](const auto& side) {
    pieces.next();
    return timed(side);
  };
  Beside beside(state, "ours", what.other);
  const double clock = cycles_per_ns();
  for (auto _ : state)
    if (!beside.pass([&] { return timed_next(ours); }, [&] { return timed_next(theirs); })) break;
  beside.report(double{kRunBytes} / double{kMiB}, "mib_s");
  // A clock that moved meanwhile (another core's load, another guest) gives no figure at all.
  if (const double after = cycles_per_ns(); std::abs(after / clock - 1) < 0.02)
    state.counters["ours_bytes_cycle"] = beside.first_rate(double{kRunBytes}) / after;
  state.SetBytesProcessed(static_cast<i64>(kRunBytes) * state.iterations());
  LK_CHECK(crypto::xts_force_kernel(before));
}

crypto::Nonce nonce_of(u64 number) {
  crypto::Nonce nonce;
  std::memcpy(nonce.bytes.data(), &number, sizeof number);
  return nonce;
}

// What sealing an extent costs before its first byte: derivation and both schedules, `batch` keys
// in a call. A pass ends by burning stack and registers, as writeback's batches do.
void extent_key_derive(benchmark::State& state) {
  constexpr std::size_t kBatchMax = 8;
  const auto batch = static_cast<std::size_t>(state.range(0));
  auto keys = secret<std::array<crypto::XtsKey, kBatchMax>>();
  const auto master = pattern(64, 11);
  auto states = secret<crypto::HkdfState>();
  crypto::hkdf_extract(master, *states);
  OpensslHkdf hkdf(master);
  std::vector<std::byte> raw(crypto::kXtsKeyBytes), ours_raw(crypto::kXtsKeyBytes);
  for (u64 i = 0; i < 3; ++i) {
    hkdf.extent_key(nonce_of(i), raw);
    crypto::hkdf_expand(*states, crypto::Context::per_extent, nonce_of(i).bytes, ours_raw);
    if (raw != ours_raw) state.SkipWithError("the two sides differ");
  }
  OpensslXts cipher(raw, true);
  u64 number = 0;
  Beside beside(state, "ours", "openssl");
  for (auto _ : state) {
    const auto ours = [&] {
      std::array<crypto::Nonce, kBatchMax> nonces;
      for (std::size_t i = 0; i < kKeysAPass; i += batch) {
        for (std::size_t j = 0; j < batch; ++j) nonces[j] = nonce_of(number + i + j);
        crypto::derive_extent_keys(*states, std::span(nonces).first(batch),
                                   std::span(*keys).first(batch));
      }
      burn_stack_and_registers();
    };
    const auto theirs = [&] {
      for (u32 i = 0; i < kKeysAPass; ++i) {
        hkdf.extent_key(nonce_of(number + i), raw);
        cipher.rekey(raw);
      }
    };
    if (!beside.pass([&] { return timed(ours); }, [&] { return timed(theirs); })) break;
    number += kKeysAPass;
  }
  beside.report(kKeysAPass, "keys_s");
  state.SetItemsProcessed(i64{kKeysAPass} * state.iterations());
}

// The derivation alone, and on our side the burning that each call of it ends with.
void hkdf_expand(benchmark::State& state) {
  const auto master = pattern(64, 11);
  auto states = secret<crypto::HkdfState>();
  crypto::hkdf_extract(master, *states);
  OpensslHkdf hkdf(master);
  std::vector<std::byte> raw(crypto::kXtsKeyBytes);
  Beside beside(state, "ours", "openssl");
  for (auto _ : state) {
    const auto ours = [&] {
      for (u32 i = 0; i < kKeysAPass; ++i)
        crypto::hkdf_expand(*states, crypto::Context::per_extent, nonce_of(i).bytes, raw);
    };
    const auto theirs = [&] {
      for (u32 i = 0; i < kKeysAPass; ++i) hkdf.extent_key(nonce_of(i), raw);
    };
    if (!beside.pass([&] { return timed(ours); }, [&] { return timed(theirs); })) break;
  }
  beside.report(kKeysAPass, "keys_s");
  state.SetItemsProcessed(i64{kKeysAPass} * state.iterations());
}

BENCHMARK(extent_key_derive)->ArgName("batch")->Arg(1)->Arg(8)->UseManualTime();
BENCHMARK(hkdf_expand)->UseManualTime();

void register_case(const XtsCase& what) {
  const bool library = what.kernel == "openssl";
  const std::string name = std::string(what.seal ? "xts_encrypt" : "xts_decrypt") +
                           "/backend:" + (library ? "openssl" : "native") +
                           "/kernel:" + std::string(what.kernel) +
                           "/memory:" + (what.dram ? "dram" : "cache") + "/beside:" + what.other;
  benchmark::RegisterBenchmark(name.c_str(), [what](benchmark::State& state) { xts(state, what); })
      ->ArgName("unit")
      ->RangeMultiplier(2)
      ->Range(512, 65536)
      ->UseManualTime();
}

// Each kernel that this processor runs; the operating system's is no match.
void register_xts() {
  std::vector<std::string> others{"openssl"};
  if (LK_HAVE_GCRYPT) others.emplace_back("libgcrypt");
  for (const crypto::KernelInfo& kernel : crypto::xts_kernels()) {
    if (!kernel.usable || kernel.name == "kcapi") continue;
    for (const std::string& other : others)
      for (const bool dram : {false, true})
        for (const bool seal : {true, false}) register_case({kernel.name, seal, dram, other});
  }
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  latchkey::register_xts();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
