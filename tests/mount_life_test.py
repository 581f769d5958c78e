#!/usr/bin/env python3
"""Goal: a mount begins and ends as a script expects: the parent returns when it works or with what
stood in the way, options are taken or refused, nothing that was synced is lost to a kill.
Method: as mount_test.py's."""
import mmap
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from aio import DirectFile  # noqa: E402
from mounted import *  # noqa: E402,F403


class Life(MountTest):
    def mounts(self):
        """The lines of /proc/mounts that name our directory."""
        return [line.split() for line in pathlib.Path("/proc/mounts").read_text().splitlines()
                if line.split()[1] == str(self.root)]

    def test_mounts_show_the_image_and_the_options(self):
        [[source, _, kind, options, *_]] = self.mounts()
        self.assertEqual((source, kind), (str(self.image), "fuse.latchkey"))
        options = options.split(",")
        for option in ("rw", "nosuid", "nodev", "default_permissions"):
            self.assertIn(option, options)
        self.assertNotIn("allow_other", options)
        self.umount()
        self.mount("-o", "ro,noexec", "-o", "allow_other,noatime,defaults,x-systemd.automount")
        options = self.mounts()[0][3].split(",")
        for option in ("ro", "noexec", "allow_other"):
            self.assertIn(option, options)
        self.assertEqual(error_of(os.mkdir, self.root / "x"), "EROFS")
        self.assertEqual(sorted(os.listdir(self.root)), ["plain", "vault"])

    def test_unknown_options_are_refused(self):
        self.umount()
        for option in ("nonsense", "ro,allow_others", "commit=soon", "compat=ext4", "dirty=1",
                       "fsname=x", "default_permissions=no"):
            self.run_refused(USAGE, "mount", "-o", option, self.image, self.root,
                             says="there is no such mount option")
            self.assertEqual(self.mounts(), [])
        self.mount("-o", "commit=1,dirty=32M,key_slots=128,compat=fscrypt,status_public,discard")

    def test_what_mount_8_passes_is_taken(self):
        for words in ("rw,relatime", "strictatime,nodiratime", "lazytime,iversion,silent",
                      "sync,dirsync,noatime,allow_other", "async,atime,dev,exec,suid,allow_root",
                      "nolazytime,noiversion,loud,nomand,diratime",
                      "user=somebody,comment=of fstab,X-mount.mkdir,_rnetdev,nofail,noowner"):
            self.umount()
            self.mount("-o", words)
            self.assertEqual(sorted(os.listdir(self.root)), ["plain", "vault"])

    def test_strictatime_counts_each_read_behind_an_open(self):
        file = self.root / "plain" / "read"
        file.write_text("text")

        def reads(option):
            self.umount()
            self.mount("-o", option)
            for _ in range(3):
                before = file.stat().st_atime_ns
                file.read_text()
                yield file.stat().st_atime_ns > before

        self.assertEqual(list(reads("relatime")), [True, False, False])
        self.assertEqual(list(reads("strictatime")), [True, True, True])
        self.assertEqual(list(reads("noatime")), [False, False, False])

    def test_the_parent_returns_what_stood_in_the_way(self):
        other = self.folder / "other"
        other.mkdir()
        self.run_refused(BUSY, "mount", self.image, other, says="img")
        self.umount()
        self.run_refused(WRONG_DEVICE, "mount", self.folder / "none", self.root, says="none")
        self.run_refused(WRONG_DEVICE, "mount", self.host_file("text", b"no store" * 9999),
                         self.root, "--json")
        self.run_refused(USAGE, "mount", "--key-file", self.host_file("short", b"k" * 31),
                         self.image, self.root, says="shorter")
        missing = self.run_raw("mount", self.image, self.folder / "nowhere")
        self.assertNotEqual(missing.returncode, OK)
        self.assertIn(b"there is no such directory", missing.stderr)
        file = self.run_raw("mount", self.image, self.key)
        self.assertNotEqual(file.returncode, OK)
        self.assertIn(b"is not a directory", file.stderr)
        self.assertEqual(self.mounts(), [])
        self.assert_clean()
        self.mount()

    def test_umount_waits_for_programs_and_closes_the_store(self):
        path = self.root / "vault" / "a"
        with open(path, "wb") as file:
            file.write(b"inside")
            self.run_refused(BUSY, "umount", self.root, says="programs are inside")
        self.umount()
        self.assert_clean()
        self.run_refused(USAGE, "umount", self.root, says="no store is mounted there")
        self.mount()
        self.assertEqual(path.read_bytes(), b"inside")
        with open(path, "r+b") as file:
            self.run_ok("umount", "-l", self.root)
            self.assertEqual(self.mounts(), [])
            file.write(b"INSIDE")
        while runs(self.server):
            time.sleep(0.01)
        self.mount()
        self.assertEqual(path.read_bytes(), b"INSIDE")

    def test_umount_of_others_does_as_well(self):
        (self.root / "vault" / "a").write_bytes(b"a")
        subprocess.run(["umount", str(self.root)], check=True)
        while runs(self.server):
            time.sleep(0.01)
        self.assert_clean()
        self.mount()
        self.assertEqual((self.root / "vault" / "a").read_bytes(), b"a")

    def test_signals_end_it_in_order(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            path = self.root / "vault" / f"by-{number}"
            path.write_bytes(b"x" * 100_000)
            fd = os.open(path, os.O_RDWR)
            mapping = mmap.mmap(fd, 100_000)
            mapping[4096:4103] = b"stored!"
            os.kill(self.server, number)
            while runs(self.server):
                time.sleep(0.01)
            self.assertEqual(self.mounts(), [])
            self.assertEqual(error_of(os.pwrite, fd, b"late", 0), "ENOTCONN")
            mapping.close()
            self.assertEqual(error_of(os.close, fd), "ENOTCONN")
            self.assert_clean()
            self.mount()
            self.assertEqual(path.read_bytes()[4096:4103], b"stored!")

    def server_ends(self):
        end = time.monotonic() + 30
        while runs(self.server) and time.monotonic() < end:
            time.sleep(0.01)
        return not runs(self.server)

    def test_a_signal_takes_nothing_away_that_is_not_ours(self):
        for other_comes in (True, False):
            paths = [area / "held" for area in self.areas]
            fds, mappings = [], []
            for path in paths:
                path.write_bytes(b"x" * 100_000)
                fds.append(os.open(path, os.O_RDWR))
                mappings.append(mmap.mmap(fds[-1], 100_000))
                mappings[-1][4096:4103] = b"stored!"
            self.run_ok("umount", "-l", self.root)
            if other_comes:
                subprocess.run(["mount", "-t", "tmpfs", "none", self.root], check=True)
            os.kill(self.server, signal.SIGTERM)
            self.assertTrue(self.server_ends(), "programs that are inside do not keep it")
            self.assertEqual(os.path.ismount(self.root), other_comes)
            for fd in fds:
                self.assertEqual(error_of(os.pwrite, fd, b"late", 0), "ENOTCONN")
                self.assertEqual(error_of(os.close, fd), "ENOTCONN")
            for mapping in mappings:
                mapping.close()
            if other_comes:
                subprocess.run(["umount", self.root], check=True)
            self.assert_clean()
            self.mount()
            for path in paths:
                self.assertEqual(path.read_bytes()[4096:4103], b"stored!")

    def test_the_server_of_an_ordinary_user_ends_at_a_signal(self):
        self.umount()
        user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
        self.folder.chmod(0o755)
        for path in (self.image, self.key, self.root):
            os.chown(path, 1000, 1000)
        # A namespace of its own, where /dev/fuse is everybody's, as it is on most machines.
        script = """mknod "$NODE" c 10 229; chmod 666 "$NODE"; mount --bind "$NODE" /dev/fuse
            exec "$@" sh -c '"$LATCHKEY" mount --json "$IMAGE" "$ROOT"
                          cd "$ROOT"; echo "inside"; read -r line'"""
        inside = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", *user], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "NODE": str(self.folder / "fuse"), "IMAGE": str(self.image),
                 "ROOT": str(self.root), "LATCHKEY": str(LATCHKEY)})
        answer = inside.stdout.readline()
        mounted = answer.startswith("{")
        if mounted:
            self.assertEqual(inside.stdout.readline(), "inside\n")
            self.server = self.member(answer, "mount")["pid"]
            os.kill(self.server, signal.SIGTERM)
            self.assertTrue(self.server_ends(), "a program is inside")
            self.server = None
        inside.communicate("\n")
        if not mounted:
            self.skipTest("an ordinary user cannot mount here")

    def test_a_kill_loses_nothing_that_was_synced(self):
        for turn in range(3):
            folder = self.root / "vault" / f"turn-{turn}"
            folder.mkdir()
            names = []
            for number in range(10):
                with open(folder / f"f{number}", "wb") as file:
                    file.write(bytes([number + 1]) * 70_001)
                    file.flush()
                    os.fsync(file.fileno())
                names.append(f"f{number}")
            fd = os.open(folder, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            (folder / "not-synced").write_bytes(b"?" * 5000)
            self.kill()
            self.assertIn(error_of(os.listdir, self.root), ("ENOTCONN", "ECONNABORTED"))
            self.run_refused(BUSY, "mount", self.image, self.root, says="server has died")
            self.run_ok("umount", self.root)
            self.assert_clean()
            self.mount()
            for number, name in enumerate(names):
                self.assertEqual((folder / name).read_bytes(), bytes([number + 1]) * 70_001)

    def test_an_asynchronous_write_is_synced_if_it_says_so(self):
        for folder in self.areas:
            (folder / "file").write_bytes(b"o" * 262_144)
            writer = DirectFile(os.open(folder / "file", os.O_WRONLY | os.O_DIRECT | os.O_DSYNC),
                                65_536)
            writer.write(65_536, b"n" * 65_536)
            writer.close()
        self.kill()
        self.run_ok("umount", self.root)
        self.mount()
        for folder in self.areas:
            self.assertEqual((folder / "file").read_bytes()[65_536:131_072], b"n" * 65_536)

    def test_an_fsync_of_the_root_is_of_everything(self):
        for folder in self.areas:
            (folder / "file").write_bytes(b"f" * 70_001)
        root = os.open(self.root, os.O_RDONLY)
        os.fsync(root)
        os.close(root)
        self.kill()
        self.run_ok("umount", self.root)
        self.assert_clean()
        self.mount()
        for folder in self.areas:
            self.assertEqual((folder / "file").read_bytes(), b"f" * 70_001)

    def test_in_the_foreground(self):
        self.umount()
        server = subprocess.Popen([LATCHKEY, "mount", "-f", "--json", "--key-file", self.key,
                                   self.image, self.root], stdout=subprocess.PIPE, text=True)
        answer = self.member(server.stdout.readline(), "mount")
        self.assertEqual(answer["pid"], server.pid)
        (self.root / "vault" / "a").write_text("a")
        self.run_ok("umount", self.root)
        self.assertEqual(server.wait(), OK)
        server.stdout.close()
        self.assert_clean()

    def test_without_the_key_names_are_locked(self):
        names = ("a", "b" * 255)
        for name in names:
            (self.root / "vault" / name).write_text(name)
        (self.root / "vault" / "sub").mkdir()
        (self.root / "vault" / "link").symlink_to("where it leads")
        self.umount()
        self.server = self.run_json("mount", "mount", self.image, self.root)["pid"]
        vault = self.root / "vault"
        listed = os.listdir(vault)
        self.assertEqual(len(listed), 4)
        self.assertFalse(set(listed) & {"a", "sub", "link"})
        self.assertEqual(error_of((vault / "a").stat), "ENOKEY")
        self.assertEqual(error_of((vault / "new").write_text, "x"), "ENOKEY")
        self.assertEqual(error_of((vault / "new").mkdir), "ENOKEY")
        sizes = sorted((vault / name).stat().st_size for name in listed
                       if not (vault / name).is_symlink() and (vault / name).is_file())
        self.assertEqual(sizes, [1, 255])
        for name in listed:
            path = vault / name
            if path.is_symlink():
                self.assertNotIn("where", os.readlink(path))
                self.assertEqual(path.lstat().st_size, len(os.readlink(path)))
                path.unlink()
            elif path.is_dir():
                path.rmdir()
            else:
                self.assertEqual(error_of(open, path, "rb"), "ENOKEY")
                self.assertEqual(error_of(os.truncate, path, 0), "ENOKEY")
                if path.stat().st_size == 255:
                    path.unlink()
        self.remount()
        self.assertEqual(os.listdir(vault), ["a"])
        self.assertEqual((vault / "a").read_text(), "a")


if __name__ == "__main__":
    unittest.main()
