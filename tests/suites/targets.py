"""Where a suite runs: file systems of one size on images beside each other, each mounted anew and
gone afterwards. A target is a context manager; its value is the directory for the suite."""
import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile

LATCHKEY = os.path.abspath(os.environ.get("LATCHKEY_BINARY", "build/release/latchkey"))
PASSWORD = "only for this test"


def run(*words, **options):
    return subprocess.run([str(word) for word in words], check=True, text=True,
                          capture_output=True, **options).stdout


@contextlib.contextmanager
def folder():
    """On a real file system, since an image in memory has no direct I/O everywhere."""
    path = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def image(size):
    with folder() as at:
        with open(at / "img", "wb") as file:
            file.truncate(size)
        (at / "mnt").mkdir(mode=0o755)
        at.chmod(0o755)
        yield at


@contextlib.contextmanager
def umounted_after(directory):
    try:
        yield directory
    finally:
        if subprocess.run(["umount", str(directory)], capture_output=True).returncode != 0:
            subprocess.run(["umount", "-l", str(directory)], capture_output=True)


@contextlib.contextmanager
def latchkey(size, encrypted=False):
    """check looks at the store when the suite is done with it."""
    with image(size) as at:
        store, mnt = at / "img", at / "mnt"
        run(LATCHKEY, "mkfs", "-q", "-f", store)
        words = ["-o", "allow_other"]
        if encrypted:
            run(LATCHKEY, "key", "generate", at / "key")
            words += ["--key-file", at / "key"]
        run(LATCHKEY, "mount", *words, store, mnt)
        with umounted_after(mnt):
            work = mnt / "work"
            work.mkdir()
            if encrypted:
                run(LATCHKEY, "policy", "set", "--key-file", at / "key", work)
            yield work
            run(LATCHKEY, "umount", mnt)
            run(LATCHKEY, "check", "--data", store)


@contextlib.contextmanager
def ext4(size):
    with image(size) as at:
        run("mkfs.ext4", "-q", "-F", at / "img")
        run("mount", "-o", "loop", at / "img", at / "mnt")
        with umounted_after(at / "mnt"):
            work = at / "mnt" / "work"
            work.mkdir()
            yield work


@contextlib.contextmanager
def gocryptfs(size):
    with ext4(size) as below, folder() as at:
        at.chmod(0o755)
        (at / "password").write_text(PASSWORD)
        (at / "mnt").mkdir()
        run("gocryptfs", "-q", "-init", "-passfile", at / "password", below)
        run("gocryptfs", "-q", "-allow_other", "-acl", "-passfile", at / "password", below,
            at / "mnt")
        with umounted_after(at / "mnt"):
            yield at / "mnt"


TARGETS = {
    "latchkey": latchkey,
    "latchkey-encrypted": lambda size: latchkey(size, encrypted=True),
    "gocryptfs": gocryptfs,
    "ext4": ext4,
}
