#!/usr/bin/env python3
"""Goal: who writes to a program takes away what it was trusted with, as in the host's file system,
and a plain write costs the server one request. Method: an ordinary user's process does the same on
the host's file system and in both areas of the mount; requests are the server's reads."""
import mmap
import os
import pathlib
import stat
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted import *  # noqa: E402,F403

USER = 1000
MODES = (0o4755, 0o2755, 0o6755, 0o2745, 0o755)


def as_user(work):
    """work() in a process of the ordinary user; what it returns, a list of numbers."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
            os.write(writing, ",".join(map(str, work())).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        text = file.read().decode()
    os.waitpid(child, 0)
    return [int(number) for number in text.split(",") if number]


class Privileges(MountTest):
    def setUp(self):
        super().setUp()
        self.umount()
        self.mount("-o", "allow_other")
        self.folder.chmod(0o755)
        self.host.chmod(0o755)
        self.key.chmod(0o600)
        for area in self.areas:
            area.chmod(0o755)

    def left(self, folder, mode, change, opener=None):
        """What is left of the mode when the user has done change(path, fd); by stat and fstat."""
        path = folder / f"program-{mode:o}"
        path.write_bytes(b"x" * 8192)
        os.chown(path, USER, USER)
        path.chmod(mode)
        path.stat()  # so that the kernel knows it
        fd = os.open(path, opener) if opener is not None else -1

        def work():
            own = os.open(path, os.O_RDWR) if fd < 0 else fd
            change(path, own)
            return [stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(os.fstat(own).st_mode)]

        seen = as_user(work)
        if fd >= 0:
            os.close(fd)
        return [*seen, stat.S_IMODE(path.stat().st_mode)]

    def compare(self, change, opener=None):
        for mode in MODES:
            with self.subTest(oct(mode)):
                seen = self.same(lambda folder: self.left(folder, mode, change, opener))
                self.assertEqual(len(seen), 3, seen)

    def test_a_write_takes_them(self):
        self.compare(lambda path, fd: os.pwrite(fd, b"new", 0))

    def test_a_write_through_roots_descriptor_takes_them(self):
        self.compare(lambda path, fd: os.pwrite(fd, b"new", 0), os.O_RDWR)

    def test_a_direct_write_takes_them(self):
        def write(path, fd):
            direct = os.open(path, os.O_RDWR | os.O_DIRECT)
            os.pwritev(direct, [mmap.mmap(-1, 4096)], 0)
            os.close(direct)

        self.compare(write)

    def test_a_truncate_takes_them(self):
        self.compare(lambda path, fd: os.truncate(path, 5))
        self.compare(lambda path, fd: os.ftruncate(fd, 5))
        self.compare(lambda path, fd: os.ftruncate(fd, 5), os.O_RDWR)

    def test_an_open_that_truncates_takes_them(self):
        self.compare(lambda path, fd: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))

    def test_an_allocation_takes_them(self):
        self.compare(lambda path, fd: os.posix_fallocate(fd, 0, 20_000))

    def test_a_new_owner_takes_them_also_where_it_is_the_old_one(self):
        self.compare(lambda path, fd: os.chown(path, -1, -1))
        self.compare(lambda path, fd: os.chown(path, -1, USER))

    def test_root_keeps_them(self):
        for mode in MODES:
            def work(folder):
                path = folder / "roots"
                path.write_bytes(b"x")
                path.chmod(mode)
                with open(path, "r+b") as file:
                    file.write(b"new")
                path.write_bytes(b"anew")
                os.truncate(path, 2)
                return stat.S_IMODE(path.stat().st_mode)

            self.assertEqual(self.same(work), mode)

    def test_capabilities_go_with_a_write(self):
        value = bytes.fromhex("0100000200040000000000000000000000000000")

        def work(folder):
            path = folder / "able"
            path.write_bytes(b"x")
            os.chown(path, USER, USER)
            fd = os.open(path, os.O_RDWR)
            os.pwrite(fd, b"y", 0)  # the kernel has seen that there are none
            os.setxattr(path, "security.capability", value)
            there = os.listxattr(path)
            as_user(lambda: [os.pwrite(os.open(path, os.O_RDWR), b"z", 0)])
            os.close(fd)
            return there, os.listxattr(path)

        self.assertEqual(self.same(work), (["security.capability"], []))

    def test_a_write_is_one_request(self):
        def reads():
            text = pathlib.Path(f"/proc/{self.server}/io").read_text()
            return int(text.split("syscr:")[1].split()[0])

        self.umount()
        self.mount("-o", "nocompanion")  # a companion reads where its caller is
        for area in self.areas:
            fd = os.open(area / "often", os.O_CREAT | os.O_RDWR)
            os.pwrite(fd, b"x" * 4096, 0)
            before = reads()
            for _ in range(400):
                os.pwrite(fd, b"y" * 4096, 0)
            asked = reads() - before
            os.close(fd)
            self.assertGreaterEqual(asked, 400)
            self.assertLess(asked, 440, "nobody asks for capabilities each time")


if __name__ == "__main__":
    unittest.main()
