"""What the tests of the command line share: a folder that goes with the test, the binary run as a
script would run it, and rules that each answer keeps."""
import contextlib
import ctypes
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import unittest

LATCHKEY = os.path.abspath(os.environ.get("LATCHKEY_BINARY", "build/release/latchkey"))
MIB = 1 << 20

# Exit codes (README): what scripts rely on.
OK, USAGE, DENIED, NO_MEMORY, WRONG_DEVICE, BUSY, NO_KEY = 0, 1, 2, 3, 4, 5, 6
INTEGRITY, UNAVAILABLE, IO, FORMAT, NO_SPACE = 9, 10, 11, 13, 14
CHECK_CORRECTED, CHECK_ERRORS, CHECK_COULD_NOT_LOOK, CHECK_USAGE = 1, 4, 8, 16


def identifier_of(master):
    """fscrypt's key identifier: HKDF-SHA512, no salt, info "fscrypt\\0" 1, sixteen bytes."""
    prk = hmac.new(bytes(64), master, hashlib.sha512).digest()
    return hmac.new(prk, b"fscrypt\0\x01\x01", hashlib.sha512).digest()[:16].hex()


class CliTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp"))
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.image = self.folder / "img"
        self.key = self.folder / "key"
        self.secrets = []  # no output may hold one

    def run_raw(self, *words, **options):
        """The finished process, whatever it answered; its output is bytes."""
        done = subprocess.run([LATCHKEY, *map(str, words)], capture_output=True, **options)
        self.assert_no_secret(done.stdout + done.stderr)
        return done

    def run_ok(self, *words, **options):
        """Standard output as text; nothing is said on standard error."""
        done = self.run_raw(*words, **options)
        self.assertEqual((done.returncode, done.stderr.decode()), (OK, ""), words)
        return done.stdout.decode()

    def run_json(self, verb, *words, **options):
        """The verb's member of the one object that a --json answer is."""
        return self.member(self.run_ok(*words, "--json", **options), verb)

    def member(self, text, verb):
        answer = json.loads(text)
        self.assertEqual(answer["__header"], {"version": "1"})
        self.assertEqual(set(answer), {"__header", verb})
        self.assertEqual(text.count("\n"), 1)
        return answer[verb]

    def run_refused(self, code, *words, says=".", wrapper=(), **options):
        """One clear line and the right exit code; with --json the same in one object."""
        done = subprocess.run([*wrapper, LATCHKEY, *map(str, words)], capture_output=True,
                              **options)
        self.assert_refused(done, code, says)
        return done.stderr.decode()

    def assert_refused(self, done, code, says="."):
        lines = done.stderr.decode().splitlines()
        self.assertEqual(done.returncode, code, lines)
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], "^latchkey: .+: .+")
        self.assertRegex(lines[0], says)
        self.assert_no_secret(done.stdout + done.stderr)
        if "--json" in map(str, done.args):
            answer = json.loads(done.stdout)
            self.assertEqual(answer.pop("__header"), {"version": "1"})
            ((verb, body),) = answer.items()
            self.assertIn(body["error"]["message"], lines[0])
            self.assertEqual(body["error"]["exit"], code)
            if verb == "check":
                self.assertIs(body["clean"], False)
                self.assertEqual(body["errors"], [{"what": body["error"]["message"],
                                                   "where": body["error"]["subject"]}])
        else:
            self.assertEqual(done.stdout, b"")

    def assert_no_secret(self, output):
        for secret in self.secrets:
            for form in (secret, secret[:16], secret.hex().encode(), secret[:8].hex().encode()):
                self.assertNotIn(form, output)

    def assert_clean(self, image=None):
        answer = self.run_json("check", "check", "--data", "-q", image or self.image)
        self.assertEqual((answer["clean"], answer["errors"]), (True, []))
        return answer

    def make_key(self, path=None):
        path = path or self.key
        self.run_ok("key", "generate", "-q", path)
        self.secrets.append(path.read_bytes())
        return path

    def make_store(self, size="64M"):
        self.run_ok("mkfs", "-q", "--size", size, self.image)
        self.make_key()
        self.run_ok("policy", "set", "-q", "--key-file", self.key, self.at("/vault"))

    def at(self, path):
        return f"{self.image}:{path}"

    def host_file(self, name, data):
        path = self.folder / name
        path.write_bytes(data)
        return path

    def put(self, source, path, *more):
        return self.run_ok("put", "-q", "--key-file", self.key, *more, source, self.at(path))

    def get_bytes(self, path, image=None):
        done = self.run_raw("get", "-q", "--key-file", self.key,
                            f"{image or self.image}:{path}", "-")
        self.assertEqual((done.returncode, done.stderr), (OK, b""))
        return done.stdout


@contextlib.contextmanager
def loop_device(image, *options):
    """A loop device on the image; skips the test where there is none."""
    if os.geteuid() != 0 or not shutil.which("losetup"):
        raise unittest.SkipTest("loop devices need root and losetup")
    made = subprocess.run(["losetup", "--find", "--show", *options, str(image)],
                          capture_output=True, text=True)
    if made.returncode != 0:
        raise unittest.SkipTest(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], capture_output=True)


def as_nobody():
    """The words before a command that run it as an ordinary user; skips where that cannot be."""
    if os.geteuid() != 0:
        return ()
    if not shutil.which("setpriv"):
        raise unittest.SkipTest("root without setpriv cannot become an ordinary user")
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def give_to_nobody(folder):
    """The folder and what is in it belong to whom as_nobody() makes."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)


def refuse_io_uring():
    """For preexec_fn: from here on the kernel answers io_uring_setup with EPERM, as containers do
    (a seccomp filter; x86-64)."""
    load_number, is_setup, refuse, allow = ((0x20, 0, 0, 0), (0x15, 0, 1, 425),
                                            (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000))
    program = b"".join(struct.pack("=HBBI", *step)
                       for step in (load_number, is_setup, refuse, allow))
    code = ctypes.create_string_buffer(program)
    filter_ = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong]
    no_new_privileges = prctl(38, 1, None, 0, 0)
    if no_new_privileges != 0 or prctl(22, 2, filter_, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp is refused")


class TreeTest(CliTest):
    """A store, and a tree of the host with one of each kind."""

    def setUp(self):
        super().setUp()
        self.make_store()
        self.tree = self.folder / "tree"
        (self.tree / "sub" / "deep").mkdir(parents=True)
        for name, data in (("a", b"alpha\n"), ("empty", b""), ("sub/b", os.urandom(300_001)),
                           ("sub/deep/ c \xff".encode("utf-8", "surrogateescape").decode(), b"c")):
            (self.tree / name).write_bytes(data)
        (self.tree / "a").chmod(0o640)
        (self.tree / "sub" / "deep").chmod(0o2750)
        for path in ("a", "sub/b", "sub/deep", "sub"):
            os.utime(self.tree / path, ns=(1, 1_234_567_890_123_456_789 - len(path)))
        (self.tree / "link").symlink_to("a")
        os.mkfifo(self.tree / "sub" / "pipe")
        sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(sock.close)
        sock.bind(str(self.tree / "socket"))

    def picture(self, root):
        """Everything: kind, mode, time, content, target or number, and which names are one file."""
        found, first = {}, {}
        for path in [root, *sorted(root.rglob("*"))]:
            info, name = path.lstat(), path.relative_to(root)
            content = info.st_rdev
            if stat.S_ISREG(info.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            links = info.st_nlink if not stat.S_ISDIR(info.st_mode) else 0
            found[name] = (info.st_mode, info.st_mtime_ns, content, links,
                           first.setdefault(info.st_ino, name))
        return found

    def names(self, path, key=True):
        words = ("--key-file", self.key) if key else ()
        return self.run_ok("ls", *words, self.at(path)).splitlines()
