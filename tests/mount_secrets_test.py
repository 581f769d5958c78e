#!/usr/bin/env python3
"""Goal: of a key that was locked nothing is left in the daemon of a mounted store, and of one that
was handed over nothing in the client that did. Method: secrets_scan_test's scanners, an HKDF and
AES of their own, in all mappings of the daemon and in cores with the registers. Each needle is
found while the key is there, else the scan is blind. In the locked arena, which others can read."""
import mmap
import os
import pathlib
import random
import string
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "support"))
from mounted import *  # noqa: E402,F403
import ioctls  # noqa: E402
import memory  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "demo"))
import secrets_oracle as oracle  # noqa: E402

FILES = 3
PAGE = 4096


def unseen(letters=32):
    """A word that is nowhere else in memory: each half of eight letters has 45 bits."""
    return "".join(random.SystemRandom().choices(string.ascii_letters, k=letters))


class Secrets(MountTest):
    def setUp(self):
        if memory.gdb_missing():
            self.skipTest(memory.gdb_missing())
        super().setUp()

    def mount(self, *words):  # without a key
        self.server = self.run_json("mount", "mount", "--secrets", "locked", *words, self.image,
                                    self.root)["pid"]

    def needles(self, nonces=()):
        """By group, as the scanners want them."""
        groups = oracle.needles(self.key.read_bytes(), [bytes.fromhex(nonce) for nonce in nonces])
        return {name: pieces for name, pieces in groups.items() if pieces}

    def looks(self, groups):
        """What is found in the daemon's mappings and in its core."""
        return [memory.find_in_process(self.server, groups),
                memory.find_in_core(self.server, groups, self.folder)]

    def test_nothing_of_a_locked_key_is_left_in_the_daemon(self):
        self.run_ok("unlock", "-q", "--key-file", self.key, self.root)
        for number in range(FILES):
            (self.root / "vault" / f"file{number}").write_bytes(bytes([number]) * 200_000)
        self.umount()
        nonces = {row["nonce"] for number in range(FILES)
                  for row in self.run_json("map", "map", "--key-file", self.key,
                                           self.at(f"/vault/file{number}"))["extents"]}
        self.assertGreaterEqual(len(nonces), FILES)
        groups = self.needles(nonces)
        self.mount()
        self.run_ok("unlock", "-q", "--key-file", self.key, self.root)
        with open(self.root / "vault" / "file0", "rb") as inside:
            for number in range(FILES):
                (self.root / "vault" / f"file{number}").read_bytes()
            for look in self.looks(groups):
                for name in ("hkdf_state", "extent_key", "round_key"):
                    self.assertGreater(look["found"][name], 0, f"the scan is blind to a {name}")
                self.assertEqual(look["found"]["master"], 0, "an added key's own bytes go at once")
            self.assertEqual(self.run_raw("lock", "-q", self.root).returncode, 7)
            self.assertGreater(self.looks(groups)[0]["found"]["hkdf_state"], 0, "who is inside")
            inside.seek(0)
            self.assertEqual(len(inside.read()), 200_000)
        for _ in range(500):
            if self.run_json("key_list", "key", "list", self.root)["keys"] == []:
                break
            time.sleep(0.01)
        for look in self.looks(groups):
            self.assertEqual(set(look["found"].values()), {0}, look["where"])
            self.assertEqual(set(look["found"]), set(groups))

    def write_past_the_cache(self, path, data):
        """The daemon has the data as the program wrote it, and no page of the kernel's beside."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        with mmap.mmap(-1, len(data)) as buffer:
            buffer.write(data)
            self.assertEqual(os.pwritev(fd, [buffer], 0), len(data))
        return fd

    def cores_inside_of(self, ask, count):
        """Of the daemon when it answers what ask() makes the kernel ask it, so often at least."""
        cores = [self.folder / f"inside{number}" for number in range(count)]
        stops = [word for core in cores for word in ("-ex", "continue", "-ex", f"gcore {core}")]

        def when_traced():
            status = pathlib.Path(f"/proc/{self.server}/status")
            while "TracerPid:\t0" in status.read_text():
                time.sleep(0.01)
            time.sleep(0.5)
            ask()

        asking = threading.Thread(target=when_traced)
        asking.start()
        done = subprocess.run(
            ["gdb", "-nx", "-q", "-batch", "-readnever", "-iex", "set auto-load no",
             "-iex", "set debuginfod enabled off", "-ex", "set dump-excluded-mappings on",
             "-ex", "set use-coredump-filter off", "-ex", "catch syscall writev",
             *stops, "-ex", "delete", "-ex", "detach", "-p", str(self.server)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        asking.join()
        self.assertTrue(all(core.exists() for core in cores), done.stdout + done.stderr)
        return cores

    def is_seen_inside(self, asked, vault, groups):
        """Other requests are answered meanwhile, and may be those that the cores are of."""
        for turn in range(10):
            inside = self.cores_inside_of(
                lambda: [(vault / f"{asked}{turn}{number}").exists() for number in range(3)], 3)
            if any(memory.find_in_kernels_core(core, groups)["found"]["asked"] for core in inside):
                return True
            for core in inside:
                core.unlink()
        return False

    def test_no_data_and_no_name_of_a_locked_key_is_left_in_the_daemon(self):
        self.run_ok("unlock", "-q", "--key-file", self.key, self.root)
        vault = self.root / "vault"
        data = {name: os.urandom(16 * PAGE) for name in (unseen(), unseen())}
        target, value, asked = unseen(), unseen(), unseen()
        short = unseen(15)  # lies where its string does: in frames of the stack
        (vault / "link").symlink_to(target)
        fds = {name: self.write_past_the_cache(vault / name, data[name]) for name in data}
        for name in data:
            os.setxattr(vault / name, "user.value", value.encode())
        (vault / short).mkdir()
        groups = {
            "data": [piece[at:at + 32] for piece in data.values()
                     for at in range(0, len(piece), PAGE)],
            "asked": [asked.encode()],
            "words": [word.encode() for word in (*data, target, value, short[:8], short[7:])],
        }
        for look in self.looks(groups):
            self.assertGreater(look["found"]["data"], 0, "the scan is blind to dirty pages")
        self.assertTrue(self.is_seen_inside(asked, vault, groups), "the scan is blind to names")
        self.assertEqual(set(os.listdir(vault)), {*data, "link", short})
        self.assertEqual(os.readlink(vault / "link"), target)
        for name, fd in fds.items():
            self.assertEqual(os.getxattr(vault / name, "user.value"), value.encode())
            with open(vault / name, "rb") as file:
                self.assertEqual(file.read(), data[name])
            os.fsync(fd)
            os.close(fd)
        for _ in range(500):
            if self.run_raw("lock", "-q", self.root).returncode == 0:
                break
            time.sleep(0.01)
        self.assertEqual(self.run_json("key_list", "key", "list", self.root)["keys"], [])
        for look in self.looks(groups):
            self.assertEqual(look["found"], {"data": 0, "asked": 0, "words": 0}, look["where"])

    def test_nothing_of_a_key_that_came_out_of_a_callers_memory_is_left(self):
        self.umount()
        self.mount("-o", "caller_memory")
        groups = self.needles()
        raw = self.key.read_bytes()
        self.assertEqual(ioctls.call(self.root, ioctls.ADD, ioctls.add(raw))[0], 0)
        for look in self.looks(groups):
            self.assertGreater(look["found"]["hkdf_state"], 0, "the scan is blind")
            self.assertEqual(look["found"]["master"], 0, "an added key's own bytes go at once")
        argument = ioctls.removal(identifier_of(raw))
        self.assertEqual(ioctls.call(self.root, ioctls.REMOVE, argument)[0], 0)
        for look in self.looks(groups):
            self.assertEqual(set(look["found"].values()), {0}, look["where"])

    def test_nothing_of_a_key_that_was_handed_over_is_left_in_the_client(self):
        before, after = self.folder / "before", self.folder / "after"
        done = subprocess.run(
            ["gdb", "-nx", "-q", "-batch", "-readnever", "-iex", "set auto-load no",
             "-iex", "set debuginfod enabled off", "-ex", "set dump-excluded-mappings on",
             "-ex", "set use-coredump-filter off", "-ex", "catch syscall sendmsg", "-ex", "run",
             "-ex", f"gcore {before}", "-ex", "delete", "-ex", "catch syscall exit_group",
             "-ex", "continue", "-ex", f"gcore {after}", "-ex", "delete", "-ex", "continue",
             "--args", LATCHKEY, "key", "add", "-q", "--secrets", "locked", "--key-file",
             str(self.key), str(self.root)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        said = done.stdout + done.stderr
        self.assertTrue(before.exists() and after.exists(), said)
        self.assertIn("exited normally", said)
        groups = self.needles()
        self.assertGreater(memory.find_in_kernels_core(before, groups)["found"]["master"], 0,
                           "the scan is blind")
        look = memory.find_in_kernels_core(after, groups)
        self.assertEqual(set(look["found"].values()), {0}, look["where"])
        [key] = self.run_json("key_list", "key", "list", self.root)["keys"]
        self.assertEqual(key["identifier"], identifier_of(self.key.read_bytes()))


if __name__ == "__main__":
    unittest.main()
