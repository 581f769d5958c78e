#!/usr/bin/env python3
"""Goal: no branch and no address depends on a secret in what valgrind cannot execute: the VAES
kernels and the derivation in AVX-512 lanes.
Method: in the binary as it is built, everything that these functions compute is followed from their
parameters on (support/taint.py): what lies behind a pointer to a key, an HKDF state or data is
secret; pointers, lengths, unit numbers and nonces are not. What the analysis does not understand
fails the test. Leaks of each kind, compiled by the same compiler, have to be found."""
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

TESTS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS / "support"))
import taint  # noqa: E402
import x86  # noqa: E402
from taint_state import NUMBER, address_of  # noqa: E402

BINARY = pathlib.Path(os.environ.get("LATCHKEY_BINARY", "build/release/latchkey")).resolve()

# What a parameter is: its words of eight bytes.
PARAMETERS = {
    "latchkey::crypto::XtsKey const&": [address_of("secret")],
    "latchkey::crypto::XtsRun": [NUMBER, NUMBER],
    "latchkey::crypto::UnitSource const&": [address_of("units")],
    "std::byte*": [address_of("secret")],
    "latchkey::crypto::HkdfState const&": [address_of("secret")],
    "std::array<latchkey::crypto::Id16<2> const*, 8ul> const&": [address_of("nonces")],
    "std::array<latchkey::crypto::XtsKey*, 8ul> const&": [address_of("keys")],
}
# What lies there (kernel.h: UnitSource's pointers come first).
MEMORY = {
    "units": {0: address_of("secret"), 8: address_of("scattered units")},
    "scattered units": address_of("secret"),
    "nonces": address_of("constants"),  # a nonce is public: it lies on the device beside the extent
    "keys": address_of("secret"),
}
# Of each source: what meets secrets, and what does not.
SOURCES = {
    "xts_vaes512.cpp": ("crypt_run<true>", "crypt_run<false>"),
    "xts_vaes256.cpp": ("crypt_run<true>", "crypt_run<false>"),
    "hkdf_lanes.cpp": ("derive_lanes",),
}
NO_SECRETS = ("usable()", "_GLOBAL__sub_I_")
# The one thing that is told of a key: whether it was ever expanded (crypto/xts_aesni.h).
TOLD = ("check_expanded",)
ENDS = ("check_failed",)

PLANTED = r"""
#include <immintrin.h>
#include <cstddef>
#define LEAK __attribute__((target("vaes,avx512f,avx512bw,avx512vl,avx512dq"), noinline)) void
#define SEALED _mm512_aesenc_epi128(_mm512_loadu_si512(data), _mm512_loadu_si512(data + 64))
#define BYTE static_cast<unsigned char>(_mm_cvtsi128_si32(_mm512_castsi512_si128(block)))
#define STORE(offset) _mm512_storeu_si512(data + (offset), block)
LEAK none(std::byte* data) { const __m512i block = SEALED; STORE(0); }
LEAK branch(std::byte* data) { const __m512i block = SEALED; if (BYTE & 1) STORE(0); }
LEAK branch_by_a_test(std::byte* data) {
  const __m256i block = _mm512_castsi512_si256(SEALED);
  if (!_mm256_testz_si256(block, block)) data[0] = std::byte{1};
}
LEAK branch_by_a_key_byte(std::byte* data) { if (data[3] == std::byte{7}) data[0] = std::byte{1}; }
LEAK branch_by_a_slot(std::byte* data) {
  volatile unsigned char slots[64];
  _mm512_storeu_si512(const_cast<unsigned char*>(slots), SEALED);
  if (slots[data != nullptr ? 5 : 6] & 1) data[0] = std::byte{1};
}
LEAK address(std::byte* data) {
  const __m512i block = SEALED;
  data[0] = static_cast<std::byte>("a table of some bytes"[BYTE & 15]);
}
LEAK address_of_a_store(std::byte* data) {
  const __m512i block = SEALED;
  data[BYTE] = std::byte{1};
}
LEAK address_of_a_gather(std::byte* data) {
  const __m512i block = _mm512_i64gather_epi64(_mm512_and_si512(SEALED, _mm512_set1_epi64(15)),
                                               data, 8);
  STORE(0);
}
LEAK mask(std::byte* data) {
  const __m512i block = SEALED;
  _mm512_mask_storeu_epi8(data + 64, _mm512_movepi8_mask(block), block);
}
LEAK mask_of_a_compare(std::byte* data) {
  const __m512i block = SEALED;
  _mm512_mask_storeu_epi64(data, _mm512_cmpeq_epi64_mask(block, _mm512_setzero_si512()), block);
}
LEAK time(std::byte* data) {
  const __m512i block = SEALED;
  data[0] = std::byte(200u / (BYTE | 1u));
}
LEAK unknown(std::byte* data) {
  int a, b, c, d;
  asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0));
  data[0] = std::byte(a);
}
LEAK unknown_call(std::byte* data);
LEAK unknown_calls(std::byte* data) { unknown_call(data); data[0] = std::byte{1}; }
"""


def parameters_of(name):
    return x86.split_operands(name[name.rindex("(") + 1:name.rindex(")")])


@unittest.skipUnless(platform.machine() == "x86_64", "knows x86-64 only")
@unittest.skipUnless(shutil.which("objdump"), "objdump is not installed")
class Disassembly(unittest.TestCase):
    def analysis(self, path):
        binary = x86.Binary(path)
        return binary, taint.Analysis(binary, MEMORY, ENDS, TOLD)

    def secret_functions(self, binary):
        """{(source, function): entry}, and what else is in these sources and may meet secrets."""
        found, others = {}, []
        for entry in binary.functions:
            for source, names in SOURCES.items():
                # A function that other sources call has none in the symbol table.
                if entry[3] not in (source, None):
                    continue
                name = next((name for name in names if f"::{name}(" in entry[2]), None)
                if name and "[clone" not in entry[2]:
                    found[source, name] = entry
                elif entry[3] and not any(each in entry[2] for each in NO_SECRETS):
                    others.append(entry)
        self.assertEqual(set(found), {(source, name) for source, names in SOURCES.items()
                                      for name in names})
        return found, others

    def check_function(self, analysis, source, name, entry):
        analysis.instructions.clear()
        found = analysis.run(entry, [PARAMETERS[each] for each in parameters_of(entry[2])])
        self.assertEqual(list(map(str, found)), [])
        code = analysis.binary.code
        unseen = [at.text for at in code.values() if entry[0] <= at.address < entry[0] + entry[1]
                  and at.address not in analysis.instructions and at.name not in x86.NOTHING]
        self.assertEqual(unseen, [], "code that no path leads to")
        seen = [code[address] for address in analysis.instructions]
        branches = sum(at.name[0] == "j" and at.name != "jmp" for at in seen)
        addresses = sum(each.kind == "memory" for at in seen for each in at.operands)
        self.assertGreater(min(branches, addresses), 1)
        print(f"{source} {name}: {len(seen)} instructions, {branches} branches, {addresses} "
              "addresses, none depends on a secret")
        return set(analysis.instructions)

    def test_every_branch_and_every_address_comes_from_lengths_and_pointers(self):
        binary, analysis = self.analysis(BINARY)
        functions, others = self.secret_functions(binary)
        seen = set()
        print()
        for (source, name), entry in functions.items():
            with self.subTest(source=source, name=name):
                seen |= self.check_function(analysis, source, name, entry)
        self.assertEqual([entry[2] for entry in others if entry[0] not in seen], [],
                         "functions of these sources that nobody looked at")

    def test_wide_registers_are_used_only_where_the_processor_is_asked_first(self):
        """What a kernel's instruction set made of inline code that others share would run on
        processors that lack it."""
        binary = x86.Binary(BINARY)
        users = set()
        wide = re.compile(r"\s*([0-9a-f]+):\t.*(?:%[yz]mm|%xmm(?:1[6-9]|2\d|3[01])|%k[0-7])")
        for line in binary.objdump("-d", "--no-show-raw-insn", "--section=.text"):
            if match := wide.match(line):
                found = binary.function(int(match[1], 16))
                users.add(found[2].partition("(latchkey")[0] if found else line)
        named = r"void latchkey::crypto::\(anonymous namespace\)::crypt_run<(?:true|false)>|" \
                r"latchkey::crypto::derive_lanes|latchkey::burn_stack_and_registers\(\)"
        self.assertEqual([user for user in users if not re.fullmatch(named, user)], [])
        self.assertEqual(len(users), 4)

    def compiler(self):
        """The one that made the binary."""
        cache = BINARY.parent / "CMakeCache.txt"
        found = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)", cache.read_text(), re.M) \
            if cache.exists() else None
        return found[1] if found else "c++"

    def test_planted_leaks_are_found(self):
        compiler = self.compiler()
        if not shutil.which(compiler):
            self.skipTest(f"{compiler} is not there to compile them")
        with tempfile.TemporaryDirectory() as folder:
            source, library = (pathlib.Path(folder, f"planted.{kind}") for kind in ("cpp", "so"))
            source.write_text(PLANTED)
            subprocess.run([compiler, "-std=c++20", "-O2", "-fPIC", "-shared",
                            source, "-o", library],
                           check=True)
            binary, analysis = self.analysis(library)
            planted = {entry[2].partition("(")[0]: entry for entry in binary.functions
                       if "(std::byte*)" in entry[2]}
            self.assertEqual(set(planted), set(re.findall(r"^LEAK (\w+)\(.*\{", PLANTED, re.M)))
            for name, entry in planted.items():
                with self.subTest(name=name):
                    found = analysis.run(entry, [PARAMETERS["std::byte*"]])
                    kind = name.partition("_")[0]
                    self.assertEqual({each.kind for each in found}, {kind} - {"none"},
                                     list(map(str, found)))
                    self.assertTrue(all(name in each.function for each in found))


if __name__ == "__main__":
    unittest.main()
