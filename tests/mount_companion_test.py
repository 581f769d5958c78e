#!/usr/bin/env python3
"""Goal: who makes one call behind the other is answered by one thread beside him, and that holds up
nobody: not others, not on a busy machine, not a call that waits for another one.
Method: the classes and processors of the daemon's threads, as the kernel tells them, while real
programs use the mount."""
import os
import pathlib
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted_keys import *  # noqa: E402,F403

CALLS = """
import os, sys
name, *told = sys.argv[1:]
while not told or sys.stdin.readline():
    for number in range(100):
        with open(f"{name}-{number}", "w") as file:
            file.write("text")
    print("round", flush=True)
"""

LOOKS = """
import os, sys
number = 0
while True:
    for _ in range(100):
        number += 1
        assert not os.path.exists(f"{sys.argv[1]}/{number}")
    print("looked", flush=True)
"""


class Companion(Keys):
    def setUp(self):
        if len(os.sched_getaffinity(0)) < 2:
            self.skipTest("it needs two processors")
        super().setUp()

    def caller(self, name, *told):
        """Makes round after round of calls; `told`: each when it is given a line."""
        process = subprocess.Popen(
            [sys.executable, "-c", CALLS, str(self.root / "plain" / name), *told],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def threads(self):
        """The daemon's: {number: (class, processors)}."""
        found = {}
        for number in map(int, os.listdir(f"/proc/{self.server}/task")):
            try:
                found[number] = os.sched_getscheduler(number), os.sched_getaffinity(number)
            except ProcessLookupError:
                pass
        return found

    def companions(self):
        return {number: processors for number, (kind, processors) in self.threads().items()
                if kind == os.SCHED_IDLE}

    def see(self, what, seconds=30):
        """Waits until what() is true."""
        ends = time.monotonic() + seconds
        while not (seen := what()):
            self.assertLess(time.monotonic(), ends, self.threads())
            time.sleep(0.002)
        return seen

    def all_ordinary(self):
        return all(kind == os.SCHED_OTHER and processors == os.sched_getaffinity(0)
                   for kind, processors in self.threads().values())

    def test_one_caller_has_one_and_nobody_has_none(self):
        self.see(self.all_ordinary)
        caller = self.caller("one")
        for processors in self.see(self.companions).values():
            self.assertEqual(len(processors), 1)
        self.assertEqual(len(self.see(self.companions)), 1)
        caller.kill()
        caller.wait()
        self.see(self.all_ordinary)

    def others_keep_away(self):
        """There is a companion, and no other thread but the first may run where it does."""
        threads = self.threads()
        found = [number for number, (kind, _) in threads.items() if kind == os.SCHED_IDLE]
        others = set().union(*(processors for number, (_, processors) in threads.items()
                               if number not in (*found, self.server)))
        return found and threads[found[0]][1].isdisjoint(others)

    def test_the_others_keep_away_from_its_processor(self):
        caller = self.caller("alone")
        self.see(self.others_keep_away)
        caller.kill()
        caller.wait()
        self.see(self.all_ordinary)

    def test_who_reads_far_ahead_has_none(self):
        path = self.root / "plain" / "long"
        with open(path, "wb", buffering=0) as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
            os.fsync(file.fileno())
        with open(path, "rb", buffering=0) as file:
            for _ in range(4):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                file.seek(0)
                self.see(lambda: os.path.exists(path.with_name("none")) or self.companions())
                for _ in range(8):
                    file.read(1 << 20)
                self.assertEqual(self.companions(), {})

    def test_it_goes_where_its_caller_goes(self):
        caller = self.caller("mover", "told")
        beside = elsewhere = 0
        for processor in (*os.sched_getaffinity(0),) * 8:
            os.sched_setaffinity(caller.pid, {processor})
            for _ in range(2):
                caller.stdin.write("go\n")
                caller.stdin.flush()
                self.assertEqual(caller.stdout.readline(), "round\n")
            for processors in self.companions().values():
                beside += processor in processors
                elsewhere += processor not in processors
        self.assertGreater(beside, 2 * elsewhere)

    def test_callers_beside_each_other_go_on(self):
        callers = [self.caller(f"beside-{number}") for number in range(4)]
        for _ in range(3):
            for caller in callers:
                self.assertEqual(caller.stdout.readline(), "round\n")
        for caller in callers:
            caller.kill()
            caller.wait()
        self.see(self.all_ordinary)

    def test_on_a_busy_machine_it_comes_to_its_turn(self):
        for _ in range(2 * len(os.sched_getaffinity(0))):
            hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            self.addCleanup(hog.wait)
            self.addCleanup(hog.kill)
        caller = self.caller("busy")
        for _ in range(5):
            self.assertEqual(caller.stdout.readline(), "round\n")

    def test_a_call_that_waits_for_its_key_has_nobody_wait(self):
        caller = self.caller("other")
        file = self.root / "vault" / "file"
        file.write_text("held")
        with open(file, "a") as held:
            self.see(self.companions)
            self.run_ok("key", "remove", "--mode", "suspend", "--key-file", self.key, self.root)
            writer = threading.Thread(target=lambda: os.write(held.fileno(), b"late"))
            writer.start()
            self.addCleanup(writer.join)
            for _ in range(3):
                self.assertEqual(caller.stdout.readline(), "round\n")
            self.assertTrue(writer.is_alive(), "it waits for the key")
            self.run_ok("key", "add", "-q", "--key-file", self.key, self.root)
            writer.join(20)
            self.assertFalse(writer.is_alive())
        self.assertEqual(file.read_text(), "heldlate")

    def test_a_call_that_never_ends_has_nobody_wait(self):
        """An fsync of a store whose own image lies in a mount that stands still."""
        inner = self.folder / "inner"
        inner.mkdir()
        image = self.root / "plain" / "image"
        self.run_ok("mkfs", "-q", "--size", "64M", image)
        outer, self.server = self.server, self.run_json("mount", "mount", image, inner)["pid"]
        self.addCleanup(subprocess.run, ["umount", "-l", str(inner)], check=False,
                        capture_output=True)
        looker = subprocess.Popen([sys.executable, "-c", LOOKS, str(inner)],
                                  stdout=subprocess.PIPE, text=True)
        self.addCleanup(looker.stdout.close)
        self.addCleanup(looker.wait)
        self.addCleanup(looker.kill)
        self.see(self.companions)
        with open(inner / "file", "w") as file:
            file.write("text")
            file.flush()
            waker = threading.Timer(20, os.kill, (outer, signal.SIGCONT))
            self.addCleanup(waker.join)
            self.addCleanup(waker.cancel)
            waker.start()
            os.kill(outer, signal.SIGSTOP)
            syncer = threading.Thread(target=os.fsync, args=(file.fileno(),))
            syncer.start()
            lines = [looker.stdout.readline() for _ in range(200)]
            self.assertTrue(syncer.is_alive(), "it waits for the outer mount")
            os.kill(outer, signal.SIGCONT)
            syncer.join()
        self.assertEqual(set(lines), {"looked\n"})
        looker.kill()
        self.run_ok("umount", inner)
        self.server = outer

    def test_where_it_is_not_wanted_there_is_none(self):
        self.umount()
        self.mount("-o", "nocompanion")
        caller = self.caller("plain")
        for _ in range(5):
            self.assertEqual(caller.stdout.readline(), "round\n")
            self.assertTrue(self.all_ordinary())

    def test_none_is_made_where_a_class_cannot_be_left_again(self):
        self.umount()
        limits = "ulimit -e 0; exec setpriv --bounding-set=-sys_nice --inh-caps=-sys_nice -- \"$@\""
        subprocess.run(["bash", "-c", limits, "sh", LATCHKEY, "mount", "-q", "--key-file", self.key,
                        self.image, self.root], check=True)
        lines = subprocess.run(["pgrep", "-f", f"mount.*{self.root}"], capture_output=True,
                               text=True, check=True).stdout.split()
        self.server = int(lines[0])
        status = pathlib.Path(f"/proc/{self.server}/status").read_text()
        [effective] = [line.split()[1] for line in status.splitlines() if "CapEff" in line]
        self.assertFalse(int(effective, 16) >> 23 & 1, "without CAP_SYS_NICE")
        caller = self.caller("less")
        for _ in range(5):
            self.assertEqual(caller.stdout.readline(), "round\n")
            self.assertEqual(self.companions(), {})


if __name__ == "__main__":
    unittest.main()
