#!/usr/bin/env python3
"""Goal: no branch and no address depends on a secret, in what valgrind can execute: HKDF, key
schedules, the AES-NI, portable and OpenSSL kernels, names, values, the key ring. (AVX-512 and VAES,
which it cannot and hides from CPUID: disassembly_test.py.)
Method: secrets_undefined.cpp marks secrets as undefined memory, memcheck reports what depends on
them. A leak of each kind, planted in that program, has to be reported by the name of its function,
so that silence means something."""
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

TESTS = pathlib.Path(__file__).resolve().parent
PROGRAM = pathlib.Path(os.environ.get("LATCHKEY_BINARY", "build/release/latchkey")).resolve() \
    .parent / "tests/secrets_undefined"
SKIPPED, REPORTED = 77, 99
# OPENSSL_ia32cap: OpenSSL chooses its code as if the CPU had neither AES-NI (bit 57) nor AVX (60)
# nor anything of CPUID's leaf 7; and as if it had no SSSE3 (41) either.
OLD_CPU, OLDER_CPU = f"~{1 << 57 | 1 << 60:#x}:0", f"~{1 << 41 | 1 << 57 | 1 << 60:#x}:0"


@unittest.skipUnless(shutil.which("valgrind"), "valgrind is not installed")
class ConstantTime(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """Without debug information: Debian 12's valgrind cannot read clang-19's."""
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.program = f"{folder.name}/{PROGRAM.name}"
        subprocess.run(["objcopy", "--strip-debug", PROGRAM, cls.program], check=True)

    def memcheck(self, *words, **environment):
        """What valgrind's exit code is, and all that was said. The arena lies in locked pages:
        valgrind does not know memfd_secret."""
        done = subprocess.run(
            ["valgrind", "--quiet", f"--error-exitcode={REPORTED}",
             f"--suppressions={TESTS / 'constant_time.supp'}", self.program, *words],
            env={**os.environ, "LATCHKEY_SECRETS": "locked", **environment},
            capture_output=True, text=True)
        said = done.stdout + done.stderr
        if done.returncode == SKIPPED:
            self.skipTest(said.strip())
        if "failed to start tool" in said:
            self.skipTest(f"valgrind cannot run here: {said.strip().splitlines()[0]}")
        self.assertNotIn("unhandled instruction", said)
        return done.returncode, said

    def check(self, kernel, **environment):
        code, said = self.memcheck(kernel, **environment)
        self.assertEqual(code, 0, said)
        cases = re.findall(rf"^{kernel}: .*, (\d+) answers$", said, re.M)
        self.assertEqual(len(cases), 6, said)  # and nothing is said besides
        self.assertEqual(len(said.splitlines()), len(cases), said)
        print(f"{kernel}: {len(cases)} cases, {sum(map(int, cases))} answers, nothing reported")

    def check_planted(self, kind, report, function):
        code, said = self.memcheck("--leak", kind)
        self.assertEqual(code, REPORTED, said)
        first = re.search(rf"{report}\s+==\d+==\s+at 0x\w+: (.*)", said)
        self.assertTrue(first, said)
        self.assertIn(function, first[1])

    def test_nothing_depends_on_a_secret_with_the_aesni_kernel(self):
        self.check("aesni")

    def test_nothing_depends_on_a_secret_with_the_portable_kernel(self):
        self.check("portable", OPENSSL_ia32cap=OLD_CPU)

    def test_nothing_depends_on_a_secret_with_the_portable_kernel_on_this_cpu(self):
        self.check("portable")

    def test_nothing_depends_on_a_secret_with_the_openssl_kernel(self):
        """Where OpenSSL has AES-NI: without it, its XTS expands keys by tables."""
        self.check("openssl")

    def test_what_openssl_looks_up_by_a_secret_is_reported(self):
        code, said = self.memcheck("portable", OPENSSL_ia32cap=OLDER_CPU)
        self.assertEqual(code, REPORTED, said)
        self.assertRegex(said, r"Use of uninitialised value of size 8\s+==\d+==\s+at .*libcrypto")

    def test_a_planted_branch_is_reported(self):
        self.check_planted("branch", r"Conditional jump .* depends on uninitialised value\(s\)",
                           "branch_by_a_secret")

    def test_a_planted_look_up_is_reported(self):
        self.check_planted("index", "Use of uninitialised value of size 8", "index_by_a_secret")


if __name__ == "__main__":
    unittest.main()
