#!/usr/bin/env python3
"""Goal: when a key goes, so does what the kernel has of its files, stores into mappings are not
lost, who must wait waits without hurting others, and adding the key again lets all go on.
Method: a mounted store, real processes, keys removed over the control socket in every mode;
cachestat(2) counts what the kernel has."""
import ctypes
import ctypes.util
import json
import mmap
import os
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted_keys import *  # noqa: E402,F403

LIBC = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
SYS_CACHESTAT = 451
PAGE = 4096
CUT_OFF = ("sync", "freeze", "deny", "hard")  # what stays open answers ENOKEY
KEEPS = ("soft", "sealed")                    # what stays open goes on


def cached_pages(fd):
    """Pages of the file that the kernel has; skips the test where it cannot say."""
    everything = (ctypes.c_uint64 * 2)(0, 0)
    counts = (ctypes.c_uint64 * 5)()
    if LIBC.syscall(SYS_CACHESTAT, fd, everything, counts, 0) != 0:
        raise unittest.SkipTest("this kernel has no cachestat(2)")
    return counts[0]


class Lock(Children, MountTest):
    def setUp(self):
        super().setUp()
        self.vault = self.root / "vault"

    def remove(self, mode, *words, code=OK):
        done = self.run_raw("key", "remove", "--key-file", self.key, "--mode", mode, "--json",
                            *words, self.root, timeout=60)
        self.assertEqual(done.returncode, code, done.stderr)
        return json.loads(done.stdout)["key_remove"]

    def add(self):
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root, timeout=60)

    def state(self):
        return self.run_json("key_status", "key", "status", "--key-file", self.key,
                             self.root)["state"]

    def all_closed(self):
        """The kernel tells of a close after close(2) has returned."""
        end = time.monotonic() + 10
        while (holders := self.run_json("key_status", "key", "status", "--key-file", self.key,
                                        self.root)["holders"]) and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual(holders, [])

    def all_pages_go(self, fd):
        """Those that a removal went around, once who waited has been refused."""
        end = time.monotonic() + 10
        while cached_pages(fd) != 0 and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual(cached_pages(fd), 0)

    def file(self, name="a", pages=64):
        path = self.vault / name
        path.write_bytes(b"".join(bytes([1 + i % 250]) * PAGE for i in range(pages)))
        return path

    # --- what the kernel has ----------------------------------------------------------------------

    def test_pages_of_closed_files_go_in_every_mode(self):
        path = self.file()
        for mode in (*KEEPS, "safe", *CUT_OFF, "suspend"):
            fd = os.open(path, os.O_RDONLY)
            data = os.pread(fd, 1 << 20, 0)
            self.assertEqual(cached_pages(fd), 64)
            os.close(fd)
            self.all_closed()
            self.assertEqual(self.remove(mode)["state"], "absent", mode)
            self.assertEqual(error_of(os.open, path, os.O_RDONLY), "ENOKEY")
            self.add()
            fd = os.open(path, os.O_RDONLY)
            self.assertEqual(cached_pages(fd), 0, mode)
            self.assertEqual(os.pread(fd, 1 << 20, 0), data)
            os.close(fd)

    def test_pages_of_open_files_go_where_nothing_stays(self):
        path = self.file()
        for mode in CUT_OFF:
            fd = os.open(path, os.O_RDWR)
            mapping = mmap.mmap(fd, 64 * PAGE)
            for page in range(64):
                self.assertEqual(mapping[page * PAGE], 1 + page)
            self.assertEqual(cached_pages(fd), 64)
            self.assertEqual(self.remove(mode)["state"], "absent")
            self.assertEqual(cached_pages(fd), 0, mode)
            self.assertEqual(error_of(os.pread, fd, 10, 0), "ENOKEY")
            self.assertEqual(error_of(os.pwrite, fd, b"x", 0), "ENOKEY")
            fault = self.child(lambda: mapping[3 * PAGE])
            self.assertEqual(self.ended(fault), -signal.SIGBUS)
            self.add()
            self.assertEqual(os.pread(fd, 10, 0), b"\x01" * 10)
            mapping.close()
            os.close(fd)

    def test_the_last_close_takes_pages_and_key(self):
        path = self.file()
        for mode in KEEPS:
            fd = os.open(path, os.O_RDWR)
            mapping = mmap.mmap(fd, 64 * PAGE)
            report = self.remove(mode, code=7)
            self.assertEqual(report["state"], "incompletely-removed")
            mapping[5 * PAGE:5 * PAGE + 5] = b"after"
            self.assertEqual(os.pread(fd, 5, 5 * PAGE), b"after")
            os.pwrite(fd, b"written", 7 * PAGE)
            # Nobody asks for the name: a look-up that fails would take the pages along.
            os.close(fd)
            self.assertEqual(mapping[0], 1, "the mapping keeps the file")
            mapping.close()
            end = time.monotonic() + 10
            while (state := self.state()) != "absent" and time.monotonic() < end:
                time.sleep(0.01)
            self.assertEqual(state, "absent")
            self.add()
            fd = os.open(path, os.O_RDWR)
            self.assertEqual(cached_pages(fd), 0, mode)
            self.assertEqual(os.pread(fd, 5, 5 * PAGE), b"after")
            self.assertEqual(os.pread(fd, 7, 7 * PAGE), b"written")
            os.pwrite(fd, bytes([6]) * 5, 5 * PAGE)
            os.close(fd)

    def test_names_change_at_once(self):
        self.file("name")
        (self.vault / "sub").mkdir()
        (self.vault / "link").symlink_to("target")
        for _ in range(3):
            self.assertEqual(sorted(os.listdir(self.vault)), ["link", "name", "sub"])
            self.assertEqual(os.readlink(self.vault / "link"), "target")
            self.all_closed()
            self.remove("soft")
            self.assertFalse({"link", "name", "sub"} & set(os.listdir(self.vault)))
            self.assertEqual(error_of(os.stat, self.vault / "name"), "ENOKEY")
            self.assertEqual(error_of(os.stat, self.vault / "never"), "ENOKEY")
            self.assertEqual(error_of(os.mkdir, self.vault / "new"), "ENOKEY")
            for name in os.listdir(self.vault):
                os.lstat(self.vault / name)
            no_key_name = os.listdir(self.vault)[0]
            self.add()
            self.assertEqual(error_of(os.lstat, self.vault / no_key_name), "ENOENT")
            self.assertEqual(error_of(os.stat, self.vault / "never"), "ENOENT")

    def test_an_open_directory_is_listed_anew(self):
        for number in range(3000):
            (self.vault / f"n{number}").touch()
        with os.scandir(self.vault) as scan:
            next(scan)
            self.remove("deny")
            rest = [entry.name for entry in scan]
        self.assertLess(len([name for name in rest if name.startswith("n") and name[1:].isdigit()]),
                        2000, "what the C library had read is its own")
        fd = os.open(self.vault, os.O_RDONLY)
        self.assertEqual([name for name in os.listdir(fd) if name[1:].isdigit()], [])
        os.close(fd)

    # --- stores into mappings ---------------------------------------------------------------------

    def storing(self, path, record, pages):
        """Stores rising numbers into the mapping; `record` has those that were stored for sure."""
        fd = os.open(path, os.O_RDWR)
        mapping = mmap.mmap(fd, pages * PAGE)

        def work():  # one store each: pack_into() would write zeros first
            stored, known = memoryview(mapping).cast("Q"), memoryview(record).cast("Q")
            number = 1
            while True:
                for page in range(pages):
                    stored[page * PAGE // 8 + 1] = number
                    known[page] = number
                number += 1

        return self.child(work)

    def test_no_store_is_lost_though_a_program_goes_on_storing(self):
        pages = 16
        for mode in ("deny", "freeze", "sync", "suspend"):
            with self.subTest(mode):
                path = self.file(f"map-{mode}", pages)
                record = mmap.mmap(-1, pages * 8)
                pid = self.storing(path, record, pages)
                while struct.unpack_from("<Q", record, 8)[0] < 200:
                    time.sleep(0.001)
                report = self.remove(mode)
                if mode == "suspend":
                    time.sleep(0.1)
                    os.kill(pid, signal.SIGKILL)
                    self.assertEqual(self.ended(pid), -signal.SIGKILL)
                else:
                    self.assertEqual(self.ended(pid), -signal.SIGBUS)
                self.add()
                data = path.read_bytes()
                behind = [page for page in range(pages) if
                          struct.unpack_from("<Q", data, page * PAGE + 8)[0] <
                          struct.unpack_from("<Q", record, page * 8)[0]]
                if mode == "sync":  # from the flush on, reported
                    self.assertTrue(not behind or report["bytes_lost"] > 0, behind)
                else:
                    self.assertEqual(behind, [])
                    self.assertEqual(report["bytes_lost"], 0)

    def test_hard_counts_what_the_kernel_had(self):
        path = self.file("hard", 16)
        fd = os.open(path, os.O_RDWR)
        os.fsync(fd)
        mapping = mmap.mmap(fd, 16 * PAGE)
        for page in range(4):
            mapping[page * PAGE:page * PAGE + 5] = b"store"
        report = self.remove("hard")
        self.assertEqual((report["bytes_lost"], report["files_lost"]), (4 * PAGE, 1))
        self.assertEqual(cached_pages(fd), 0)
        self.assertEqual(error_of(os.fsync, fd), "EIO")
        mapping.close()
        os.close(fd)
        self.add()
        self.assertEqual(path.read_bytes()[:5], b"\x01" * 5)

    # --- waiting ----------------------------------------------------------------------------------

    def test_suspended_reads_and_writes_wait_and_go_on(self):
        path = self.file()
        plain = self.root / "plain" / "p"
        plain.write_text("plain")
        fd = os.open(path, os.O_RDWR)
        quiet = os.open(self.file("quiet"), os.O_RDWR)
        mapping = mmap.mmap(fd, 64 * PAGE)
        self.assertEqual(mapping[0], 1)
        self.remove("suspend")
        self.assertEqual(cached_pages(fd), 0)
        reader = self.child(lambda: os.pread(fd, PAGE, PAGE) != b"\x02" * PAGE)
        second = self.child(lambda: 0 if error_of(os.open, path, os.O_RDONLY) == "ENOKEY" else 1)
        writer = self.child(lambda: os.pwrite(fd, b"waited", 32 * PAGE) != 6)
        faulting = self.child(lambda: mapping[48 * PAGE] != 49)
        self.assertEqual(self.ended(second), 0, "what takes a name does not wait")
        time.sleep(0.3)
        for pid in (reader, writer, faulting):
            self.assertIsNone(self.ended(pid, 0.05), "it waits")
        self.others_work(plain, quiet)
        self.assertEqual(os.fstat(fd).st_size, 64 * PAGE)
        self.add()
        for pid in (reader, writer, faulting):
            self.assertEqual(self.ended(pid), 0)
        self.assertEqual(os.pread(fd, 6, 32 * PAGE), b"waited")
        mapping.close()
        os.close(fd)
        os.close(quiet)

    def others_work(self, plain, fd):
        """Nobody else is held up by those that wait; the kernel lets a file's second writer, and
        its fsync, wait for the first."""
        began = time.monotonic()
        self.assertEqual(plain.read_text(), "plain")
        plain.write_text("plain again")
        self.assertEqual(os.fstat(fd).st_size, 64 * PAGE)
        os.fsync(fd)
        self.assertEqual(error_of(os.ftruncate, fd, 10), "ENOKEY")
        self.assertLess(time.monotonic() - began, 5)

    def test_who_waits_can_be_killed(self):
        path = self.file()
        fd = os.open(path, os.O_RDWR)
        self.remove("suspend")
        waiting = [self.child(lambda: len(os.pread(fd, PAGE, 5 * PAGE))),
                   self.child(lambda: os.pwrite(fd, b"never", 9 * PAGE))]
        time.sleep(0.2)
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)
            self.assertEqual(self.ended(pid), -signal.SIGKILL)
        self.add()
        self.assertEqual(os.pread(fd, 5, 9 * PAGE), b"\x0a" * 5)
        os.close(fd)

    def test_a_deadline_ends_the_waiting(self):
        path = self.file()
        fd = os.open(path, os.O_RDWR)
        self.remove("suspend", "--deadline=1")
        reader = self.child(lambda: 0 if error_of(os.pread, fd, PAGE, 0) == "ENOKEY" else 1)
        writer = self.child(lambda: 0 if error_of(os.pwrite, fd, b"x", 40 * PAGE) == "ENOKEY"
                            else 1)
        self.assertEqual([self.ended(reader), self.ended(writer)], [0, 0])
        self.all_pages_go(fd)
        self.add()
        self.assertEqual(os.pread(fd, 4, 40 * PAGE), b"\x29" * 4)
        os.close(fd)

    def test_a_removal_goes_around_those_that_wait(self):
        path = self.file("both", 64)
        fd = os.open(path, os.O_RDWR)
        self.remove("suspend")
        writer = self.child(lambda: 0 if error_of(os.pwrite, fd, b"x" * PAGE, 3 * PAGE) == "ENOKEY"
                            else 1)
        time.sleep(0.2)
        self.assertEqual(self.remove("hard")["state"], "absent")
        self.assertEqual(self.ended(writer), 0)
        self.add()
        os.close(fd)

    def test_a_removal_waits_for_no_direct_read_and_for_no_fault_of_a_direct_file(self):
        path = self.file("direct", 64)
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        mapping = mmap.mmap(fd, 64 * PAGE)

        def read():
            buffer = mmap.mmap(-1, 4 * PAGE)
            return 0 if error_of(os.preadv, fd, [buffer], 8 * PAGE) == "ENOKEY" else 1

        self.remove("suspend")
        reader = self.child(read)
        fault = self.child(lambda: mapping[9 * PAGE])
        time.sleep(0.2)
        self.assertEqual(self.remove("hard")["state"], "absent")
        self.assertEqual((self.ended(reader), self.ended(fault)), (0, -signal.SIGBUS))
        self.all_pages_go(fd)
        self.add()
        self.assertEqual(mapping[9 * PAGE], 10)
        mapping.close()
        os.close(fd)

    # --- writers ----------------------------------------------------------------------------------

    def test_writers_lose_nothing_that_was_acknowledged(self):
        for mode in ("freeze", "deny", "suspend"):
            with self.subTest(mode):
                paths = [self.vault / f"w-{mode}-{number}" for number in range(3)]
                writers = [self.child(lambda path=path: self.write_lines(path)) for path in paths]
                while any(not path.exists() or path.stat().st_size < 20_000 for path in paths):
                    time.sleep(0.005)
                self.assertEqual(self.remove(mode)["bytes_lost"], 0)
                if mode == "suspend":
                    time.sleep(0.2)
                    for pid in writers:
                        os.kill(pid, signal.SIGKILL)
                codes = [self.ended(pid) for pid in writers]
                self.assertEqual(codes, [-9 if mode == "suspend" else 0] * 3)
                self.add()
                for path in paths:
                    lines = path.read_bytes().split(b"\n")
                    self.assertEqual(lines[:-1], [b"%08d" % i for i in range(len(lines) - 1)])
                    acknowledged = (self.host / path.name).stat().st_size
                    self.assertGreaterEqual(len(lines) - 1, acknowledged)

    def write_lines(self, path):
        """Numbered lines until ENOKEY; a byte beside for each that was acknowledged."""
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        beside = os.open(self.host / path.name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for number in range(1 << 30):
            said = error_of(os.write, fd, b"%08d\n" % number)
            if said == "ENOKEY":
                return 0
            if said != 9:
                return 1
            os.write(beside, b".")
        return 2

    def test_a_lock_in_the_middle_of_work_hurts_no_other_file(self):
        plain = self.root / "plain"
        stop = threading.Event()
        failures = []

        def work(number):
            path = plain / f"w{number}"
            while not stop.is_set():
                path.write_bytes(b"x" * 20_000)
                if path.read_bytes() != b"x" * 20_000:
                    failures.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        path = self.file()
        for mode in (*KEEPS, *CUT_OFF, "suspend") * 2:
            with open(path, "rb") as file:
                file.read(100)
                self.remove(mode, code=7 if mode in KEEPS else OK)
                self.add()
                self.assertEqual(os.pread(file.fileno(), 3, 0), b"\1\1\1")
        stop.set()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.umount()
        self.assert_clean()


if __name__ == "__main__":
    unittest.main()
