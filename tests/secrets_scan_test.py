#!/usr/bin/env python3
"""Goal: "absent" means that no byte of a key is left in the process (K3), whatever arena it lay in,
however the key went, and in the registers of its threads too.
Method: `latchkey session` works on an image in each of the scenes below, and its writers stand
still, alive, while others look. In the locked arena that is a scanner outside with an HKDF and AES
of its own, in all mappings and in a core with the excluded ones and the registers. In
memfd_secret, which no other process reads, the session looks itself, and those outside find nothing
at any time. Every needle (half of a key, a state or a round key) is found while the key is there,
else the scan is blind and the test fails; and none once it went.
The table that is printed says how many needles were found before, and how many hits there are
after."""
import pathlib
import random
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "support"))
from scan import *  # noqa: E402,F403

SLOTS = 24  # of the scene that evicts


def tearDownModule():
    print_rows()


class Scenes(Scan):
    """Each a row of the table."""

    def soft_under_writers(self, scene, **gone):
        self.begin_writing()
        self.nonces = self.write_for_a_while()
        self.assert_found(*LASTING[1:])
        self.find_names()
        self.assertEqual(len(self.remove_softly()["holders"]), WRITERS)
        sealed_before = set(self.nonces)
        self.nonces = self.write_for_a_while()
        self.assertGreater(self.say("counts")["after_removal"], 0)
        self.assertGreaterEqual(len(set(self.nonces) - sealed_before), WRITERS)
        # Inside the needles of before are kept; the slots may have let them go.
        self.assert_found("extent_key", "round_key", all_of_them=not self.inside, core=False)
        self.nonces = sorted(sealed_before.union(self.nonces))
        self.close_last()
        self.assert_gone(scene, **gone)
        self.session.close()

    def test_soft_removal_under_writers(self):
        self.make_store()
        self.begin()
        self.soft_under_writers("soft under writers, last close")

    def test_hard_removal_under_writers(self):
        self.make_store()
        self.begin()
        self.begin_writing()
        self.nonces = self.write_for_a_while()
        self.assert_found(*LASTING[1:])
        self.say("go")
        removed = self.say("remove", "hard")
        self.assertEqual(removed["state"], "absent")
        self.until(lambda counts: counts["failures"] == WRITERS)
        self.assertEqual(self.say("stop")["failures"], WRITERS)
        self.assert_gone("hard under writers")
        self.say("close")

    def test_the_store_is_closed_with_its_key(self):
        self.make_store()
        self.begin()
        self.begin_writing()
        self.nonces = self.write_for_a_while()
        self.assert_found(*LASTING[1:])
        self.find_names()
        self.say("shut")
        self.assert_gone("store closed with its key, process alive")
        self.session.close()

    def test_a_reader_that_stays_after_the_removal(self):
        self.make_store()
        self.put_extents(8)
        self.begin()
        self.add_key()
        self.assertEqual(self.say("hold", "/vault/log-0")["extents"], 8)
        self.nonces = self.say("extents", 0, 4)["nonces"]
        self.assert_found(*LASTING[1:])
        self.remove_softly()
        self.nonces += self.say("extents", 4, 4)["nonces"]
        self.assert_found(*LASTING[1:], core=False)
        self.close_last()
        self.assert_gone("reader that reads on, last close")

    def test_a_storm_of_signals(self):
        """The session keeps the frames: what one of them held is found."""
        self.make_store()
        self.put_extents(8)
        self.begin()
        self.say("signals")
        self.add_key()
        self.say("hold", "/vault/log-0")
        self.say("write", "/vault/other", WRITERS)
        self.say("stop")
        with memory.Storm(self.session.process.pid):
            for _ in range(60):
                sealed = self.say("extents", 0, 8)["nonces"]
            self.say("signals")
            sealed += self.write_for_a_while()
            self.say("signals")
            self.remove_softly()
            sealed += self.write_for_a_while()
        stormed = self.say("signals")
        self.assertGreater(stormed["signals"], 500)
        self.assertEqual(len(stormed["phases"]), 3)  # reads, writes, writes after the removal
        for phase in stormed["phases"]:
            self.assertGreater(phase["kept"], 20, stormed)
        self.nonces = sealed[len(sealed) // 2:]
        self.assert_found("extent_key", "round_key", all_of_them=not self.inside)
        self.nonces = sorted(set(sealed))
        self.close_last()
        self.assert_gone("soft in a storm of signals")
        self.session.close()

    def test_slots_that_are_reused(self):
        self.make_store()
        self.put_extents(3 * SLOTS)
        self.begin("--key-slots", str(SLOTS))
        self.add_key()
        self.say("hold", "/vault/log-0")
        self.nonces = self.say("extents", 0, SLOTS)["nonces"]
        self.assert_found(*LASTING[1:])
        later = self.say("extents", SLOTS, 2 * SLOTS)["nonces"]
        if self.inside:  # as many as there are slots, and no more
            found = self.own()
            self.assertEqual({group: 3 * found[group][0] for group in ("extent_key", "round_key")},
                             {group: found[group][1] for group in ("extent_key", "round_key")})
        groups = {group: oracle.needles(*self.known())[group]
                  for group in ("extent_key", "round_key")}
        pid = self.session.process.pid
        process = memory.find_in_process(pid, groups)
        self.assert_all_read(process)
        core = memory.find_in_core(pid, groups, self.folder)
        self.assert_nothing(process, core)
        self.add_row(f"{SLOTS} slots reused, key present", sum(process["needles"].values()),
                     [sum(look["found"].values()) for look in (process, core)])
        self.nonces += later
        self.remove_softly()
        self.close_last()
        self.assert_gone(f"{SLOTS} slots reused, last close")

    def test_what_is_planted_is_found(self):
        """In the environment, where nothing wipes it; kept free of zero bytes."""
        self.make_store()
        while True:
            self.key.write_bytes(bytes(random.choices(range(1, 256), k=64)))
            master = self.key.read_bytes()
            passing = oracle.passing_needles(master, [], [])
            pieces = [master] * 3 + passing["pseudo_random_key"] + passing["turned_word"]
            if not any(0 in piece for piece in pieces):
                break
        self.image.unlink()
        self.run_ok("mkfs", "-q", "--size", "64M", self.image)
        self.run_ok("policy", "set", "-q", "--key-file", self.key, self.at("/vault"))
        # At every distance from a word.
        self.begin(env={**os.environb, b"LATCHKEY_PLANTED": b"x".join(pieces)})
        planted = {"master": 8, "pseudo_random_key": 8, "turned_word": 32}
        self.say("load", self.key)
        self.say("add")
        self.say("write", "/vault/log", WRITERS)
        self.nonces = self.write_for_a_while()
        self.remove_softly()
        self.close_last()
        self.before = planted
        self.assert_gone("control: planted in the environment", planted)


class LockedArena(Scenes):
    pass


class SecretMemory(Scenes):
    inside = True
    options = ()


class Scanner(CliTest):
    """A scanner that fails is a failure, not a reason to skip."""

    def test_that_cannot_read_a_core_fails(self):
        broken = self.host_file("core", b"no core at all, however long it may be" * 9)
        with self.assertRaisesRegex(AssertionError, "that is no core"):
            memory._find({"master": [bytes(range(8))]}, "core", broken)
        with self.assertRaisesRegex(AssertionError, "no needles"):
            memory.find_in_process(os.getpid(), {})

    def test_whose_process_is_gone_fails(self):
        gone = subprocess.Popen(["true"])
        gone.wait()
        groups = {"master": [bytes(range(8))]}
        with self.assertRaisesRegex(AssertionError, "cannot be opened"):
            memory.find_in_process(gone.pid, groups)
        if not memory.gdb_missing():
            with self.assertRaisesRegex(AssertionError, "gdb made no core"):
                memory.find_in_core(gone.pid, groups, self.folder)

    def test_whose_core_is_partial_fails(self):
        core = self.host_file("core", b"")
        first = next(first for name, first, _ in memory.mappings(os.getpid()) if name == "[stack]")
        for line in (f"warning: Memory read failed for corefile section, 4096 bytes at {first:#x}.",
                     "warning: failed for a reason that nobody knows"):
            done = subprocess.CompletedProcess([], 0, "", f"Saved corefile\n{line}\n")
            with self.assertRaisesRegex(AssertionError, "partial"):
                memory.check_core(os.getpid(), core, done)
        memory.check_core(os.getpid(), core, subprocess.CompletedProcess([], 0, "Saved", ""))

    def test_that_may_not_read_skips(self):
        if os.getuid() != 0 or not shutil.which("setpriv"):
            self.skipTest("only root can give up its rights here")
        asked = subprocess.run(["setpriv", "--reuid=65534", memory.TOOL, "find", "pid", "1"],
                               input="master 0001020304050607\n", text=True, capture_output=True)
        self.assertEqual(asked.returncode, memory.MAY_NOT_READ, asked.stderr)


class Registers(CliTest):
    def test_what_lies_in_registers_only_is_found_in_the_notes_of_a_core(self):
        if memory.gdb_missing():
            self.skipTest(memory.gdb_missing())
        groups = {"held": [random.randbytes(8) for _ in range(8)]}
        holder = subprocess.Popen([memory.TOOL, "hold"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        self.addCleanup(holder.stdout.close)
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        holder.stdin.write("".join(f"held {n.hex()}\n" for n in groups["held"]).encode())
        holder.stdin.close()
        self.assertEqual(holder.stdout.readline(), b"ready\n")
        self.assertEqual(memory.find_in_process(holder.pid, groups)["found"], {"held": 0})
        core = memory.find_in_core(holder.pid, groups, self.folder)
        self.assertEqual(core["found"], {"held": 8})
        self.assertTrue(all(place.startswith("NT_") for place in core["where"]["held"]), core)
        ROWS.append(("-", "-", "control: only in vector registers of a helper", 8, "0, 8"))


del Scan, Scenes  # run in an arena only
if __name__ == "__main__":
    unittest.main()
