#!/usr/bin/env python3
"""Goal: whoever is not root mounts a store through fusermount3, has its control socket where nobody
else makes names, and takes it away again; what he may not, he is told in one line. Method: as
mount_test.py's, by an ordinary user: where root runs this it goes on as uid 65534 in a namespace of
its own, where /dev/fuse is everybody's, as it is on most machines."""
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from cli import *  # noqa: E402,F403
from mounted import error_of, runs  # noqa: E402
import ioctls  # noqa: E402

NOBODY = 65534
ENTERED = "LATCHKEY_TEST_IS_A_USER"
# /run/fuse.conf is the user's to change; /run/foreign has a directory of somebody else's.
ENTER = f"""set -e
mount -t tmpfs -o mode=755,dev none /run
mknod -m 666 /run/fuse c 10 229
mount --bind /run/fuse /dev/fuse
touch /run/fuse.conf
mount --bind /run/fuse.conf /etc/fuse.conf
mkdir -p /run/user/{NOBODY} /run/foreign/latchkey
chmod 700 /run/user/{NOBODY}
chown {NOBODY}:{NOBODY} /run/user /run/user/{NOBODY} /run/fuse.conf
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all "$@"
"""


def enter():
    """Does not return where it can."""
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", ENTER, "sh"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
        os.execvpe(words[0], [*words, sys.executable, *sys.argv], {**os.environ, ENTERED: "yes"})


def why_not():
    if os.geteuid() == 0:
        return "no namespace in which an ordinary user may mount"
    if shutil.which("fusermount3") is None:
        return "no fusermount3 (package fuse3)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not this user's to open"
    if not os.access(LATCHKEY, os.X_OK):
        return "the binary is where this user cannot go"
    return None


class User(CliTest):
    def setUp(self):
        super().setUp()
        if reason := why_not():
            self.skipTest(reason)
        self.root = self.folder / "mnt"
        self.runtime = self.folder / "run"
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.runtime)}
        self.make_store()
        self.root.mkdir()
        self.runtime.mkdir(mode=0o700)
        self.vault = self.root / "vault"
        self.server = None
        self.addCleanup(self.leave)

    def run_raw(self, *words, **options):
        return super().run_raw(*words, **{"env": self.environment, **options})

    def leave(self):
        if os.path.ismount(self.root):
            subprocess.run(["fusermount3", "-uz", self.root], capture_output=True, check=False)
        if self.server is not None and runs(self.server):
            os.kill(self.server, signal.SIGKILL)

    def mount(self, *words, **options):
        self.server = self.run_json("mount", "mount", *words, self.image, self.root,
                                    **options)["pid"]

    def umount(self):
        self.run_ok("umount", self.root)
        self.assertFalse(os.path.ismount(self.root))
        self.assertFalse(runs(self.server), "the store is closed by then")

    def refused(self, code, *words, says, **options):
        done = self.run_raw(*words, **options)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertRegex(done.stderr.decode(), f"^latchkey: .*{says}.*\n$")

    def keys(self):
        return [(key["identifier"], key["state"])
                for key in self.run_json("key_list", "key", "list", self.root)["keys"]]


class Life(User):
    def test_a_store_of_his_own_from_its_making_to_its_end(self):
        self.mount()
        self.assertEqual(self.root.stat().st_uid, os.geteuid(), "who makes a store has its root")
        (self.root / "plain").write_text("in the clear\n")
        self.assertEqual(sorted(os.listdir(self.root)), ["plain", "vault"])
        self.run_ok("unlock", "-q", "--key-file", self.key, self.root)
        (self.vault / "letter").write_text("dear Ada\n")
        identifier = identifier_of(self.key.read_bytes())
        with open(self.vault / "letter", encoding="utf8") as letter:
            self.assertEqual(self.run_raw("lock", "-q", self.root).returncode, 7)
            status = self.run_json("key_status", "key", "status", "--key-file", self.key, self.root)
            self.assertEqual([(who["pid"], who["uid"], who["path"]) for who in status["holders"]],
                             [(os.getpid(), os.geteuid(), str(self.vault / "letter"))])
            self.assertEqual(error_of(os.mkdir, self.vault / "new"), "ENOKEY")
            self.assertEqual(letter.read(), "dear Ada\n")
        for _ in range(500):
            if self.keys() == []:
                break
            time.sleep(0.01)
        self.assertEqual(self.keys(), [])
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root)
        self.assertEqual(self.keys(), [(identifier, "present")])
        self.assertEqual((self.vault / "letter").read_text(), "dear Ada\n")
        self.umount()
        self.assert_clean()

    def test_umount_refuses_while_programs_are_inside_and_a_lazy_one_does_not(self):
        self.mount()
        with open(self.root / "file", "wb", buffering=0) as inside:
            self.refused(BUSY, "umount", self.root, says="unmount")
            inside.write(b"still")
            self.run_ok("umount", "--lazy", self.root)
            self.assertFalse(os.path.ismount(self.root))
            inside.write(b" here")
        end = time.monotonic() + 30
        while runs(self.server) and time.monotonic() < end:
            time.sleep(0.01)
        self.assertFalse(runs(self.server), "the last one has left")
        self.mount()
        self.assertEqual((self.root / "file").read_bytes(), b"still here")
        self.umount()

    def test_two_stores_have_two_servers(self):
        other, image = self.folder / "other", self.folder / "img2"
        other.mkdir()
        self.run_ok("mkfs", "-q", "--size", "64M", image)
        self.mount()
        second = self.run_json("mount", "mount", image, other)["pid"]
        try:
            self.run_ok("unlock", "-q", "--key-file", self.key, other)
            self.assertEqual(self.keys(), [])
            self.assertEqual(len(list((self.runtime / "latchkey").iterdir())), 2)
        finally:
            self.run_ok("umount", other)
        self.assertFalse(runs(second))
        self.umount()
        self.assertEqual(list((self.runtime / "latchkey").iterdir()), [])

    def test_what_he_may_not_is_said_in_one_line(self):
        mount = ("mount", self.image, self.root)
        self.refused(DENIED, *mount, "-o", "allow_other", says="user_allow_other.*/etc/fuse.conf")
        self.refused(DENIED, "mount", self.image, "/etc", says="no write access to mountpoint")
        self.refused(UNAVAILABLE, *mount, says="fusermount3.*package fuse3",
                     env={**self.environment, "PATH": str(self.folder)})
        self.assertFalse(os.path.ismount(self.root))
        self.mount()  # nothing of those is in the way

    def test_others_come_in_where_the_machine_lets_them(self):
        if ENTERED not in os.environ:
            self.skipTest("/etc/fuse.conf is not to be changed")
        with open("/etc/fuse.conf", "w", encoding="utf8") as file:
            file.write("user_allow_other\n")
        try:
            for option in ("allow_other", "allow_root"):
                self.mount("-o", option)
                mounts = pathlib.Path("/proc/mounts").read_text().splitlines()
                [options] = [line.split()[3].split(",") for line in mounts
                             if line.split()[1] == str(self.root)]
                self.assertIn("allow_other", options)
                self.assertIn(f"user_id={os.geteuid()}", options)
                self.umount()
        finally:
            with open("/etc/fuse.conf", "w", encoding="utf8"):
                pass

    def test_secrets_are_in_memory_that_a_user_may_lock(self):
        def at_most(size):
            return lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, size))
        self.refused(NO_MEMORY, "mount", self.image, self.root, says="raise the lock limit",
                     preexec_fn=at_most(64 << 10))
        for size in (8 * MIB, MIB):
            self.mount(preexec_fn=at_most(size))
            self.run_ok("unlock", "-q", "--key-file", self.key, self.root)
            (self.vault / "file").write_bytes(b"x" * 3 * MIB)
            store = self.run_json("status", "status", self.root)
            self.assertEqual(store["secrets"], self.run_json("info", "info")["secrets"]["kind"])
            self.umount()
        self.assert_clean()

    def test_ioctls_of_his_own_programs(self):
        self.mount("-o", "caller_memory")
        add = ioctls.add(self.key.read_bytes())
        scope = pathlib.Path("/proc/sys/kernel/yama/ptrace_scope")
        restricted = scope.exists() and scope.read_text().strip() != "0"
        fd = os.open(self.root, os.O_RDONLY)
        try:
            self.assertEqual(ioctls.call_at(fd, ioctls.ADD, ioctls.ending_memory(add)),
                             "ENOTSUP" if restricted else 0)
            self.assertEqual(len(self.keys()), 0 if restricted else 1)
        finally:
            os.close(fd)


class RunDirectory(User):
    """Where the socket is."""

    def socket_is_in(self, directory):
        self.mount()
        number = self.root.stat().st_dev
        name = f"{os.major(number)}-{os.minor(number)}.sock"
        self.assertTrue((directory / name).is_socket())
        self.assertEqual(directory.stat().st_mode & 0o777, 0o700)
        self.assertEqual(self.keys(), [])
        self.umount()
        self.assertFalse((directory / name).exists())

    def test_what_the_variable_says(self):
        self.socket_is_in(self.runtime / "latchkey")

    def test_what_is_usual(self):
        self.environment.pop("XDG_RUNTIME_DIR")
        usual = pathlib.Path(f"/run/user/{os.geteuid()}")
        if not usual.is_dir():
            self.skipTest(f"no {usual}")
        self.socket_is_in(usual / "latchkey")

    def test_one_that_is_not_his_alone_is_not_taken(self):
        usual = pathlib.Path(f"/run/user/{os.geteuid()}")
        if not usual.is_dir():
            self.skipTest(f"no {usual}")
        own = self.runtime / "latchkey"
        own.mkdir()
        own.chmod(0o770)
        self.socket_is_in(usual / "latchkey")
        own.rmdir()
        own.symlink_to(self.folder)
        self.socket_is_in(usual / "latchkey")
        if ENTERED in os.environ:
            self.environment["XDG_RUNTIME_DIR"] = "/run/foreign"
            self.socket_is_in(usual / "latchkey")

    def test_where_there_is_none_of_his_own(self):
        if ENTERED not in os.environ:
            self.skipTest("the user's own directories are not to be changed")
        self.environment.pop("XDG_RUNTIME_DIR")
        usual, away = pathlib.Path(f"/run/user/{NOBODY}"), pathlib.Path("/run/user/away")
        shared = pathlib.Path(f"/tmp/latchkey-{NOBODY}")
        usual.rename(away)
        try:
            self.socket_is_in(shared)
        finally:
            away.rename(usual)
            shared.rmdir()


if __name__ == "__main__":
    if os.geteuid() == 0:
        enter()
    unittest.main()
