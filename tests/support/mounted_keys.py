"""What the tests of a mounted store's keys share: what `latchkey key` says, programs that have
files open, processes of several users, and a client of the control socket that is fast enough to
race."""
import array
import errno
import fcntl
import json
import mmap
import os
import pathlib
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from mounted import *  # noqa: E402,F403
from mounted import LATCHKEY, OK, MountTest, error_of, runs  # noqa: E402
from cli import identifier_of  # noqa: E402

FILES_BUSY, OTHER_USERS, TIMED_OUT = 7, 8, 12
ADA, BOB = 1000, 1001


def open_error(path, flags=os.O_RDONLY):
    def attempt():
        os.close(os.open(path, flags))
    return error_of(attempt)


class Holder:
    """A program that has a file open and writes a line whenever it is told to."""

    def __init__(self, path, user=0):
        self.process = subprocess.Popen(
            ["bash", "-c", 'exec 3>>"$0"; echo ready; '
             'while read -r line; do echo "$line" >&3 && echo saved || echo refused; done', path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, user=user,
            text=True)
        assert self.process.stdout.readline() == "ready\n"

    def save(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def leave(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(10)
        self.process.stdout.close()


class Keys(MountTest):
    """The store's directories and a key file that every user may read."""

    def setUp(self):
        super().setUp()
        os.chmod(self.folder, 0o755)
        os.chmod(self.key, 0o644)
        self.identifier = identifier_of(self.key.read_bytes())

    def said(self, exit_code, *words, user=None, verb=None):
        """The member of a --json answer, whatever its exit code."""
        done = self.run_raw(*words, "--json", **({"user": user} if user is not None else {}))
        self.assertEqual(done.returncode, exit_code, (words, done.stdout, done.stderr))
        return json.loads(done.stdout)[verb or words[0]]

    def status(self, user=None):
        return self.said(OK, "key", "status", "--key-file", self.key, self.root, user=user,
                         verb="key_status")

    def wait_until_absent(self):
        for _ in range(500):
            if self.status()["state"] == "absent":
                return
            time.sleep(0.01)
        self.fail(self.status())


class Children:
    """Beside a test with a mount: processes that may come to wait for a key."""

    def setUp(self):
        super().setUp()
        self.children = []
        self.addCleanup(self.end_children)

    def end_children(self):
        """Before the server, and without a wait for one who cannot be killed."""
        for pid in self.children[:]:
            os.kill(pid, signal.SIGKILL)
            self.ended(pid, 5)

    def child(self, work):
        """A process that runs work() and exits with what it returns."""
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = work() or 0
            finally:
                os._exit(code)
        self.children.append(pid)
        return pid

    def ended(self, pid, timeout=20):
        """The exit code, or minus the signal; None while it runs."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            got, status = os.waitpid(pid, os.WNOHANG)
            if got:
                self.children.remove(pid)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None


# --- processes of several users -------------------------------------------------------------------

class Process:
    """A process of that user which runs work(*args); result() is what that returned."""

    def __init__(self, work, *args, user=0):
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                os.close(read)
                if user:
                    os.setgroups([])
                    os.setresgid(user, user, user)
                    os.setresuid(user, user, user)
                os.umask(0)
                with os.fdopen(write, "wb") as out:
                    pickle.dump(work(*args), out)
                code = 0
            except BaseException:  # the test's own process is not this one's to unwind
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)
        self.answer = os.fdopen(read, "rb")

    def result(self):
        with self.answer:
            said = self.answer.read()
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        assert status == 0, f"a process ended with {status}"
        return pickle.loads(said)

    def end(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.answer.close()
            self.pid = None


def by(user, work, *args, **options):
    """error_of(work) in a process of the user's."""
    return Process(lambda: error_of(work, *args, **options), user=user).result()


class Flag:
    """One bit that processes share with those that they start."""

    def __init__(self):
        self.byte = mmap.mmap(-1, 1)

    def set(self):
        self.byte[0] = 1

    def __bool__(self):
        return self.byte[0] != 0


class Daemon:
    """The control socket (mount/wire.h), without a program's start for each request."""
    ADD, STATUS, REMOVE, DONE = 1, 2, 4, 0x8008
    MAGIC, VERSION = 0x314b4c43, 1
    MODES = ("soft", "sealed", "safe", "sync", "freeze", "deny", "hard", "suspend")
    BUSY_ERROR, QUOTA_ERROR = 18, 21  # Errc

    def __init__(self, root):
        device = os.stat(root).st_dev
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(60)
        self.socket.connect(f"/run/latchkey/{os.major(device)}-{os.minor(device)}.sock")
        self.sequence = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def ask(self, verb, body, *descriptors):
        """The error of the answer, 0 for none."""
        self.sequence += 1
        message = struct.pack("<IHHII", self.MAGIC, self.VERSION, verb, self.sequence, len(body))
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self.socket.sendmsg([message + body], beside if descriptors else [])
        while True:
            part = self.socket.recv(8192)
            if struct.unpack_from("<H", part, 6)[0] == self.DONE:
                return struct.unpack_from("<H", part, 16)[0]

    def add(self, master):
        fd = os.memfd_create("key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, master)
            shrink, grow, write = 2, 4, 8
            fcntl.fcntl(fd, 1033, shrink | grow | write)  # F_ADD_SEALS
            return self.ask(self.ADD, struct.pack("<II", len(master), 0), fd)
        finally:
            os.close(fd)

    def remove(self, identifier, mode="soft"):
        return self.ask(self.REMOVE, bytes.fromhex(identifier) +
                        struct.pack("<BBBBIQQ", self.MODES.index(mode), 0, 0, 0, 0, 0, 0))


class Fstest(Keys):
    """A store for the mirrors of fstests: without its key at first, open to all users, with our
    answers or, in a class with `compat`, with the kernel's (docs/conformance.md)."""
    compat = False

    def mount(self, *words):
        options = "allow_other" + (",compat=fscrypt" if self.compat else "")
        self.server = self.run_json("mount", "mount", "-o", options, *words, self.image,
                                    self.root)["pid"]

    def setUp(self):
        super().setUp()
        self.master = self.key.read_bytes()
        self.vault = self.root / "vault"
        self.processes = []
        self.addCleanup(lambda: [process.end() for process in self.processes])
        self.add()
        os.chmod(self.root, 0o777)
        os.chmod(self.vault, 0o777)
        self.locked_name = "ENOENT" if self.compat else "ENOKEY"

    def start(self, work, *args, user=0):
        self.processes.append(Process(work, *args, user=user))
        return self.processes[-1]

    def add(self, user=None):
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root, user=user)

    def remove(self, *words, code=OK, user=None):
        return self.said(code, "key", "remove", "--key-file", self.key, *words, self.root,
                         user=user, verb="key_remove")

    def all_closed(self):
        """The kernel tells of a close after close(2) has returned."""
        for _ in range(1000):
            if not self.status()["holders"]:
                return
            time.sleep(0.01)
        self.fail(self.status())

    def lock(self):
        """Removes the key when nobody has anything open."""
        self.all_closed()
        self.assertEqual(self.remove()["state"], "absent")

    def finish_removal(self):
        """Nobody is inside any more: our last close has ended the removal, the kernel's has not."""
        self.all_closed()
        if self.compat:
            self.assertEqual(self.status()["state"], "incompletely-removed")
            self.remove()
        for _ in range(1000):  # a handle that is being closed is no holder any more
            if self.status()["state"] == "absent":
                return
            time.sleep(0.01)
        self.fail(self.status())

    def key_loop(self, stop, mode="soft", away_s=0.0, there_s=0.001):
        """A process that removes the key and adds it again until it is told to stop; its result is
        how often. It ends with the key added."""
        def work():
            rounds = 0
            with Daemon(self.root) as daemon:
                while not stop:
                    assert daemon.remove(self.identifier, mode) in (0, Daemon.BUSY_ERROR)
                    time.sleep(away_s)
                    assert daemon.add(self.master) == 0
                    time.sleep(there_s)
                    rounds += 1
            return rounds
        return self.start(work)
