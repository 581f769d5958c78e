#!/usr/bin/env python3
"""Goal: however a process ends after a removal, in whichever mode, and whatever is forked from it,
memory holds what the mode's row allows and nothing else, and a core or a child none of it (K3).
Method: a session with writers inside and one file closed, in each mode and both arenas. What the
row says is read from docs/removal.md, which a test prints from the code. Scanned are the process,
by itself and from outside, a child that it forks, the core that the kernel writes when SIGABRT
ends it, and the device after SIGTERM. Each needle was found before the removal, and in each core
one that was planted in the environment. LATCHKEY_SCAN=all adds cores by gdb, with what is excluded
from dumps, and SIGTERM for every mode. (secrets_modes_test has the other ways out.)"""
import os
import pathlib
import random
import resource
import signal
import sys
import unittest

TESTS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS / "support"))
from scan import *  # noqa: E402,F403

ALL = os.environ.get("LATCHKEY_SCAN") == "all"
PLAIN_CORES = pathlib.Path("/proc/sys/kernel/core_pattern").read_text().strip() == "core"


def stays_by_mode():
    """What stays in memory while files are open."""
    text = (TESTS.parent / "docs/removal.md").read_text()
    table = text.split("<!-- rows -->\n")[1].split("<!-- /rows")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    at = rows[0].index("stays in memory while files are open")
    return {row[0].strip("`"): row[at] for row in rows[2:]}


STAYS = stays_by_mode()
ALLOWED = {"the master": {"hkdf_state", "extent_key", "round_key", "closed_extent_key",
                          "closed_round_key"},
           "the open files' own keys": {"extent_key", "round_key"},
           "nothing": set()}


def tearDownModule():
    print_rows()


def allow_cores():
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Modes(Scan):
    def begin_inside(self):
        """Writers that stand still inside, and a closed file; every needle is found."""
        self.planted = bytes(random.choices(range(1, 256), k=8))
        self.begin(cwd=self.folder, preexec_fn=allow_cores,
                   env={**os.environb, b"LATCHKEY_PLANTED": self.planted})
        self.begin_writing()
        self.closed = []
        self.nonces = self.write_for_a_while()
        self.closed = self.say("closed", "/vault/closed")["nonces"]
        found = self.own()
        for group in ALLOWED["the master"]:
            self.assertEqual(found[group][0], found[group][1], f"the scan is blind to a {group}")
            self.assertGreater(found[group][1], 0, group)

    def groups(self):
        master, nonces = self.known()
        closed = oracle.needles(master, [bytes.fromhex(nonce) for nonce in self.closed])
        groups = oracle.needles(master, nonces) | {
            f"closed_{name}": closed[name] for name in ("extent_key", "round_key")}
        return groups | {"pseudo_random_key": [oracle.prk(master)]}

    def assert_row(self, mode, state):
        allowed = ALLOWED[STAYS[mode]] if state == "incompletely-removed" else set()
        own = {group: hit for group, (hit, _) in self.own().items()}
        looks = [own, memory.find_in_process(self.session.process.pid, self.groups())["found"]]
        if ALL:
            looks.append(memory.find_in_core(self.session.process.pid, self.groups(),
                                             self.folder)["found"])
        for look in looks:
            found = {group for group, hit in look.items() if hit}
            self.assertLessEqual(found, allowed, mode)
        for look in looks[:1] if self.inside else looks:
            for group in allowed & {"hkdf_state", "extent_key"}:
                self.assertGreater(look[group], 0, (mode, group))
        if self.inside:
            self.assertEqual(sum(sum(look.values()) for look in looks[1:]), 0, looks)
        self.add_row(f"{mode}: {state}", len(own), [
            "+".join(sorted(group for group, hit in look.items() if hit)) or 0 for look in looks])

    def remove_in(self, mode):
        """With writers inside, but in a mode that refuses that."""
        removed = self.session("remove", mode)
        if removed.get("error"):
            self.assertEqual((mode, removed["error"]), ("safe", "busy"))
            self.assertEqual(len(removed["holders"]), WRITERS)
            self.assertGreater(self.own()["hkdf_state"][0], 0)
            self.assertEqual(self.session("close")["state"], "present")
            removed = self.say("remove", mode)
        self.assert_row(mode, removed["state"])
        return removed["state"]

    def assert_child_has_nothing(self, mode):
        child = self.say("fork")["pid"]
        look = memory.find_in_process(child, self.groups() | {"planted": [self.planted]})
        self.assertEqual(look["found"].pop("planted"), 1, "the scan is blind")
        self.assert_nothing(look)
        self.add_row(f"{mode}: a forked child", 1, [sum(look["found"].values())])

    def assert_core_has_nothing(self, mode):
        self.session.process.send_signal(signal.SIGABRT)
        self.assertEqual(self.session.process.wait(60), -signal.SIGABRT)
        cores = list(self.folder.glob("core*"))
        if not PLAIN_CORES:
            return  # the machine gives cores to somebody else
        self.assertEqual(len(cores), 1)
        groups = self.groups() | {"planted": [self.planted]}
        look = memory.find_in_kernels_core(cores[0], groups)
        self.assertEqual(look["found"].pop("planted"), 1, "the scan is blind")
        self.assert_nothing(look)
        self.add_row(f"{mode}: SIGABRT's core", 1, [sum(look["found"].values())])

    def assert_nothing_on_the_device(self, mode):
        self.session.process.terminate()
        self.assertEqual(self.session.process.wait(60), -signal.SIGTERM)
        self.assertEqual(list(self.folder.glob("core*")), [])
        data = oracle.without_zero_pages(self.image.read_bytes())
        self.assertIn(bytes.fromhex(self.nonces[0]), data, "the search is blind")
        for name, pieces in self.groups().items():
            if "round" not in name:
                self.assertEqual([piece.hex() for piece in pieces if piece in data], [], name)
        self.add_row(f"{mode}: the device after SIGTERM", 1, [0])

    def each_way_out(self, mode):
        self.make_store()
        self.put(self.host_file("data", random.randbytes(256 * 1024)), "/vault/closed")
        self.begin_inside()
        self.remove_in(mode)
        self.assert_child_has_nothing(mode)
        self.assert_core_has_nothing(mode)
        for core in self.folder.glob("core*"):
            core.unlink()
        if ALL or mode in ("sealed", "hard"):
            self.begin_inside()
            self.remove_in(mode)
            self.assert_nothing_on_the_device(mode)

    def test_the_table_has_every_mode(self):
        self.assertEqual(len(STAYS), 8)
        self.assertEqual(set(STAYS.values()), set(ALLOWED))


for name in STAYS:
    setattr(Modes, f"test_{name}", lambda self, mode=name: self.each_way_out(mode))


class LockedArena(Modes):
    pass


class SecretMemory(Modes):
    inside = True
    options = ()


del Scan, Modes  # run in an arena only
if __name__ == "__main__":
    unittest.main()
