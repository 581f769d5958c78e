"""The file systems that bench/compare.py puts beside each other, each on a loop device of its own
of one kind: a file written once, 4 KiB sectors, direct I/O where the folder has it."""
import contextlib
import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LATCHKEY = os.environ.get("LATCHKEY_BINARY", str(ROOT / "build/release/latchkey"))
FILE_ROW = str(ROOT / "build/release/bench/file_row")
NULL_FUSE = str(ROOT / "build/release/bench/null_fuse")
SECTOR = 512  # of the kernel's counters
# The key is not what is measured.
KEY = bytes(range(1, 65))
PASSWORD = "only for this measurement"


def run(*words, **options):
    done = subprocess.run([str(word) for word in words], text=not isinstance(
        options.get("input"), bytes), capture_output=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")
    return done.stdout


class Loop:
    """A device of `size` bytes on a file in `folder`."""

    def __init__(self, folder, size):
        self.image = folder / "image"
        with open(self.image, "wb") as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
        self.device = self.attach(["--direct-io=on"]) or self.attach([])

    def attach(self, words):
        done = subprocess.run(["losetup", "--find", "--show", "--sector-size", "4096", *words,
                               self.image], text=True, capture_output=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    def written(self):
        at = pathlib.Path("/sys/block", pathlib.Path(self.device).name, "stat")
        return int(at.read_text().split()[6]) * SECTOR

    def detach(self):
        subprocess.run(["losetup", "--detach", self.device], check=False)
        self.image.unlink(missing_ok=True)


def umount(directory):
    for _ in range(600):
        if subprocess.run(["umount", directory], capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    raise RuntimeError(f"{directory} stays busy")


class System:
    """name, loop; place: the words that tell file_row where; remarks by row."""
    name = ""
    needs = ()  # programs
    remarks = {}

    def __init__(self, folder, size):
        self.folder = folder / self.name
        self.folder.mkdir()
        self.at = self.folder / "mnt"
        self.at.mkdir()
        self.loop = Loop(self.folder, size)
        self.mounted = contextlib.ExitStack()
        self.format()
        self.mount()
        self.first()

    def place(self):
        return ["directory", self.directory()]

    def directory(self):
        return self.at

    def first(self):
        """Once, on the new file system."""

    def umount(self):
        self.mounted.close()

    def is_mounted(self):
        return os.path.ismount(self.at)

    def emptied(self):
        """After a row that failed: mounted, and nothing is left of it."""
        self.umount()
        self.mount()
        for path in self.directory().glob("*"):
            if path.is_file():
                path.unlink()

    def settle(self):
        """Nothing of what was done is left to be written."""
        run("sync", "-f", self.at)

    def anew(self):
        """Nothing is in a cache afterwards."""
        self.settle()
        self.umount()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        self.mount()

    def remove(self):
        with contextlib.suppress(RuntimeError):
            self.umount()
        self.loop.detach()


class Kernels(System):
    """A file system of the kernel's."""
    kind = ()

    def format(self):
        run(*self.kind, self.loop.device)

    def mount(self):
        run("mount", self.loop.device, self.at)
        self.mounted.callback(umount, self.at)


class Ext4(Kernels):
    name, needs = "ext4", ("mkfs.ext4",)
    kind = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0")


class Btrfs(Kernels):
    name, needs = "btrfs", ("mkfs.btrfs",)
    kind = ("mkfs.btrfs", "-q", "-f", "-s", "4096")


class Fscrypt(Ext4):
    """The kernel's own AES, which is portable C where it has no AES-NI driver."""
    name, needs = "fscrypt", ("mkfs.ext4", "xfs_io")
    kind = (*Ext4.kind, "-O", "encrypt")
    remarks = {row: "becomes buffered"
               for row in ("direct_write", "direct_random_write", "direct_random_read")}

    def directory(self):
        return self.at / "vault"

    def add_key(self):
        return run("xfs_io", "-c", "add_enckey", self.at, input=KEY).split()[-1].decode()

    def mount(self):
        super().mount()
        self.identifier = self.add_key()

    def first(self):
        self.directory().mkdir()
        run("xfs_io", "-c", f"set_encpolicy -v 2 {self.identifier}", self.directory())


class Below(Ext4):
    """A FUSE file system whose files lie on a plain ext4."""
    remarks = {"small_create": "syncfs does not reach the file system below"}

    def __init__(self, folder, size):
        self.upper = folder / f"{self.name}-upper"
        self.upper.mkdir()
        super().__init__(folder, size)

    def directory(self):
        return self.upper

    def mount(self):
        super().mount()
        if not (self.at / self.made).exists():
            run("rmdir", self.at / "lost+found")
            self.create()
        self.serve()
        self.mounted.callback(umount, self.upper)

    def is_mounted(self):
        return os.path.ismount(self.upper) and super().is_mounted()

class Gocryptfs(Below):
    name, needs = "gocryptfs", ("mkfs.ext4", "gocryptfs")
    made = "gocryptfs.conf"

    def create(self):
        run("gocryptfs", "-q", "-init", self.at, input=PASSWORD + "\n")

    def serve(self):
        run("gocryptfs", "-q", self.at, self.upper, input=PASSWORD + "\n")


class Securefs(Below):
    name, needs = "securefs", ("mkfs.ext4", "securefs")
    made = ".securefs.json"

    def create(self):
        run("securefs", "create", "--pass", PASSWORD, self.at)

    def serve(self):
        run("securefs", "mount", "-b", "--pass", PASSWORD, "--log", "/dev/null", self.at,
            self.upper)
        for _ in range(200):
            if os.path.ismount(self.upper):
                return
            time.sleep(0.05)
        raise RuntimeError("securefs does not answer")


class Latchkey(System):
    name = "latchkey"

    def directory(self):
        return self.at / "vault"

    def format(self):
        self.key = self.folder / "key"
        self.key.write_bytes(KEY)
        self.key.chmod(0o600)
        run(LATCHKEY, "mkfs", "-q", "-f", self.loop.device)

    def mount(self):
        run(LATCHKEY, "mount", "--key-file", self.key, self.loop.device, self.at)
        self.mounted.callback(run, LATCHKEY, "umount", self.at)

    def first(self):
        self.directory().mkdir()
        run(LATCHKEY, "policy", "set", "--key-file", self.key, self.directory())


class Device(System):
    """Nothing but the device: what can be had of it by who keeps nothing in memory."""
    name = "device"

    def place(self):
        return ["device", self.loop.device]

    def format(self):
        pass

    def mount(self):
        pass

    def is_mounted(self):
        return True

    def settle(self):
        """Each step has flushed it."""

    def emptied(self):
        pass


class Library(Device):
    """The store without a mount: each step opens it anew, so that every row begins cold."""
    name = "library"

    def place(self):
        return ["library", self.loop.device]

    def format(self):
        run(FILE_ROW, "format", self.loop.device)

    def emptied(self):
        self.format()


class Null(Device):
    """A FUSE file system without work: what can be had by who gets requests from this kernel."""
    name = "null FUSE"

    def place(self):
        return ["directory", self.at]

    def mount(self):
        self.server = subprocess.Popen([NULL_FUSE, self.at])
        self.mounted.callback(self.server.wait)
        self.mounted.callback(umount, self.at)
        for _ in range(200):
            if os.path.ismount(self.at):
                break
            time.sleep(0.05)
        number = os.stat(self.at).st_dev
        ahead = f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb"
        pathlib.Path(ahead).write_text("1024")  # as latchkey's mount does

    def is_mounted(self):
        return os.path.ismount(self.at)

    def anew(self):
        """It has nothing but in memory; the kernel forgets what it knows."""
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")

    def emptied(self):
        self.umount()
        self.mount()


SYSTEMS = {kind.name: kind for kind in
           (Latchkey, Library, Gocryptfs, Securefs, Ext4, Btrfs, Fscrypt, Device, Null)}
