"""Stores that a program's case mounts, umounts, kills and locks as it likes. A place is a context
manager: its image and what is mounted are gone afterwards, and at its end the store was checked."""
import contextlib
import os
import pathlib
import subprocess
import time

from targets import LATCHKEY, PASSWORD, ext4, image, run

FILES_BUSY, BUSY = 7, 5
LIVING = {"soft": FILES_BUSY, "sealed": FILES_BUSY, "safe": BUSY, "suspend": 0}


class Place:
    """`work` is the directory for the program, `at` one beside the mount, for logs."""

    def __init__(self, at, mnt, work):
        self.at, self.mnt, self.work = at, mnt, work
        self.server = None

    def command(self):
        """What mounts it, in the foreground."""
        raise NotImplementedError

    def mount(self):
        with open(self.at / "log", "ab") as log:
            self.server = subprocess.Popen(self.command(), stdout=log, stderr=log,
                                           stdin=subprocess.DEVNULL)
        for _ in range(3000):
            if os.path.ismount(self.mnt):
                return
            if self.server.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError(f"not mounted: {(self.at / 'log').read_text()[-2000:]}")

    def umount(self):
        """Who has copied the mount into another namespace shall not keep the server."""
        run("umount", self.mnt)
        self.server.terminate()
        self.server.wait(60)

    def again(self):
        """What is read from now on comes from the store."""
        self.umount()
        self.check()
        self.mount()

    def kill(self):
        """kill -9 of the daemon; who is inside gets errors. mount() follows."""
        self.server.kill()
        self.server.wait()
        run("umount", "-l", self.mnt)

    def check(self):
        pass

    def last_words(self):
        """Of a server that ended by itself."""
        if self.server is None or self.server.poll() is None:
            return "the server runs"
        said = (self.at / "log").read_text()[-2000:]
        return f"the server ended with {self.server.returncode} and said: {said}"

    def leave(self):
        if self.server is None or self.server.poll() is None or os.path.ismount(self.mnt):
            subprocess.run(["umount", "-l", str(self.mnt)], capture_output=True, check=False)
        try:
            if self.server is not None:
                self.server.wait(20)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()


class Latchkey(Place):
    def __init__(self, at, encrypted):
        super().__init__(at, at / "mnt", at / "mnt" / "work")
        self.store, self.key = at / "img", at / "key"
        self.encrypted = encrypted
        run(LATCHKEY, "mkfs", "-q", "-f", self.store)
        run(LATCHKEY, "key", "generate", self.key)

    def command(self):
        words = ["--key-file", self.key] if self.encrypted else []
        return [str(word) for word in (LATCHKEY, "mount", "-f", "-o", "allow_other,dev,suid",
                                       *words, self.store, self.mnt)]

    def umount(self):
        run(LATCHKEY, "umount", self.mnt)
        if self.server.wait(60) != 0:
            raise RuntimeError(f"the server said: {(self.at / 'log').read_text()[-2000:]}")

    def make(self):
        self.work.mkdir()
        if self.encrypted:
            run(LATCHKEY, "policy", "set", "--key-file", self.key, self.work)

    def check(self):
        """Every block of it."""
        done = subprocess.run([LATCHKEY, "check", "--data", self.store], capture_output=True,
                              text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"check exits {done.returncode}: {done.stdout[-2000:]} "
                               f"{done.stderr[-2000:]}")

    def keep(self, to):
        """The image as it is now, for who looks into a finding."""
        run("cp", "--sparse=always", self.store, to)

    def lock(self, mode, *words):
        """The exit code, which LIVING has for the modes in which open files go on."""
        return subprocess.run([LATCHKEY, "lock", "-q", "--mode", mode, *words, str(self.mnt)],
                              capture_output=True, check=False).returncode

    def unlock(self):
        run(LATCHKEY, "unlock", "-q", "--key-file", self.key, self.mnt)

    def memory(self):
        """Of the daemon, in KiB: resident, and the part that is its own."""
        status = pathlib.Path(f"/proc/{self.server.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["VmRSS"].split()[0]), int(fields["RssAnon"].split()[0])


class Gocryptfs(Place):
    encrypted = False  # no key cycles

    def __init__(self, at, below):
        super().__init__(at, at / "mnt", at / "mnt" / "work")
        self.below = below
        (at / "password").write_text(PASSWORD)
        run("gocryptfs", "-q", "-init", "-passfile", at / "password", below)

    def command(self):
        return ["gocryptfs", "-q", "-fg", "-nosyslog", "-allow_other", "-acl", "-passfile",
                str(self.at / "password"), "-o", "dev,suid", str(self.below), str(self.mnt)]

    def make(self):
        self.work.mkdir()


@contextlib.contextmanager
def place(kind, size):
    with contextlib.ExitStack() as stack:
        at = stack.enter_context(image(size))
        if kind == "gocryptfs":
            here = Gocryptfs(at, stack.enter_context(ext4(size)))
        else:
            here = Latchkey(at, kind == "latchkey-encrypted")
        stack.callback(here.leave)
        here.mount()
        here.make()
        yield here
        here.umount()
        here.check()


KINDS = ["latchkey", "latchkey-encrypted", "gocryptfs"]
