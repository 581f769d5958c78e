#!/usr/bin/env python3
"""Goal: what fstests generic/580, 581 and 595 ask of keys is true of a mounted store: what a key's
states let through, whose claims count, and that nothing that was accepted is lost to a removal.
Method: their steps in words of our own, by the real binary and processes of several users; suites
bear their numbers. Each runs with our answers and with the kernel's (docs/conformance.md)."""
import collections
import os
import pathlib
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted_keys import *  # noqa: E402,F403

CLAIMS_MAX = 200  # VolumeOptions::max_claims_per_uid
RACE_S = float(os.environ.get("LATCHKEY_RACE_SECONDS", "1"))
NEVER_LOSE = ("soft", "sealed", "safe", "freeze", "deny", "suspend")


class Generic580(Fstest):
    """A key is absent, present, incompletely removed, and absent again."""

    def expect(self, state, *flags, users=0):
        status = self.status()
        self.assertEqual((status["state"], status["user_count"]), (state, users))
        self.assertEqual(set(status["flags"]), set(flags))

    def no_key_name(self, number):
        """The name under which the locked vault lists what has this inode number."""
        with os.scandir(self.vault) as entries:
            return next(self.vault / entry.name for entry in entries if entry.inode() == number)

    def test_absent_present_and_absent(self):
        self.remove()
        self.expect("absent")
        early = self.root / "early"
        early.mkdir()
        said = self.run_raw("policy", "set", "-q", "--key-id", self.identifier, early)
        self.assertEqual(said.returncode, OK if self.compat else NO_KEY)  # the kernel believes root
        self.assertEqual(self.run_ok("policy", "get", self.vault), self.identifier + "\n")
        for user in (0, ADA):
            self.assertEqual(by(user, open_error, self.vault / "file", os.O_CREAT | os.O_WRONLY),
                             "ENOKEY")
            self.assertEqual(by(user, os.mkdir, self.vault / "sub"), "ENOKEY")
        self.add()
        self.expect("present", "added-by-self", users=1)
        self.assertEqual(by(ADA, (self.vault / "file").write_text, "contents"), 8)
        number = os.stat(self.vault / "file").st_ino
        self.lock()
        self.expect("absent")
        for user in (0, ADA):
            self.assertEqual(by(user, open_error, self.vault / "file"), self.locked_name)
            self.assertEqual(by(user, open_error, self.no_key_name(number)), "ENOKEY")
        self.add()
        self.assertEqual((self.vault / "file").read_text(), "contents")

    def test_a_file_that_is_open_keeps_the_key(self):
        file, other = self.vault / "file", self.vault / "file2"
        file.write_text("contents\n")
        other.write_text("foo")
        os.chmod(file, 0o666)
        os.chmod(other, 0o666)
        self.all_closed()
        holder = Holder(file, user=ADA)
        self.addCleanup(holder.leave)
        self.assertEqual(self.remove(code=FILES_BUSY)["state"], "incompletely-removed")
        self.expect("incompletely-removed", "files-busy")
        for user in (0, ADA, BOB):
            self.assertEqual(by(user, open_error, other), "ENOKEY")
            # By its path what is open: the kernel lets everybody in, here nobody new gets in.
            self.assertEqual(by(user, file.read_text), "contents\n" if self.compat else "ENOKEY")
            self.assertEqual(by(user, open_error, self.vault / "new", os.O_CREAT | os.O_WRONLY),
                             "ENOKEY")
        self.assertEqual(holder.save("more"), "saved")
        self.all_but(holder)
        self.remove(code=FILES_BUSY)
        holder.leave()
        self.finish_removal()
        self.assertEqual(by(ADA, open_error, file), self.locked_name)
        self.run_refused(NO_KEY, "key", "remove", "--key-file", self.key, self.root)
        self.add()
        self.assertEqual(file.read_text(), "contents\nmore\n")

    def all_but(self, holder):
        end = time.monotonic() + 10
        while ([who["pid"] for who in self.status()["holders"]] != [holder.process.pid] and
               time.monotonic() < end):
            time.sleep(0.01)

    def test_what_was_never_added_cannot_be_removed(self):
        other = self.make_key(self.folder / "other")
        self.run_refused(NO_KEY, "key", "remove", "--key-file", other, self.root)
        self.run_refused(NO_KEY, "key", "remove", "--key-file", other, "--all-users", self.root)


class Generic580Compat(Generic580):
    compat = True


class Generic581(Fstest):
    """Users without privileges: their claims, their quota, and what is not theirs."""

    def setUp(self):
        super().setUp()
        self.remove()
        self.mine = self.root / "mine"
        self.mine.mkdir()
        os.chown(self.mine, ADA, ADA)

    def set_policy(self, code, user=ADA):
        done = self.run_raw("policy", "set", "-q", "--key-id", self.identifier, self.mine,
                            user=user)
        self.assertEqual(done.returncode, code, done.stderr)

    def test_a_user_needs_no_privilege_but_the_key(self):
        self.set_policy(NO_KEY)
        self.add(ADA)
        self.set_policy(OK)
        self.set_policy(DENIED, user=BOB)
        self.assertEqual(by(ADA, (self.mine / "file").write_text, "contents"), 8)
        self.all_closed()
        self.assertEqual(self.remove(user=ADA)["state"], "absent")
        self.assertEqual(by(ADA, open_error, self.mine / "file"), self.locked_name)
        self.assertEqual(self.run_ok("policy", "get", self.mine, user=BOB), self.identifier + "\n")

    def test_roots_key_is_not_the_users(self):
        self.add()
        seen = self.status(ADA)
        self.assertEqual((seen["state"], seen["user_count"]),
                         ("present", 1) if self.compat else ("absent", 0))
        self.run_refused(NO_KEY, "key", "remove", "--key-file", self.key, self.root, user=ADA)
        self.set_policy(NO_KEY)
        self.add(ADA)
        seen = self.status(ADA)
        self.assertEqual((seen["state"], seen["user_count"]), ("present", 2))
        self.assertIn("added-by-self", seen["flags"])
        self.set_policy(OK)
        self.assertEqual(self.remove(code=OTHER_USERS, user=ADA)["state"], "present")
        self.assertEqual(self.status()["user_count"], 1)
        self.add(ADA)
        self.run_refused(DENIED, "key", "remove", "--key-file", self.key, "--all-users",
                         self.root, user=ADA)
        self.assertEqual(self.status()["user_count"], 2)
        self.assertEqual(self.remove("--all-users")["state"], "absent")
        self.run_refused(NO_KEY, "key", "remove", "--key-file", self.key, self.root, user=ADA)

    def test_who_has_no_claim_and_a_removal_that_is_incomplete(self):
        self.add(ADA)
        (self.vault / "file").write_text("x")
        self.all_closed()
        holder = Holder(self.vault / "file")
        self.addCleanup(holder.leave)
        self.remove(code=FILES_BUSY, user=ADA)
        # The kernel lets whoever likes ask again; here root and who had a claim.
        for user in (ADA, 0):
            self.remove(code=FILES_BUSY, user=user)
        if self.compat:
            self.remove(code=FILES_BUSY, user=BOB)
        else:
            self.run_refused(NO_KEY, "key", "remove", "--key-file", self.key, self.root, user=BOB)
        self.run_refused(DENIED, "key", "remove", "--key-file", self.key, "--all-users", self.root,
                         user=BOB)
        holder.leave()
        self.finish_removal()

    def test_a_user_adds_as_many_keys_as_the_quota_allows(self):
        keys = [bytes([number % 256, number // 256]) * 32 for number in range(1, CLAIMS_MAX + 3)]

        def add(raws, removed=()):
            with Daemon(self.root) as daemon:
                for raw in removed:
                    assert daemon.remove(identifier_of(raw)) == 0
                return [daemon.add(raw) for raw in raws]
        said = Process(add, keys, user=ADA).result()
        self.assertEqual(said[:CLAIMS_MAX], [0] * CLAIMS_MAX)
        self.assertEqual(said[CLAIMS_MAX:], [Daemon.QUOTA_ERROR] * 2)
        self.assertEqual(Process(add, keys[-2:], user=BOB).result(), [0, 0], "another's is his own")
        self.assertEqual(Process(add, keys[-2:]).result(), [0, 0], "and so is root's")
        # To claim a key that is there counts, to claim one's own again does not.
        self.assertEqual(Process(add, [keys[-1], keys[0]], user=ADA).result(),
                         [Daemon.QUOTA_ERROR, 0])
        self.assertEqual(Process(add, keys[-2:], keys[:1], user=ADA).result(),
                         [0, Daemon.QUOTA_ERROR])


class Generic581Compat(Generic581):
    compat = True


# --- generic/595 ----------------------------------------------------------------------------------

def append_until(stop, path):
    """Opens, appends one byte and closes, again and again: how often all three worked, and what was
    answered else."""
    accepted, refused = 0, collections.Counter()
    while not stop:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            refused["open " + errno.errorcode[error.errno]] += 1
            continue
        wrote = error_of(os.write, fd, b"X")
        closed = error_of(os.close, fd)
        if wrote == 1 and closed is None:
            accepted += 1
        else:
            refused[f"write {wrote} close {closed}"] += 1
    return accepted, refused


def create_until(stop, folder, tag):
    """Makes files that hold their own names: those that were made and written, and those that were
    made alone."""
    written, empty, refused = [], [], collections.Counter()
    number = 0
    while not stop:
        name = f"{tag}-{number}"
        try:
            fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            refused["create " + errno.errorcode[error.errno]] += 1
            continue
        number += 1
        wrote = error_of(os.write, fd, name.encode())
        closed = error_of(os.close, fd)
        if wrote == len(name) and closed is None:
            written.append(name)
        else:
            empty.append(name)
            refused[f"write {wrote} close {closed}"] += 1
    return written, empty, refused


class Generic595(Fstest):
    """No write that was accepted is lost to a removal."""

    def test_what_is_written_after_a_removal_is_there_when_the_key_is_back(self):
        path = self.vault / "file"
        path.touch()
        self.all_closed()
        holder = Holder(path)
        self.addCleanup(holder.leave)
        self.remove(code=FILES_BUSY)
        self.assertEqual(holder.save("contents"), "saved")
        holder.leave()
        self.finish_removal()
        self.add()
        self.assertEqual(path.read_text(), "contents\n")
        self.remount()
        self.add()
        self.assertEqual(path.read_text(), "contents\n")
        path.unlink()

    def race(self, mode):
        folder = self.vault / mode
        folder.mkdir()
        os.chmod(folder, 0o777)
        files = [folder / name for name in ("shared", "adas")]
        for path in files:
            path.touch()
            os.chmod(path, 0o666)
        stop = Flag()
        keys = self.key_loop(stop, mode)
        appenders = [(files[0], self.start(append_until, stop, files[0], user=ADA)),
                     (files[0], self.start(append_until, stop, files[0], user=BOB)),
                     (files[1], self.start(append_until, stop, files[1], user=ADA))]
        makers = [self.start(create_until, stop, folder, tag, user=user)
                  for tag, user in (("ada", ADA), ("bob", BOB))]
        time.sleep(RACE_S if mode != "soft" else 2 * RACE_S)
        stop.set()
        rounds = keys.result()
        sizes, made, refused = collections.Counter(), {}, collections.Counter()
        for path, appender in appenders:
            accepted, why = appender.result()
            sizes[path] += accepted
            refused += why
        for maker in makers:
            written, empty, why = maker.result()
            made.update({name: name for name in written} | {name: "" for name in empty})
            refused += why
        return rounds, sizes, {folder / name: text for name, text in made.items()}, refused

    def expect(self, sizes, made):
        for path, size in sizes.items():
            self.assertEqual(path.read_bytes(), b"X" * size)
        for path, text in made.items():
            self.assertEqual(path.read_text(), text)
        for folder in {path.parent for path in sizes}:
            self.assertEqual({path for path in folder.iterdir()},
                             {path for path in (*sizes, *made) if path.parent == folder})

    def test_no_accepted_byte_is_lost_to_removals_in_a_loop(self):
        all_sizes, all_made = {}, {}
        for mode in NEVER_LOSE:
            with self.subTest(mode):
                rounds, sizes, made, refused = self.race(mode)
                print(f"{self.id().split('.')[-2]} {mode}: {rounds} removals, "
                      f"{sum(sizes.values())} appends, {len(made)} files, {dict(refused)}",
                      file=sys.stderr)
                allowed = {f"open {self.locked_name}", "open ENOKEY", "create ENOKEY",
                           f"create {self.locked_name}"}
                if mode in ("deny", "freeze"):
                    allowed.add("write ENOKEY close None")
                self.assertLessEqual(set(refused), allowed)
                self.assertGreater(rounds, 2)
                self.assertGreater(sum(sizes.values()), 2)
                self.expect(sizes, made)
                all_sizes |= sizes
                all_made |= made
        self.remount()
        self.add()
        self.expect(all_sizes, all_made)
        self.all_closed()
        self.lock()


class Generic595Compat(Generic595):
    compat = True


if __name__ == "__main__":
    unittest.main()
