#!/usr/bin/env python3
"""Goal: what fstests generic/429 and 621 ask of names is true of a mounted store: in every process
they change with their key at once, none is stale, and no race with a key makes a name twice.
Method: their steps in words of our own, by processes of several users with the kernel's cache of
names before them; suites bear their numbers. Each runs with our answers and with the kernel's
(docs/conformance.md)."""
import collections
import ctypes
import os
import pathlib
import stat
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted_keys import *  # noqa: E402,F403

RACE_S = float(os.environ.get("LATCHKEY_RACE_SECONDS", "2"))
USERS = (0, ADA, BOB)
LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE = 1
AT_FDCWD = -100


def rename_without_replacing(source, target):
    if LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target),
                      RENAME_NOREPLACE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def numbers(folder):
    """{name: inode number} as it is listed."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


class Names(Fstest):
    def seen(self, folder):
        """What every user's processes list, which must be the same."""
        lists = [Process(numbers, folder, user=user).result() for user in USERS]
        self.assertEqual(lists[1:], lists[:-1])
        return lists[0]

    def expect(self, answer, call, *paths):
        """Every user is answered so about each of the paths."""
        for user in USERS:
            said = Process(lambda: [error_of(call, path) for path in paths], user=user).result()
            self.assertEqual(said, [answer] * len(paths), (user, paths))

    def fill(self):
        """Names of all forms, each of an inode number of its own."""
        long = "l" * 254
        for name in ("@@@", "abcd", "n" * 160, long + "1", long + "2"):
            (self.vault / name).write_text("contents of " + name)
        (self.vault / "sub").mkdir()
        (self.vault / "sub" / "below").write_text("deep")
        (self.vault / "link").symlink_to("abcd")
        for path in self.vault.rglob("*"):
            if not path.is_symlink():
                os.chmod(path, 0o777)
        return numbers(self.vault)


class Generic429(Names):
    """Names follow their key."""

    def expect_locked(self, plain):
        """The same inodes under names that say nothing; no plaintext name is found."""
        hidden = self.seen(self.vault)
        self.assertEqual(sorted(hidden.values()), sorted(plain.values()))
        self.assertFalse(set(hidden) & set(plain))
        paths = [self.vault / name for name in plain]
        self.expect(self.locked_name, os.lstat, *paths)
        self.expect(self.locked_name, open_error, *paths)
        self.expect(self.locked_name, os.lstat, self.vault / "never")
        by_number = {number: self.vault / name for name, number in hidden.items()}
        files = [by_number[number] for name, number in plain.items() if name not in ("sub", "link")]
        self.expect("ENOKEY", open_error, *files)
        for name, number in plain.items():
            self.assertEqual(os.lstat(by_number[number]).st_ino, number, name)
        self.assertEqual(len(self.seen(by_number[plain["sub"]])), 1)
        self.assertNotEqual(os.readlink(by_number[plain["link"]]), "abcd")
        return [*by_number.values(), by_number[plain["sub"]] / "below"]

    def expect_unlocked(self, plain, no_key_names):
        self.assertEqual(self.seen(self.vault), plain)
        self.expect("ENOENT", os.lstat, *no_key_names)
        self.expect("ENOENT", open_error, *no_key_names)
        self.expect("ENOENT", os.lstat, self.vault / "never")
        for name in plain:
            if name not in ("sub", "link"):
                self.assertEqual((self.vault / name).read_text(), "contents of " + name)
        self.assertEqual((self.vault / "sub" / "below").read_text(), "deep")
        self.assertEqual(os.readlink(self.vault / "link"), "abcd")

    def test_names_follow_the_key_without_a_new_mount(self):
        plain = self.fill()
        no_key_names = []
        for _ in range(3):
            self.expect_unlocked(plain, no_key_names)
            self.lock()
            no_key_names = self.expect_locked(plain)
            self.add()
        self.expect_unlocked(plain, no_key_names)

    def test_a_process_that_is_inside_sees_the_same(self):
        """Relative look-ups from a working directory, and from a directory that is held open."""
        plain = self.fill()
        ask, answer = os.pipe(), os.pipe()

        def inside():
            os.chdir(self.vault / "sub")
            while os.read(ask[0], 1) == b"?":
                said = [error_of(os.lstat, path) for path in ("below", "../abcd", "../never")]
                os.write(answer[1], json.dumps([one if isinstance(one, str) else one.st_ino
                                                for one in said]).encode())

        process = self.start(inside, user=ADA)

        def says():
            os.write(ask[1], b"?")
            return json.loads(os.read(answer[0], 4096))
        below = (self.vault / "sub" / "below").stat().st_ino
        for _ in range(3):
            self.assertEqual(says(), [below, plain["abcd"], "ENOENT"])
            self.lock()
            self.assertEqual(says(), [self.locked_name] * 3)
            self.add()
        os.write(ask[1], b".")
        process.result()

    def test_what_is_open_keeps_its_names(self):
        plain = self.fill()
        self.lock()
        no_key_names = self.expect_locked(plain)
        self.add()
        self.expect_unlocked(plain, no_key_names)
        self.all_closed()
        first = Holder(self.vault / "@@@", user=ADA)
        second = Holder(self.vault / "abcd", user=BOB)
        directory = os.open(self.vault, os.O_RDONLY)
        report = self.remove(code=FILES_BUSY)
        self.assertEqual({who["pid"] for who in report["holders"]},
                         {first.process.pid, second.process.pid, os.getpid()})
        self.assertEqual(self.seen(self.vault), plain)
        self.expect("ENOENT", os.lstat, *no_key_names[:-1])
        self.assertEqual(sorted(os.listdir(directory)), sorted(plain))
        # The kernel lets those in by name who want what is open; here nobody new gets in.
        busy = (self.vault / "@@@", self.vault / "abcd")
        self.expect(None if self.compat else "ENOKEY", open_error, *busy)
        self.expect("ENOKEY", open_error, self.vault / ("n" * 160))
        for holder in (first, second):
            self.assertEqual(holder.save("more"), "saved")
            holder.leave()
        os.close(directory)
        self.finish_removal()
        self.expect_locked(plain)
        self.add()
        self.assertEqual((self.vault / "abcd").read_text(), "contents of abcdmore\n")

    def test_a_name_that_moves_is_nowhere_else(self):
        """Between encrypted directories, out of them and in again, while the key comes and goes."""
        other, plain = self.root / "other", self.root / "plain"
        self.run_ok("policy", "set", "-q", "--key-file", self.key, other)
        long = "m" * 255
        places = [self.vault / "file", other / long, plain / "file", self.vault / long,
                  other / "file"]
        places[0].write_text("contents")
        os.chmod(places[0], 0o666)
        number = os.stat(places[0]).st_ino
        for source, target in zip(places, places[1:]):
            self.expect("ENOENT", os.lstat, target)
            os.rename(source, target)
            self.expect_only(target, places, number)
            self.lock()
            hidden = [folder / name for folder in (self.vault, other)
                      for name, found in numbers(folder).items() if found == number]
            self.assertEqual(len(hidden), 0 if target.parent == plain else 1)
            for path in places:
                if path.parent != plain:
                    self.expect(self.locked_name, os.lstat, path)
            if target.parent == plain:  # a file's name there is not its own to hide
                self.assertEqual(os.stat(target).st_ino, number)
                self.expect("ENOKEY", open_error, target)
                self.assertEqual(error_of(os.rename, target, self.vault / "in"), "ENOKEY")
            else:
                self.expect("ENOKEY", open_error, hidden[0])
                for out in (plain / "out", self.vault / "in", other / "in"):
                    self.assertEqual(error_of(os.rename, hidden[0], out), "ENOKEY")
                self.assertEqual(error_of(os.rename, target, plain / "out"), self.locked_name)
            self.add()
            self.expect("ENOENT", os.lstat, *hidden)
            self.expect_only(target, places, number)
            self.assertEqual(target.read_text(), "contents")

    def expect_only(self, there, places, number):
        for path in places:
            for user in USERS:
                said = Process(lambda: error_of(os.lstat, path), user=user).result()
                self.assertEqual(said if isinstance(said, str) else said.st_ino,
                                 number if path == there else "ENOENT", path)

    def test_a_look_up_races_with_the_removal_of_its_directory(self):
        directory, stop = self.vault / "dir", Flag()

        def look():
            said = collections.Counter()
            while not stop:
                said[error_of(os.lstat, directory / "file")] += 1
            return said

        def make():
            rounds = 0
            while not stop:
                os.mkdir(directory)
                assert error_of(os.lstat, directory / "file") == "ENOENT"
                os.rmdir(directory)
                rounds += 1
            return rounds

        looks = [self.start(look, user=user) for user in USERS]
        maker = self.start(make)
        time.sleep(RACE_S)
        stop.set()
        self.assertGreater(maker.result(), 2)
        for process in looks:
            self.assertEqual(set(process.result()), {"ENOENT"})

    def test_no_answer_is_stale_while_the_key_comes_and_goes(self):
        plain = self.fill()
        self.lock()
        hidden = self.seen(self.vault)
        self.add()
        stop = Flag()

        def look():
            """What was answered that can never be right."""
            wrong, seen = collections.Counter(), collections.Counter()
            while not stop:
                listed = numbers(self.vault)
                if listed not in (plain, hidden):
                    wrong["list " + repr(sorted(set(listed) - set(plain) - set(hidden)))] += 1
                seen["plain" if listed == plain else "hidden"] += 1
                for names, others in ((plain, {self.locked_name, "ENOKEY"}), (hidden, {"ENOENT"})):
                    for name, number in names.items():
                        said = error_of(os.lstat, self.vault / name)
                        said = said if isinstance(said, str) else said.st_ino
                        if said != number and said not in others:
                            wrong[f"{name[:20]} {said} for {number}"] += 1
                said = error_of((self.vault / "abcd").read_text)
                if said not in ("contents of abcd", self.locked_name, "ENOKEY"):
                    wrong["read " + said] += 1
            return wrong, seen

        keys = self.key_loop(stop, away_s=0.005, there_s=0.005)
        looks = [self.start(look, user=user) for user in USERS]
        time.sleep(RACE_S)
        stop.set()
        self.assertGreater(keys.result(), 2)
        seen = collections.Counter()
        for process in looks:
            wrong, forms = process.result()
            self.assertEqual(wrong, {})
            seen += forms
        self.assertGreater(min(seen["plain"], seen["hidden"]), 0, seen)
        self.assertEqual(self.seen(self.vault), plain)
        self.lock()
        self.assertEqual(self.seen(self.vault), hidden)


class Generic429Compat(Generic429):
    compat = True


class Generic621(Names):
    """No name is made twice while its key comes and goes."""

    def setUp(self):
        super().setUp()
        for number in range(2, 101):
            (self.vault / str(number)).touch()
        self.before = numbers(self.vault)

    def calls(self):
        """Each fails as long as the name is there."""
        name = self.vault / "100"
        return {
            "mkdir": lambda: os.mkdir(name),
            "mknod": lambda: os.mknod(name, stat.S_IFIFO | 0o600),
            "symlink": lambda: os.symlink("target", name),
            "link": lambda: os.link(self.vault / "50", name),
            "rename": lambda: rename_without_replacing(self.vault / "50", name),
            "open": lambda: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
        }

    def test_nothing_is_made_under_a_name_that_is_there(self):
        stop = Flag()

        def attempt():
            said = collections.Counter()
            while not stop:
                for what, call in self.calls().items():
                    said[what, error_of(call)] += 1
            return said

        keys = self.key_loop(stop)
        attempts = [self.start(attempt) for _ in range(3)]
        time.sleep(2 * RACE_S)
        stop.set()
        self.assertGreater(keys.result(), 2)
        said = sum((process.result() for process in attempts), collections.Counter())
        allowed = {"ENOKEY", "EEXIST"}
        for what in self.calls():
            answers = {answer for call, answer in said if call == what}
            # As for the kernel, what is to be moved is not there by its plaintext name.
            hidden = {"ENOENT"} if self.compat and what in ("link", "rename") else set()
            self.assertLessEqual(answers, allowed | hidden, what)
            self.assertIn("EEXIST", answers)
            self.assertTrue(answers - {"EEXIST"}, what)
        self.assertEqual(self.seen(self.vault), self.before)
        self.remount()  # and the store is clean
        self.add()
        self.assertEqual(self.seen(self.vault), self.before)

    def test_what_was_made_is_there_once_and_nothing_else_is(self):
        stop = Flag()

        def make(tag):
            made, other = {}, collections.Counter()
            number = 0
            while not stop:
                name = f"{tag}-{number}-" + "x" * (number % 2 * 200)
                call = (os.mkdir, lambda path: os.symlink("t", path), lambda path: os.close(
                    os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)))[number % 3]
                said = error_of(call, self.vault / name)
                if said is None:
                    made[name] = True
                    number += 1
                else:
                    other[said] += 1
            return set(made), other

        keys = self.key_loop(stop)
        makers = [self.start(make, tag, user=user) for tag, user in
                  (("root", 0), ("ada", ADA), ("bob", BOB))]
        time.sleep(RACE_S)
        stop.set()
        self.assertGreater(keys.result(), 2)
        made = set(self.before)
        for process in makers:
            names, other = process.result()
            self.assertLessEqual(set(other), {"ENOKEY"})
            self.assertGreater(len(names), 0)
            made |= names
        self.assertEqual(sorted(os.listdir(self.vault)), sorted(made))
        self.lock()
        self.assertEqual(len(set(os.listdir(self.vault))), len(made))
        self.remount()
        self.add()
        self.assertEqual(sorted(os.listdir(self.vault)), sorted(made))


class Generic621Compat(Generic621):
    compat = True


if __name__ == "__main__":
    unittest.main()
