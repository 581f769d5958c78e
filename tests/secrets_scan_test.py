#!/usr/bin/env python3
"""Goal: "absent" means that no byte of a key is left in the process (K3), whatever arena it lay in.
Method: `latchkey session` runs writers on an image while its key goes softly. The needles (master,
HKDF states, extent keys, round keys) are all found while the key is there, also those of extents
sealed after the removal, and none after the last close: by a scanner outside with an HKDF and AES
of its own in the locked arena, by the session itself in memfd_secret, which no other process reads.
A planted needle shows that neither is blind."""
import pathlib
import random
import sys
import types
import unittest

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "demo")]
import demo  # noqa: E402
from cli import *  # noqa: E402,F403

WRITERS = 3
EXTENTS_EACH = 2  # a row that is read again keeps its key in a slot: few, so that none is evicted
GROUPS = ("master", "hkdf_state", "extent_key", "round_key")


class SecretsScan(CliTest):
    inside = False

    def session(self, *options, **process):
        session = demo.Session(types.SimpleNamespace(path=str(self.image)), *options, **process)
        self.addCleanup(session.process.stdout.close)
        self.addCleanup(session.process.wait)
        self.addCleanup(session.process.kill)
        self.addCleanup(session.process.stdin.close)
        return session

    def say(self, session, *words):
        answer = session(*words)
        self.assertFalse(answer.get("error"), (words, answer))
        return answer

    def scan(self, session):
        try:
            return demo.scan(session, self.inside, self.key.read_bytes(), self.nonces)
        except PermissionError as error:
            self.skipTest(f"this process may not read its child's memory: {error}")

    def assert_all_found(self, found, groups):
        for group in groups:
            hit, needles = found[group]
            self.assertTrue(hit == needles > 0, f"the scan is blind: {group} {found[group]}")

    def write_for_a_while(self, session):
        """The nonces of the last extents."""
        self.say(session, "go")
        before = self.say(session, "counts")["acknowledged"]
        for _ in range(500):
            if self.say(session, "counts")["acknowledged"] >= before + 20 * WRITERS:
                break
        self.assertEqual(self.say(session, "stop")["failures"], 0)
        return self.say(session, "maps", EXTENTS_EACH)["nonces"]

    def remove_under_writers(self, session):
        """What is found at last; on the way everything is found that has to be."""
        self.nonces = []
        self.say(session, "load", self.key)
        self.assert_all_found(self.scan(session), ["master"])  # add wipes what load brought
        self.say(session, "add")
        self.say(session, "write", "/vault/log", WRITERS)
        self.say(session, "stop")
        self.nonces = self.write_for_a_while(session)
        self.assert_all_found(self.scan(session), GROUPS[1:])

        removed = self.say(session, "remove", "soft")
        self.assertEqual((removed["state"], len(removed["holders"])),
                         ("incompletely-removed", WRITERS))
        self.assertEqual(session("open", "/vault/log-0")["error"], "no_key")
        sealed_before = set(self.nonces)
        self.nonces = self.write_for_a_while(session)
        self.assertGreater(self.say(session, "counts")["after_removal"], 0)
        self.assertGreaterEqual(len(set(self.nonces) - sealed_before), WRITERS)
        if self.inside:  # whose needles of before are kept; the slots may have let them go
            found = self.scan(session)
            self.assertGreaterEqual(found["extent_key"][0], 4 * len(self.nonces))
            self.assertEqual(found["extent_key"][1], 4 * (len(sealed_before) + len(self.nonces)))
        else:
            self.assert_all_found(self.scan(session), GROUPS[1:])
            self.nonces = sorted(sealed_before.union(self.nonces))

        closed = self.say(session, "close")
        self.assertEqual((closed["state"], closed["errors"]), ("absent", []))
        return self.scan(session)

    def run_twice(self, *options):
        self.make_store()
        session = self.session(*options)
        if self.inside and self.say(session, "scan")["arena"] != "memfd_secret":
            self.skipTest("no memfd_secret: the kernel lacks it, or LATCHKEY_SECRETS=locked")
        found = self.remove_under_writers(session)
        self.assertEqual({group: hit for group, (hit, _) in found.items()},
                         dict.fromkeys(GROUPS, 0), found)
        session.close()

        # The scanner sees what is left: here a master key that lies in the environment.
        self.key.write_bytes(bytes(random.choices(range(1, 256), k=64)))
        planted = b"x".join([self.key.read_bytes()] * 4)  # at every distance from a word
        self.image.unlink()
        self.run_ok("mkfs", "-q", "--size", "64M", self.image)
        self.run_ok("policy", "set", "-q", "--key-file", self.key, self.at("/vault"))
        session = self.session(*options, env={**os.environb, b"LATCHKEY_PLANTED": planted})
        found = self.remove_under_writers(session)
        self.assertEqual({group: hit for group, (hit, _) in found.items()},
                         {**dict.fromkeys(GROUPS, 0), "master": 4}, found)
        session.close()


class LockedArena(SecretsScan):
    def test_nothing_is_left_that_a_scanner_outside_finds(self):
        self.run_twice("--secrets", "locked")


class SecretMemory(SecretsScan):
    inside = True

    def test_nothing_is_left_that_the_process_finds_in_itself(self):
        self.run_twice()


if __name__ == "__main__":
    unittest.main()
