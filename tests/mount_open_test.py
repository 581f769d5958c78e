#!/usr/bin/env python3
"""Goal: what is open can be opened again although its name is gone, and a directory is listed whole
from any offset, whatever comes and goes meanwhile, as in the host's file system.
Method: as mount_test.py's, the same work on the host's file system and in both areas."""
import ctypes
import ctypes.util
import os
import pathlib
import stat
import struct
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted import *  # noqa: E402,F403

LIBC = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
SYS_GETDENTS64 = 217
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400


def link_open(fd, path):
    """Gives what is open a name; os.link() does not follow /proc's link."""
    if LIBC.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, bytes(path),
                   AT_SYMLINK_FOLLOW) != 0:
        raise OSError(ctypes.get_errno(), "linkat")


def entries(fd, size=4096):
    """One getdents64(2): (name, inode number, offset behind it, kind) each."""
    buffer = ctypes.create_string_buffer(size)
    got = LIBC.syscall(SYS_GETDENTS64, fd, buffer, size)
    if got < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    rows, at = [], 0
    while at < got:
        number, offset, length, kind = struct.unpack_from("<QqHB", buffer.raw, at)
        name = buffer.raw[at + 19:at + length].split(b"\0", 1)[0].decode()
        rows.append((name, number, offset, kind))
        at += length
    return rows


def all_entries(fd, size=4096):
    rows = []
    while more := entries(fd, size):
        rows += more
    return rows


class OpenAgain(MountTest):
    def test_an_unlinked_file_is_opened_again_by_its_descriptor(self):
        def work(folder):
            path = folder / "gone"
            path.write_bytes(b"what was there")
            fd = os.open(path, os.O_RDWR)
            path.unlink()
            seen = []
            link = f"/proc/self/fd/{fd}"
            for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
                again = os.open(link, flags)
                seen.append((os.fstat(again).st_nlink, os.fstat(again).st_size))
                if flags != os.O_RDONLY:
                    os.write(again, b"WHAT")
                if flags != os.O_WRONLY | os.O_APPEND:
                    os.lseek(again, 0, os.SEEK_SET)
                    seen.append(os.read(again, 100))
                os.close(again)
            os.truncate(link, 6)
            seen.append(os.pread(fd, 100, 0))
            again = os.open(link, os.O_RDWR | os.O_TRUNC)
            seen.append(os.fstat(fd).st_size)
            os.close(fd)
            os.write(again, b"the last one has it")
            seen.append(os.pread(again, 100, 0))
            seen.append(error_of(link_open, again, folder / "back"))
            os.close(again)
            seen.append(os.listdir(folder))
            return seen

        self.assertEqual(self.same(work)[-2:], ["ENOENT", []])

    def test_a_file_without_a_name_is_opened_again_and_named(self):
        def work(folder):
            fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o640)
            os.write(fd, b"without a name")
            link = f"/proc/self/fd/{fd}"
            again = os.open(link, os.O_RDWR)
            seen = [os.read(again, 100), os.fstat(again).st_nlink]
            os.close(fd)
            link_open(again, folder / "named")
            seen += [os.fstat(again).st_nlink, (folder / "named").read_bytes()]
            os.write(again, b", then one")
            os.close(again)
            seen.append((folder / "named").read_bytes())
            return seen

        self.assertEqual(self.same(work)[-1], b"without a name, then one")

    def test_a_removed_directory_is_opened_again_and_is_empty(self):
        def work(folder):
            (folder / "sub").mkdir()
            fd = os.open(folder / "sub", os.O_RDONLY | os.O_DIRECTORY)
            (folder / "sub").rmdir()
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY)
            seen = [os.listdir(again), error_of(os.mkdir, "new", dir_fd=again)]
            os.close(fd)
            os.close(again)
            return seen

        self.assertEqual(self.same(work), [[], "ENOENT"])

    def test_the_door_of_a_locked_key_is_shut_for_it(self):
        path = self.root / "vault" / "gone"
        path.write_bytes(b"x")
        fd = os.open(path, os.O_RDWR)
        path.unlink()
        self.run_raw("key", "remove", "--key-file", self.key, "--mode", "soft", self.root)
        self.assertEqual(error_of(os.open, f"/proc/self/fd/{fd}", os.O_RDONLY), "ENOKEY")
        self.assertEqual(os.pread(fd, 10, 0), b"x")
        os.close(fd)


class Listing(MountTest):
    def names(self, count, long=False):
        return [f"{'n' * 200 if long else 'n'}{number}" for number in range(count)]

    def test_every_entry_comes_once_and_says_who_it_is(self):
        for area in self.areas:
            folder = area / "many"
            folder.mkdir()
            for name in self.names(1500) + self.names(100, long=True):
                (folder / name).touch()
            for size in (600, 4096, 1 << 17):
                fd = os.open(folder, os.O_RDONLY)
                rows = all_entries(fd, size)
                os.close(fd)
                seen = {name: (number, kind) for name, number, _, kind in rows}
                self.assertEqual(len(seen), len(rows), "none comes twice")
                self.assertEqual(seen.pop("."), (folder.stat().st_ino, 4))
                self.assertEqual(seen.pop(".."), (area.stat().st_ino, 4))
                self.assertEqual(seen, {name: ((folder / name).stat().st_ino, 8)
                                        for name in self.names(1500) + self.names(100, long=True)})
                offsets = [offset for _, _, offset, _ in rows]
                self.assertEqual(offsets, sorted(set(offsets)))
                self.assertGreater(offsets[0], 0)

    def test_dot_dot_is_the_directory_above(self):
        folder = self.root / "plain" / "a"
        (folder / "b").mkdir(parents=True)
        fd = os.open(folder / "b", os.O_RDONLY)
        above = dict(row[:2] for row in all_entries(fd))
        self.assertEqual(above[".."], folder.stat().st_ino)
        (folder / "b").rename(self.root / "plain" / "b")
        os.lseek(fd, 0, os.SEEK_SET)
        self.assertEqual(dict(row[:2] for row in all_entries(fd))[".."],
                         (self.root / "plain").stat().st_ino)
        os.close(fd)
        fd = os.open(self.root, os.O_RDONLY)
        self.assertEqual(dict(row[:2] for row in all_entries(fd))[".."],
                         self.root.stat().st_ino)
        os.close(fd)

    def test_an_offset_leads_where_it_did_whatever_comes_and_goes(self):
        for area in self.areas:
            folder = area / "moving"
            folder.mkdir()
            for name in self.names(800):
                (folder / name).touch()
            fd = os.open(folder, os.O_RDONLY)
            rows = all_entries(fd)
            middle = rows[len(rows) // 2]
            behind = [name for name, *_ in rows[len(rows) // 2 + 1:]]
            gone = set(behind[::3]) | {middle[0]}
            for name in gone:
                (folder / name).unlink()
            for number in range(50):
                (folder / f"new{number}").touch()
            os.lseek(fd, middle[2], os.SEEK_SET)
            again = [name for name, *_ in all_entries(fd) if not name.startswith("new")]
            self.assertEqual(again, [name for name in behind if name not in gone])
            os.lseek(fd, 0, os.SEEK_SET)
            self.assertEqual(len(all_entries(fd)), 802 + 50 - len(gone))
            os.close(fd)

    def test_all_is_removed_while_it_is_listed(self):
        folder = self.root / "vault" / "rm"
        folder.mkdir()
        for name in self.names(3000):
            (folder / name).touch()
        with os.scandir(folder) as scan:
            for entry in scan:
                os.unlink(entry.path)
        folder.rmdir()

    def test_listings_that_are_open_cost_no_memory_for_their_names(self):
        folder = self.root / "vault" / "big"
        folder.mkdir()
        for name in self.names(2000, long=True):
            (folder / name).touch()

        def resident():
            status = pathlib.Path(f"/proc/{self.server}/status").read_text()
            return int(status.split("RssAnon:")[1].split()[0])

        fd = os.open(folder, os.O_RDONLY)
        self.assertEqual(len(all_entries(fd)), 2002)
        os.close(fd)
        before = resident()
        fds = [os.open(folder, os.O_RDONLY) for _ in range(200)]
        for fd in fds:
            entries(fd)
        # All names of all listings would be 80 MiB.
        self.assertLess(resident() - before, 20 << 10)
        for fd in fds:
            os.close(fd)

    def test_a_listing_goes_on_under_no_key_names_when_the_key_goes(self):
        folder = self.root / "vault" / "locked"
        folder.mkdir()
        for name in self.names(900):
            (folder / name).touch()
        fd = os.open(folder, os.O_RDONLY)
        rows = entries(fd)
        self.run_ok("key", "remove", "-q", "--key-file", self.key, "--mode", "deny", self.root)
        rest = all_entries(fd)
        self.assertEqual(len(rows) + len(rest), 902)
        self.assertFalse([name for name, *_ in rest if name in self.names(900)])
        self.assertEqual({stat.S_IFREG >> 12}, {kind for *_, kind in rest})
        os.close(fd)


if __name__ == "__main__":
    unittest.main()
