#!/usr/bin/env python3
"""Goal: what docs/ says of the code by name is there. Method: the lock table against every lock
that a file declares, and each test that is named as a proof against the tests."""
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ("base", "crypto", "engine", "extent", "keymgr", "writeback", "volume", "mount",
         "cli", "tests/support")
LOCK = re.compile(r"^ *(?:mutable )?(?:DirectoryLocks::Shards|(?:Shared)?Mutex) (\w+)"
                  r"(?: LK_\w+\(\w+\))*;", re.M)


def declared_locks():
    return {(name, str(path.relative_to(ROOT)))
            for room in ROOMS for path in (ROOT / room).glob("*.[hc]*")
            if not str(path).endswith(("base/mutex.h", "base/mutex.cpp"))
            for name in LOCK.findall(path.read_text())}


def tests_there():
    found = set()
    for path in (ROOT / "tests").glob("*_test.cpp"):
        text = path.read_text()
        found |= {f"{path.stem}"}
        found |= {f"{suite}.{name}" for suite, name in
                  re.findall(r"^TEST(?:_[FP])?\((\w+),\s*(\w+)\)", text, re.M)}
    for path in (ROOT / "tests").glob("*_test.py"):
        found |= {f"{path.stem}.py"}
        found |= {f"{path.stem}.{name}" for name in re.findall(r"def (test_\w+)", path.read_text())}
    return found


class Docs(unittest.TestCase):
    def test_every_lock_is_in_the_table_and_no_other(self):
        section = (ROOT / "docs/architecture.md").read_text().split("## Locks")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \(([\w/.]+)\)", section, re.M)
        self.assertEqual(set(rows), declared_locks())
        self.assertEqual(len(rows), len(set(rows)), "a lock has two rows")
        self.assertGreater(len(rows), 15)

    def test_every_proof_is_a_test(self):
        there = tests_there()
        text = (ROOT / "docs/threat_model.md").read_text()
        rows = [row for row in text.splitlines()
                if row.startswith("| ") and row != "| promise | proof |"]
        self.assertGreater(len(rows), 20)
        for row in rows:
            named = re.findall(r"`(\w+(?:\.\w+)?)`", row.split("|")[2])
            with self.subTest(row=row):
                self.assertTrue(named or "demo step" in row, "a promise without a test")
                self.assertEqual([name for name in named if name not in there], [])


if __name__ == "__main__":
    unittest.main()
