#!/usr/bin/env python3
"""Goal: what is no store, no key, damaged, locked away or in use gets one clear line and the right
exit code, and what another copy still holds is read. Method: the real binary on images that are
made wrong in one way each; superblocks and nodes are found by their magic numbers."""
import ctypes
import fcntl
import os
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from cli import *  # noqa: E402,F403


def superblocks(size):
    return [64 << 10, (64 << 10) + MIB, size - (64 << 10), size - (64 << 10) - MIB]


def xxh3_128(data):
    try:
        library = ctypes.CDLL("libxxhash.so.0")
    except OSError as error:
        raise unittest.SkipTest(f"no libxxhash to compute a checksum with: {error}")
    library.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.XXH3_128bits.restype = type("Hash", (ctypes.Structure,), {
        "_fields_": [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]})
    value = library.XXH3_128bits(data, len(data))
    return value.high.to_bytes(8, "big") + value.low.to_bytes(8, "big")


SEED = int(os.environ.get("LATCHKEY_SEED", random.SystemRandom().randrange(1 << 32)))


class NoStore(CliTest):
    """Each verb that opens a store, on a thing that is none."""

    def assert_every_verb_refuses(self, image, code, says):
        if not self.key.exists():
            self.make_key()
        source = self.host_file("source", b"data")
        key = ("--key-file", self.key)
        for words in (["ls", f"{image}:/"], ["put", *key, source, f"{image}:/x"],
                      ["get", *key, f"{image}:/x", self.folder / "out"], ["rm", f"{image}:/x"],
                      ["map", f"{image}:/x"], ["policy", "set", *key, f"{image}:/x"],
                      ["info", image], ["bench", image], ["torture", image], ["session", image]):
            with self.subTest(words=words):
                self.run_refused(code, *words, says=says)
        self.run_refused(code, "info", "--json", image, says=says)
        self.run_refused(CHECK_COULD_NOT_LOOK, "check", image, says=says)
        self.run_refused(CHECK_COULD_NOT_LOOK, "check", "--json", image, says=says)
        self.assertFalse((self.folder / "out").exists())

    def change_superblocks(self, offset, value):
        """Sets a 32-bit field in all four and makes their checksums right (libxxhash)."""
        image = bytearray(self.image.read_bytes())
        for place in superblocks(len(image)):
            if image[place:place + 8] == b"latchkey":
                image[place + offset:place + offset + 4] = value.to_bytes(4, "little")
                image[place + 4064:place + 4096] = bytes(32)
                image[place + 4064:place + 4080] = xxh3_128(bytes(image[place:place + 4096]))
        self.image.write_bytes(image)

    def test_another_version_and_unknown_features(self):
        self.make_store("16M")
        source = self.host_file("source", b"data")
        self.put(source, "/f")
        good = self.image.read_bytes()
        self.change_superblocks(8, 2)
        self.assertEqual(self.image.read_bytes(), good, "the checksum is another one")
        self.change_superblocks(8, 3)
        self.assert_every_verb_refuses(self.image, FORMAT, "version is not known here")
        self.run_refused(BUSY, "mkfs", self.image, says="of another version.*-f")
        self.image.write_bytes(good)
        self.change_superblocks(80, 1 << 31)  # features_incompat
        self.assert_every_verb_refuses(self.image, FORMAT, "a feature that is not known here")
        self.image.write_bytes(good)
        self.change_superblocks(72, 1 << 31)  # features_ro_compat
        self.run_refused(FORMAT, "put", source, self.at("/g"), says="only be read")
        self.assertEqual(self.get_bytes("/f"), b"data")
        self.assertEqual(self.run_json("info", "info", self.image)["store"]["features"],
                         {"compatible": 0, "read_only_compatible": 1 << 31, "incompatible": 2})
        self.assert_clean()
        self.image.write_bytes(good)
        self.change_superblocks(64, 1 << 31)  # features_compat
        self.put(source, "/g")
        self.assertEqual(self.get_bytes("/g"), b"data")

    def test_zeros_and_random_bytes(self):
        self.image.write_bytes(bytes(32 * MIB))
        self.assert_every_verb_refuses(self.image, WRONG_DEVICE, "not a latchkey store")
        noise = random.Random(SEED).randbytes(32 * MIB)
        self.image.write_bytes(noise)
        self.assert_every_verb_refuses(self.image, WRONG_DEVICE, "not a latchkey store")
        self.assertEqual(self.image.read_bytes(), noise, "refusing changes nothing")

    def test_too_small(self):
        for size in (0, 1, 4096, 16 * MIB - 4096):
            self.image.write_bytes(bytes(size))
            self.assert_every_verb_refuses(self.image, WRONG_DEVICE, "too small")
            self.run_refused(WRONG_DEVICE, "mkfs", self.image, says="16 MiB")
            self.assertEqual(self.image.stat().st_size, size)
        new = self.folder / "new"
        self.run_refused(WRONG_DEVICE, "mkfs", "--size", "1M", new, says="16 MiB")
        self.assertFalse(new.exists(), "a file that did not become a store is gone")
        self.run_ok("mkfs", "-q", "--size", "16M", self.image)
        self.assert_clean()

    def test_what_is_neither_file_nor_device(self):
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        for thing in ("/dev/null", self.folder, pipe):
            self.assert_every_verb_refuses(thing, WRONG_DEVICE, "neither a file nor a block device")
            self.run_refused(WRONG_DEVICE, "mkfs", "-f", thing)
        self.assert_every_verb_refuses(self.folder / "none", WRONG_DEVICE, "no such device")

    def test_a_foreign_file_system_is_recognised_and_overwritten_only_by_force(self):
        maker = shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/sbin:/usr/sbin")
        if not maker:
            self.skipTest("mkfs.ext4 is not installed")
        self.image.write_bytes(bytes(32 * MIB))
        subprocess.run([maker, "-q", str(self.image)], check=True)
        before = self.image.read_bytes()
        self.assert_every_verb_refuses(self.image, WRONG_DEVICE, "on it: ext4 file system")
        self.run_refused(BUSY, "mkfs", self.image, says="ext4 file system.*-f overwrites")
        self.run_refused(BUSY, "mkfs", "--json", "--size", "64M", self.image, says="ext4")
        self.assertEqual(self.image.read_bytes()[:32 * MIB], before)
        self.run_ok("mkfs", "-q", "-f", self.image)
        self.assert_clean()

    def test_a_partition_table(self):
        table = bytearray(32 * MIB)
        table[446:462] = bytes([0, 0, 2, 0, 0x83, 0, 3, 0]) + (8).to_bytes(4, "little") * 2
        table[510:512] = b"\x55\xaa"
        self.image.write_bytes(table)
        self.run_refused(BUSY, "mkfs", self.image, says="partition table")
        self.run_ok("mkfs", "-q", "-f", self.image)


class Keys(CliTest):
    def test_keys_of_a_wrong_size_and_the_wrong_key(self):
        self.make_store()
        data = self.host_file("data", b"data")
        self.put(data, "/vault/f")
        key = self.folder / "bad"
        self.secrets.append(os.urandom(65))
        for size, says in ((0, "empty"), (31, "shorter than 32"), (65, "longer than 64")):
            key.write_bytes(self.secrets[-1][:size])
            for words in (["put", data, self.at("/vault/g")], ["get", self.at("/vault/f"), "-"],
                          ["ls", self.at("/vault")], ["rm", self.at("/vault/f")], ["key", "id"],
                          ["map", self.at("/vault/f")], ["policy", "set", self.at("/other")]):
                self.run_refused(USAGE, *words, "--key-file", key, says=says)
            with open(key, "rb") as raw:
                self.run_refused(USAGE, "key", "id", "--key-file", "-", "--json", says=says,
                                 stdin=raw)
        key.write_bytes(self.secrets[-1][:64])
        bad = ("--key-file", key)
        self.run_refused(DENIED, "put", *bad, data, self.at("/vault/g"), says="/vault/g.*another")
        self.run_refused(DENIED, "get", *bad, self.at("/vault/f"), "-", says="another key")
        self.run_refused(DENIED, "map", *bad, self.at("/vault/f"), says="another key")
        self.run_refused(NO_KEY, "put", data, self.at("/vault/g"), says="/vault/g.*--key-file")
        self.run_refused(NO_KEY, "put", "--json", data, self.at("/vault/g"))
        for path in (self.folder, self.folder / "none"):
            self.run_refused(USAGE, "key", "id", "--key-file", path, says=str(path))
        for fd in (99, -5):
            self.run_refused(USAGE, "key", "id", "--key-fd", fd)
        self.run_refused(USAGE, "key", "id", *bad, "--key-fd", 0)
        self.assertEqual(self.get_bytes("/vault/f"), b"data")
        self.assert_clean()

    def test_a_key_that_may_not_be_read(self):
        nobody = as_nobody()
        self.make_key()
        self.key.chmod(0)
        self.folder.chmod(0o755)
        self.run_refused(DENIED, "key", "id", "--key-file", self.key, says="cannot be opened",
                         wrapper=nobody)


class Access(CliTest):
    def setUp(self):
        super().setUp()
        self.make_store("32M")
        self.data = self.host_file("data", os.urandom(300_000))
        self.put(self.data, "/vault/f")

    def test_a_file_that_may_only_be_read(self):
        nobody = as_nobody()
        give_to_nobody(self.folder)
        self.image.chmod(0o444)
        if os.geteuid() == 0:
            os.chown(self.image, 0, 0)
        target = self.at("/vault/g")
        self.run_refused(DENIED, "put", "--key-file", self.key, self.data, target,
                         says="may not be opened", wrapper=nobody)
        self.run_refused(DENIED, "mkfs", "-f", self.image, wrapper=nobody)
        done = subprocess.run([*nobody, LATCHKEY, "get", "--key-file", str(self.key),
                               self.at("/vault/f"), "-"], capture_output=True)
        self.assertEqual((done.returncode, done.stdout), (OK, self.data.read_bytes()))
        self.image.chmod(0)
        self.run_refused(DENIED, "ls", self.at("/"), wrapper=nobody)

    def test_a_device_that_is_read_only(self):
        with loop_device(self.image, "--read-only") as device:
            self.assertEqual(self.get_bytes("/vault/f", device), self.data.read_bytes())
            self.assert_clean(device)
            self.run_ok("info", device)
            for words in (["put", "--key-file", self.key, self.data, f"{device}:/vault/g"],
                          ["mkfs", "-f", device], ["rm", f"{device}:/vault"],
                          ["torture", device], ["bench", device]):
                self.run_refused(DENIED, *words, says="read-only")
        self.assert_clean()

    def test_a_store_in_use_is_refused_by_whatever_road(self):
        put = ("put", "--key-file", self.key, self.data)
        with open(self.image, "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self.run_refused(BUSY, *put, self.at("/vault/g"), says="in use by another process")
            for force in ([], ["-f"], ["-f", "--size", "64M"]):
                self.run_refused(BUSY, "mkfs", *force, self.image, says="in use")
            self.run_refused(CHECK_COULD_NOT_LOOK, "check", self.image, says="in use")
        with subprocess.Popen([LATCHKEY, "session", str(self.image)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as session:
            session.stdin.write(b"open /\n")
            session.stdin.flush()
            session.stdout.readline()
            self.run_refused(BUSY, *put, self.at("/vault/g"), says="in use by another process")
            self.run_refused(BUSY, "mkfs", "-f", self.image, says="in use by another process")
            session.stdin.close()
        self.assertEqual(self.get_bytes("/vault/f"), self.data.read_bytes(), "nothing was lost")
        self.run_ok("put", "-q", *put[1:], self.at("/vault/g"))
        with loop_device(self.image) as device:
            self.run_refused(BUSY, "ls", self.at("/"), says="backs an attached loop device")
            self.run_refused(BUSY, "mkfs", "-f", self.image, says="backs an attached loop device")
            with subprocess.Popen([LATCHKEY, "session", device], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE) as session:
                session.stdin.write(b"open /\n")
                session.stdin.flush()
                session.stdout.readline()
                self.run_refused(BUSY, "mkfs", "-f", device, says="in use")
                session.stdin.close()
            with open(device, "rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX)  # as udev does: no reason to refuse
                self.assertEqual(self.run_ok("ls", f"{device}:/"), "vault\n")

    def test_a_mounted_device(self):
        if not shutil.which("mkfs.ext4"):
            self.skipTest("mkfs.ext4 is not installed")
        place = self.folder / "mounted"
        place.mkdir()
        image = self.folder / "ext4"
        image.write_bytes(bytes(32 * MIB))
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        with loop_device(image) as device:
            done = subprocess.run(["mount", device, str(place)], capture_output=True, text=True)
            if done.returncode != 0:
                self.skipTest(f"nothing can be mounted here: {done.stderr.strip()}")
            try:
                self.run_refused(BUSY, "mkfs", device, says="mounted or in use")
                self.run_refused(BUSY, "ls", f"{device}:/", says="mounted or in use")
                self.run_refused(BUSY, "mkfs", image, says="backs an attached loop device")
            finally:
                subprocess.run(["umount", str(place)], check=True)

    def test_a_truncated_image(self):
        size = self.image.stat().st_size
        whole = self.image.read_bytes()
        for shorter in (size - 4096, size // 2, 16 * MIB):
            os.truncate(self.image, shorter)
            self.run_refused(WRONG_DEVICE, "ls", self.at("/"), says="truncated")
            self.run_refused(WRONG_DEVICE, "put", self.data, self.at("/g"), says="truncated")
            for json_ in ([], ["--json"]):
                self.run_refused(CHECK_COULD_NOT_LOOK, "check", *json_, self.image,
                                 says="truncated")
            self.run_refused(BUSY, "mkfs", self.image, says="-f overwrites")
        # Grown again the end is zeros: what lay there is missed, not made up.
        os.truncate(self.image, size)
        done = self.run_raw("get", "-q", "--key-file", self.key, self.at("/vault/f"), "-")
        if done.returncode == OK:
            self.assertEqual(done.stdout, self.data.read_bytes())
        else:
            self.assertEqual(done.returncode, INTEGRITY)
            self.assertEqual(len(done.stderr.splitlines()), 1)
        # Longer than the store: the rest is nobody's.
        self.image.write_bytes(whole + bytes(MIB))
        self.assertEqual(self.get_bytes("/vault/f"), self.data.read_bytes())


class Damage(CliTest):
    NODE = 16384

    def setUp(self):
        super().setUp()
        self.random = random.Random(SEED)
        self.make_store("16M")
        self.data = self.host_file("data", os.urandom(MIB))
        self.put(self.data, "/vault/f")
        small = self.folder / "small"
        small.mkdir()
        for i in range(60):
            (small / f"s{i}").write_bytes(bytes([i]) * 5000)
        self.put(f"{small}/.", "/vault", "-r")
        self.size = self.image.stat().st_size
        self.good = self.image.read_bytes()

    def run(self, result=None):
        with self.subTest(LATCHKEY_SEED=SEED):
            return super().run(result)

    def flip(self, *offsets):
        """The good image with one bit flipped at each offset."""
        image = bytearray(self.good)
        for offset in offsets:
            image[offset] ^= 1 << self.random.randrange(8)
        self.image.write_bytes(image)

    def newest_set(self):
        """The two superblocks of the last commit, the newer set."""
        places = superblocks(self.size)
        generation = [int.from_bytes(self.good[p + 16:p + 24], "little") for p in places]
        self.assertEqual(generation[0] % 2 + generation[1] % 2, 1)
        return [p for p, g in zip(places, generation) if g == max(generation)]

    def live_nodes(self):
        """Pairs of places that hold the same node, those of the newest root first."""
        pairs = {}
        for at in range(0, self.size, 4096):
            if self.good[at:at + 4] == b"LKND":
                pairs.setdefault(self.good[at:at + self.NODE], []).append(at)
        root = self.newest_set()[0] + 88
        first = tuple(4096 * int.from_bytes(self.good[root + i:root + i + 8], "little")
                      for i in (0, 8))
        twins = [tuple(p) for p in pairs.values() if len(p) == 2]
        self.assertIn(tuple(sorted(first)), twins)
        return sorted(twins, key=lambda pair: pair != tuple(sorted(first)))

    def assert_all_there(self):
        self.assertEqual(self.get_bytes("/vault/f"), self.data.read_bytes())
        self.assertEqual(self.get_bytes("/vault/s59"), bytes([59]) * 5000)

    def test_a_bit_in_any_one_superblock(self):
        fields = (0, 8, 12, 16, 24, 40, 52, 88, 104, 130, 152, 300, 2000, 4070)
        for place in superblocks(self.size):
            self.flip(place + self.random.choice(fields))
            self.assert_all_there()
            answer = self.run_json("check", "check", "-q", self.image)
            self.assertEqual((answer["clean"], len(answer["notes"])), (True, 1))
            self.assertIn(str(place), answer["notes"][0]["where"])
            for i in range(2):  # each commit writes one set anew
                self.put(self.host_file("more", b"more"), f"/vault/more{i}")
            self.assertEqual(self.assert_clean()["notes"], [])

    def test_a_bit_in_both_newest_superblocks_is_told(self):
        """The generation before is opened. Every verb says so, until the next commits are there."""
        self.flip(*(place + 2000 for place in self.newest_set()))

        def answer_of(*words):
            done = self.run_raw(*words)
            lines = done.stderr.decode().splitlines()
            self.assertEqual((done.returncode, len(lines)), (OK, 1), lines)
            self.assertRegex(lines[0], "^latchkey: .*img: warning: .*older generation")
            return done.stdout.decode()

        self.assertTrue(self.member(answer_of("info", "--json", self.image),
                                    "info")["store"]["stepped_back"])
        check = self.member(answer_of("check", "-q", "--json", self.image), "check")
        self.assertEqual((check["clean"], check["stepped_back"], len(check["notes"])),
                         (True, True, 2))
        answer_of("ls", self.at("/"))
        answer_of("put", "-q", self.host_file("more", b"more"), self.at("/more"))
        self.assertEqual(self.get_bytes("/more"), b"more")
        self.assertFalse(self.run_json("info", "info", self.image)["store"]["stepped_back"])
        self.assertFalse(self.assert_clean()["stepped_back"])

    def test_a_bit_in_all_superblocks(self):
        for field in (8, 12, 16, 40, 88, 130, 4070):
            self.flip(*(place + field for place in superblocks(self.size)))
            self.run_refused(INTEGRITY, "ls", self.at("/"), says="no copy of the superblock")
            self.run_refused(INTEGRITY, "put", self.data, self.at("/x"))
            self.run_refused(BUSY, "mkfs", self.image, says="left of a latchkey store.*-f")
            self.assert_found_damaged("no copy of the superblock")
        self.flip(*(place + 3 for place in superblocks(self.size)))
        self.run_refused(WRONG_DEVICE, "ls", self.at("/"), says="not a latchkey store")

    def assert_found_damaged(self, says="."):
        done = self.run_raw("check", "-q", "--json", self.image)
        self.assertEqual((done.returncode, done.stderr), (CHECK_ERRORS, b""))
        answer = self.member(done.stdout.decode(), "check")
        self.assertEqual(answer["clean"], False)
        for error in answer["errors"]:
            self.assertLessEqual({"what", "where"}, set(error))
        self.assertRegex(answer["errors"][0]["what"], says)
        return answer

    def test_a_bit_in_one_place_of_a_node_costs_nothing(self):
        root, *others = self.live_nodes()
        for pair in (root, *self.random.sample(others, min(6, len(others)))):
            place = self.random.choice(pair)
            self.flip(place + self.random.randrange(self.NODE))
            self.assert_all_there()
            self.put(self.host_file("more", b"more"), "/vault/more")
            self.assertEqual(self.get_bytes("/vault/more"), b"more")
        self.flip(root[0] + self.random.randrange(self.NODE))
        answer = self.assert_found_damaged("first|second")
        self.assertEqual(len(answer["errors"]), 1)
        mended = self.run_json("scrub", "scrub", "-q", self.image)
        self.assertEqual([error["mended"] for error in mended["errors"]], [True])
        self.assertEqual((mended["mended"], mended["bad_blocks"]), (1, 0))
        self.assertEqual(self.assert_clean()["errors"], [])

    def test_free_space_is_repaired(self):
        """Every bitmap and every map of them is bad: no verb writes; a repair derives them."""
        blocks = [at for at in range(0, self.size, 4096)
                  if self.good[at:at + 8] in (b"lkbitmap", b"lksltmap")]
        self.flip(*(at + self.random.randrange(64, 4096) for at in blocks))
        self.run_refused(INTEGRITY, "put", "--key-file", self.key, self.data, self.at("/vault/n"),
                         says="check tells")
        self.assert_found_damaged()
        done = self.run_raw("check", "--repair", "-q", "--json", self.image)
        answer = self.member(done.stdout.decode(), "check")
        self.assertEqual((done.returncode, answer["clean"], answer["errors"]),
                         (CHECK_CORRECTED, True, []))
        self.assertRegex(answer["mended"][0]["what"], "^free space")
        again = self.run_json("check", "check", "--repair", "--data", "-q", self.image)
        self.assertEqual((again["clean"], again["mended"]), (True, []))
        self.assert_all_there()
        self.put(self.data, "/vault/n")
        self.assert_clean()

    def test_a_bit_in_both_places_of_a_node_is_told(self):
        told = 0
        root, *others = self.live_nodes()
        for pair in (root, *self.random.sample(others, min(12, len(others)))):
            self.flip(*(place + self.random.randrange(self.NODE) for place in pair))
            ok = self.folder / "out"
            codes = []
            for words in (["ls", "--key-file", self.key, self.at("/vault")],
                          ["get", "-q", "--key-file", self.key, self.at("/vault/f"), ok],
                          ["put", "-q", "--key-file", self.key, self.data, self.at("/vault/n")],
                          ["rm", "--key-file", self.key, self.at("/vault/s1")]):
                done = self.run_raw(*words)
                codes.append(done.returncode)
                self.assertIn(done.returncode, (OK, INTEGRITY), done.stderr)
                if done.returncode != OK:
                    self.assertRegex(done.stderr.decode(), r"^latchkey: .*(damaged|malformed).*\n$")
            if codes[1] == OK:
                self.assertEqual(ok.read_bytes(), self.data.read_bytes())
            if INTEGRITY in codes:
                told += 1
                self.assert_found_damaged()
        self.assertGreater(told, 0)
        self.flip(*(place + 40 for place in root))
        self.run_refused(INTEGRITY, "ls", self.at("/"),
                         says=f"offset ({root[0]}|{root[1]}) .*check tells")

    def test_a_bit_in_the_data_is_found_and_never_handed_out(self):
        rows = self.run_json("map", "map", "--key-file", self.key, self.at("/vault/f"))["extents"]
        row = self.random.choice(rows)
        at = row["device_offset"] + self.random.randrange(row["length"])
        self.flip(at)
        get = ("get", "-q", "--key-file", self.key, self.at("/vault/f"), self.folder / "out")
        file_offset = row["file_offset"] + (at - row["device_offset"]) // 4096 * 4096
        self.run_refused(INTEGRITY, *get, says=f"f: .*at file offset {file_offset}, "
                         f"at device offset {at // 4096 * 4096} ")
        self.assertEqual(self.get_bytes("/vault/s7"), bytes([7]) * 5000)
        done = self.run_raw("check", "--data", "--json", "-q", self.image)
        self.assertEqual(done.returncode, CHECK_ERRORS)
        self.assertRegex(done.stdout.decode(), '"data_read":true')
        scrub = self.run_raw("scrub", "-q", "--json", "--rate", "1G", "--key-file", self.key,
                             self.image)
        self.assertEqual(scrub.returncode, INTEGRITY)
        self.assertEqual(self.member(scrub.stdout.decode(), "scrub")["files"],
                         [{"path": "/vault/f", "file_offset": file_offset, "unreadable": False,
                           "device_offset": at // 4096 * 4096}])
        locked = self.run_raw("scrub", "-q", self.image)  # names as ls shows them
        self.assertRegex(locked.stdout.decode(),
                         f"^/vault/[^:/]+: file offset {file_offset}, device offset "
                         f"{at // 4096 * 4096}: does not match its checksum\n")
        # Without --data it is clean as far as was looked, and says how far.
        self.assertIn("data not read", self.run_ok("check", "-q", self.image))
        self.assertIs(self.run_json("check", "check", "-q", self.image)["data_read"], False)


class Machine(CliTest):
    def test_a_refused_io_uring_setup_is_one_line_and_10(self):
        self.make_store("32M")
        data = self.host_file("data", b"data")
        self.put(data, "/vault/f")
        new = self.folder / "new"
        for words in (["ls", self.at("/")], ["info", self.image], ["mkfs", "--size", "32M", new],
                      ["put", "--key-file", self.key, data, self.at("/vault/g")],
                      ["get", "--key-file", self.key, self.at("/vault/f"), "-"],
                      ["bench", self.image], ["torture", "--json", self.image]):
            with self.subTest(words=words):
                self.run_refused(UNAVAILABLE, *words, says="io_uring.*EPERM.*io_uring_disabled",
                                 preexec_fn=refuse_io_uring)
        self.run_refused(CHECK_COULD_NOT_LOOK, "check", self.image, preexec_fn=refuse_io_uring)
        self.assertFalse(new.exists())
        self.assertEqual(self.run_ok("key", "id", "--key-file", self.key,
                                     preexec_fn=refuse_io_uring),
                         identifier_of(self.key.read_bytes()) + "\n")
        self.assert_clean()

    def test_the_demo_ends_with_one_line_where_io_uring_is_refused(self):
        demo = pathlib.Path(__file__).parent / "demo" / "demo.py"
        (demo.parents[2] / "build").mkdir(exist_ok=True)
        done = subprocess.run([sys.executable, demo], capture_output=True,
                              env=os.environ | {"LATCHKEY_BINARY": LATCHKEY},
                              preexec_fn=refuse_io_uring)
        self.assertEqual(done.returncode, UNAVAILABLE, done.stderr)
        self.assertRegex(done.stderr, rb"^latchkey: [^\n]*io_uring[^\n]*\n$")

    def test_a_small_lock_limit_works_or_says_what_to_do(self):
        nobody = as_nobody()
        self.make_store("32M")
        data = self.host_file("data", os.urandom(MIB))
        give_to_nobody(self.folder)
        for limit in (0, 64 << 10, 512 << 10, 2 * MIB, 8 * MIB):
            for secrets in ("memfd_secret", "locked"):
                with self.subTest(limit=limit, secrets=secrets):
                    words = ["put", "-q", "--secrets", secrets, "--key-file", str(self.key),
                             str(data), self.at("/vault/f")]
                    done = subprocess.run(
                        [*nobody, LATCHKEY, *words], capture_output=True,
                        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK,
                                                              (limit, limit)))
                    if limit == 8 * MIB:
                        self.assertEqual((done.returncode, done.stderr), (OK, b""))
                    if done.returncode != OK:
                        self.assert_refused(done, NO_MEMORY, "ulimit -l 8192")
        self.assertEqual(self.get_bytes("/vault/f"), data.read_bytes())
        self.assert_clean()


if __name__ == "__main__":
    unittest.main()
