#!/usr/bin/env python3
"""Goal: each form that scripts rely on does what it says. Method: the real binary on images, its
answers compared with the host's own view (stat, cp's rules, HKDF from the standard library)."""
import filecmp
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from cli import *  # noqa: E402,F403


class Keys(CliTest):
    def test_generate_makes_64_bytes_for_the_owner_alone_and_never_overwrites(self):
        self.make_key()
        first = self.key.read_bytes()
        self.assertEqual((len(first), stat.S_IMODE(self.key.stat().st_mode)), (64, 0o600))
        self.run_refused(BUSY, "key", "generate", self.key, says="never overwritten")
        self.run_refused(BUSY, "key", "generate", "--json", self.key)
        self.assertEqual(self.key.read_bytes(), first)
        other = self.make_key(self.folder / "other")
        self.assertNotEqual(other.read_bytes(), first)
        answer = self.run_json("key_generate", "key", "generate", self.folder / "third")
        self.assertEqual(answer["identifier"],
                         identifier_of((self.folder / "third").read_bytes()))
        self.run_refused(USAGE, "key", "generate", self.folder / "none" / "key")

    def test_id_is_fscrypts_identifier_and_a_newline(self):
        # Source of the first: the kernel's FS_IOC_ADD_ENCRYPTION_KEY (fscrypt), key bytes 0 to 63.
        known = bytes(range(64))
        self.assertEqual(identifier_of(known), "8699c2c53707405da5aba5ae4d8583c0")
        for master in (known, known[:32], known[7:50]):
            path = self.host_file("raw", master)
            want = identifier_of(master) + "\n"
            self.assertEqual(self.run_ok("key", "id", "--key-file", path), want)
            with open(path, "rb") as raw:
                self.assertEqual(self.run_ok("key", "id", "--key-file", "-", stdin=raw), want)
            with open(path, "rb") as raw:
                fd = raw.fileno()
                self.assertEqual(self.run_ok("key", "id", "--key-fd", fd, pass_fds=[fd]), want)
            answer = self.run_json("key_id", "key", "id", "--key-file", path)
            self.assertEqual(answer, {"identifier": want.strip()})

    def test_keys_come_from_files_and_descriptors_never_from_words(self):
        self.make_store()
        data = self.host_file("data", b"data")
        with open(self.key, "rb") as raw:
            self.run_ok("put", "-q", "--key-file", "-", data, self.at("/vault/f"), stdin=raw)
        with open(self.key, "rb") as raw:
            got = self.run_ok("get", "--key-fd", raw.fileno(), self.at("/vault/f"), "-",
                              pass_fds=[raw.fileno()])
        self.assertEqual(got, "data")
        word = "00" * 64
        for words in (["--key", word], [f"--key={word}"], ["--key-hex", word], [word]):
            self.run_refused(USAGE, "get", self.at("/vault/f"), "-", *words)
        # A descriptor that is not at its end is read from where it stands.
        reader, writer = os.pipe()
        os.write(writer, self.key.read_bytes())
        os.close(writer)
        with open(reader, "rb"):
            self.assertEqual(self.run_ok("ls", "--key-fd", reader, self.at("/vault"),
                                         pass_fds=[reader]), "f\n")

    def test_id_matches_hkdf_of_python3_cryptography(self):
        try:
            from cryptography.hazmat.backends import default_backend
            from cryptography.hazmat.primitives import hashes
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ImportError:
            self.skipTest("python3-cryptography is not installed")
        master = self.make_key().read_bytes()
        want = HKDF(hashes.SHA512(), 16, None, b"fscrypt\0\x01", default_backend()).derive(master)
        self.assertEqual(self.run_ok("key", "id", "--key-file", self.key), want.hex() + "\n")


class Trees(TreeTest):
    def test_a_tree_comes_back_with_modes_and_times(self):
        before = self.picture(self.tree)
        answer = self.run_json("put", "put", "-r", "--key-file", self.key, self.tree,
                               self.at("/vault"))
        self.assertEqual(answer["files"], 4)
        self.assertEqual(answer["directories"], 3)
        self.assertEqual(answer["bytes"], 300_008)
        self.assertEqual((answer["symlinks"], answer["special"], answer["skipped"]), (1, 2, []))
        answer = self.run_json("get", "get", "-r", "--key-file", self.key, self.at("/vault/tree"),
                               self.folder / "out")
        self.assertEqual((answer["files"], answer["directories"]), (4, 3))
        self.assertEqual(self.picture(self.folder / "out"), before)
        # Into a directory that is there: below it, under its own name.
        (self.folder / "into").mkdir()
        self.run_ok("get", "-qr", "--key-file", self.key, self.at("/vault/tree"),
                    self.folder / "into")
        self.assertEqual(self.picture(self.folder / "into" / "tree"), before)
        self.assert_clean()

    def test_cps_rules_for_names(self):
        a = self.tree / "a"
        self.put(a, "/vault/x")
        self.assertEqual(self.get_bytes("/vault/x"), b"alpha\n")
        self.put(a, "/vault")
        self.put(a, "/vault/")
        self.put(self.host_file("new", b"longer than before"), "/vault/x")
        self.put(self.host_file("new", b"short"), "/vault/x")
        self.assertEqual(self.get_bytes("/vault/x"), b"short")
        self.put(self.tree / "link", "/vault/followed")  # cp without -r follows
        self.assertEqual(self.get_bytes("/vault/followed"), b"alpha\n")
        self.put(self.tree, "/vault/name", "-r")  # a new name
        self.put(self.tree, "/vault/name", "-r")  # now a directory
        self.put(f"{self.tree}/", "/vault/slash", "-r")
        self.put(f"{self.tree}/sub/.", "/vault/slash", "-r")  # contents
        self.assertEqual(self.names("/vault"), ["a", "followed", "name", "slash", "x"])
        kept = ["a", "empty", "link", "socket", "sub"]
        self.assertEqual(self.names("/vault/name"), [*kept, "tree"])
        self.assertEqual(self.names("/vault/slash"), sorted([*kept, "b", "deep", "pipe"]))
        put = ("put", "--key-file", self.key)
        self.run_refused(USAGE, *put, self.tree, self.at("/vault"), says="-r")
        self.run_refused(USAGE, *put, "-r", self.tree, self.at("/vault/x"), says="is a file")
        self.run_refused(USAGE, *put, a, self.at("/vault/none/"), says="no such directory")
        self.run_refused(USAGE, *put, a, self.at("/vault/none/x"), says="no such name")
        self.run_refused(USAGE, *put, a, self.at("/vault/x/y"), says="not a directory")
        self.run_refused(USAGE, *put, self.folder / "none", self.at("/vault"), says="none")
        self.run_refused(USAGE, *put, a, self.image, says="IMG:/path")
        # What is no file is put as what it is, not waited for; it replaces what has its name.
        for name, counts in (("sub/pipe", (0, 0, 1)), ("link", (0, 1, 0)), ("a", (1, 0, 0))):
            answer = self.run_json("put", *put, "-r", self.tree / name, self.at("/vault/special"))
            self.assertEqual((answer["files"], answer["symlinks"], answer["special"]), counts)
        self.run_refused(USAGE, *put, "-r", self.tree / "link", self.at("/vault/name/sub/link/x"),
                         says="no such name")
        self.assert_clean()

    def test_get_writes_one_file_to_standard_output_or_a_place(self):
        self.put(self.tree / "a", "/vault/a")
        self.assertEqual(self.get_bytes("/vault/a"), b"alpha\n")
        get = ("get", "--key-file", self.key)
        self.run_ok(*get, "-q", self.at("/vault/a"), self.folder / "copy")
        self.assertEqual((self.folder / "copy").stat().st_mode & 0o7777, 0o640)
        self.run_ok(*get, "-q", self.at("/vault/a"), self.folder / "tree" / "sub")
        self.assertEqual((self.folder / "tree" / "sub" / "a").read_bytes(), b"alpha\n")
        self.run_refused(USAGE, *get, self.at("/vault"), "-", says="is a directory")
        self.run_refused(USAGE, *get, self.at("/vault"), self.folder / "x", says="-r")
        self.run_refused(USAGE, *get, self.at("/vault/a"), self.folder / "none" / "x", says="none")
        self.run_refused(NO_SPACE, *get, self.at("/vault/a"), "/dev/full", says="/dev/full")
        self.run_refused(NO_KEY, "get", self.at("/vault/a"), self.folder / "copy")
        locked = self.names("/vault", key=False)[0]
        self.run_refused(NO_KEY, "get", self.at(f"/vault/{locked}"), self.folder / "copy")
        self.assertEqual((self.folder / "copy").read_bytes(), b"alpha\n", "nothing was overwritten")

    def test_a_named_pipe_is_read_to_its_end(self):
        data = os.urandom(3 * MIB + 5)
        put = ("put", "-q", "--key-file", self.key)
        self.run_ok(*put, "/dev/stdin", self.at("/vault/in"), input=data)
        self.assertEqual(self.get_bytes("/vault/in"), data)
        self.run_ok(*put, "/dev/stdin", self.at("/vault/in"), input=b"")
        self.assertEqual(self.get_bytes("/vault/in"), b"")
        pipe = self.tree / "sub" / "pipe"
        with subprocess.Popen([LATCHKEY, *map(str, put), pipe, self.at("/vault/pipe")]) as reader:
            with open(pipe, "wb") as writer:
                writer.write(data)
            self.assertEqual(reader.wait(60), OK)
        self.assertEqual(self.get_bytes("/vault/pipe"), data)
        self.assert_clean()

    def test_a_tree_with_files_that_cannot_be_read(self):
        nobody = as_nobody()
        closed = self.tree / "sub" / "closed"
        closed.mkdir()
        (closed / "in").write_bytes(b"in")
        (self.tree / "b-unreadable").write_bytes(b"x")
        give_to_nobody(self.folder)
        self.folder.chmod(0o755)
        for path in (closed, self.tree / "b-unreadable"):
            path.chmod(0)
        put = [*nobody, LATCHKEY, "put", "-q", "-r", "--key-file", str(self.key), str(self.tree)]
        done = subprocess.run([*put, self.at("/vault/one")], capture_output=True)
        self.assertEqual((done.returncode, done.stdout), (DENIED, b""))
        lines = done.stderr.decode().splitlines()
        self.assertEqual(len(lines), 2, lines)
        for line, path in zip(lines, (self.tree / "b-unreadable", closed)):
            self.assertRegex(line, f"^latchkey: {path}: .*cannot be read.*EACCES")
        # What comes after them is there.
        self.assertEqual(self.names("/vault/one"), ["a", "empty", "link", "socket", "sub"])
        self.assertEqual(self.names("/vault/one/sub"), ["b", "deep", "pipe"])
        self.assertEqual(self.get_bytes("/vault/one/sub/b"), (self.tree / "sub/b").read_bytes())
        done = subprocess.run([*put, self.at("/vault/two"), "--json"], capture_output=True)
        answer = self.member(done.stdout.decode(), "put")
        self.assertEqual((done.returncode, answer["error"]["exit"], answer["files"]),
                         (DENIED, DENIED, 4))
        self.assertEqual([(failure["subject"], failure["code"]) for failure in answer["failed"]],
                         [(str(self.tree / "b-unreadable"), "permission"),
                          (str(closed), "permission")])
        # Below another tree the image itself is such a file.
        os.link(self.image, self.tree / "linked")
        closed.chmod(0o755)
        (self.tree / "b-unreadable").unlink()
        done = self.run_raw("put", "-rq", "--key-file", self.key, self.tree, self.at("/vault/th"))
        self.assertEqual(done.returncode, USAGE)
        self.assertRegex(done.stderr.decode(), "^latchkey: .*/linked: is the image .*\n$")
        self.assertEqual(self.names("/vault/th"), ["a", "empty", "link", "socket", "sub"])
        self.assert_clean()

    def test_holes_stay_holes(self):
        source = self.folder / "sparse"
        size = 200 * MIB + 5
        with open(source, "wb") as file:
            for offset, data in ((0, b"first"), (50 * MIB, os.urandom(200_000)),
                                 (120 * MIB + 100, b"middle"), (150 * MIB, bytes(MIB))):
                file.seek(offset)
                file.write(data)
            file.truncate(size)
        if source.stat().st_blocks * 512 > 4 * MIB:
            self.skipTest("the file system under the test makes no holes")
        self.put(source, "/vault/sparse")
        rows = self.run_json("map", "map", "--key-file", self.key, self.at("/vault/sparse"))
        self.assertEqual(rows["size"], size)
        self.assertLess(sum(row["length"] for row in rows["extents"]), 2 * MIB)
        starts = {row["file_offset"] for row in rows["extents"]}
        self.assertLessEqual({0, 50 * MIB, 120 * MIB}, starts)
        for row in rows["extents"]:
            self.assertFalse(60 * MIB < row["file_offset"] < 119 * MIB, "holes have no row")
        out = self.folder / "out"
        out.write_bytes(b"x" * (300 * 1024))
        get = ("get", "-q", "--key-file", self.key, self.at("/vault/sparse"))
        self.run_ok(*get, out)
        self.assertTrue(filecmp.cmp(source, out, shallow=False))
        self.assertLess(out.stat().st_blocks * 512, MIB, "zeros that were written are holes, too")
        with open(self.folder / "out2", "wb") as plain:
            done = subprocess.run([LATCHKEY, *map(str, get), "-"], stdout=plain)
        self.assertEqual(done.returncode, OK)
        self.assertTrue(filecmp.cmp(source, self.folder / "out2", shallow=False))
        self.run_ok(*get, "/dev/null")
        # Runs around the limit, not aligned to it.
        data = b"".join(os.urandom(n) + bytes(z) for n, z in
                        ((1, 65535), (4096, 65536), (100, 69632), (4095, 1), (8192, 200_000)))
        self.put(self.host_file("runs", data), "/vault/runs")
        self.run_ok("get", "-q", "--key-file", self.key, self.at("/vault/runs"), out)
        self.assertEqual(out.read_bytes(), data)
        self.put("/proc/version", "/vault/proc")  # its size says 0
        self.assertEqual(self.get_bytes("/vault/proc"), pathlib.Path("/proc/version").read_bytes())
        self.put("/sys/kernel/fscaps", "/vault/sys")  # and of this one 4096
        self.assertEqual(self.get_bytes("/vault/sys"),
                         pathlib.Path("/sys/kernel/fscaps").read_bytes())
        self.assert_clean()

    def test_a_clone_shares_blocks_and_is_a_file_of_its_own(self):
        data = os.urandom(300_000)
        self.put(self.host_file("data", data), "/vault/a")
        key = ("--key-file", self.key)
        told = self.run_json("clone", "clone", *key, self.at("/vault/a"), self.at("/vault/b"))
        self.assertEqual(told["bytes"], len(data))
        rows = [self.run_json("map", "map", *key, self.at(path))["extents"]
                for path in ("/vault/a", "/vault/b")]
        self.assertEqual(*rows)
        self.run_ok("rm", *key, self.at("/vault/a"))
        self.assertEqual(self.get_bytes("/vault/b"), data)
        # Over a longer file, and not between plain and encrypted.
        self.put(self.host_file("longer", bytes(400_000)), "/vault/c")
        self.run_ok("clone", "-q", *key, self.at("/vault/b"), self.at("/vault/c"))
        self.assertEqual(self.get_bytes("/vault/c"), data)
        self.run_refused(USAGE, "clone", *key, self.at("/vault/b"), self.at("/plain"),
                         says="one of the files is encrypted")
        self.assertEqual(self.names("/"), ["vault"])
        self.run_refused(USAGE, "clone", *key, self.at("/vault/b"), "other.img:/b",
                         says="another image")
        self.assert_clean()

    def test_the_image_itself_is_neither_source_nor_destination(self):
        self.put(self.tree / "a", "/vault/a")
        linked = self.folder / "tree" / "linked"
        os.link(self.image, linked)
        key = ("--key-file", self.key)
        for words in (["put", *key, self.image, self.at("/vault/i")],
                      ["put", "-r", *key, linked, self.at("/vault")],
                      ["get", *key, self.at("/vault/a"), self.image],
                      ["get", *key, self.at("/vault/a"), linked]):
            self.run_refused(USAGE, *words, says="the image that holds the store")
        self.assertEqual(self.get_bytes("/vault/a"), b"alpha\n")
        self.assert_clean()

    def test_the_whole_store_and_names_of_any_length(self):
        longest = self.tree / ("n" * 255)
        longest.write_bytes(b"long")
        self.put(self.tree, "/vault", "-r")
        self.run_ok("put", "-q", self.tree / "a", self.at("/plain"))
        self.assertIn(longest.name, self.names("/vault/tree"))
        top = f"/vault/{self.names('/vault', key=False)[0]}"
        locked = self.run_json("ls", "ls", self.at(top))["entries"]
        self.assertEqual(len(locked), 6)
        for entry in locked:
            self.assertLessEqual(len(entry["name"]), 255, "a no-key name is a name, too")
            code = {"regular": NO_KEY, "socket": UNAVAILABLE}.get(entry["kind"], USAGE)
            self.run_refused(code, "map", self.at(f"{top}/{entry['name']}"))
        self.run_ok("get", "-qr", "--key-file", self.key, self.at("/"), self.folder / "out")
        self.assertEqual(self.picture(self.folder / "out" / "vault" / "tree"),
                         self.picture(self.tree))
        self.assertEqual((self.folder / "out" / "plain").read_bytes(), b"alpha\n")
        self.run_refused(USAGE, "put", self.tree / "a", self.at("/" + "n" * 256), says="too_long")
        self.run_refused(USAGE, "ls", self.at("/../vault"), says="invalid")

    def test_ls_with_and_without_the_key(self):
        self.put(self.tree, "/vault", "-r")
        self.run_ok("put", "-q", self.tree / "a", self.at("/plain"))
        self.assertEqual(self.names("/", key=False), ["plain", "vault"])
        self.assertEqual(self.names("/vault/tree"), ["a", "empty", "link", "socket", "sub"])
        long = self.run_ok("ls", "-l", "--key-file", self.key, self.at("/vault/tree"))
        self.assertRegex(long, r"(?m)^-rw-r----- +1 +\d+ +\d+ +6 2009-02-13T23:31:30Z a$")
        self.assertRegex(long, r"(?m)^drwxr-xr-x .* sub$")
        (top,) = self.names("/vault", key=False)
        self.assertRegex(top, r"^[A-Za-z0-9_-]{40,}$")
        self.assertNotIn("tree", top)
        below = self.names(f"/vault/{top}", key=False)
        self.assertEqual(len(below), 5)
        self.run_refused(NO_KEY, "ls", self.at("/vault/tree"), says="locked")
        self.assertIn("(locked)", self.run_ok("ls", "-l", self.at(f"/vault/{top}")))
        answer = self.run_json("ls", "ls", "--key-file", self.key, self.at("/vault/tree"))
        entry = {e["name"]: e for e in answer["entries"]}["a"]
        self.assertEqual((entry["kind"], entry["size"], entry["mode"]), ("regular", 6, 0o640))
        self.assertEqual(entry["key_identifier"], identifier_of(self.key.read_bytes()))
        self.assertEqual(self.names("/vault/tree/a"), ["a"])
        self.run_refused(USAGE, "ls", self.at("/none"), says="no such name")

    def test_rm_one_name_or_a_tree(self):
        self.put(self.tree, "/vault", "-r")
        rm = ("rm", "--key-file", self.key)
        self.run_refused(USAGE, *rm, self.at("/vault/tree"), says="is a directory.*-r")
        self.run_refused(USAGE, *rm, self.at("/vault/none"), says="no such name")
        self.run_refused(USAGE, *rm, "-r", self.at("/"), says="root")
        self.assertEqual(self.run_ok(*rm, self.at("/vault/tree/a")), "")
        self.assertEqual(self.names("/vault/tree"), ["empty", "link", "socket", "sub"])
        self.run_json("rm", *rm, "-r", self.at("/vault/tree"))
        self.assertEqual(self.names("/vault"), [])
        self.assertEqual(self.assert_clean()["data_blocks"], 0)

    def test_a_locked_name_can_be_removed_without_the_key(self):
        self.put(self.tree / "a", "/vault/a")
        (name,) = self.names("/vault", key=False)
        self.run_ok("rm", self.at(f"/vault/{name}"))
        self.assertEqual(self.names("/vault"), [])
        self.assert_clean()


class Stores(CliTest):
    def test_discard_gives_blocks_of_the_image_back(self):
        """The same file again and again: each time what it had before becomes free."""
        source = self.host_file("source", os.urandom(6 * MIB))
        grown = {}
        for option in ("--quiet", "--discard"):
            self.image.unlink(missing_ok=True)
            self.key.unlink(missing_ok=True)
            self.make_store()
            for _ in range(6):
                self.run_ok("put", "-q", option, source, self.at("/file"))
            self.assertEqual(self.get_bytes("/file"), source.read_bytes())
            self.assert_clean()
            grown[option] = self.image.stat().st_blocks * 512
        print(f"an image of 64 MiB after six puts of 6 MiB: {grown['--quiet'] >> 20} MiB, with "
              f"--discard {grown['--discard'] >> 20} MiB")
        self.assertLess(grown["--discard"], grown["--quiet"] - 4 * MIB)

    def test_mkfs_makes_grows_and_does_not_overwrite(self):
        self.run_refused(WRONG_DEVICE, "mkfs", self.image, says="--size")
        answer = self.run_json("mkfs", "mkfs", "--size", "64M", self.image)
        self.assertEqual(answer["size_bytes"], 64 * MIB)
        self.assertLess(self.image.stat().st_blocks * 512, 8 * MIB, "sparse")
        self.run_refused(BUSY, "mkfs", self.image, says="latchkey store.*-f")
        self.run_refused(BUSY, "mkfs", "--json", self.image)
        self.run_ok("mkfs", "-q", "-f", self.image)
        self.run_ok("mkfs", "-q", "-f", "--size", "80M", self.image)
        self.assertEqual(self.image.stat().st_size, 80 * MIB)
        self.assert_clean()
        none = self.folder / "none"
        for option, value in (("--extent", "3K"), ("--extent", "2M"), ("--node", "12K"),
                              ("--label", "n" * 64)):
            self.run_refused(USAGE, "mkfs", "--size", "32M", option, value, none)
            self.assertFalse(none.exists())
        self.run_refused(USAGE, "mkfs", "--size", "9000000T", none, says="too_big")
        self.run_refused(WRONG_DEVICE, "mkfs", "--size", "0", none, says="no such device")
        self.run_refused(WRONG_DEVICE, "mkfs", "--size", "32M", none / "img", says="folder")

    def test_mkfs_options_are_what_info_says(self):
        self.run_ok("mkfs", "-q", "--size", "32M", "--extent", "1M", "--node", "4K", "--label",
                    "a name", self.image)
        store = self.run_json("info", "info", self.image)["store"]
        self.assertEqual((store["extent_bytes_max"], store["node_bytes"], store["label"]),
                         (MIB, 4096, "a name"))
        self.assertEqual((store["size_bytes"], store["kind"]), (32 * MIB, "file"))
        version = int.from_bytes(self.image.read_bytes()[(64 << 10) + 8:][:4], "little")
        self.assertEqual(store["format_version"], version)
        self.assertIn(f"version {version}, nodes of 4 KiB", self.run_ok("info", self.image))
        self.assertRegex(store["volume_id"], "^[0-9a-f]{32}$")
        self.assert_clean()

    def test_policy_set_makes_the_directory_and_keeps_what_is_there(self):
        self.run_ok("mkfs", "-q", "--size", "32M", self.image)
        self.make_key()
        other = self.make_key(self.folder / "other")
        policy = ("policy", "set", "--key-file", self.key)
        answer = self.run_json("policy_set", *policy, self.at("/vault"))
        self.assertEqual(answer["identifier"], identifier_of(self.key.read_bytes()))
        self.run_ok(*policy, "-q", self.at("/vault"))  # the same again
        self.run_refused(BUSY, "policy", "set", "--key-file", other, self.at("/vault"))
        self.run_refused(USAGE, "policy", "set", self.at("/v2"), says="--key-file")
        plain = self.host_file("plain", b"plain")
        self.run_ok("put", "-qr", plain.parent / "plain", self.at("/file"))
        self.run_refused(USAGE, *policy, self.at("/file"), says="not a directory")
        self.run_refused(USAGE, *policy, self.at("/"), says="not empty")
        self.run_refused(USAGE, *policy, self.at("/no/such"), says="no such name")

    def test_the_root_itself_may_be_encrypted(self):
        self.run_ok("mkfs", "-q", "--size", "32M", self.image)
        self.make_key()
        self.run_ok("policy", "set", "-q", "--key-file", self.key, self.at("/"))
        self.put(self.host_file("top", b"top"), "/top")
        self.assertEqual(self.get_bytes("/top"), b"top")
        self.run_refused(NO_KEY, "get", self.at("/top"), "-")

    def test_map_names_each_piece(self):
        self.make_store()
        self.put(self.host_file("file", os.urandom(300_000)), "/vault/f")
        answer = self.run_json("map", "map", "--key-file", self.key, self.at("/vault/f"))
        self.assertEqual(answer["size"], 300_000)
        end = 0
        for row in answer["extents"]:
            self.assertEqual(set(row), {"file_offset", "device_offset", "length", "nonce",
                                        "key_identifier", "mode", "first_unit"})
            self.assertEqual(row["file_offset"], end)
            self.assertEqual((row["length"] % 4096, row["device_offset"] % 4096), (0, 0))
            self.assertRegex(row["nonce"], "^[0-9a-f]{32}$")
            self.assertEqual(row["key_identifier"], identifier_of(self.key.read_bytes()))
            self.assertEqual(row["mode"], 1)
            end += row["length"]
        self.assertEqual(end, 303_104)
        self.run_refused(USAGE, "map", "--json", self.at("/vault"), says="is a directory")
        self.run_refused(NO_KEY, "map", "--json", self.at("/vault/f"))

    def test_info_and_check(self):
        self.make_store()
        info = self.run_json("info", "info", self.image)
        self.assertEqual(info["store"]["size_bytes"], 64 * MIB)
        self.assertIn(info["secrets"]["kind"], ("memfd_secret", "locked"))
        self.assertEqual([backend["name"] for backend in info["backends"]],
                         ["native", "openssl", "kcapi"])
        for backend in info["backends"]:
            self.assertEqual(backend["usable"], backend["reason"] == "", backend)
        native = [kernel["name"] for kernel in info["backends"][0]["kernels"] if kernel["usable"]]
        self.assertEqual((info["backend"], info["xts_kernel"]), ("native", native[0]))
        self.assertEqual(info["store"]["key_slots"],
                         {"capacity": 1024, "hits": 0, "misses": 0, "evictions": 0})
        free = info["store"]["free"]
        self.assertEqual(sum(free["runs_by_log2_blocks"]), free["runs"])
        self.assertGreater(free["longest_run_bytes"], 16 * MIB)
        self.assertEqual(info["store"]["promised_bytes"], 0)
        self.assertNotIn("store", self.run_json("info", "info"))
        self.assertIn("64 MiB", self.run_ok("info", self.image))
        self.assert_clean()
        self.assertRegex(self.run_ok("check", "-q", self.image), ": clean; ")



class Words(CliTest):
    def test_words_that_make_no_sense_get_one_line(self):
        for words in ([], ["frob"], ["mkfs"], ["mkfs", "--size", "4Q", "x"], ["ls"], ["key"],
                      ["key", "frob"], ["key", "id"], ["ls", "--frob", "x:/"], ["put", "x"],
                      ["ls", "image-alone"], ["torture", "--writers", "0", "x"],
                      ["get", "--key-fd", "x", "y:/", "-"], ["--xts-kernel", "frob", "info"]):
            with self.subTest(words=words):
                self.run_refused(USAGE, *words)
                self.run_refused(USAGE, "--json", *words)
        self.run_refused(CHECK_USAGE, "check")
        self.run_refused(CHECK_USAGE, "check", "--json")
        self.run_refused(CHECK_USAGE, "check", "--json", "--xts-kernel", "frob", "x")
        done = self.run_raw("key", "id", "--json")
        self.assertEqual(json.loads(done.stdout)["key_id"]["error"]["exit"], USAGE)
        done = self.run_raw("mkfs", "--json")
        self.assertEqual(json.loads(done.stdout)["mkfs"]["error"]["exit"], USAGE)

    def test_the_verb_is_found_among_words_that_make_no_sense(self):
        for verb, says, words in (
                ("info", "--secrets", ["--secrets", "foo", "info"]),
                ("info", "--secrets", ["info", "--secrets", "mkfs"]),
                ("usage", "there is no verb 'foo'", ["foo"]),
                ("usage", "there is no verb 'foo'", ["foo", "info", "bar"]),
                ("key", "there is no verb 'foo'", ["key", "foo"]),
                ("key_id", "key id", ["key", "--key-fd", "x", "id"]),
                ("usage", "usage: ", ["--secrets", "locked"]),
                ("mkfs", "mkfs", ["mkfs", "--size", "info"]),
                ("torture", "torture", ["torture", "-q", "--writers", "0", "check"])):
            with self.subTest(words=words):
                self.run_refused(USAGE, *words, says=says)
                done = self.run_raw("--json", *words)
                self.assertIn("error", self.member(done.stdout.decode(), verb))

    def test_help_and_version_are_answers(self):
        self.assertIn("torture", self.run_ok("--help"))
        self.assertIn("--size", self.run_ok("mkfs", "--help"))
        self.assertRegex(self.run_ok("--version"), r"^latchkey \d+\.\d+\.\d+\n$")

    def test_the_targets_last_colon_slash_splits(self):
        folder = self.folder / "odd:"
        folder.mkdir()
        self.image = folder / "im:g"
        self.run_ok("mkfs", "-q", "--size", "32M", self.image)
        self.run_ok("put", "-q", self.host_file("f", b"f"), self.at("/f"))
        self.assertEqual(self.run_ok("ls", self.at("/")), "f\n")

    def test_an_answer_that_cannot_be_written_is_no_success(self):
        self.make_store()
        for words in (["ls", self.at("/")], ["info"], ["info", self.image], ["--help"],
                      ["policy", "set", "--key-file", self.key, self.at("/other")]):
            for more in ([], ["--json"]):
                with self.subTest(words=words + more), open("/dev/full", "wb") as full:
                    done = subprocess.run([LATCHKEY, *map(str, words), *more], stdout=full,
                                          stderr=subprocess.PIPE)
                    self.assertEqual(done.returncode, NO_SPACE)
                    self.assertRegex(done.stderr.decode(),
                                     r"^latchkey: standard output: .*ENOSPC.*\n$")
        self.assertEqual(self.run_ok("ls", self.at("/")), "other\nvault\n", "done all the same")

    def test_closed_standard_descriptors_never_are_the_store(self):
        self.make_store()
        data = self.host_file("f", os.urandom(MIB))
        for number in (0, 1, 2):
            done = subprocess.run([LATCHKEY, "put", "--key-file", str(self.key), str(data),
                                   self.at(f"/vault/{number}")],
                                  stdout=None if number == 1 else subprocess.PIPE,
                                  stderr=subprocess.PIPE,
                                  preexec_fn=lambda fd=number: os.close(fd))
            self.assertEqual(done.returncode, IO if number == 1 else OK)
            self.assert_clean()
            self.assertEqual(self.get_bytes(f"/vault/{number}"), data.read_bytes())
        done = subprocess.run([LATCHKEY, "key", "id", "--key-file", "-"], capture_output=True,
                              preexec_fn=lambda: os.close(0))
        self.assert_refused(done, USAGE, "reading")

    def test_errors_hold_no_control_characters(self):
        self.make_store()
        line = self.run_refused(USAGE, "ls", self.at("/a\nb\x1b[31m"), says=r"\\x0ab\\x1b\[31m: ")
        self.assertNotIn("\x1b", line)

    def test_both_kinds_of_memory_for_secrets(self):
        self.make_store()
        self.put(self.host_file("f", b"data"), "/vault/f", "--secrets", "locked")
        self.assertEqual(self.get_bytes("/vault/f"), b"data")
        info = self.run_json("info", "info", "--secrets", "locked")
        self.assertEqual(info["secrets"]["kind"], "locked")


if __name__ == "__main__":
    unittest.main()
