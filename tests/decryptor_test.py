#!/usr/bin/env python3
"""Goal: the format is what docs/disk_format.md says, not what our code happens to do.
Method: an independent decryptor, written from the format and `latchkey map --json` alone (standard
library and python3-cryptography), reads extents from the raw image and gets the plaintext; an
independent reader finds files by their names, from the superblock on, with the offsets that the
document's own tables give; and every table is held against the sizes that the code asserts."""
import functools
import hashlib
import hmac
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import tempfile
import time
import unittest

try:
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError:
    Cipher = None

LATCHKEY = os.environ.get("LATCHKEY_BINARY", "build/release/latchkey")
TOOLS = pathlib.Path(os.environ.get("LATCHKEY_TOOLS", pathlib.Path(LATCHKEY).parent / "tests"))
UNIT = 4096
ROOT = pathlib.Path(__file__).resolve().parent.parent


def hkdf(master, context, info, size, label=b"fscrypt\0"):
    """HKDF-SHA512 with no salt and one block of output; info = label, context, bytes."""
    prk = hmac.new(bytes(64), master, hashlib.sha512).digest()
    message = label + bytes([context]) + info + b"\x01"
    return hmac.new(prk, message, hashlib.sha512).digest()[:size]


def open_unit(key, unit, data):
    tweak = struct.pack("<QQ", unit, 0)
    decryptor = Cipher(algorithms.AES(key), modes.XTS(tweak), default_backend()).decryptor()
    return decryptor.update(data) + decryptor.finalize()


def decrypt(image, master, file_map):
    plain = bytearray(file_map["size"] + UNIT)
    identifier = hkdf(master, 1, b"", 16).hex()
    with open(image, "rb") as raw:
        for row in file_map["extents"]:
            if row["key_identifier"] != identifier:
                raise ValueError("another master key")
            assert row["mode"] == 1 and row["length"] % UNIT == 0
            key = hkdf(master, 9, bytes.fromhex(row["nonce"]), 64)
            raw.seek(row["device_offset"])
            for number in range(row["length"] // UNIT):
                at = row["file_offset"] + number * UNIT
                data = open_unit(key, row["first_unit"] + number, raw.read(UNIT))
                plain[at:at + UNIT] = data
    return bytes(plain[:file_map["size"]])


# --- the document's tables ----------------------------------------------------------------------

def read_tables():
    """{struct: (size, {field: (offset, size)})}; a table follows the line that names its struct."""
    tables, name = {}, None
    for line in (ROOT / "docs/disk_format.md").read_text().splitlines():
        if title := re.search(r"`\w+::(\w+)`, (\d+) bytes?\b", line):
            name = title[1]
            tables[name] = int(title[2]), {}
        elif name and (row := re.match(r"\| (\d+) \| (\d+) \| (\w+) \|", line)):
            tables[name][1][row[3]] = int(row[1]), int(row[2])
        elif name and tables[name][1] and not line.startswith("|"):
            name = None
    return tables


TABLES = read_tables()


def fields(struct_name, data):
    """Little-endian numbers up to 8 bytes, bytes beyond."""
    values = {}
    for field, (offset, size) in TABLES[struct_name][1].items():
        raw = data[offset:offset + size]
        values[field] = int.from_bytes(raw, "little") if size <= 8 else raw
    return values


def size_of(struct_name):
    return TABLES[struct_name][0]


class Tables(unittest.TestCase):
    def test_they_are_the_codes(self):
        sources = "".join(path.read_text() for folder in ("engine", "extent", "volume")
                          for path in (ROOT / folder).glob("*.h"))
        constants = dict(re.findall(r"constexpr \w+ (k\w+) = (\d+);", sources))
        structs = re.findall(r"LK_DISK_STRUCT\((\w+), (\w+)\)", sources)
        self.assertGreaterEqual(len(structs), 13)
        self.assertEqual({name for name, _ in structs}, set(TABLES))
        for name, size in structs:
            with self.subTest(struct=name):
                self.assertEqual(size_of(name), int(constants.get(size, size)))
                end = 0
                for offset, size_of_field in TABLES[name][1].values():
                    self.assertEqual(offset, end, "a gap or an overlap")
                    end += size_of_field
                self.assertGreaterEqual(end, size_of(name))
        for name, field, offset in re.findall(r"LK_DISK_FIELD\((\w+), (\w+), (\d+)\)", sources):
            with self.subTest(struct=name, field=field):
                self.assertEqual(TABLES[name][1][field][0], int(offset))


# --- a store, read with them --------------------------------------------------------------------

def make_crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = make_crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def open_name(key, stored):
    """AES-256-CBC-CTS, CS3: the last two blocks change places, then it is CBC with zero IV."""
    def aes_cbc(data):
        decryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16)), default_backend()).decryptor()
        return decryptor.update(data) + decryptor.finalize()
    last = len(stored) % 16 or 16
    body, full, short = stored[:-16 - last], stored[-16 - last:-last], stored[-last:]
    ecb = Cipher(algorithms.AES(key), modes.ECB(), default_backend()).decryptor()
    stolen = (ecb.update(full) + ecb.finalize())[last:]
    return aes_cbc(body + short + stolen + full)[:len(stored)].rstrip(b"\0")


class Store:
    """Reads an image by the document alone; asserts what it says of what is met on the way."""

    def __init__(self, path, master):
        self.raw = path.read_bytes()
        self.master = master
        self.used = set(range(16))
        end = len(self.raw) // UNIT * UNIT
        places = [65536, (1 << 20) + 65536, end - 65536, end - (1 << 20) - 65536]
        self.used.update(place // UNIT for place in places)
        copies = [fields("SuperblockDisk", self.raw[place:place + UNIT]) for place in places]
        self.superblock = max(copies, key=lambda copy: copy["generation"])
        written = [copy for number, copy in enumerate(copies)
                   if number % 2 == self.superblock["generation"] % 2]
        for number, copy in enumerate(copies):
            assert copy["magic"] == int.from_bytes(b"latchkey", "little")
            assert copy["place_number"] == number and copy["format_version"] == 2
            assert not any(copy["reserved"] + copy["volume_key"])
        assert all(copy["generation"] == self.superblock["generation"] for copy in written)
        self.trees = {1: self.tree(1, self.superblock["root"])}
        for (tree, kind, offset), value in list(self.trees[1].items()):
            assert (kind, offset) == (1, 0) and len(value) == size_of("TreeRecordDisk")
            self.trees[tree] = self.tree(tree, fields("TreeRecordDisk", value)["root"])
        assert set(self.trees) == {1, 2, 3, 4, 256} and not self.trees[3]
        # Type 2 is the count of a node that trees share.
        self.extents = [self.extent(key, value) for key, value in self.trees[2].items()
                        if key[1] != 2]
        self.log = list(self.read_log())
        for record in self.log:
            self.enter(record)

    def log_block(self, place, sequence):
        """Its checksum is XXH3, which python has not: what a crash tears is not read here."""
        block = self.raw[place * UNIT:(place + 1) * UNIT]
        head = fields("LogBlockDisk", block)
        root = fields("PointerDisk", self.superblock["root"])
        if (head["magic"], head["sequence"]) != (int.from_bytes(b"lkfsylog", "little"), sequence) \
                or head["volume_id"] != self.superblock["volume_id"] \
                or head["generation"] != self.superblock["generation"] \
                or head["root"] != root["checksum"]:
            return None, None
        return head, block[size_of("LogBlockDisk"):][:head["bytes"]]

    def read_log(self):
        log_head = fields("LogHeadDisk", self.superblock["log_head"])
        assert not any(log_head["reserved"])
        place, following, previous, sequence = log_head["place0"], log_head["place1"], bytes(32), 0
        while place:
            head, body = self.log_block(place, sequence)
            if head is None:
                return
            assert head["previous"] == previous and head["next0"] == following
            for _ in range(head["records"]):
                record = fields("LogRecordDisk", body)
                assert record["reserved"] == 0 and record["kind"] == (not record["extents"])
                body = body[size_of("LogRecordDisk"):]
                record["note"], body = body[:record["note_size"]], body[record["note_size"]:]
                record["values"] = []
                for _ in range(record["extents"]):
                    extent = fields("ExtentHeadDisk", body[8:])
                    size = 8 + size_of("ExtentHeadDisk") + extent["context_size"] + \
                        4 * extent["blocks"]
                    record["values"].append((int.from_bytes(body[:8], "little"), body[8:size]))
                    body = body[size:]
                yield record
            assert not body
            place, following = following, head["next1"]
            previous, sequence = head["checksum"], sequence + 1

    def enter(self, record):
        """Its pieces take the place of what lay there, block by block."""
        tree, inode = self.trees[record["tree"]], record["object"]
        if record["kind"]:
            return self.enter_name(tree, inode, record["note"])
        before = fields("InodeDisk", tree[inode, 1, 0])
        tree[inode, 1, 0] = record["note"][:size_of("InodeDisk")]
        after = fields("InodeDisk", tree[inode, 1, 0])
        for field in ("kind", "encrypted", "key_id", "nonce", "links"):
            assert before[field] == after[field]
        held = set()
        for first, value in record["values"]:
            self.extents.append(self.extent((first, 1, 0), value))
            held.update(range(first, first + self.extents[-1]["blocks"]))
        pieces = record["note"][size_of("InodeDisk"):]
        for at in range(0, len(pieces), size_of("LogPieceDisk")):
            entry = fields("LogPieceDisk", pieces[at:])
            piece = fields("MapDisk", entry["piece"])
            for index in range(piece["blocks"]):
                self.put_block(tree, inode, entry["offset"] + index * UNIT,
                               piece["disk_block"] + index)
                held.remove(piece["disk_block"] + index)
        assert not held

    def enter_name(self, tree, inode, note):
        """A file that was made, which nothing in the tree is of."""
        assert not any(key[0] == inode for key in tree)
        name = fields("LogNameDisk", note[size_of("InodeDisk"):])
        stored = note[size_of("InodeDisk") + size_of("LogNameDisk"):]
        assert fields("InodeDisk", tree[name["directory"], 1, 0])["kind"] == 2
        tree[inode, 1, 0] = note[:size_of("InodeDisk")]
        entry = struct.pack("<QBB", inode, 1, len(stored)) + stored
        tree[name["directory"], 3, name["place"]] = entry
        back = struct.pack("<QB", name["directory"], len(stored)) + stored
        tree[inode, 2, 0] = back  # by a hash in truth, which nothing here looks for

    @staticmethod
    def put_block(tree, inode, offset, block):
        for key, value in list(tree.items()):
            piece = fields("MapDisk", value) if key[:2] == (inode, 4) else {"blocks": 0}
            if not key[2] <= offset < key[2] + piece["blocks"] * UNIT:
                continue
            del tree[key]
            for index in range(piece["blocks"]):
                single = struct.pack("<QII", piece["disk_block"] + index, 1, 0)
                tree[inode, 4, key[2] + index * UNIT] = single
        tree[inode, 4, offset] = struct.pack("<QII", block, 1, 0)

    def tree(self, number, pointer_bytes):
        """All records under a pointer, in the order of their keys."""
        pointer = fields("PointerDisk", pointer_bytes)
        size = self.superblock["node_bytes"]
        node, twin = (self.raw[pointer[place] * UNIT:pointer[place] * UNIT + size]
                      for place in ("place0", "place1"))
        assert node == twin
        for place in ("place0", "place1"):
            self.used.update(range(pointer[place], pointer[place] + size // UNIT))
        head = fields("NodeHeader", node)
        assert head["magic"] == int.from_bytes(b"LKND", "little")
        assert head["tree"] == number or min(head["tree"], number) >= 256
        assert head["level"] == pointer["level"] and head["generation"] == pointer["generation"]
        assert head["place"] == pointer["place0"]
        assert head["volume_id"] == self.superblock["volume_id"]
        records, name = {}, "InteriorEntry" if head["level"] else "LeafSlot"
        for index in range(head["count"]):
            at = size_of("NodeHeader") + index * size_of(name)
            item = fields(name, node[at:at + size_of(name)])
            if head["level"]:
                records.update(self.tree(number, item["child"]))
            else:
                key = fields("KeyDisk", item["key"])
                records[key["object"], key["type"], key["offset"]] = \
                    node[item["data_offset"]:item["data_offset"] + item["size"]]
        assert list(records) == sorted(records)
        return records

    def extent(self, key, value):
        record = fields("ExtentHeadDisk", value)
        assert key[1:] == (1, 0) and record["flags"] == 0 and 1 <= record["blocks"] <= 128
        at = size_of("ExtentHeadDisk")
        context = value[at:at + record["context_size"]]
        sums = value[at + len(context):]
        record["checksums"] = struct.unpack(f"<{record['blocks']}I", sums)
        record["context"] = fields("ContextDisk", context) if context else None
        record["first"] = key[0]
        self.used.update(range(key[0], key[0] + record["blocks"]))
        return record

    def block(self, number, policy):
        """One block of a file's data, opened."""
        [record] = [r for r in self.extents if r["first"] <= number < r["first"] + r["blocks"]]
        distance = number - record["first"]
        data = self.raw[number * UNIT:(number + 1) * UNIT]
        assert crc32c(data) == record["checksums"][distance]
        assert (record["context"] is not None) == bool(policy["encrypted"])
        if record["context"] is None:
            return data
        context = record["context"]
        assert context["key_id"] == policy["key_id"] == hkdf(self.master, 1, b"", 16)
        key = hkdf(self.master, 9, context["nonce"], 64)
        return open_unit(key, record["first_unit"] + distance, data)

    def of(self, inode, kind):
        return {key[2]: value for key, value in self.trees[256].items() if key[:2] == (inode, kind)}

    def item(self, inode):
        value = self.trees[256][inode, 1, 0]
        assert len(value) == size_of("InodeDisk")
        item = fields("InodeDisk", value)
        assert item["version"] == 1 and item["reserved0"] == 0
        policy = (item["contents_mode"], item["names_mode"], item["policy_flags"])
        assert policy == ((1, 4, 3) if item["encrypted"] else (0, 0, 0))
        return item

    @functools.cache
    def names(self, directory):
        item, found = self.item(directory), {}
        for value in self.of(directory, 3).values():
            entry = fields("EntryDisk", value)
            stored = value[size_of("EntryDisk"):]
            assert len(stored) == entry["name_size"]
            back = struct.pack("<QB", directory, len(stored)) + stored
            assert list(self.of(entry["inode"], 2).values()).count(back) == 1
            assert entry["kind"] == self.item(entry["inode"])["kind"]
            if item["encrypted"]:
                stored = open_name(hkdf(self.master, 2, item["nonce"], 32), stored)
            found[stored.decode()] = entry["inode"]
        return found

    def find(self, path):
        inode = 256
        for name in path.strip("/").split("/"):
            inode = self.names(inode)[name]
        return inode

    def target(self, path):
        """Of a symlink."""
        inode = self.find(path)
        item, pieces = self.item(inode), self.of(inode, 5)
        stored = b"".join(pieces.values())
        assert item["kind"] == 3 and list(pieces) == list(range(0, len(stored), 896))
        assert item["size"] == len(stored)
        if not item["encrypted"]:
            return stored
        assert int.from_bytes(stored[:2], "little") == len(stored) - 2
        assert len(stored) == 2 + 4093 or len(stored) % 32 == 2
        return open_name(hkdf(self.master, 2, item["nonce"], 32), stored[2:])

    def attributes(self, path):
        inode = self.find(path)
        item, found, left = self.item(inode), {}, 0
        key = hkdf(self.master, 1, item["nonce"], 32, b"latchkey\0")
        for offset, value in self.of(inode, 6).items():
            if offset & 255 == 0:
                assert left == 0
                head = fields("XattrDisk", value)
                value = value[size_of("XattrDisk"):]
                name, value = value[:head["name_size"]], value[head["name_size"]:]
                left, stored, first = head["stored_bytes"], b"", offset
                assert head["reserved"] == 0
                secret = item["encrypted"] and name.startswith(b"user.")
                clear = self.superblock["features_incompat"] & 1
                assert head["sealed"] == secret or (clear and secret)
            else:
                assert offset == first + 1 and left > 0
                first = offset
            stored += value
            left -= len(value)
            if left == 0:
                if head["sealed"]:
                    stored = AESGCM(key).decrypt(stored[:12], stored[12:], name)
                found[name.decode()] = stored
        assert left == 0
        return found

    def read(self, path):
        inode = self.find(path)
        item = self.item(inode)
        blocks = (item["size"] + UNIT - 1) // UNIT
        plain = bytearray(blocks * UNIT)
        for offset, value in self.of(inode, 4).items():
            piece = fields("MapDisk", value)
            assert piece["flags"] in (0, 1)
            if piece["flags"] == 1:  # a promise: zeros
                continue
            for index in range(piece["blocks"]):
                at = offset + index * UNIT
                plain[at:at + UNIT] = self.block(piece["disk_block"] + index, item)
        assert not any(plain[item["size"]:])
        return bytes(plain[:item["size"]])

    def bitmap(self):
        """Of region 0 of a store that has only that one."""
        taken = set(range(16)) | {place for place in (16, 272)}
        count = len(self.raw) // UNIT
        taken |= {count - 16, count - 272}
        spare = [block for block in range(400) if block not in taken]
        generation = self.superblock["generation"]
        block = spare[3 + generation % 3]
        slot_map = self.raw[block * UNIT:(block + 1) * UNIT]
        head = fields("SlotMapDisk", slot_map)
        assert head["magic"] == int.from_bytes(b"lksltmap", "little")
        assert head["generation"] == generation
        assert head["used_blocks"] == self.superblock["used_blocks"]
        assert slot_map == self.raw[spare[6 + generation % 3] * UNIT:][:UNIT]
        at = TABLES["SlotMapDisk"][1]["entries"][0]
        entry = int.from_bytes(slot_map[at:at + 4], "little")
        block = spare[entry & 3]
        bitmap = self.raw[block * UNIT:(block + 1) * UNIT]
        head = fields("BitmapSlotDisk", bitmap)
        assert head["magic"] == int.from_bytes(b"lkbitmap", "little") and head["region"] == 0
        at = TABLES["BitmapSlotDisk"][1]["checksum"][0]
        assert int.from_bytes(bitmap[at:at + 4], "little") & 0xfffffff == entry >> 4
        self.used.update(spare[:9])
        bits = bitmap[TABLES["BitmapSlotDisk"][1]["bits"][0]:]
        return {i for i in range(count) if bits[i // 8] >> i % 8 & 1}


class WithStore(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.image = self.folder / "img"
        self.key = self.folder / "key"
        self.run_latchkey("mkfs", "-q", "--size", "64M", self.image)
        self.run_latchkey("key", "generate", "-q", self.key)
        self.run_latchkey("policy", "set", "-q", "--key-file", self.key, f"{self.image}:/vault")

    def run_latchkey(self, *words):
        return subprocess.run([LATCHKEY, *map(str, words)], check=True, capture_output=True,
                              text=True).stdout


@unittest.skipIf(Cipher is None, "python3-cryptography is not installed")
class Decryptor(WithStore):
    def test_files_from_the_raw_device(self):
        rng = random.Random(7)
        for size in (1, 4095, 4096, 5000, 131072, 3_000_001):
            with self.subTest(size=size):
                plain = rng.randbytes(size)
                (self.folder / "file").write_bytes(plain)
                self.run_latchkey("put", "-q", "--key-file", self.key, self.folder / "file",
                                  f"{self.image}:/vault/f{size}")
                answer = self.run_latchkey("map", "--json", "--key-file", self.key,
                                           f"{self.image}:/vault/f{size}")
                file_map = json.loads(answer)["map"]
                self.assertEqual(file_map["size"], size)
                self.assertEqual(decrypt(self.image, self.key.read_bytes(), file_map), plain)
                nonces = [row["nonce"] for row in file_map["extents"]]
                self.assertGreaterEqual(len(set(nonces)), (size + 131071) // 131072)
                with self.assertRaises(ValueError):
                    decrypt(self.image, bytes(64), file_map)


@unittest.skipIf(Cipher is None, "python3-cryptography is not installed")
class Reader(WithStore):
    def test_files_by_their_names(self):
        rng = random.Random(11)
        names = ["a", "f" * 16, "g" * 31, "h" * 32, "i" * 33, "j" * 200, "k" * 255, "Schlüssel"]
        names += [f"{number:03}" for number in range(300)]  # a tree of several nodes
        wanted = {}
        (self.folder / "in/sub").mkdir(parents=True)
        for index, name in enumerate(names):
            path = ("sub/" if index % 2 else "") + name
            content = rng.randbytes(rng.choice((0, 1, 100, 4096)) if index else 300_001)
            (self.folder / "in" / path).write_bytes(content)
            wanted[path] = content
        links = {f"link{size}": (b"x" * size) for size in (1, 16, 31, 32, 33, 895, 897, 4093)}
        for name, text in links.items():
            (self.folder / "in" / name).symlink_to(text.decode())
        os.link(self.folder / "in/a", self.folder / "in/sub/hard")
        os.mkfifo(self.folder / "in/pipe")
        for target in ("vault/x", "clear"):
            self.run_latchkey("put", "-q", "-r", "--key-file", self.key, self.folder / "in",
                              f"{self.image}:/{target}")
        with open(self.folder / "in/a", "r+b") as changed:
            changed.truncate(100_000)
        for target in ("vault/x", "clear"):
            self.run_latchkey("put", "-q", "--key-file", self.key, self.folder / "in/a",
                              f"{self.image}:/{target}/a")
        wanted["a"] = wanted["a"][:100_000]
        store = Store(self.image, self.key.read_bytes())
        for target in ("vault/x", "clear"):
            for path, content in wanted.items():
                with self.subTest(path=f"{target}/{path}"):
                    self.assertEqual(store.read(f"{target}/{path}"), content)
        for target in ("vault/x", "clear"):
            for name, text in links.items():
                with self.subTest(link=f"{target}/{name}"):
                    self.assertEqual(store.target(f"{target}/{name}"), text)
            hard, pipe = store.find(f"{target}/sub/hard"), store.find(f"{target}/pipe")
            self.assertEqual(hard, store.find(f"{target}/a"))
            self.assertEqual(store.item(hard)["links"], 2)
            self.assertEqual((store.item(pipe)["kind"], store.item(pipe)["encrypted"]), (4, 0))
        self.assertEqual(store.bitmap(), store.used)
        self.assertEqual(len(store.used), store.superblock["used_blocks"])
        self.assertEqual(store.log, [])

    def test_what_was_synced_and_is_in_the_log_alone(self):
        with subprocess.Popen([LATCHKEY, "session", self.image], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as session:
            def ask(*words):
                session.stdin.write(" ".join(map(str, words)) + "\n")
                session.stdin.flush()
                return json.loads(session.stdout.readline())
            ask("load", self.key)
            ask("add")
            ask("write", "/vault/log", 2)
            deadline = time.monotonic() + 60
            while ask("counts")["acknowledged"] < 30 and time.monotonic() < deadline:
                time.sleep(0.01)
            acknowledged = ask("stop")["acknowledged"]
            session.kill()
        store = Store(self.image, self.key.read_bytes())
        self.assertGreater(len(store.log), 0)
        lines = 0
        for number in range(2):
            content = store.read(f"vault/log-{number}")
            found = content.decode().split("\n")
            self.assertEqual(found.pop(), "")
            self.assertEqual(found, [f"line {i:012} " + "." * 200 for i in range(len(found))])
            lines += len(found)
            out = self.folder / "out"
            self.run_latchkey("get", "-q", "--key-file", self.key,
                              f"{self.image}:/vault/log-{number}", out)
            self.assertEqual(out.read_bytes(), content)
            out.unlink()
        self.assertGreaterEqual(lines, acknowledged)
        self.run_latchkey("put", "-q", self.key, f"{self.image}:/entered-by-who-writes")
        self.assertEqual(Store(self.image, self.key.read_bytes()).log, [])


@unittest.skipIf(Cipher is None, "python3-cryptography is not installed")
class Attributes(unittest.TestCase):
    def test_extended_attributes_from_the_raw_device(self):
        with tempfile.TemporaryDirectory() as folder:
            image = pathlib.Path(folder) / "img"
            subprocess.run([TOOLS / "attribute_tool", image], check=True)
            store = Store(image, bytes(range(64)))
            wanted = {"user.name": b"a value", "user.empty": b"",
                      "user.long": bytes(i % 251 for i in range(60_000)),
                      "trusted.plain": b"for all to see"}
            for path in ("/vault/file", "/file"):
                clear = {"user.clear": b"without the key"} if path == "/vault/file" else {}
                self.assertEqual(store.attributes(path), wanted | clear)
                item = store.item(store.find(path))
                self.assertEqual((item["atime_ns"], item["mtime_ns"]), (2**64 - 1, 1_000_000_001))
                self.assertGreater(item["btime_ns"], 0)
            counted = store.trees[256][1, 9, 0]
            self.assertEqual(int.from_bytes(counted, "little"), 4)
            self.assertNotIn(wanted["user.long"][:64], b"".join(
                value for key, value in store.trees[256].items()
                if key[:2] == (store.find("/vault/file"), 6)))
            with self.assertRaises(Exception):
                Store(image, bytes(64)).attributes("/vault/file")


if __name__ == "__main__":
    unittest.main()
