#!/usr/bin/env python3
"""Goal: a verb that is stopped in the middle (a full store, a device that fails, SIGKILL, Ctrl-C, a
reader that goes away) ends with one clear line and the right code or signal; what was acknowledged
before is there, and the store opens clean. Method: the real binary; limits, small file systems and
signals stop it."""
import contextlib
import fcntl
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from cli import *  # noqa: E402,F403

SEED = int(os.environ.get("LATCHKEY_SEED", random.SystemRandom().randrange(1 << 32)))


def unread(pipe):
    """Bytes that wait in it."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


class Stopped(CliTest):
    def setUp(self):
        super().setUp()
        self.random = random.Random(SEED)

    def run(self, result=None):
        with self.subTest(LATCHKEY_SEED=SEED):
            return super().run(result)

    def make_tree(self, files, size):
        """Files of random bytes, in the order in which put takes them: their names' order."""
        tree = self.folder / "tree"
        tree.mkdir(exist_ok=True)
        for i in range(files):
            (tree / f"f{i:04}").write_bytes(self.random.randbytes(size))
        return tree

    def acknowledge(self, image=None):
        """A store with one file that put reported as finished."""
        self.make_store("64M")
        self.first = self.host_file("first", self.random.randbytes(3 * MIB))
        self.put(self.first, "/vault/first")

    def assert_first_is_there(self, image=None):
        self.assert_clean(image)
        self.assertEqual(self.get_bytes("/vault/first", image), self.first.read_bytes())

    def names(self, path):
        return self.run_ok("ls", "--key-file", self.key, self.at(path)).splitlines()

    def start(self, *words, **options):
        return subprocess.Popen([LATCHKEY, *map(str, words)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, **options)

    def start_endless_put(self, **options):
        """A put of more than is waited for, once it has begun to write its second file."""
        self.run_ok("mkfs", "-q", "-f", "--size", "2G", self.image)
        self.run_ok("policy", "set", "-q", "--key-file", self.key, self.at("/vault"))
        self.put(self.first, "/vault/first")
        tree = self.make_tree(1, 2 * MIB)
        endless = tree / "g-endless"
        if not endless.exists():
            endless.mkdir()
            data = os.urandom(4 * MIB)
            for i in range(200):  # files of their own: put keeps hard links as what they are
                (endless / f"{i:03}").write_bytes(data)
        before = self.image.stat().st_blocks
        put = self.start("put", "-qr", "--key-file", self.key, tree, self.at("/vault"), **options)
        self.wait_for(lambda: self.image.stat().st_blocks > before + 40 * MIB // 512, put)
        return put

    def wait_for(self, condition, process):
        deadline = time.monotonic() + 200  # of a hang, not of slowness
        while not condition():
            self.assertIsNone(process.poll(), "it ended too early")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.002)

    def finish(self, process):
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Full(Stopped):
    def test_a_full_store_in_the_middle_of_put(self):
        self.make_store("32M")
        self.first = self.host_file("first", self.random.randbytes(3 * MIB))
        self.put(self.first, "/vault/first")
        tree = self.make_tree(20, 2_500_000)
        put = ("put", "-qr", "--key-file", self.key, tree, self.at("/vault"))
        line = self.run_refused(NO_SPACE, *put, says="the store is full.*remove something")
        self.assert_first_is_there()
        names = self.names("/vault/tree")
        self.assertIn(f"/vault/tree/{names[-1]}: ", line, "it names where it stopped")
        self.assertGreater(len(names), 2)
        for name in names[:-1]:
            self.assertEqual(self.get_bytes(f"/vault/tree/{name}"), (tree / name).read_bytes())
        self.run_refused(NO_SPACE, *put, "--json")
        self.run_refused(NO_SPACE, "bench", "-q", "--size", "64M", self.image)
        self.assertEqual(self.run_ok("ls", self.at("/")), "vault\n")
        # What is removed makes room, for as much as there was.
        self.run_ok("rm", "-r", "--key-file", self.key, self.at("/vault/tree"))
        self.put(tree / names[0], "/vault/again")
        self.assertEqual(self.get_bytes("/vault/again"), (tree / names[0]).read_bytes())
        self.assert_first_is_there()

    def test_full_of_small_files(self):
        self.make_store("16M")
        self.first = self.host_file("first", b"first")
        self.put(self.first, "/vault/first")
        tree = self.make_tree(4000, 3000)
        self.run_refused(NO_SPACE, "put", "-qr", "--key-file", self.key, tree, self.at("/vault"),
                         says="the store is full")
        names = self.names("/vault/tree")
        self.assertGreater(4096 * len(names), 9 * MIB, "what was held for dirty files is used")
        big = self.host_file("big", self.random.randbytes(16 * MIB))
        for i in range(4):  # each finds a little of what was only promised to the one before
            self.run_refused(NO_SPACE, "put", "-q", big, self.at(f"/big{i}"))
        self.run_refused(NO_SPACE, "torture", "-q", "--seconds", "20", self.image, says="room")
        self.assert_first_is_there()
        for name in self.random.sample(names[:-1], 8):
            self.assertEqual(self.get_bytes(f"/vault/tree/{name}"), (tree / name).read_bytes())
        self.run_ok("rm", "-r", "--key-file", self.key, self.at("/vault/tree"))
        self.assert_first_is_there()

    def test_what_the_image_lies_on_is_full(self):
        with small_file_system(self.folder / "small", "24M") as small:
            self.image = small / "img"
            self.acknowledge()
            tree = self.make_tree(12, 2_500_000)
            put = ("put", "-qr", "--key-file", self.key, tree, self.at("/vault"))
            self.run_refused(NO_SPACE, *put, says="what the image or file lies on is full")
            subprocess.run(["mount", "-o", "remount,size=100M", str(small)], check=True)
            self.assert_first_is_there()
            self.run_ok(*put)
            self.assert_first_is_there()

    def test_where_get_writes_is_full(self):
        self.acknowledge()
        with small_file_system(self.folder / "small", "1M") as small:
            for words in ([self.at("/vault/first"), small / "out"],
                          ["-r", self.at("/vault"), small / "vault"]):
                self.run_refused(NO_SPACE, "get", "-q", "--key-file", self.key, *words,
                                 says=f"{small}/.*cannot be written")
        self.assert_first_is_there()


class Failing(Stopped):
    def test_a_device_that_answers_EIO_during_writeback(self):
        # The file system under the image is shut down: from then on all answers are EIO.
        if not shutil.which("mkfs.ext4"):
            self.skipTest("mkfs.ext4 is not installed")
        disk = self.folder / "disk"
        with open(disk, "wb") as file:
            file.truncate(400 * MIB)
        subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
        with loop_device(disk) as device:
            with mounted(self.folder / "place", device) as place:
                self.image = place / "img"
                self.acknowledge()
                with self.start_endless_put() as put:
                    shut_down(place)
                    self.assert_refused(self.finish(put), IO, "ing the device failed.*EIO")
                for words in (["ls", self.at("/")], ["put", self.first, self.at("/x")]):
                    self.run_refused(IO, *words, says="EIO")
                self.run_refused(CHECK_COULD_NOT_LOOK, "check", self.image)
            with mounted(self.folder / "place", device):
                self.assert_first_is_there()
                self.put(self.first, "/vault/second")
                self.assert_first_is_there()

    def test_a_limit_on_the_size_of_files(self):
        self.acknowledge()
        tree = self.make_tree(12, 2_500_000)
        put = ("put", "-qr", "--key-file", self.key, tree, self.at("/vault"))
        limit = (20 * MIB, 20 * MIB)
        self.run_refused(IO, *put, says="writing the device failed.*EFBIG", restore_signals=False,
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
        self.assert_first_is_there()
        # Without the signal ignored it is the end of the process, or the same.
        done = self.run_raw(*put, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE,
                                                                        limit))
        self.assertIn(done.returncode, (IO, -signal.SIGXFSZ))
        self.assert_first_is_there()
        self.run_ok(*put)
        self.assert_first_is_there()

    def test_an_image_cut_short_under_a_put(self):
        self.acknowledge()
        for size in (0, 20 * MIB):
            with self.start_endless_put() as put:
                os.truncate(self.image, size)
                time.sleep(0.05)
                put.send_signal(signal.SIGINT)
                done = self.finish(put)
            # It may not meet what is gone; it does not crash, and says at most one thing.
            self.assertIn(done.returncode, (-signal.SIGINT, IO, INTEGRITY))
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)

    def test_few_descriptors(self):
        self.acknowledge()
        for limit in (4, 6, 9, 14):
            done = self.run_raw("ls", self.at("/"), preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_NOFILE, (limit, limit)))
            if done.returncode != OK:
                self.assertIn(done.returncode, (NO_MEMORY, IO))
                self.assert_refused(done, done.returncode, "EMFILE")
        self.assert_first_is_there()


class Killed(Stopped):
    def test_SIGKILL_in_the_middle_of_put(self):
        self.acknowledge()
        tree = self.make_tree(40, 300_000)
        out = self.folder / "out"
        out.mkdir()
        for round_ in range(6):
            name = f"round{round_}"
            with self.start("put", "-qr", "--key-file", self.key, tree,
                            self.at(f"/vault/{name}")) as put:
                time.sleep(self.random.uniform(0, 0.06))
                put.kill()
                finished = self.finish(put).returncode == OK
            self.assert_first_is_there()
            one = self.host_file("one", self.random.randbytes(100_000))
            self.put(one, f"/vault/one{round_}")
            self.assertEqual(self.get_bytes(f"/vault/one{round_}"), one.read_bytes())
            if finished:
                self.run_ok("get", "-qr", "--key-file", self.key, self.at(f"/vault/{name}"), out)
                for file in tree.iterdir():
                    self.assertEqual((out / name / file.name).read_bytes(), file.read_bytes())
            if name in self.names("/vault"):
                self.run_ok("rm", "-r", "--key-file", self.key, self.at(f"/vault/{name}"))

    def test_SIGKILL_loses_no_append_whose_fsync_returned(self):
        self.acknowledge()
        for round_ in range(4):
            with self.start("session", self.image, stdin=subprocess.PIPE) as session:
                def ask(*words):
                    session.stdin.write(" ".join(map(str, words)).encode() + b"\n")
                    session.stdin.flush()
                    return json.loads(session.stdout.readline())
                ask("load", self.key)
                ask("add")
                path = f"/vault/log{round_}"
                ask("write", path, 2)
                self.wait_for(lambda: ask("counts")["acknowledged"] > 0, session)
                time.sleep(self.random.uniform(0, 0.3))
                acknowledged = ask("counts")["acknowledged"]
                session.kill()
                self.finish(session)
            self.assert_first_is_there()
            found = 0
            names = self.names("/vault")
            for number in range(2):
                if f"log{round_}-{number}" not in names:
                    continue  # it was killed before that writer's first fsync returned
                lines = self.get_bytes(f"{path}-{number}").decode().split("\n")
                self.assertEqual(lines.pop(), "")
                for i, line in enumerate(lines):
                    self.assertEqual(line, f"line {i:012} " + "." * 200)
                found += len(lines)
            self.assertGreaterEqual(found, acknowledged)

    def test_a_killed_writer_leaves_no_lock(self):
        self.acknowledge()
        with self.start_endless_put() as put:
            put.kill()
            self.assert_first_is_there()  # at once
            self.finish(put)


class Interrupted(Stopped):
    def test_a_signal_in_put_closes_the_store(self):
        self.acknowledge()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.start_endless_put() as put:
                put.send_signal(number)
                done = self.finish(put)
            self.assertEqual(done.returncode, -number)
            self.assertRegex(done.stderr.decode(),
                             r"^latchkey: .*g-endless/\d+: interrupted here.*\n$")
            self.assert_first_is_there()
            want = (self.folder / "tree" / "f0000").read_bytes()
            self.assertEqual(self.get_bytes("/vault/tree/f0000"), want)

    def test_an_ignored_hangup_stays_ignored(self):
        self.acknowledge()
        ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
        with self.start_endless_put(**ignore) as put:
            put.send_signal(signal.SIGHUP)
            time.sleep(0.1)
            self.assertIsNone(put.poll())
            put.send_signal(signal.SIGTERM)
            self.assertEqual(self.finish(put).returncode, -signal.SIGTERM)

    def test_a_signal_while_the_key_is_awaited(self):
        self.acknowledge()
        reader, writer = os.pipe()
        with self.start("put", "--key-file", "-", self.first, self.at("/vault/x"),
                        stdin=reader) as put:
            time.sleep(0.1)
            put.send_signal(signal.SIGINT)
            self.assertEqual(self.finish(put).returncode, -signal.SIGINT)
        os.close(reader)
        os.close(writer)

    def test_a_signal_while_a_pipe_is_awaited(self):
        self.acknowledge()
        reader, writer = os.pipe()
        with self.start("put", "-q", "--key-file", self.key, "/dev/stdin", self.at("/vault/x"),
                        stdin=reader) as put:
            os.write(writer, b"a beginning")
            self.wait_for(lambda: unread(reader) == 0, put)
            time.sleep(0.1)  # it reads on
            put.send_signal(signal.SIGINT)
            done = self.finish(put)
        self.assertEqual(done.returncode, -signal.SIGINT)
        self.assertRegex(done.stderr.decode(), r"^latchkey: /dev/stdin: interrupted here.*\n$")
        os.close(reader)
        os.close(writer)
        self.assert_first_is_there()
        self.assertEqual(self.get_bytes("/vault/x"), b"a beginning")

    def test_a_signal_in_get(self):
        self.acknowledge()
        out = self.folder / "out"
        os.mkfifo(out)
        with self.start("get", "-q", "--key-file", self.key, self.at("/vault/first"), "-") as get:
            get.stdout.read(4096)  # the pipe is full: it waits in the middle
            get.send_signal(signal.SIGINT)
            self.assertEqual(self.finish(get).returncode, -signal.SIGINT)
        self.assert_first_is_there()

    def test_a_signal_in_torture_and_bench_leaves_nothing(self):
        self.acknowledge()
        self.run_ok("mkfs", "-q", "-f", "--size", "1G", self.image)
        for words in (["torture", "-q", "--seconds", "60"], ["bench", "-q", "--size", "400M"]):
            before = self.image.stat().st_blocks
            with self.start(*words, self.image) as process:
                self.wait_for(lambda: self.image.stat().st_blocks > before + MIB // 512, process)
                process.send_signal(signal.SIGINT)
                done = self.finish(process)
            self.assertEqual((done.returncode, done.stdout), (-signal.SIGINT, b""))
            self.assertRegex(done.stderr.decode(), r"^latchkey: .*: interrupted.*\n$")
            self.assertEqual(self.run_ok("ls", self.at("/")), "")
            self.assert_clean()


class Pipes(Stopped):
    def closed_pipe(self):
        reader, writer = os.pipe()
        os.close(reader)
        self.addCleanup(os.close, writer)
        return writer

    def test_a_reader_that_goes_away(self):
        self.acknowledge()
        get = ("get", "-q", "--key-file", self.key, self.at("/vault/first"), "-")
        with self.start(*get) as process:
            process.stdout.read(4096)
            process.stdout.close()
            self.assertEqual(process.wait(60), -signal.SIGPIPE)
            self.assertEqual(process.stderr.read(), b"")
        for words in (get, ["ls", self.at("/")], ["info"]):
            done = subprocess.run([LATCHKEY, *map(str, words)], stdout=self.closed_pipe(),
                                  stderr=subprocess.PIPE, restore_signals=False)
            self.assertEqual(done.returncode, IO, "with SIGPIPE ignored")
            self.assertRegex(done.stderr.decode(), "^latchkey: standard output: .*EPIPE.*\n$")
        self.assert_first_is_there()

    def test_put_is_done_before_it_speaks(self):
        self.acknowledge()
        put = ("put", "--key-file", self.key, self.first, self.at("/vault/second"))
        done = subprocess.run([LATCHKEY, *map(str, put)], stdout=self.closed_pipe(),
                              stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, -signal.SIGPIPE)
        self.assertEqual(self.get_bytes("/vault/second"), self.first.read_bytes())
        self.assert_first_is_there()


@contextlib.contextmanager
def mounted(place, what, *options):
    """The folder, with that mounted on it; skips the test where nothing can be mounted."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        raise unittest.SkipTest("mounting needs root and mount")
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, what, str(place)], capture_output=True, text=True)
    if done.returncode != 0:
        raise unittest.SkipTest(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def small_file_system(place, size):
    return mounted(place, "tmpfs", "-t", "tmpfs", "-o", f"size={size}")


def shut_down(place):
    """FS_IOC_SHUTDOWN without a flush of the journal, as a disk that is pulled."""
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(folder, 0x8004587d, struct.pack("=I", 2))
    finally:
        os.close(folder)


if __name__ == "__main__":
    unittest.main()
