// A program for valgrind, run by constant_time_test.py. Every secret is memory that memcheck takes
// for undefined, and so is all that is computed from it: a branch on it and an address made of it
// are errors, with the name of the function.
//
//   secrets_undefined KERNEL         every case on that kernel, one line each
//   secrets_undefined --leak KIND    `branch` or `index`: a leak that must be reported
//
// What a case gives is undefined, else the mark was lost on the way, and equals what the same code
// gives for the same bytes while they are defined. Public, and marked as defined, are only
//   the identifier of a key, which names it on the device: where key_identifier() returns,
//   what a case gives, once it is looked at by the case itself,
//   whether a key was ever expanded: check_expanded(), in constant_time.supp.
// A decrypted name's end, '.' and '/' are looked for on behalf of its reader, so of names the
// cipher is meant here (cts.h, encrypt_name), not decrypt_name().

#if !__has_include(<valgrind/memcheck.h>)

#include <cstdio>

int main() {
  std::puts("built without valgrind/memcheck.h");
  return 77;
}

#else

#include <valgrind/memcheck.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/secret.h"
#include "crypto/cts.h"
#include "crypto/hkdf.h"
#include "crypto/names.h"
#include "crypto/values.h"
#include "crypto/xts.h"
#include "keymgr/keyring.h"
#include "keymgr/slots.h"

namespace latchkey::crypto {

// The linker puts this one between key_identifier() and whoever calls it (tests/CMakeLists.txt).
KeyId called_identifier(const HkdfState& state) asm(
    "__real__ZN8latchkey6crypto14key_identifierERKNS0_9HkdfStateE");
KeyId public_identifier(const HkdfState& state) asm(
    "__wrap__ZN8latchkey6crypto14key_identifierERKNS0_9HkdfStateE");
KeyId public_identifier(const HkdfState& state) {
  KeyId id = called_identifier(state);
  VALGRIND_MAKE_MEM_DEFINED(&id, sizeof id);
  return id;
}

}  // namespace latchkey::crypto

namespace latchkey {
namespace {

using namespace crypto;
using Buffer = std::vector<std::byte>;

// In the first pass nothing is undefined: it says what the second, where secrets are, has to give.
enum class Pass : u8 { defined, undefined };
Pass pass = Pass::defined;
std::vector<Buffer> expected;
std::size_t next_expected = 0;

// Any bytes, the same in both passes.
void fill(MutableBytes bytes, std::size_t seed) {
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(seed + 37 * i + (i >> 8));
}

void make_secret(MutableBytes bytes) {
  if (pass == Pass::undefined) VALGRIND_MAKE_MEM_UNDEFINED(bytes.data(), bytes.size());
}

SecretBytes secret_bytes(std::size_t size, std::size_t seed) {
  Result<SecretBytes> made = SecretBytes::create(size);
  LK_CHECK_MSG(made.has_value(), "no locked memory");
  fill(made->bytes(), seed);
  make_secret(made->bytes());
  return *std::move(made);
}

template <class T>
Secret<T> secret() {
  Result<Secret<T> > made = Secret<T>::create();
  LK_CHECK_MSG(made.has_value(), "no locked memory");
  return *std::move(made);
}

bool all_undefined(Bytes bytes) {
  Buffer bits(bytes.size());
  LK_CHECK(VALGRIND_GET_VBITS(bytes.data(), bits.data(), bits.size()) == 1);
  return std::all_of(bits.begin(), bits.end(), [](std::byte b) { return b == std::byte{0xff}; });
}

// What a case gives, of which every bit depends on a secret.
void look_at(Bytes bytes) {
  Buffer copy(bytes.begin(), bytes.end());
  if (pass == Pass::defined) {
    expected.push_back(std::move(copy));
    return;
  }
  LK_CHECK_MSG(all_undefined(bytes), "the mark of a secret was lost on the way");
  VALGRIND_MAKE_MEM_DEFINED(copy.data(), copy.size());
  LK_CHECK_MSG(copy == expected[next_expected++], "another answer while secrets are undefined");
}

// What a case gives that is public by then.
void look_at_public(Bytes bytes) {
  const Buffer copy(bytes.begin(), bytes.end());
  if (pass == Pass::defined)
    expected.push_back(copy);
  else
    LK_CHECK_MSG(copy == expected[next_expected++], "another answer while secrets are undefined");
}

Secret<HkdfState> extracted(std::size_t seed, std::size_t master_bytes = kMasterKeyBytesMax) {
  Secret<HkdfState> state = secret<HkdfState>();
  hkdf_extract(secret_bytes(master_bytes, seed).bytes(), *state);
  return state;
}

Nonce nonce_of(std::size_t seed) {
  Nonce nonce;
  fill(nonce.bytes, seed);
  return nonce;
}

void hkdf_gives_secrets() {
  for (const std::size_t master_bytes : {32, 48, 64}) {
    const Secret<HkdfState> state = extracted(1, master_bytes);
    look_at(std::as_bytes(std::span(&*state, 1)));
    for (const std::size_t output_bytes : {16, 32, 64}) {
      SecretBytes output = secret_bytes(output_bytes, 0);
      hkdf_expand(*state, Context::per_file, nonce_of(2).bytes, output.bytes());
      look_at(output.bytes());
      hkdf_expand_info(*state, nonce_of(3).bytes, output.bytes());
      look_at(output.bytes());
    }
  }
}

// By what it seals and opens: which of its parts a kernel fills is the kernel's business.
void look_at_key(const XtsKey& key) {
  Buffer unit(512);
  fill(unit, 5);
  xts_seal(key, {1, 512}, unit, unit);
  look_at(unit);
  fill(unit, 6);
  xts_open(key, {1, 512}, unit, unit);
  look_at(unit);
}

void extent_keys_from_their_derivation_on() {
  const Secret<HkdfState> state = extracted(7);
  Secret<XtsKey> one = secret<XtsKey>();
  derive_extent_key(*state, nonce_of(8), *one);
  look_at_key(*one);
  Secret<std::array<XtsKey, 9> > keys = secret<std::array<XtsKey, 9> >();
  std::array<Nonce, 9> nonces;
  for (std::size_t i = 0; i < nonces.size(); ++i) nonces[i] = nonce_of(i);
  derive_extent_keys(*state, nonces, *keys);
  for (const XtsKey& key : *keys) look_at_key(key);
}

void schedules_and_both_directions() {
  Secret<XtsKey> key = secret<XtsKey>();
  xts_expand(secret_bytes(kXtsKeyBytes, 9).bytes(), *key);
  // Units of one block, of a few more or less than what goes abreast, of whole rounds of those.
  for (const u32 unit_bytes : {16u, 512u, 528u, 1008u, 4096u, 65536u}) {
    const std::size_t units = unit_bytes <= 4096 ? 9 : 1;
    Buffer plain(units * unit_bytes), sealed(plain.size());
    fill(plain, 10);
    make_secret(plain);
    xts_seal(*key, {77, unit_bytes}, plain, sealed);
    look_at(sealed);
    xts_open(*key, {77, unit_bytes}, sealed, sealed);  // in place
    look_at(sealed);
    std::vector<const std::byte*> apart(units);
    for (std::size_t i = 0; i < units; ++i) apart[i] = &plain[(units - 1 - i) * unit_bytes];
    xts_seal_scattered(*key, {77, unit_bytes}, apart, sealed);
    look_at(sealed);
  }
}

void names_in_both_directions() {
  const Secret<HkdfState> state = extracted(11);
  Secret<NameKey> key = secret<NameKey>();
  derive_name_key(*state, nonce_of(12), *key);
  for (const std::size_t size : {1, 16, 33, 255}) {
    std::string name(size, '\0');
    const MutableBytes name_bytes = std::as_writable_bytes(std::span(name));
    fill(name_bytes, 13);
    make_secret(name_bytes);
    std::string stored = encrypt_name(*key, name);
    const MutableBytes stored_bytes = std::as_writable_bytes(std::span(stored));
    look_at(stored_bytes);
    cts_decrypt(*key, stored_bytes);
    look_at(stored_bytes);
  }
}

// OpenSSL's own, which has tables where the CPU has no AES-NI (docs/limits.md). What does not
// verify is told apart from what does: tags are public.
void values_in_both_directions() {
  const Secret<HkdfState> state = extracted(20);
  Secret<ValueKey> key = secret<ValueKey>();
  derive_value_key(*state, nonce_of(21), *key);
  look_at(key->raw);
  if (std::getenv("OPENSSL_ia32cap") != nullptr) return;
  const ValueNonce nonce{std::byte{22}};
  for (const std::size_t size : {0, 1, 16, 33, 300}) {
    std::vector<std::byte> value(size);
    fill(value, 23);
    make_secret(value);
    std::vector<std::byte> stored = encrypt_value(*key, nonce, {}, value);
    look_at(Bytes(stored).subspan(sizeof nonce));
    const auto opened = decrypt_value(*key, {}, stored);
    LK_CHECK(opened.has_value());
    if (size != 0) look_at(*opened);
  }
}

// Identifiers are made from the master and then compared and looked up, in the ring as in the
// slots.
void key_ring_and_slots() {
  keymgr::Keyring ring;
  const Result<KeyId> id = ring.add(1000, secret_bytes(kMasterKeyBytesMax, 14));
  const Result<KeyId> again = ring.add(1001, secret_bytes(kMasterKeyBytesMax, 14));
  const Result<KeyId> other = ring.add(1000, secret_bytes(kMasterKeyBytesMax, 15));
  const Result<KeyId> named = keymgr::Keyring::identify(secret_bytes(kMasterKeyBytesMax, 14));
  LK_CHECK(id && again && other && named);
  LK_CHECK(*id == *again && *id == *named && *id != *other);
  LK_CHECK(ring.status(*id, 1000).claims == 2 && ring.list().size() == 2);
  look_at_public(id->span());

  auto slots = keymgr::SlotTable::create(2);
  keymgr::Lease lease;
  LK_CHECK(slots && ring.lease(*id, 1, lease));
  for (const std::size_t seed : {16, 17, 16, 18}) {  // misses, a hit, an eviction
    const auto pin = (*slots)->get(lease, nonce_of(seed));
    LK_CHECK(pin.has_value());
    look_at_key(pin->key());
  }
  LK_CHECK((*slots)->counters().hits == 1 && (*slots)->counters().evictions == 1);
  auto use = keymgr::KeyUse::begin(lease);
  LK_CHECK(use.has_value());
  Secret<NameKey> name_key = secret<NameKey>();
  use->name_key(nonce_of(19), *name_key);
  std::string name = encrypt_name(*name_key, "a name of which nothing is secret");
  look_at(std::as_bytes(std::span(name)));
  {
    [[maybe_unused]] const auto ended = *std::move(use);
  }
  (*slots)->evict_key(*id);
  LK_CHECK(!ring.release(lease));
}

struct Case {
  const char* name;
  void (*run)();
};
constexpr Case kCases[] = {
    {"hkdf_extract, hkdf_expand", hkdf_gives_secrets},
    {"derive_extent_key, derive_extent_keys", extent_keys_from_their_derivation_on},
    {"xts_expand, xts_seal, xts_seal_scattered, xts_open", schedules_and_both_directions},
    {"derive_name_key, encrypt_name, cts_decrypt", names_in_both_directions},
    {"derive_value_key, encrypt_value, decrypt_value", values_in_both_directions},
    {"Keyring, SlotTable, KeyUse", key_ring_and_slots},
};

volatile u32 sink = 0;
volatile u8 table[256] = {};

__attribute__((noinline)) void branch_by_a_secret(Bytes secret) {
  if (secret[0] == std::byte{7}) sink = 1;
}
__attribute__((noinline)) void index_by_a_secret(Bytes secret) {
  sink = table[std::to_integer<u8>(secret[0])];
}

int run_cases(std::string_view kernel) {
  if (!xts_force_kernel(kernel)) {
    std::printf("this CPU cannot run %s\n", std::string(kernel).c_str());
    return 77;
  }
  for (const Case& one : kCases) {
    expected.clear();
    next_expected = 0;
    for (const Pass each : {Pass::defined, Pass::undefined}) {
      pass = each;
      one.run();
    }
    LK_CHECK(!expected.empty() && next_expected == expected.size());
    std::printf("%s: %s, %zu answers\n", std::string(kernel).c_str(), one.name, expected.size());
  }
  return 0;
}

int leak(std::string_view kind) {
  pass = Pass::undefined;
  const SecretBytes secret = secret_bytes(16, 1);
  if (kind == "branch")
    branch_by_a_secret(secret.bytes());
  else if (kind == "index")
    index_by_a_secret(secret.bytes());
  else
    return 2;
  return 0;
}

// valgrind maps the stack as far as the stack pointer went: the burn writes below it.
__attribute__((noinline)) void deepen_stack() {
  volatile char bytes[64 * kKiB] = {};
  (void)bytes[0];
}

int run(std::span<char*> words) {
  if (RUNNING_ON_VALGRIND == 0) {
    std::puts("not under valgrind");
    return 77;
  }
  deepen_stack();
  if (words.size() == 3 && std::string_view(words[1]) == "--leak") return leak(words[2]);
  return words.size() == 2 ? run_cases(words[1]) : 2;
}

}  // namespace
}  // namespace latchkey

int main(int count, char** words) {
  return latchkey::run(std::span(words, static_cast<std::size_t>(count)));
}

#endif
