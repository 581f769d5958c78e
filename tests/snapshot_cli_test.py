#!/usr/bin/env python3
"""Goal: subvolumes and snapshots through the command line, as a user and as a script see them.
Method: the verbs on an image file; what they answer, what is there afterwards, exit codes."""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from support.cli import MIB, OK, USAGE, CliTest  # noqa: E402


class SnapshotCli(CliTest):
    def setUp(self):
        super().setUp()
        self.run_ok("mkfs", "-q", "--size", "64M", self.image)
        raw = os.urandom(64)
        self.secrets.append(raw)
        self.key.write_bytes(raw)
        self.source = self.folder / "source"
        self.source.write_bytes(os.urandom(3 * MIB))

    def at(self, path):
        return f"{self.image}:{path}"

    def put(self, path, *more):
        self.run_ok("put", "-q", *more, self.source, self.at(path))

    def clean(self):
        self.assertTrue(self.run_json("check", "check", "--data", self.image)["clean"])

    def paths(self):
        rows = self.run_json("snapshot_list", "snapshot", "list", self.image)["subvolumes"]
        return {row["path"]: row for row in rows}

    def test_made_listed_read_and_removed(self):
        made = self.run_json("subvolume_create", "subvolume", "create", self.at("/area"))
        self.put("/area/file")
        self.run_ok("snapshot", "-q", "-r", self.at("/area"), self.at("/then"))
        self.run_ok("rm", self.at("/area/file"))
        target = self.folder / "target"
        self.run_ok("get", "-q", self.at("/then/file"), target)
        self.assertEqual(target.read_bytes(), self.source.read_bytes())
        rows = self.paths()
        self.assertEqual(set(rows), {"/", "/area", "/then"})
        self.assertEqual(rows["/then"]["snapshot_of"], made["id"])
        self.assertTrue(rows["/then"]["read_only"])
        self.assertFalse(rows["/area"]["read_only"])
        self.clean()
        text = self.run_ok("snapshot", "list", self.image)
        self.assertIn("read-only", text)
        entries = self.run_json("ls", "ls", self.image.as_posix() + ":/")["entries"]
        self.assertEqual({entry["kind"] for entry in entries}, {"subvolume"})
        freed = self.run_json("snapshot_rm", "snapshot", "rm", "-q", self.at("/then"))
        self.assertGreaterEqual(freed["bytes_freed"], 3 * MIB)
        self.assertEqual(set(self.paths()), {"/", "/area"})
        self.clean()

    def test_shares_its_blocks_under_one_key(self):
        key = ("--key-file", self.key)
        self.run_ok("policy", "set", *key, self.at("/vault"))
        self.run_ok("subvolume", "create", "-q", *key, self.at("/vault/area"))
        self.put("/vault/area/file", *key)
        self.run_ok("snapshot", "-q", *key, self.at("/vault/area"), self.at("/vault/then"))

        def extents(path):
            return self.run_json("map", "map", *key, self.at(path))["extents"]
        self.assertEqual(extents("/vault/area/file"), extents("/vault/then/file"))
        self.run_ok("snapshot", "-q", self.at("/"), self.at("/locked"))
        self.clean()

    def test_refusals(self):
        self.run_ok("subvolume", "create", "-q", self.at("/area"))
        self.run_ok("subvolume", "create", "-q", self.at("/area/inner"))
        self.put("/file")
        self.run_refused(USAGE, "snapshot", self.at("/file"), self.at("/then"))
        self.run_refused(USAGE, "snapshot", self.at("/"), says="wants")
        self.run_refused(USAGE, "snapshot", self.at("/"), "/elsewhere")
        for words in (("subvolume", "create", self.at("/area")),
                      ("snapshot", self.at("/"), self.at("/area")),
                      ("snapshot", "rm", self.at("/area")),
                      ("snapshot", "rm", self.at("/file")),
                      ("rm", "-r", self.at("/area"))):
            done = self.run_raw(*words)
            self.assertNotEqual(done.returncode, OK, words)
            self.assertIn(b"latchkey: ", done.stderr)
        self.assertEqual(set(self.paths()), {"/", "/area", "/area/inner"})
        self.run_ok("snapshot", "-q", "-r", self.at("/area"), self.at("/then"))
        done = self.run_raw("put", "-q", self.source, self.at("/then/file"))
        self.assertNotEqual(done.returncode, OK)
        self.clean()


if __name__ == "__main__":
    unittest.main()
