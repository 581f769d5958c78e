#!/usr/bin/env python3
"""Goal: the format is what docs/disk_format.md says, not what our code happens to do.
Method: an independent decryptor, written from the format and `latchkey map --json` alone (standard
library and python3-cryptography), reads extents from the raw image and gets the plaintext."""
import hashlib
import hmac
import json
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import unittest

try:
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
except ImportError:
    Cipher = None

LATCHKEY = os.environ.get("LATCHKEY_BINARY", "build/release/latchkey")
UNIT = 4096


def hkdf(master, context, info, size):
    """HKDF-SHA512 with no salt and one block of output; info = label, context, bytes."""
    prk = hmac.new(bytes(64), master, hashlib.sha512).digest()
    message = b"fscrypt\0" + bytes([context]) + info + b"\x01"
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


@unittest.skipIf(Cipher is None, "python3-cryptography is not installed")
class Decryptor(unittest.TestCase):
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


if __name__ == "__main__":
    unittest.main()
