#!/usr/bin/env python3
"""Goal: keys come and go on a mounted store while programs use it, as a new user would type it.
Method: the real binary, its daemon and real programs of several users; what they see, and what
`key status` says of them, compared with what they do."""
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted_keys import *  # noqa: E402,F403

# As user 1000 sends a file of a daemon that it stops as a key of 64 bytes (key_add, mount/wire.h),
# six times; prints the errors that it was answered.
SENDER = """
import json, os, signal, socket, struct, sys
name, stopped, path = sys.argv[1:]
errors = []
with open(name, "r+b") as file:  # one that was open to be written is asked to flush
    os.kill(int(stopped), signal.SIGSTOP)
    os.setresuid(1000, 1000, 1000)
    try:
        for number in range(6):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(10)
                client.connect(path)
                message = struct.pack("<IHHIIII", 0x314b4c43, 1, 1, number, 8, 64, 0)
                socket.send_fds(client, [message], [file.fileno()])
                errors.append(struct.unpack_from("<H", client.recv(8192), 16)[0])
    except OSError as error:
        errors = str(error)
    print(json.dumps(errors), flush=True)
"""


class Dialogue(Keys):
    def mount(self, *words):  # without the key
        self.server = self.run_json("mount", "mount", *words, self.image, self.root)["pid"]

    def make_store(self, size):
        self.make_key()
        self.run_ok("mkfs", "-q", "--size", size, self.image)

    def test_a_vault_is_locked_while_a_program_is_inside(self):
        vault = self.root / "vault"
        tree = self.folder / "tree"
        (tree / "deep").mkdir(parents=True)
        (tree / "letter").write_text("dear Ada\n")
        (tree / "deep" / "data").write_bytes(os.urandom(300_000))

        self.run_ok("policy", "set", "-q", "--key-file", self.key, vault)
        self.assertEqual(self.run_ok("policy", "get", vault), self.identifier + "\n")
        self.assertEqual(error_of(os.mkdir, vault / "early"), "ENOKEY")
        self.assertEqual(self.run_ok("unlock", "--key-file", self.key, self.root),
                         self.identifier + "\n")
        subprocess.run(["cp", "-r", str(tree), str(vault)], check=True)

        holder = Holder(vault / "tree" / "letter")
        self.addCleanup(holder.leave)
        locked = self.said(FILES_BUSY, "lock", self.root)
        self.assertEqual([key["state"] for key in locked["keys"]], ["incompletely-removed"])
        self.assertEqual(locked["keys"][0]["flags"], ["files-busy"])

        status = self.status()
        self.assertEqual((status["state"], status["user_count"]), ("incompletely-removed", 0))
        self.assertEqual([(who["pid"], who["command"], who["uid"]) for who in status["holders"]],
                         [(holder.process.pid, "bash", 0)])
        self.assertEqual(status["holders"][0]["path"], str(vault / "tree" / "letter"))
        for path in (vault / "tree" / "letter", vault / "tree" / "deep" / "data", vault / "new"):
            self.assertEqual(open_error(path, os.O_RDONLY), "ENOKEY", path)
        self.assertEqual(holder.save("yours, Bob"), "saved")
        self.assertEqual(self.status()["state"], "incompletely-removed")
        holder.leave()
        self.wait_until_absent()
        self.assertEqual(self.status()["holders"], [])
        self.assertEqual(open_error(vault / "tree"), "ENOKEY")

        self.run_ok("unlock", "-q", "--key-file", self.key, self.root)
        self.assertEqual((vault / "tree" / "letter").read_text(), "dear Ada\nyours, Bob\n")
        self.assertEqual((vault / "tree" / "deep" / "data").read_bytes(),
                         (tree / "deep" / "data").read_bytes())
        self.run_ok("lock", "-q", self.root)
        self.umount()
        self.assert_clean()


class Waiting(Keys):
    def test_lock_waits_for_the_last_program(self):
        holder = Holder(self.root / "vault" / "file")
        self.addCleanup(holder.leave)
        late = self.said(TIMED_OUT, "key", "remove", "--key-file", self.key, "--wait=0.1",
                         self.root, verb="key_remove")
        self.assertEqual(late["state"], "incompletely-removed")
        self.assertEqual([who["pid"] for who in late["holders"]], [holder.process.pid])
        with subprocess.Popen([LATCHKEY, "lock", "--wait", str(self.root)],
                              stdout=subprocess.PIPE) as waiter:
            with self.assertRaises(subprocess.TimeoutExpired):
                waiter.wait(0.3)
            self.assertEqual(holder.save("last words"), "saved")
            holder.leave()
            self.assertEqual(waiter.wait(10), OK)
        self.assertEqual(self.status()["state"], "absent")

    def test_a_deadline_ends_it(self):
        holder = Holder(self.root / "vault" / "file")
        self.addCleanup(holder.leave)
        gone = self.said(OK, "key", "remove", "--key-file", self.key, "--wait",
                         "--deadline=0.2:deny", self.root, verb="key_remove")
        self.assertEqual((gone["state"], gone["mode"], gone["bytes_lost"]), ("absent", "deny", 0))
        self.assertEqual(holder.save("too late"), "refused")

    def test_safe_refuses_and_names_who_is_inside(self):
        holder = Holder(self.root / "vault" / "file")
        self.addCleanup(holder.leave)
        refused = self.said(BUSY, "key", "remove", "--key-id", self.identifier, "--mode", "safe",
                            self.root, verb="key_remove")
        self.assertEqual([who["pid"] for who in refused["holders"]], [holder.process.pid])
        self.assertEqual(self.status()["state"], "present")
        holder.leave()
        gone = self.said(OK, "key", "remove", "--key-id", self.identifier, "--mode", "safe",
                         self.root, verb="key_remove")
        self.assertEqual(gone["state"], "absent")


class Users(Keys):
    def mount(self, *words):
        super().mount("-o", "allow_other", *words)

    def test_each_users_claim_is_his_own(self):
        self.assertEqual(self.status()["user_count"], 1)  # root's, by mount --key-file
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root, user=ADA)
        self.assertEqual(self.status(ADA)["user_count"], 2)
        self.assertEqual(self.status(BOB)["state"], "absent")
        self.assertEqual(self.said(OK, "key", "list", self.root, user=BOB, verb="key_list"),
                         {"keys": []})
        self.run_refused(NO_KEY, "key", "remove", "--key-file", self.key, self.root, user=BOB)
        self.run_refused(DENIED, "key", "remove", "--key-file", self.key, "--all-users", self.root,
                         user=ADA)
        self.assertEqual(self.said(OTHER_USERS, "lock", self.root)["keys"][0]["state"], "present")
        self.assertEqual(self.said(OK, "lock", self.root, user=ADA)["keys"][0]["state"], "absent")

    def test_a_handle_belongs_to_who_has_it_now(self):
        os.chmod(self.root / "vault", 0o777)
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root, user=ADA)
        # The program that opens the file hands it to another one and ends.
        with subprocess.Popen(["sh", "-c", 'exec 3>"$0"; sleep 60 & echo $!',
                               str(self.root / "vault" / "file")],
                              stdout=subprocess.PIPE, user=ADA, text=True) as opener:
            sleeper = int(opener.stdout.readline())
            self.addCleanup(lambda: runs(sleeper) and os.kill(sleeper, signal.SIGKILL))
            opener.wait(10)
            holders = self.status()["holders"]
            self.assertEqual([(who["pid"], who["command"], who["uid"]) for who in holders],
                             [(sleeper, "sleep", ADA)])
            os.kill(sleeper, signal.SIGKILL)


class Foreign(Keys):
    """A file of a file system that does not answer, sent as a key: here that of a stopped mount."""

    def test_a_descriptor_that_cannot_be_closed_holds_up_nobody(self):
        other = self.folder / "other"
        other.mkdir()
        self.run_ok("mkfs", "-q", "--size", "64M", self.folder / "img2")
        stopped = self.run_json("mount", "mount", self.folder / "img2", other)["pid"]
        self.addCleanup(subprocess.run, ["umount", "-l", str(other)], check=False)
        (other / "file").write_bytes(b"x" * 64)
        device = self.root.stat().st_dev
        # Who has the file open waits for it, too, when it starts or ends a process.
        sender = subprocess.Popen(
            [sys.executable, "-c", SENDER, str(other / "file"), str(stopped),
             f"/run/latchkey/{os.major(device)}-{os.minor(device)}.sock"], stdout=subprocess.PIPE)
        self.addCleanup(sender.wait)
        self.addCleanup(os.kill, stopped, signal.SIGCONT)
        refused = json.loads(sender.stdout.readline())
        sender.stdout.close()
        self.assertEqual(len(refused), 6, refused)
        self.assertNotIn(0, refused)
        self.assertNotEqual(refused[0], refused[-1], "he brings no more once four are stuck")
        began = time.monotonic()
        self.assertEqual(self.status()["state"], "present")
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root)
        self.assertLess(time.monotonic() - began, 5)


class Attributes(Fstest):
    """user.* attributes of a locked file: refused, or as ext4 has them (docs/conformance.md)."""

    def locked_file(self):
        return next(self.vault.iterdir())

    def test_of_a_locked_file(self):
        (self.vault / "file").write_text("x")
        os.setxattr(self.vault / "file", "user.early", b"with the key")
        self.lock()
        file = self.locked_file()
        self.assertEqual(os.listxattr(file), ["user.early"])
        if self.compat:
            self.assertEqual(os.getxattr(file, "user.early"), b"with the key")
            os.setxattr(file, "user.x", b"long" * 10000)
            os.setxattr(file, "user.x", b"without it", os.XATTR_REPLACE)
            os.setxattr(file, "user.y", b"v")
            os.removexattr(file, "user.y")
            self.assertEqual(os.getxattr(file, "user.x"), b"without it")
        else:
            self.assertEqual(error_of(os.getxattr, file, "user.early"), "ENOKEY")
            for name in ("user.early", "user.x"):
                self.assertEqual(error_of(os.setxattr, file, name, b"without it"), "ENOKEY")
        wanted = ["user.early", "user.x"] if self.compat else ["user.early"]
        self.assertEqual(sorted(os.listxattr(file)), wanted)
        self.umount()
        self.assert_clean()
        written_by_compat, self.compat = self.compat, not self.compat
        says = "attributes user.* of encrypted files may be in the clear"
        self.assertEqual(says in self.run_ok("info", self.image), written_by_compat)
        self.mount()  # as the other setting
        file = self.locked_file()
        self.assertEqual(sorted(os.listxattr(file)), wanted)
        if written_by_compat:
            self.assertEqual(os.getxattr(file, "user.x"), b"without it")
            self.assertEqual(error_of(os.setxattr, file, "user.x", b"new"), "ENOKEY")
        else:
            self.assertEqual(error_of(os.getxattr, file, "user.early"), "ENOKEY")
        self.add()
        self.assertEqual(os.getxattr(self.vault / "file", "user.early"), b"with the key")
        os.removexattr(self.vault / "file", "user.early")
        self.assertEqual(os.listxattr(self.vault / "file"), wanted[1:])


class AttributesCompat(Attributes):
    compat = True


class NamesThatAreKept(Keys):
    def asks(self, path):
        """Whether a walk to the path asks the daemon, which is stopped and cannot answer."""
        os.stat(path)
        os.kill(self.server, signal.SIGSTOP)
        try:
            walk = subprocess.Popen(["stat", "--format", "%i", path], stdout=subprocess.DEVNULL)
            try:
                return walk.wait(2) != 0
            except subprocess.TimeoutExpired:
                return True
        finally:
            os.kill(self.server, signal.SIGCONT)
            self.assertEqual(walk.wait(10), 0)

    def test_an_encrypted_directory_is_found_once_what_it_holds_each_time(self):
        vault = self.root / "vault"
        (vault / "deep").mkdir()
        self.umount()
        self.mount()
        self.assertFalse(self.asks(vault))
        self.assertTrue(self.asks(vault / "deep"))
        self.run_ok("lock", "-q", self.root)
        self.assertEqual(error_of(os.stat, vault / "deep"), "ENOKEY")
        self.assertTrue(vault.is_dir())


class Store(Keys):
    def test_status_says_how_the_store_is(self):
        status = self.said(OK, "status", self.root)
        space = os.statvfs(self.root)
        self.assertEqual(status["mount"], str(self.root))
        self.assertEqual(status["total_bytes"], space.f_blocks * space.f_frsize)
        self.assertEqual([key["identifier"] for key in status["keys"]], [self.identifier])
        self.assertEqual(self.said(OK, "status", self.root / "vault")["volume_id"],
                         status["volume_id"])
        self.run_refused(WRONG_DEVICE, "status", self.folder)

    def test_the_socket_goes_with_the_mount_and_a_dead_ones_is_replaced(self):
        device = self.root.stat().st_dev
        socket_file = pathlib.Path(f"/run/latchkey/{os.major(device)}-{os.minor(device)}.sock")
        self.assertTrue(socket_file.is_socket())
        self.assertEqual(stat.S_IMODE(socket_file.parent.stat().st_mode), 0o755)
        self.umount()
        self.assertFalse(socket_file.exists())
        self.mount()
        self.kill()
        subprocess.run(["umount", "-l", str(self.root)], check=True)
        self.mount()
        self.assertEqual(self.status()["state"], "present")


if __name__ == "__main__":
    unittest.main()
