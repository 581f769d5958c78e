#!/usr/bin/env python3
"""Goal: what a soak of the mount says of lost bytes is true. Method: its writer on this machine's
own file system, then the same files with one byte, one name or one version changed by hand."""
import os
import pathlib
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "suites"))
from acknowledged import SLOT, Model, Writers, bytes_of  # noqa: E402


class Told(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.logs = pathlib.Path(folder.name)
        self.files = self.logs / "files"
        self.files.mkdir()
        self.model = Model()

    def feed(self, *lines):
        for line in lines:
            self.model.feed(line)

    def put(self, name, slot, *versions):
        """Slot after slot from that one on."""
        with open(self.files / name, "r+b" if (self.files / name).exists() else "w+b") as file:
            file.seek(slot * SLOT)
            for number, version in enumerate(versions):
                file.write(bytes_of(name, slot + number, version))

    def wrong(self, settled=False):
        return self.model.verify(self.files, settled)[1]

    def test_a_synced_slot_must_be_there(self):
        self.feed("write a 0 5", "write a 1 6", "synced a")
        self.assertEqual(len(self.wrong()), 2)
        self.put("a", 0, 5, 6)
        self.assertEqual(self.wrong(), [])
        self.feed("write a 1 7")
        self.put("a", 1, 7)
        self.assertEqual(self.wrong(), [])
        self.put("a", 1, 5)
        self.assertEqual(len(self.wrong()), 1)

    def test_a_slot_that_was_not_synced_is_old_new_or_torn(self):
        self.feed("write a 3 1", "synced a", "write a 3 2")
        for versions in ((1,), (2,)):
            self.put("a", 3, *versions)
            self.assertEqual(self.wrong(), [])
        torn = bytes_of("a", 3, 1)[:288] + bytes_of("a", 3, 2)[288:]
        (self.files / "a").write_bytes(bytes(3 * SLOT) + torn)
        self.assertEqual(self.wrong(), [])
        (self.files / "a").write_bytes(bytes(4 * SLOT))
        self.assertEqual(len(self.wrong()), 1)

    def test_what_was_seen_after_a_mount_stays(self):
        self.feed("write a 0 1", "synced a", "write a 0 2")
        self.put("a", 0, 1)
        self.assertEqual(self.wrong(settled=True), [])
        self.put("a", 0, 2)
        self.assertEqual(len(self.wrong()), 1)

    def test_a_replaced_file_is_the_old_or_the_new_one(self):
        self.feed("write a 0 1", "write a 2 2", "synced a", "whole a 1 3")
        self.put("a", 0, 1, 0, 2)
        self.assertEqual(self.wrong(), [])
        (self.files / "a").unlink()
        self.put("a", 0, 3)
        self.assertEqual(self.wrong(), [])
        self.feed("replaced a")
        self.assertEqual(self.wrong(), [])
        self.put("a", 0, 1, 0, 2)
        self.assertEqual(len(self.wrong()), 2)
        self.feed("whole a 0 4", "replaced a")
        self.assertEqual(len(self.wrong()), 2, "a name that was removed is back")

    def test_an_error_and_a_removal_that_may_lose_end_what_was_pending(self):
        self.feed("write a 0 1", "error a", "write a 1 2", "synced a")
        self.put("a", 1, 2)
        self.assertEqual(self.wrong(), [])
        self.model.lossy = True
        self.feed("write a 2 3", "closed a", "write a 3 4", "synced a")
        self.put("a", 3, 4)
        self.assertEqual(self.wrong(), [])
        self.model.lossy = False
        self.feed("write a 4 5", "closed a", "synced a")
        self.assertEqual(len(self.wrong()), 1)

    def test_the_writers_tell_what_they_do(self):
        writers = Writers(self.model, self.files, self.logs, 2, seed=1)
        ends = time.monotonic() + 60
        while (sum((self.logs / f"told{number}").stat().st_size for number in (0, 1)) < 200_000
               and time.monotonic() < ends):
            time.sleep(0.05)
        self.assertEqual(writers.end(), "")
        exact, wrong = self.model.verify(self.files, settled=True)
        self.assertEqual(wrong, [])
        self.assertGreater(exact, 100)
        self.assertGreater(self.model.fsyncs, 10)
        name = next(path for path in sorted(self.files.iterdir()) if path.stat().st_size)
        with open(name, "r+b") as file:
            byte = file.read(1)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), 0)
        self.assertEqual(len(self.wrong()), 1)


if __name__ == "__main__":
    unittest.main()
