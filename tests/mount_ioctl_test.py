#!/usr/bin/env python3
"""Goal: fscrypt's ioctls work on a mounted store for real programs of several users, unmodified
xfs_io among them; those that need the caller's memory only where the mount's options say so, and
no caller holds up another one, whatever his memory is. Method: processes of their own, with
arguments at the end of what they may touch; the answers are the kernel's for ext4 (that each is:
mount_ioctl_kernel_test)."""
import ctypes
import mmap
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted import *  # noqa: E402,F403
import ioctls  # noqa: E402

ADA, BOB = 1000, 1001


class Ioctls(MountTest):
    """`vault` is encrypted, and its key is there."""
    options = ("-o", "allow_other")

    def mount(self, *words):
        super().mount(*self.options, *words)

    def setUp(self):
        super().setUp()
        os.chmod(self.folder, 0o755)
        self.raw = self.key.read_bytes()
        self.identifier = identifier_of(self.raw)
        self.vault = self.root / "vault"

    def call(self, command, content, path=None, user=0):
        return ioctls.call(path or self.root, command, content, user)

    def facts(self, user=0):
        error, answer = self.call(ioctls.STATUS, ioctls.status(self.identifier), user=user)
        self.assertEqual(error, 0)
        return ioctls.facts_of_status(answer)

    def remove(self, user=0, command=ioctls.REMOVE):
        """Its flags, or the errno's name."""
        error, answer = self.call(command, ioctls.removal(self.identifier), user=user)
        return error or ioctls.flags_of_removal(answer)

    def wait_until_absent(self):
        for _ in range(500):
            if self.facts()[0] == ioctls.ABSENT:
                return
            time.sleep(0.01)
        self.fail(self.facts())


class Carried(Ioctls):
    """Whose bytes FUSE carries: on every mount."""

    def test_a_key_is_removed_and_its_state_is_told(self):
        (self.vault / "file").write_bytes(b"inside" * 1000)
        self.assertEqual(self.facts(), (ioctls.PRESENT, ioctls.ADDED_BY_SELF, 1))
        self.assertEqual(self.facts(BOB), (ioctls.ABSENT, 0, 0), "to strangers all are")
        self.assertEqual(self.remove(BOB), "ENOKEY")
        self.assertEqual(self.remove(BOB, ioctls.REMOVE_ALL), "EACCES")
        with open(self.vault / "file", "rb") as inside:
            self.assertEqual(self.remove(), ioctls.FILES_BUSY)
            self.assertEqual(self.facts(), (ioctls.INCOMPLETELY_REMOVED, 0, 0))
            self.assertEqual(inside.read(6), b"inside")
        self.wait_until_absent()
        self.assertEqual(error_of(open, self.vault / "file"), "ENOKEY")
        self.assertEqual(self.remove(), "ENOKEY")

    def test_claims_of_others_stay_or_go(self):
        os.chmod(self.key, 0o644)
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root, user=ADA)
        self.assertEqual(self.facts(ADA), (ioctls.PRESENT, ioctls.ADDED_BY_SELF, 2))
        self.assertEqual(self.remove(ADA), ioctls.OTHER_USERS)
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root, user=ADA)
        self.assertEqual(self.remove(command=ioctls.REMOVE_ALL), 0)
        self.assertEqual(self.facts()[0], ioctls.ABSENT)

    def test_the_descriptor_of_the_call_is_a_holder_only_of_what_is_encrypted(self):
        for path, flags in ((self.root, 0), (self.root / "plain", 0),
                            (self.vault, ioctls.FILES_BUSY)):
            error, answer = self.call(ioctls.REMOVE, ioctls.removal(self.identifier), path)
            self.assertEqual((error, ioctls.flags_of_removal(answer)), (0, flags), path)
            self.wait_until_absent()
            self.run_ok("key", "add", "-q", "--key-file", self.key, self.root)

    def test_pages_that_a_program_stored_into_are_written_down_by_the_removal(self):
        (self.vault / "file").write_bytes(bytes(64 * ioctls.PAGE))
        with open(self.vault / "file", "r+b") as file:
            area = mmap.mmap(file.fileno(), 0)
        for page in range(64):
            area[page * ioctls.PAGE] = page
        done = [threading.Thread(target=lambda: self.remove(command=ioctls.REMOVE_ALL))
                for _ in range(20)]
        for thread in done:
            thread.start()
        for thread in done:
            thread.join()
        self.assertEqual(self.facts()[0], ioctls.INCOMPLETELY_REMOVED)
        area.close()
        self.wait_until_absent()
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root)
        self.assertEqual((self.vault / "file").read_bytes()[::ioctls.PAGE], bytes(range(64)))

    def test_a_nonce_is_told_and_there_is_no_policy_of_old(self):
        (self.vault / "file").write_bytes(b"inside")
        nonces = [self.call(ioctls.NONCE, bytes(16), path)
                  for path in (self.vault, self.vault / "file", self.root)]
        self.assertEqual([error for error, _ in nonces], [0, 0, "ENODATA"])
        self.assertEqual(len({nonce for _, nonce in nonces}), 3)
        self.assertEqual(self.call(ioctls.GET_POLICY, bytes(12), self.vault)[0], "EINVAL")
        self.assertEqual(self.call(ioctls.GET_POLICY, bytes(12))[0], "ENODATA")

    def test_what_needs_the_callers_memory_is_refused_and_nothing_else(self):
        (self.root / "fresh").mkdir()
        for command, content, path, error in (
                (ioctls.ADD, ioctls.add(bytes(64)), self.root, "ENOTSUP"),
                (ioctls.ADD, ioctls.add(bytes(8)), self.root, "EINVAL"),
                (ioctls.ADD, ioctls.add(b"", key_id=1), self.root, "ENOKEY"),
                (ioctls.SET_POLICY, ioctls.policy(self.identifier), self.root / "fresh",
                 "ENOTSUP"),
                (ioctls.GET_POLICY_EX, ioctls.get_policy_ex(), self.vault, "ENOTSUP"),
                (ioctls.GET_POLICY_EX, ioctls.get_policy_ex(23), self.vault, "EOVERFLOW"),
                (ioctls.GET_POLICY_EX, ioctls.get_policy_ex(), self.root, "ENODATA"),
                (0x40106614, bytes(16), self.root, "ENOTTY"),  # FS_IOC_GET_ENCRYPTION_PWSALT
                (0x80086601, bytes(8), self.root, "ENOTTY")):  # FS_IOC_GETFLAGS
            self.assertEqual(self.call(command, content, path)[0], error, (command, path))
        self.assertEqual(len(self.run_json("key_list", "key", "list", self.root)["keys"]), 1)


class Memory(Ioctls):
    """Where the mount may look into its callers' memory."""
    options = ("-o", "allow_other,caller_memory")

    def add(self, user=0):
        error, answer = self.call(ioctls.ADD, ioctls.add(self.raw), user=user)
        self.assertEqual(error, 0)
        self.assertEqual(answer[8:24].hex(), self.identifier)

    def test_a_user_adds_a_key_and_sets_a_policy(self):
        self.remove()
        self.assertEqual(self.facts(ADA)[0], ioctls.ABSENT)
        self.add(ADA)
        self.assertEqual(self.facts(ADA), (ioctls.PRESENT, ioctls.ADDED_BY_SELF, 1))
        for name, user in (("ada", ADA), ("bob", BOB)):
            (self.root / name).mkdir()
            os.chown(self.root / name, user, user)
        given = ioctls.policy(self.identifier)
        self.assertEqual(self.call(ioctls.SET_POLICY, given, self.root / "bob", ADA)[0], "EACCES")
        self.assertEqual(self.call(ioctls.SET_POLICY, given, self.root / "bob", BOB)[0], "ENOKEY")
        self.assertEqual(self.call(ioctls.SET_POLICY, given, self.root / "ada", ADA)[0], 0)
        self.assertEqual(self.call(ioctls.SET_POLICY, given, self.root / "ada", ADA)[0], 0)
        error, answer = self.call(ioctls.GET_POLICY_EX, ioctls.get_policy_ex(2 ** 40),
                                  self.root / "ada", BOB)
        self.assertEqual((error, answer), (0, struct.pack("<Q", 24) + given))

    def test_of_threads_each_is_answered_in_its_own_place(self):
        names = [self.root / f"directory{number}" for number in range(24)]
        for name in names:
            name.mkdir()

        def work():
            answers = {}

            def one(name):
                fd = os.open(name, os.O_RDONLY)
                here = ctypes.create_string_buffer(ioctls.policy(self.identifier))
                there = ctypes.create_string_buffer(ioctls.get_policy_ex(), 32)
                answers[str(name)] = (ioctls.call_at(fd, ioctls.SET_POLICY, here),
                                      ioctls.call_at(fd, ioctls.GET_POLICY_EX, there),
                                      there.raw)
            threads = [threading.Thread(target=one, args=(name,)) for name in names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return answers
        wanted = (0, 0, struct.pack("<Q", 24) + ioctls.policy(self.identifier))
        self.assertEqual(ioctls.in_process(work), {str(name): wanted for name in names})

    def test_memory_that_ends_or_is_not_the_callers_to_change_is_efault(self):
        def read_only():
            fd = os.open(self.vault, os.O_RDONLY)
            address = ioctls.ending_memory(ioctls.get_policy_ex())
            ioctls.libc.mprotect(address & ~(ioctls.PAGE - 1), ioctls.PAGE, 1)
            return ioctls.call_at(fd, ioctls.GET_POLICY_EX, address)
        self.assertEqual(ioctls.in_process(read_only), "EFAULT")
        for command, content in ((ioctls.ADD, ioctls.add(self.raw)[:-1]),
                                 (ioctls.SET_POLICY, ioctls.policy(self.identifier)[:-1]),
                                 (ioctls.SET_POLICY, b""),
                                 (ioctls.GET_POLICY_EX, ioctls.get_policy_ex()[:-1])):
            self.assertEqual(self.call(command, content, self.vault)[0], "EFAULT", command)
        self.assertEqual(self.call(ioctls.SET_POLICY, b"\7", self.vault)[0], "EINVAL")

    def test_a_key_in_secret_memory_cannot_be_taken(self):
        memfd_secret = 447
        if ioctls.libc.syscall(memfd_secret, 0) < 0:
            self.skipTest("no memfd_secret")

        def work():
            fd = ioctls.libc.syscall(memfd_secret, 0)
            os.ftruncate(fd, ioctls.PAGE)
            address = ioctls.libc.mmap(None, ioctls.PAGE, 3, mmap.MAP_SHARED, fd, 0)
            content = ioctls.add(self.raw)
            ctypes.memmove(address, content, len(content))
            return ioctls.call_at(os.open(self.root, os.O_RDONLY), ioctls.ADD, address)
        self.assertEqual(ioctls.in_process(work), "EFAULT")

    # The kernel lets 32-bit callers have numbers and places of their own.
    def test_a_call_of_32_bits_is_refused(self):
        def work():
            low = ioctls.libc.mmap(None, ioctls.PAGE, 3,
                                   mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, -1, 0)
            content = ioctls.get_policy_ex()
            ctypes.memmove(low, content, len(content))
            # mov eax, 54; mov ebx, edi; mov ecx, esi; int 0x80; ret, with rbx kept
            code = mmap.mmap(-1, ioctls.PAGE, prot=7)
            code.write(bytes.fromhex("53b83600000089fb89f1cd805bc3"))
            function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)(
                ctypes.addressof(ctypes.c_char.from_buffer(code)))
            return -function(os.open(self.vault, os.O_RDONLY), ioctls.GET_POLICY_EX, low)
        number = ioctls.in_process(work)
        if number == errno.ENOSYS:
            self.skipTest("this kernel has no calls of 32 bits")
        self.assertEqual(errno.errorcode[number], "ENOTSUP")

    def test_xfs_io_as_it_is(self):
        if shutil.which("xfs_io", path=os.environ["PATH"] + ":/usr/sbin") is None:
            self.skipTest("no xfs_io (package xfsprogs)")
        environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"}

        def xfs_io(command, path=self.root, **options):
            done = subprocess.run(["xfs_io", "-c", command, str(path)], capture_output=True,
                                  env=environment, check=False, **options)
            return (done.stdout + done.stderr).decode().strip()

        self.remove()
        home = self.root / "home"
        home.mkdir()
        os.chown(home, ADA, ADA)
        key = self.identifier
        self.assertEqual(xfs_io(f"enckey_status {key}", user=ADA), "Absent")
        self.assertEqual(xfs_io("add_enckey", user=ADA, input=self.raw),
                         f"Added encryption key with identifier {key}")
        self.assertEqual(xfs_io(f"enckey_status {key}", user=ADA),
                         "Present (user_count=1, added_by_self)")
        self.assertIn("No data available", xfs_io("get_encpolicy", home, user=ADA))
        self.assertEqual(xfs_io(f"set_encpolicy -f 3 {key}", home, user=ADA), "")
        self.assertEqual(
            [line.strip() for line in xfs_io("get_encpolicy", home, user=ADA).splitlines()],
            [f"Encryption policy for {home}:", "Policy version: 2",
             f"Master key identifier: {key}", "Contents encryption mode: 1 (AES-256-XTS)",
             "Filenames encryption mode: 4 (AES-256-CTS)", "Flags: 0x03"])
        self.assertIn("Invalid argument", xfs_io(f"set_encpolicy -f 2 {key}", self.root / "plain"))
        (home / "letter").write_text("dear Bob\n")
        with open(home / "letter", encoding="utf8"):
            self.assertEqual(xfs_io(f"rm_enckey {key}", user=ADA),
                             f"Removed encryption key with identifier {key}, but files still busy")
            self.assertEqual(xfs_io(f"enckey_status {key}", user=ADA), "Incompletely removed")
        self.wait_until_absent()
        self.assertEqual(xfs_io(f"enckey_status {key}", user=ADA), "Absent")
        self.assertEqual(error_of(open, home / "letter"), "ENOKEY")
        self.assertEqual(xfs_io("add_enckey", user=ADA, input=self.raw),
                         f"Added encryption key with identifier {key}")
        self.assertEqual((home / "letter").read_text(), "dear Bob\n")
        self.assertEqual(xfs_io(f"rm_enckey -a {key}"),
                         f"Removed encryption key with identifier {key}")

    # Its pages are of a file whose server stands still.
    def test_a_caller_whose_memory_never_comes_holds_up_nobody(self):
        image, other = self.folder / "img2", self.folder / "mnt2"
        other.mkdir()
        self.run_ok("mkfs", "-q", "--size", "64M", image)
        server = self.run_json("mount", "mount", "-o", "allow_other", image, other)["pid"]
        self.addCleanup(lambda: subprocess.run(["umount", "-l", str(other)], check=False,
                                               capture_output=True))
        (other / "file").write_bytes(ioctls.policy(self.identifier) + bytes(8 * ioctls.PAGE))
        for number in range(8):
            (self.root / f"directory{number}").mkdir()
            os.chown(self.root / f"directory{number}", ADA, ADA)
        go, begin = os.pipe()
        callers = [self.caller_at(other / "file", self.root / f"directory{number}", go)
                   for number in range(8)]
        self.stop(server)
        try:
            os.write(begin, bytes(8))
            self.wait_until_all_wait(callers)
            self.facts()  # what was asked before it has been taken by the server
            os.kill(callers[0], signal.SIGKILL)
            self.remove()
            self.add(BOB)
            self.assertEqual(self.facts(ADA)[0], ioctls.ABSENT)
            (self.vault / "file").write_bytes(b"others go on")
            self.assertEqual(self.remove(BOB), 0)
            self.add()
            # So nobody else gets its number, nor its memory's place, while that is looked at.
            self.wait_until_all_wait(callers[:1])
        finally:
            os.kill(server, signal.SIGCONT)
        answers = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in callers]
        self.assertEqual(answers, [-signal.SIGKILL] + [errno.ENOKEY] * 7, "ADA has no claim")
        self.run_ok("umount", other)

    def caller_at(self, path, directory, go):
        """Who sets a policy that lies in a file, once told to."""
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            address = ioctls.libc.mmap(None, ioctls.PAGE, 1, mmap.MAP_SHARED, file, 0)
            os.close(file)
            os.setresuid(ADA, ADA, ADA)
            directory = os.open(directory, os.O_RDONLY)
            os.write(tell, b"x")
            os.read(go, 1)
            error = ioctls.call_at(directory, ioctls.SET_POLICY, address)
            os._exit(getattr(errno, str(error), 0))
        os.read(ready, 1)
        return pid

    def stop(self, server):
        os.kill(server, signal.SIGSTOP)
        self.wait_until(lambda: all(
            task.read_text().rsplit(")", 1)[1].split()[0] == "T"
            for task in pathlib.Path(f"/proc/{server}/task").glob("*/stat")))

    def wait_until_all_wait(self, callers):
        def waits(pid):
            words = pathlib.Path(f"/proc/{pid}/syscall").read_text().split()
            place = pathlib.Path(f"/proc/{pid}/wchan").read_text()
            return words[0] == "16" and words[2] == hex(ioctls.SET_POLICY) and \
                place == "request_wait_answer"
        self.wait_until(lambda: all(waits(pid) for pid in callers))

    def wait_until(self, is_so):
        for _ in range(3000):
            if is_so():
                return
            time.sleep(0.01)
        self.fail("it never comes to that")

    def test_a_server_that_cannot_tell_whose_memory_it_is_refuses(self):
        self.umount()
        process = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", LATCHKEY, "mount",
                                    "-f", "-o", "allow_other,caller_memory", "--key-file",
                                    str(self.key), str(self.image), str(self.root)])
        try:
            while not os.path.ismount(self.root) and process.poll() is None:
                time.sleep(0.01)
            self.assertEqual(self.facts()[0], ioctls.PRESENT)
            self.assertEqual(self.call(ioctls.ADD, ioctls.add(self.raw))[0], "ENOTSUP")
            self.assertEqual(self.call(ioctls.GET_POLICY_EX, ioctls.get_policy_ex(), self.vault),
                             ("ENOTSUP", ioctls.get_policy_ex()))
        finally:
            subprocess.run(["umount", str(self.root)], check=True)
            process.wait(30)


if __name__ == "__main__":
    unittest.main()
