#!/usr/bin/env python3
"""Goal: links and special files go into a store and come back as what they are, and nothing is
written through a symlink. Method: as cli_test.py's."""
import os
import pathlib
import shutil
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from cli import *  # noqa: E402,F403


class Links(TreeTest):
    def test_links_and_special_files_come_back_as_what_they_are(self):
        (self.tree / "sub" / "dangling").symlink_to("../no/such\nthing")
        (self.tree / "long").symlink_to("x" * 3000)
        for name, other in (("a", "sub/a2"), ("a", "a3"), ("link", "link2"),
                            ("sub/pipe", "pipe2")):
            os.link(self.tree / name, self.tree / other, follow_symlinks=False)
        for name in ("link", "long", "sub/pipe", "socket", "sub/dangling"):
            os.utime(self.tree / name, ns=(1, 987_654_321_123_456_789), follow_symlinks=False)
        before = self.picture(self.tree)
        put = ("put", "-r", "--key-file", self.key, self.tree, self.at("/vault"))
        out = self.folder / "out"
        out.mkdir()
        for _ in range(2):  # the second time over what is there
            text = self.run_ok(*put)
            self.assertIn(", 3 symlinks, 4 hard links, 2 special files\n", text)
            self.run_ok("get", "-qr", "--key-file", self.key, self.at("/vault/tree"), out)
            self.assertEqual(self.picture(out / "tree"), before)
            self.assert_clean()
        self.run_ok("rm", "-r", "-q", "--key-file", self.key, self.at("/vault/tree"))
        self.assertEqual(self.names("/vault"), [])
        self.assert_clean()

    def test_devices_are_kept_and_made_where_that_is_allowed(self):
        put = ("put", "--key-file", self.key)
        answer = self.run_json("put", *put, "-r", "/dev/null", self.at("/vault"))
        self.assertEqual((answer["special"], answer["skipped"]), (1, []))
        line = self.run_ok("ls", "-l", "--key-file", self.key, self.at("/vault"))
        self.assertRegex(line, "^crw-rw-rw-  *1 .* 1, 3 .* null\n")
        [entry] = self.run_json("ls", "ls", "--key-file", self.key, self.at("/vault"))["entries"]
        self.assertEqual((entry["kind"], entry["device"]),
                         ("character_device", {"major": 1, "minor": 3}))
        out = self.folder / "out"
        answer = self.run_json("get", "get", "-r", "--key-file", self.key, self.at("/vault"), out)
        if answer["special"] == 1:
            self.assertEqual((out / "null").lstat().st_rdev, os.makedev(1, 3))
        else:  # not root, or a container's
            self.assertEqual(answer["skipped"], [str(out / "null")])
        answer = self.run_json("put", *put, "/dev/null", self.at("/vault/null2"))
        self.assertEqual((answer["files"], len(answer["skipped"])), (0, 1))
        self.assertIn("skipped /dev/null: ", self.run_ok(*put, "/dev/null", self.at("/vault/x")))

    def test_ls_shows_where_a_symlink_leads(self):
        self.put(self.tree, "/vault", "-r")
        lines = self.run_ok("ls", "-l", "--key-file", self.key, self.at("/vault/tree")).splitlines()
        [link] = [line for line in lines if " link" in line]
        self.assertRegex(link, "^lrwxrwxrwx  *1 .* 1 .* link -> a$")
        [pipe] = self.run_ok("ls", "-l", "--key-file", self.key,
                             self.at("/vault/tree/sub/pipe")).splitlines()
        self.assertTrue(pipe.startswith("p"), pipe)
        listed = self.run_json("ls", "ls", "--key-file", self.key, self.at("/vault/tree"))
        by_name = {entry["name"]: entry for entry in listed["entries"]}
        self.assertEqual((by_name["link"]["kind"], by_name["link"]["target"]), ("symlink", "a"))
        self.assertEqual(by_name["socket"]["kind"], "socket")
        get = ("get", "--key-file", self.key)
        self.run_refused(USAGE, *get, self.at("/vault/tree/link"), "-", says="symlink")
        self.run_ok(*get, "-qr", self.at("/vault/tree/link"), self.folder / "copy")
        self.assertEqual(os.readlink(self.folder / "copy"), "a")

    def test_get_writes_nothing_through_symlinks_below_its_target(self):
        self.put(self.tree, "/vault", "-r")
        out, outside = self.folder / "out", self.folder / "outside"
        outside.mkdir()
        (outside / "a").write_bytes(b"mine")
        out.mkdir()
        (out / "tree").mkdir()
        (out / "tree" / "a").symlink_to(outside / "a")
        (out / "tree" / "link").write_bytes(b"in the way")
        get = ("get", "-r", "--key-file", self.key, self.at("/vault/tree"), out)
        self.run_ok(*get, "-q")
        self.assertEqual(self.picture(out / "tree"), self.picture(self.tree))
        self.assertEqual((outside / "a").read_bytes(), b"mine")
        shutil.rmtree(out / "tree" / "sub")
        (out / "tree" / "sub").symlink_to(outside)
        self.run_refused(USAGE, *get, says="a directory cannot take its place")
        self.assertEqual([path.name for path in outside.iterdir()], ["a"])


if __name__ == "__main__":
    unittest.main()
