#!/usr/bin/env python3
"""Goal: whatever encrypts gives the same store, and the verbs that load one say what they saw and
leave nothing in it. Method: the real binary on images, under each backend and kernel."""
import json
import os
import pathlib
import random
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from cli import *  # noqa: E402,F403


MODES = ["soft", "sealed", "safe", "sync", "freeze", "deny", "hard", "suspend"]


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

    def torture_row(self, row):
        """What holds for each mode, from what its own row of docs/removal.md says."""
        mode = row["mode"]
        self.assertEqual(set(row), {"mode", "acknowledged", "acknowledged_after_removal", "waited",
                                    "refused", "reported_lost", "silently_lost", "removals",
                                    "removals_refused", "absent", "looks", "looks_with_master",
                                    "master_in_memory", "masters_left"})
        self.assertGreater(row["acknowledged"], row["acknowledged_after_removal"], row)
        self.assertEqual((row["silently_lost"], row["masters_left"]), (0, 0), row)
        if mode not in ("sync", "hard"):
            self.assertEqual(row["reported_lost"], 0, row)
        self.assertGreater(row["removals"] + row["removals_refused"], 0, row)
        if mode not in ("safe", "sealed"):
            self.assertEqual(row["removals_refused"], 0, row)
        goes_on = mode in ("soft", "sealed")
        self.assertEqual(row["acknowledged_after_removal"] > 0, goes_on, row)
        if mode == "suspend":
            self.assertGreater(row["waited"], 0, row)
        if row["looks"]:
            self.assertEqual(row["master_in_memory"], mode == "soft", row)
            self.assertEqual(row["looks_with_master"], row["looks"] if mode == "soft" else 0, row)
        else:
            self.assertIsNone(row["master_in_memory"], row)
        absent = row["absent"]
        if absent["count"]:
            self.assertLessEqual(0, absent["median_ns"], row)
            self.assertLessEqual(absent["median_ns"], absent["worst_ns"], row)

    def looks_of(self, mode):
        """Of a longer run: on a machine with much else to do a second may be too short."""
        row, = self.run_json("torture", "torture", "-q", "--mode", mode, "--seconds", "10",
                             "--seed", "8", self.image)
        self.torture_row(row)
        return row["looks"]

    def test_torture_in_every_mode_counts_and_leaves_nothing(self):
        self.make_store("256M")
        rows = self.run_json("torture", "torture", "-q", "--mode", "all", "--seconds", "1",
                             "--seed", "7", self.image)
        self.assertEqual([row["mode"] for row in rows], MODES)
        for row in rows:
            with self.subTest(row["mode"]):
                self.torture_row(row)
        by_mode = {row["mode"]: row for row in rows}
        # Somebody is inside at some look, and the room is empty at some removal.
        for mode in set(MODES) - {"safe"}:
            self.assertGreater(by_mode[mode]["looks"] or self.looks_of(mode), 0, mode)
        self.assertGreater(by_mode["safe"]["removals_refused"], 0)
        self.assertEqual(by_mode["safe"]["looks"], 0)
        self.assertEqual(self.run_ok("ls", self.at("/")), "vault\n")
        self.assert_clean()

    def test_torture_in_one_mode_gives_its_row(self):
        self.make_store("256M")
        row = self.run_json("torture", "torture", "-q", "--mode", "soft", "--seconds", "1",
                            "--writers", "2", "--seed", "7", self.image)
        self.torture_row(row)
        lines = self.run_ok("torture", "-q", "--mode", "deny", "--seconds", "1",
                            self.image).splitlines()
        self.assertEqual(len(lines), 3, lines)
        self.assertIn("acknowledged", lines[1])
        self.assertEqual(lines[2].split()[0], "deny")
        self.assertEqual(lines[2].split()[4], "0", lines)  # silently lost
        self.run_refused(USAGE, "torture", "--json", "--mode", "none", self.image, says="mode")
        done = self.run_raw("torture", "-q", "--json", "--seconds", "0", self.image)
        self.assertEqual(done.returncode, 15, "nothing was exercised")
        row = self.member(done.stdout.decode(), "torture")
        self.assertEqual((row["removals"], row["absent"]["median_ns"]), (0, None))

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


class SessionRemoval(CliTest):
    def session(self, *lines):
        """The answer to each line."""
        done = subprocess.run([LATCHKEY, "session", self.image], text=True, capture_output=True,
                              input="".join(f"{line}\n" for line in lines), check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_remove_takes_a_mode_and_words_and_gives_a_report(self):
        self.make_store()
        everybody = "" if os.getuid() else " all-users"
        asked = ["remove sealed dry-run", "remove safe", "remove safe wait deadline=20 then=soft",
                 f"remove soft{everybody}", "remove deny deadline=5", "remove none",
                 "remove soft then=none", "remove soft for ever", "remove deny", "status"]
        before = [f"load {self.key}", "add", "write /vault/log 2", "stop"]
        answers = self.session(*before, *asked)[len(before):]
        dry, busy, overdue, soft, late, *wrong, gone, status = answers
        self.assertEqual((dry["state"], dry["dry_run"], dry["mode"]),
                         ("incompletely-removed", True, "sealed"))
        self.assertEqual([holder["path"] for holder in dry["holders"]],
                         ["/vault/log-0", "/vault/log-1"])
        self.assertGreater(dry["own_key_bytes"], 0)
        self.assertEqual((busy["error"], len(busy["holders"])), ("busy", 2))
        self.assertEqual((overdue["state"], overdue["mode"]), ("incompletely-removed", "soft"))
        self.assertGreater(len(soft["phases"]), 1, soft)
        self.assertEqual(late["error"], "invalid")
        self.assertEqual([answer["error"] for answer in wrong], ["remove MODE [words]"] * 3)
        self.assertEqual((gone["state"], gone["holders"][0]["path"], gone["lost"]),
                         ("absent", "/vault/log-0", []))
        self.assertEqual(status["state"], "absent")


if __name__ == "__main__":
    unittest.main()
