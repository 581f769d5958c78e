#!/usr/bin/env python3
"""Goal: put -r and get -r keep owner, mode, times and extended attributes as rsync -aX does, and
the verb xattr lists, reads, sets and removes them. Method: as cli_test.py's; what needs root or a
file system with attributes is skipped where that is not."""
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from cli import *  # noqa: E402,F403

VALUE = bytes(range(256)) * 8
ATIME, MTIME = 1_111_111_111_123_456_789, 987_654_321_000_000_001


class Attributes(TreeTest):
    def setUp(self):
        super().setUp()
        self.get = ("get", "-qr", "--key-file", self.key)
        try:
            os.setxattr(self.tree, "user.probe", b"")
            os.removexattr(self.tree, "user.probe")
        except OSError as error:
            self.skipTest(f"no user attributes in {self.folder}: {error}")

    def attributes(self, path):
        return {name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
                if not name.startswith("security.selinux")}

    def set_all(self):
        """Attributes of files, directories and, as root, of anything; times; owners."""
        wanted = {path: {} for path in (self.tree, *self.tree.rglob("*"))}
        for name in (".", "a", "sub", "sub/b"):
            wanted[self.tree / name]["user.note"] = VALUE[:len(name) * 500]
        wanted[self.tree / "empty"]["user.empty"] = b""
        if os.geteuid() == 0:
            wanted[self.tree / "link"]["trusted.of-a-link"] = b"for all to see"
            wanted[self.tree / "a"]["trusted.\xe4\x0a"] = b"\0"
            for number, path in enumerate(sorted(wanted)):
                os.chown(path, 1000 + number, 2000 + number, follow_symlinks=False)
            (self.tree / "empty").chmod(0o6755)
        for path, attributes in wanted.items():
            for name, value in attributes.items():
                os.setxattr(path, name, value, follow_symlinks=False)
        self.set_times()
        return {path.relative_to(self.tree): attributes for path, attributes in wanted.items()}

    def set_times(self):
        for path in (self.tree, *self.tree.rglob("*")):
            os.utime(path, ns=(ATIME, MTIME + len(path.name)), follow_symlinks=False)

    def files(self, root):
        return [path for path in root.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]

    def owners(self, root):
        return {path.relative_to(root): path.lstat()[4:6] for path in (root, *root.rglob("*"))}

    def test_put_and_get_keep_them(self):
        before, picture, owners = self.set_all(), self.picture(self.tree), self.owners(self.tree)
        # Looking changes those of directories and links.
        times = {path.relative_to(self.tree): ATIME for path in self.files(self.tree)}
        out = self.folder / "out"
        out.mkdir()
        for target in ("/vault", "/"):
            self.set_times()
            self.put(self.tree, target, "-r")
            on_device = VALUE[:200] in self.image.read_bytes()
            self.assertEqual(on_device, target == "/")
            for _ in range(2):  # the second time over what is there
                self.run_ok(*self.get, self.at(f"{target}/tree"), out)
                got = out / "tree"
                self.assertEqual({path.relative_to(got): path.lstat().st_atime_ns
                                  for path in self.files(got)}, times)
                self.assertEqual({path.relative_to(got): self.attributes(path)
                                  for path in (got, *got.rglob("*"))}, before)
                self.assertEqual(self.picture(got), picture)
                self.assertEqual(self.owners(got), owners)
        self.assert_clean()

    def test_what_the_source_has_not_goes(self):
        os.setxattr(self.tree / "a", "user.old", b"1")
        self.put(self.tree, "/vault", "-r")
        out = self.folder / "out"
        self.run_ok(*self.get, self.at("/vault/tree"), out)
        self.assertEqual(self.attributes(out / "a"), {"user.old": b"1"})
        os.removexattr(self.tree / "a", "user.old")
        os.setxattr(self.tree / "a", "user.new", b"2")
        self.put(self.tree, "/vault", "-r")
        self.run_ok(*self.get, self.at("/vault/tree/a"), out)
        self.assertEqual(self.attributes(out / "a"), {"user.new": b"2"})
        # Without -r the data, the mode and the time of the file alone.
        self.run_ok("get", "-q", "--key-file", self.key, self.at("/vault/tree/a"),
                    self.folder / "plain")
        self.assertEqual(self.attributes(self.folder / "plain"), {})

    def test_an_attribute_that_the_host_does_not_take_is_told(self):
        self.put(self.tree / "a", "/vault/a")
        for number in range(3):  # more than an inode of ext4 or btrfs can have
            path = self.host_file("value", bytes(65536))
            self.run_ok("xattr", "set", "--value-file", path, "--key-file", self.key,
                        self.at("/vault/a"), f"user.{number}")
        if os.geteuid() == 0:
            self.run_ok("xattr", "set", "--key-file", self.key, self.at("/vault/a"),
                        "security.capability", input=b"not one")
        answer = self.run_json("get", "get", "-r", "--key-file", self.key, self.at("/vault/a"),
                               self.folder / "out")
        self.assertEqual((self.folder / "out").read_bytes(), b"alpha\n")
        kept = set(self.attributes(self.folder / "out"))
        left = {one["name"]: one for one in answer["attributes_left"]}
        wanted = {"user.0", "user.1", "user.2"}
        if os.geteuid() == 0:
            wanted.add("security.capability")
            self.assertIn("security.capability", left)
        self.assertEqual((kept | set(left), kept & set(left)), (wanted, set()))
        self.assertEqual({one["path"] for one in left.values()} or {str(self.folder / "out")},
                         {str(self.folder / "out")})

    def test_the_verb_lists_reads_sets_and_removes(self):
        self.put(self.tree, "/vault", "-r")
        verb = lambda word, path, *more: ("xattr", word, "--key-file", self.key,  # noqa: E731
                                          self.at(path), *more)
        for path in ("/vault/tree/a", "/vault/tree"):
            self.assertEqual(self.run_ok(*verb("list", path)), "")
            self.run_ok(*verb("set", path, "user.b"), input=VALUE)
            self.run_ok(*verb("set", path, "trusted.a", "--value-file",
                              self.host_file("v", b"x")))
            self.assertEqual(self.run_ok(*verb("list", path)), "trusted.a\nuser.b\n")
            self.assertEqual(self.run_json("xattr_list", *verb("list", path)),
                             {"names": ["trusted.a", "user.b"]})
            self.assertEqual(self.run_raw(*verb("get", path, "user.b")).stdout, VALUE)
            self.assertEqual(self.run_json("xattr_get", *verb("get", path, "user.b")),
                             {"name": "user.b", "value_hex": VALUE.hex()})
            self.run_ok(*verb("rm", path, "trusted.a"))
            self.run_refused(USAGE, *verb("rm", path, "trusted.a"), says="ENODATA")
            self.run_refused(USAGE, *verb("get", path, "user.none"), says="ENODATA")
            self.run_refused(USAGE, *verb("set", path, "user." + "x" * 251), input=b"",
                             says="ERANGE")
            self.run_refused(USAGE, *verb("set", path, "user.long"), input=bytes(65537),
                             says="E2BIG")
            self.run_refused(UNAVAILABLE, *verb("set", path, "btrfs.x"), input=b"",
                             says="another namespace")
        self.run_refused(USAGE, "xattr", "set", "--key-file", "-", self.at("/vault"), "user.x",
                         says="both", input=b"")
        self.assert_clean()

    def test_without_the_key_names_are_listed_and_values_are_not(self):
        self.put(self.tree, "/vault", "-r")
        self.run_ok("xattr", "set", "--key-file", self.key, self.at("/vault/tree/a"), "user.b",
                    input=b"value")
        [top] = self.names("/vault", key=False)
        for name in self.names(f"/vault/{top}", key=False):
            path = self.at(f"/vault/{top}/{name}")
            if self.run_ok("xattr", "list", path) == "user.b\n":
                break
        self.run_refused(NO_KEY, "xattr", "get", path, "user.b", says="ENOKEY")
        self.run_refused(NO_KEY, "xattr", "set", path, "user.c", input=b"", says="ENOKEY")
        self.run_ok("xattr", "rm", path, "user.b")
        self.assertEqual(self.run_ok("xattr", "list", path), "")


if __name__ == "__main__":
    unittest.main()
