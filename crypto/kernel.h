#pragma once
// One row for each way to run AES here. Internal to crypto/: xts.cpp keeps the table, chooses a row
// once, and everyone else calls through kernel(). A new kernel is a new row; one that shares a key
// layout with another (VAES with AES-NI) names the same expand functions.
//
// A key belongs to the kernel that expanded it: rows fill different parts of XtsKey and NameKey and
// leave the rest zero. Every row checks, at each call, that the part it reads was filled.

#include "crypto/names.h"
#include "crypto/xts.h"

namespace latchkey::crypto {

// Where the data units of a run are read from: side by side, or each from a place of its own.
struct UnitSource {
  const std::byte* first = nullptr;
  const std::byte* const* scattered = nullptr;  // or this
  std::size_t units = 0;
  u32 unit_bytes = 0;

  const std::byte* at(std::size_t unit) const {
    return scattered != nullptr ? scattered[unit] : first + unit * unit_bytes;
  }
};

struct Kernel {
  std::string_view name;
  bool (*usable)();

  void (*expand)(Bytes raw, XtsKey& key);
  // `output` has room for all units, side by side; run.unit_bytes is the source's, too.
  void (*seal)(const XtsKey& key, XtsRun run, const UnitSource& source, std::byte* output);
  void (*open)(const XtsKey& key, XtsRun run, const UnitSource& source, std::byte* output);

  // AES-256-CBC of whole blocks in place, zero IV: what CTS and single blocks are made of.
  void (*expand_name)(Bytes raw, NameKey& key);
  void (*cbc_encrypt)(const NameKey& key, MutableBytes blocks);
  void (*cbc_decrypt)(const NameKey& key, MutableBytes blocks);
};

// usable() is false where the build or the CPU lacks it.
extern const Kernel kVaes512Kernel;
extern const Kernel kVaes256Kernel;
extern const Kernel kAesniKernel;
extern const Kernel kPortableKernel;  // usable everywhere
extern const Kernel kOpensslKernel;   // usable everywhere; only if asked for
extern const Kernel kKcapiKernel;     // only if asked for

// 0, or the errno with which this operating system refuses AF_ALG's ciphers; probed once.
int kcapi_refusal();

const Kernel& kernel();

}  // namespace latchkey::crypto
