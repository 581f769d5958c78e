#!/usr/bin/env python3
"""Goal: through the mount every program finds what a file system of Linux has: names, links,
attributes, directories. Method: the same calls are made on the host's file system, in a plain and
in an encrypted directory of a mounted store; answers and trees must agree, before and after a
remount, and check finds nothing."""
import ctypes
import ctypes.util
import fcntl
import os
import pathlib
import shutil
import socket
import stat
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted import *  # noqa: E402,F403

LIBC = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
AT_FDCWD, NOREPLACE, EXCHANGE, WHITEOUT = -100, 1, 2, 4
AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = 0x1000, 0x400
NOW_S, NS = 1_700_000_000, 1_000_000_000


def renameat2(source, target, flags):
    if LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Names(MountTest):
    def test_a_tree_of_everything_is_there_again_after_a_remount(self):
        def build(folder):
            (folder / "a").write_bytes(os.urandom(0) + b"x" * 5000)
            (folder / "sub" / "deep").mkdir(parents=True)
            os.link(folder / "a", folder / "sub" / "again")
            (folder / "sub" / "link").symlink_to("../a")
            (folder / "long").symlink_to("y" * 4000)
            os.mkfifo(folder / "pipe", 0o640)
            os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            os.mknod(folder / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
            with socket.socket(socket.AF_UNIX) as made:
                here = os.getcwd()
                os.chdir(folder)
                made.bind("socket")
                os.chdir(here)
            (folder / ("n" * 255)).write_bytes(b"")
            (folder / "\u00fcml\u00e4ut \n").write_text("odd")
            os.chmod(folder / "a", 0o4755)
            os.chown(folder / "sub", 1234, 4321)
            os.setxattr(folder / "a", "user.note", b"\0" * 3000)
            return self.picture(folder)

        wanted = self.same(build)
        self.assertIsInstance(wanted, dict)
        self.remount()
        self.assertEqual(self.same(self.picture), wanted)

    def test_rename_in_all_its_forms(self):
        def work(folder):
            for name in ("a", "b", "c"):
                (folder / name).write_text(name)
            for name in ("d1", "d2"):
                (folder / name).mkdir()
            (folder / "d2" / "full").write_text("f")
            said = [error_of(renameat2, folder / "a", folder / "b", NOREPLACE),
                    error_of(renameat2, folder / "a", folder / "new", NOREPLACE),
                    error_of(renameat2, folder / "new", folder / "missing", EXCHANGE),
                    error_of(renameat2, folder / "new", folder / "d2", EXCHANGE),
                    error_of(renameat2, folder / "b", folder / "c", NOREPLACE | EXCHANGE),
                    error_of(os.rename, folder / "b", folder / "c"),
                    error_of(os.rename, folder / "d1", folder / "new"),
                    error_of(os.rename, folder / "c", folder / "d1"),
                    error_of(os.rename, folder / "d1", folder / "d1" / "inside"),
                    error_of(os.rmdir, folder / "new"),
                    error_of(os.unlink, folder / "d1"),
                    error_of(os.rename, folder / "c", folder / ("n" * 256)),
                    error_of(os.link, folder / "d1", folder / "d1link")]
            return said, self.picture(folder)

        said, _ = self.same(work)
        self.assertEqual(said[0], "EEXIST")
        for area in self.areas:
            (area / "w").write_text("w")
            self.assertEqual(error_of(renameat2, area / "w", area / "w2", WHITEOUT), "EINVAL")

    def test_permissions_are_the_kernels(self):
        for area in self.areas:
            (area / "mine").mkdir(mode=0o700)
            (area / "mine" / "a").write_text("a")
            (area / "open").write_text("o")
            (area / "setgid").mkdir()
            os.chown(area / "setgid", 0, 777)
            os.chmod(area / "setgid", 0o2777)
        self.remount_for_all()
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            good = all(error_of(os.listdir, area / "mine") == "EACCES" and
                       error_of(os.open, area / "open", os.O_WRONLY) == "EACCES" and
                       error_of(os.mkdir, area / "x") == "EACCES" and
                       error_of(os.chmod, area / "open", 0o777) == "EPERM" and
                       (area / "open").read_text() == "o" and
                       self.make_in_setgid(area / "setgid")
                       for area in self.areas)
            os._exit(0 if good else 1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        for area in self.areas:
            made = (area / "setgid" / "file").stat()
            self.assertEqual((made.st_uid, made.st_gid), (1000, 777))
            made = (area / "setgid" / "dir").stat()
            self.assertEqual((made.st_gid, stat.S_IMODE(made.st_mode)), (777, 0o2755))

    def make_in_setgid(self, folder):
        (folder / "file").write_text("")
        (folder / "dir").mkdir(mode=0o755)
        return True

    def remount_for_all(self):
        os.chmod(self.folder, 0o755)
        self.umount()
        self.mount("-o", "allow_other")

    def test_new_files_belong_to_who_makes_them(self):
        for area in self.areas:
            os.chmod(area, 0o777)
        self.remount_for_all()
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(2222, 2222, 2222)
            os.setresuid(1111, 1111, 1111)
            os.umask(0o027)
            for area in self.areas:
                (area / "made").write_text("")
                (area / "made_dir").mkdir()
                os.mkfifo(area / "made_pipe", 0o666)
            os._exit(0)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        for area in self.areas:
            for name, mode in (("made", 0o640), ("made_dir", 0o750), ("made_pipe", 0o640)):
                status = (area / name).stat()
                self.assertEqual((status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)),
                                 (1111, 2222, mode), name)

    def test_setuid_goes_with_a_write_and_a_new_owner(self):
        def work(folder):
            modes = []
            for change in (lambda path: os.chown(path, 5, 6), lambda path: os.truncate(path, 1),
                           lambda path: path.write_text("new")):
                path = folder / "set"
                path.write_text("abc")
                os.chown(path, 0, 0)
                os.chmod(path, 0o6755)
                change(path)
                modes.append(stat.S_IMODE(path.stat().st_mode))
            return modes

        self.same(work)

    def test_setgid_without_x_is_its_groups(self):
        self.remount_for_all()

        def work(folder):
            modes = []
            for groups in ([], [6], [*range(100, 200), 6]):
                path = folder / "set"
                path.write_text("abc")
                os.chown(path, 0, 6)
                os.chmod(path, 0o6666)
                child = os.fork()
                if child == 0:
                    os.setgroups(groups)
                    os.setresgid(2222, 2222, 2222)
                    os.setresuid(1111, 1111, 1111)
                    os.posix_fallocate(os.open(path, os.O_WRONLY), 0, 9)
                    os._exit(0)
                self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
                modes.append(stat.S_IMODE(path.stat().st_mode))
            return modes

        self.assertEqual(self.same(work), [0o666, 0o2666, 0o2666])

    # --- attributes -------------------------------------------------------------------------------

    def test_times_have_nanoseconds(self):
        def work(folder):
            path = folder / "a"
            path.write_text("a")
            (folder / "l").symlink_to("a")
            seen = []
            for times in ((NOW_S * NS + 1, NOW_S * NS + 999_999_999), (-1, -NS - 1),
                          (0, (1 << 33) * NS + 5)):
                os.utime(path, ns=times)
                status = path.stat()
                seen.append((status.st_atime_ns, status.st_mtime_ns))
            os.utime(folder / "l", ns=(3, 4), follow_symlinks=False)
            status = (folder / "l").lstat()
            return seen, status.st_mtime_ns

        wanted = self.same(work)
        self.remount()

        def again(folder):
            status = (folder / "a").stat()
            return status.st_atime_ns, status.st_mtime_ns, (folder / "l").lstat().st_mtime_ns

        self.assertEqual(self.same(again), (*wanted[0][-1], wanted[1]))
        before = time.time_ns()
        for area in self.areas:
            path = area / "now"
            path.write_text("")
            for far, kept in ((1 << 40, 9223372035), (-(1 << 40), -9223372035)):
                os.utime(path, ns=(far * NS, far * NS))  # more than 64 bits of nanoseconds
                self.assertEqual(path.stat().st_mtime_ns, kept * NS)
            os.utime(path, ns=(1, 1))
            os.utime(path)
            self.assertTrue(before <= path.stat().st_mtime_ns <= time.time_ns())
            ctime = path.stat().st_ctime_ns
            os.chmod(path, 0o600)
            self.assertGreater(path.stat().st_ctime_ns, ctime)

    def test_extended_attributes(self):
        def work(folder):
            path = folder / "a"
            path.write_text("")
            said = [error_of(os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE),
                    error_of(os.setxattr, path, "user.a", b"1", os.XATTR_CREATE),
                    error_of(os.setxattr, path, "user.a", b"2", os.XATTR_CREATE),
                    error_of(os.setxattr, path, "user.empty", b""),
                    error_of(os.setxattr, path, "trusted.t", b"\xff" * 100),
                    error_of(os.setxattr, path, "security.x", b"s"),
                    error_of(os.getxattr, path, "user.none"),
                    error_of(os.removexattr, path, "user.none"),
                    error_of(os.setxattr, path, "nonsense.x", b"s"),
                    error_of(os.getxattr, path, "user.a"),
                    error_of(os.getxattr, path, "user.empty"),
                    sorted(os.listxattr(path))]
            os.removexattr(path, "user.a")
            return said, sorted(os.listxattr(path))

        self.same(work)
        for area in self.areas:
            path = area / "acl"
            path.write_text("")
            acl = bytes.fromhex("02000000" "0100060000000000" "0400040000000000"
                                "2000040000000000".replace(" ", ""))
            self.assertEqual(error_of(os.setxattr, path, "system.posix_acl_access", acl),
                             "ENOTSUP")
            self.assertEqual(error_of(os.getxattr, path, "system.posix_acl_access"), "ENOTSUP")
            os.setxattr(path, "user.big", b"v" * 65536)
            self.assertEqual(os.getxattr(path, "user.big"), b"v" * 65536)
        server = int(os.getxattr(self.root, "latchkey.daemon"))
        self.assertEqual(server, self.server)
        self.assertEqual(os.listxattr(self.root), [])

    def test_statfs(self):
        before = os.statvfs(self.root)
        self.assertEqual((before.f_namemax, before.f_bsize, before.f_frsize), (255, 4096, 4096))
        self.assertEqual(before.f_blocks * 4096, 256 << 20)
        with open(self.root / "plain" / "big", "wb") as file:
            file.write(os.urandom(8 << 20))
            os.fsync(file.fileno())
        after = os.statvfs(self.root)
        self.assertGreaterEqual(before.f_bavail - after.f_bavail, (8 << 20) // 4096)
        self.assertEqual((after.f_files - after.f_ffree) - (before.f_files - before.f_ffree), 1)

    # --- directories ------------------------------------------------------------------------------

    def test_a_large_directory_is_read_with_stable_offsets(self):
        names = [f"name-{i:05}" for i in range(3000)]
        for area in self.areas:
            folder = area / "many"
            folder.mkdir()
            for name in names:
                (folder / name).touch()
            self.assertEqual(sorted(os.listdir(folder)), names)
            self.assertEqual(sorted(os.listdir(folder / ".")), names)
            numbers = {entry.name: entry.inode() for entry in os.scandir(folder)}
            self.assertEqual(numbers, {name: (folder / name).stat().st_ino for name in names})
            self.read_by_hand(folder, names)
            shutil.rmtree(folder)
            self.assertFalse(folder.exists())

    def read_by_hand(self, folder, names):
        """opendir, telldir and seekdir, and rewinddir after a change."""
        for function in ("opendir", "readdir"):
            getattr(LIBC, function).restype = ctypes.c_void_p
        LIBC.telldir.restype = ctypes.c_long

        def read(stream):
            entry = LIBC.readdir(ctypes.c_void_p(stream))
            return ctypes.string_at(entry + 19).decode() if entry else None

        stream = LIBC.opendir(os.fsencode(folder))
        self.assertEqual([read(stream), read(stream)], [".", ".."])
        first = [(LIBC.telldir(ctypes.c_void_p(stream)), read(stream)) for _ in range(2500)]
        for place in (0, 1, 77, 2499):
            LIBC.seekdir(ctypes.c_void_p(stream), ctypes.c_long(first[place][0]))
            self.assertEqual(read(stream), first[place][1])
        (folder / "late").touch()
        LIBC.rewinddir(ctypes.c_void_p(stream))
        seen = []
        while (name := read(stream)) is not None:
            seen.append(name)
        LIBC.closedir(ctypes.c_void_p(stream))
        self.assertEqual(sorted(seen), sorted([".", "..", "late", *names]))

    def test_an_open_directory_outlives_its_name(self):
        def work(folder):
            inner = folder / "inner"
            inner.mkdir()
            fd = os.open(inner, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(fd)
            inner.rmdir()
            said = [os.listdir(fd), os.fstat(fd).st_nlink == 0 or "nlink",
                    error_of(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)]
            os.close(fd)
            return said[0], said[2]

        self.same(work)

    # --- files without a name ---------------------------------------------------------------------

    def test_unlinked_files_live_until_they_are_closed(self):
        def work(folder):
            path = folder / "gone"
            fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            os.write(fd, b"before ")
            path.unlink()
            os.write(fd, b"after")
            os.fchmod(fd, 0o640)
            os.setxattr(fd, "user.a", b"1")
            os.utime(fd, ns=(1, 2))
            os.ftruncate(fd, 9)
            status = os.fstat(fd)
            said = (os.pread(fd, 100, 0), status.st_nlink, status.st_size,
                    stat.S_IMODE(status.st_mode), os.getxattr(fd, "user.a"), status.st_mtime_ns,
                    error_of(os.stat, path), error_of(os.link, f"/proc/self/fd/{fd}", path))
            os.close(fd)
            return said[:5], said[6:]

        self.same(work)

    def test_a_file_begins_without_a_name(self):
        def work(folder):
            fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o640)
            os.write(fd, b"nameless")
            said = [os.fstat(fd).st_nlink, os.listdir(folder), os.pread(fd, 8, 0),
                    stat.S_IMODE(os.fstat(fd).st_mode)]
            if LIBC.linkat(fd, b"", AT_FDCWD, os.fsencode(folder / "named"), AT_EMPTY_PATH) != 0:
                said.append(ctypes.get_errno())
            said.append(os.fstat(fd).st_nlink)
            os.close(fd)
            fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_EXCL, 0o600)
            said.append(LIBC.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD,
                                    os.fsencode(folder / "never"), AT_SYMLINK_FOLLOW))
            os.close(fd)
            said.append(error_of(os.open, folder, os.O_TMPFILE | os.O_RDONLY))
            return said, self.picture(folder)

        wanted = self.same(work)
        self.assertEqual(wanted[1]["named"][4:6], [8, b"nameless"])
        self.remount()
        self.assertEqual(self.same(self.picture), wanted[1])

    # --- locks ------------------------------------------------------------------------------------

    def test_locks_are_the_kernels(self):
        def work(folder):
            path = folder / "locked"
            path.write_text("0123456789")
            first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
            fcntl.flock(first, fcntl.LOCK_EX)
            said = [error_of(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB)]
            fcntl.lockf(first, fcntl.LOCK_EX, 5, 0)
            child = os.fork()
            if child == 0:
                outcome = error_of(fcntl.lockf, second, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 4)
                free = error_of(fcntl.lockf, second, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 5)
                os._exit(0 if outcome in ("EAGAIN", "EACCES") and free is None else 1)
            said.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            os.close(first)
            said.append(error_of(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB))
            os.close(second)
            return said

        self.assertEqual(self.same(work), ["EAGAIN", 0, None])


if __name__ == "__main__":
    unittest.main()
