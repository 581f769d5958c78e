"""What the tests of the mount share: a store with a plain and an encrypted directory, mounted, and
a folder of the host's own file system beside it, which must answer the same."""
import errno
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from cli import *  # noqa: E402,F403
from cli import CliTest, LATCHKEY, OK  # noqa: E402


def why_not():
    """Why nothing can be mounted here; None where it can."""
    if os.geteuid() != 0:
        return "a mount needs root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"no /dev/fuse: {error}"
    return None


def runs(pid):
    """Whether the process is there, and more than a name that nobody has waited for."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def error_of(call, *args, **options):
    """The name of the errno that it met, else what it returned."""
    try:
        return call(*args, **options)
    except OSError as error:
        return errno.errorcode[error.errno]


class MountTest(CliTest):
    size = "256M"

    def setUp(self):
        super().setUp()
        if reason := why_not():
            self.skipTest(reason)
        self.make_store(self.size)
        self.root = self.folder / "mnt"
        self.root.mkdir()
        self.host = self.folder / "host"
        self.host.mkdir()
        self.server = None
        self.addCleanup(self.leave)
        self.mount()
        (self.root / "plain").mkdir()
        self.areas = (self.root / "plain", self.root / "vault")

    def mount(self, *words):
        answer = self.run_json("mount", "mount", "--key-file", self.key, *words, self.image,
                               self.root)
        self.server = answer["pid"]
        self.assertEqual((answer["image"], answer["directory"]),
                         (str(self.image.resolve()), str(self.root.resolve())))

    def umount(self):
        self.assertEqual(self.run_ok("umount", self.root), "")
        self.assertFalse(os.path.ismount(self.root))
        self.assertFalse(runs(self.server), "the store is closed by then")
        self.server = None

    def remount(self):
        self.umount()
        self.assert_clean()
        self.mount()

    def kill(self):
        os.kill(self.server, signal.SIGKILL)
        while runs(self.server):
            time.sleep(0.01)
        self.server = None

    def leave(self):
        if self.server is not None or os.path.ismount(self.root):
            subprocess.run(["umount", "-l", str(self.root)], capture_output=True, check=False)
        if self.server is not None and runs(self.server):
            os.kill(self.server, signal.SIGKILL)

    def same(self, work):
        """work(folder) gives the same on the host's file system and in each area of the mount."""
        wanted = None
        for number, root in enumerate((self.host, *self.areas)):
            folder = root / self.id().rsplit(".", 1)[1]
            folder.mkdir(exist_ok=True)
            got = error_of(work, folder)
            if number == 0:
                wanted = got
            self.assertEqual(got, wanted, root)
        return wanted

    def picture(self, folder):
        """All that can be seen of a tree, but times and numbers."""
        seen = {}
        groups = {}
        for path in sorted([folder, *folder.rglob("*")]):
            status = path.lstat()
            name = str(path.relative_to(folder))
            kind = stat.S_IFMT(status.st_mode)
            row = [stat.filemode(status.st_mode), status.st_uid, status.st_gid, status.st_rdev]
            if stat.S_ISREG(kind):
                row += [status.st_size, path.read_bytes(), status.st_nlink]
                if status.st_nlink > 1:
                    row.append(groups.setdefault(status.st_ino, name))
            elif stat.S_ISLNK(kind):
                row.append(os.readlink(path))
            row.append(sorted((key, os.getxattr(path, key, follow_symlinks=False))
                              for key in os.listxattr(path, follow_symlinks=False)
                              if not key.startswith("security.selinux")))
            seen[name] = row
        return seen
