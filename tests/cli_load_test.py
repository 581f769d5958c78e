#!/usr/bin/env python3
"""Goal: whatever encrypts gives the same store, and the verbs that load one say what they saw and
leave nothing in it. Method: the real binary on images, under each backend and kernel."""
import pathlib
import random
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from cli import *  # noqa: E402,F403


class Ciphers(CliTest):
    def test_every_backend_and_kernel_reads_what_the_others_wrote(self):
        self.make_store()
        chosen = []
        for backend in self.run_json("info", "info")["backends"]:
            if not backend["usable"]:
                self.run_refused(USAGE, "--backend", backend["name"], "info",
                                 says=backend["reason"])
                continue
            info = self.run_json("info", "--backend", backend["name"], "info")
            self.assertEqual(info["backend"], backend["name"])
            chosen.append(["--backend", backend["name"]])
            if backend["name"] == "native":
                chosen += [["--xts-kernel", kernel["name"]] for kernel in backend["kernels"]
                           if kernel["usable"]]
        self.assertGreaterEqual(len(chosen), 3)
        data = random.Random(7).randbytes(300_001)
        source = self.folder / "source"
        source.write_bytes(data)
        for number, words in enumerate(chosen):
            self.run_ok(*words, "put", "-q", "--key-file", self.key, source,
                        self.at(f"/vault/a longer name than a block, number {number}"))
        for words in chosen:
            listed = self.run_ok(*words, "ls", "--key-file", self.key, self.at("/vault"))
            self.assertEqual(len(listed.splitlines()), len(chosen))
            for name in listed.splitlines():
                got = self.run_raw(*words, "get", "-q", "--key-file", self.key,
                                   self.at(f"/vault/{name}"), "-")
                self.assertEqual(got.stdout, data, (words, name))
        self.run_refused(USAGE, "--backend", "openssl", "--xts-kernel", "portable", "info")
        self.run_refused(USAGE, "--xts-kernel", "kcapi", "info", says="--backend")


class Load(CliTest):
    def test_bench_answers_with_rows_and_leaves_nothing(self):
        self.make_store()
        answer = self.run_json("bench", "bench", "-q", "--size", "8M", "--rounds", "1", "--extent",
                               "64K,128K", self.image)
        self.assertEqual([row["extent_bytes"] for row in answer["rows"]], [65536, 131072])
        for row in answer["rows"]:
            self.assertGreater(row["sealed_mib_s"], 0)
            self.assertAlmostEqual(row["ratio"], row["sealed_mib_s"] / row["clear_mib_s"])
            self.assertGreater(row["read_sealed_mib_s"], 0)
            self.assertAlmostEqual(row["read_ratio"],
                                   row["read_sealed_mib_s"] / row["read_clear_mib_s"])
            # Each extent's key is derived once, and each has one.
            self.assertGreaterEqual(row["key_slots"]["misses"], 8 * MIB / row["extent_bytes"])
            self.assertEqual(row["key_slots"]["capacity"], 1024)
        self.assertEqual(self.run_ok("ls", self.at("/")), "vault\n")
        self.run_refused(USAGE, "bench", "-q", "--json", "--size", "0", self.image)
        self.run_refused(USAGE, "bench", "-q", "--extent", "1M", self.image, says="--extent")
        for extent in ("0", "1K", "5000", "128K,0", "many"):
            self.run_refused(USAGE, "bench", "-q", "--extent", extent, self.image)
        self.run_refused(NO_SPACE, "bench", "-q", "--size", "1G", self.image, says="space")
        self.assertEqual(self.run_ok("ls", self.at("/")), "vault\n")
        self.assert_clean()

    def test_torture_counts_and_leaves_nothing(self):
        self.make_store("256M")
        answer = self.run_json("torture", "torture", "-q", "--mode", "soft", "--seconds", "1",
                               "--writers", "2", "--seed", "7", self.image)
        self.assertEqual(set(answer), {"acknowledged", "acknowledged_after_removal", "refused",
                                       "removals", "reported_lost", "silently_lost"})
        self.assertGreater(answer["acknowledged"], answer["acknowledged_after_removal"])
        self.assertGreater(answer["acknowledged_after_removal"], 0)
        self.assertGreater(answer["removals"], 0)
        self.assertEqual((answer["reported_lost"], answer["silently_lost"]), (0, 0))
        self.assertEqual(self.run_ok("ls", self.at("/")), "vault\n")
        self.assert_clean()
        self.run_refused(USAGE, "torture", "--json", "--mode", "none", self.image, says="mode")
        self.run_refused(UNAVAILABLE, "torture", "--json", "--mode", "sealed", self.image,
                         says="sealed: .*does not work yet")
        done = self.run_raw("torture", "-q", "--json", "--seconds", "0", self.image)
        self.assertEqual(done.returncode, 15, "nothing was exercised")
        self.assertEqual(self.member(done.stdout.decode(), "torture")["removals"], 0)

    def test_torture_lasts_on_a_small_store(self):
        self.make_store("64M")
        for mode, seconds in (("soft", 5), ("hard", 2)):
            written = 0
            while written <= 20 * MIB and seconds < 300:  # on slow machines it takes longer
                answer = self.run_json("torture", "torture", "-q", "--mode", mode, "--seconds",
                                       seconds, "--writers", "4", self.image)
                written = answer["acknowledged"] * (24 << 10)
                seconds *= 4
            # More was written than its share of the store, so records were overwritten.
            self.assertGreater(written, 20 * MIB)
            self.assertEqual(answer["silently_lost"], 0)
            if mode == "soft":
                self.assertGreater(answer["acknowledged_after_removal"], 0)
                self.assertEqual(answer["reported_lost"], 0)
        self.assertEqual(self.run_ok("ls", self.at("/")), "vault\n")
        self.assert_clean()


if __name__ == "__main__":
    unittest.main()
