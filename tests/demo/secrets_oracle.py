"""What a master key's secrets look like in memory, computed outside of latchkey with the standard
library: HKDF-SHA512 states, extent keys and AES-256 round keys (FIPS 180-4, RFC 5869, FIPS 197)."""
import hashlib
import hmac
import struct


def _root(value, power, bits):
    """floor(value ** (1 / power) * 2 ** bits) mod 2 ** bits"""
    target, low, high = value << (bits * power), 0, 1 << (bits + 8)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle ** power <= target else (low, middle - 1)
    return low % (1 << bits)


def _primes(count):
    found, number = [], 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


_K = [_root(p, 3, 64) for p in _primes(80)]
_H = [_root(p, 2, 64) for p in _primes(8)]
_M = (1 << 64) - 1


def _rotate(x, n):
    return ((x >> n) | (x << (64 - n))) & _M


def sha512_state(block):
    """The state after one 128-byte block."""
    w = list(struct.unpack(">16Q", block))
    for i in range(16, 80):
        a = _rotate(w[i - 15], 1) ^ _rotate(w[i - 15], 8) ^ (w[i - 15] >> 7)
        b = _rotate(w[i - 2], 19) ^ _rotate(w[i - 2], 61) ^ (w[i - 2] >> 6)
        w.append((w[i - 16] + a + w[i - 7] + b) & _M)
    a, b, c, d, e, f, g, h = _H
    for i in range(80):
        s1 = _rotate(e, 14) ^ _rotate(e, 18) ^ _rotate(e, 41)
        t1 = (h + s1 + ((e & f) ^ (~e & g)) + _K[i] + w[i]) & _M
        s0 = _rotate(a, 28) ^ _rotate(a, 34) ^ _rotate(a, 39)
        t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) & _M
        a, b, c, d, e, f, g, h = (t1 + t2) & _M, a, b, c, (d + t1) & _M, e, f, g
    return [(x + y) & _M for x, y in zip(_H, (a, b, c, d, e, f, g, h))]


def prk(master):
    return hmac.new(bytes(64), master, hashlib.sha512).digest()


def hkdf_states(master):
    """Inner and outer HMAC state, as eight little-endian words each."""
    key = prk(master).ljust(128, b"\0")
    states = [sha512_state(bytes(b ^ pad for b in key)) for pad in (0x36, 0x5c)]
    return b"".join(struct.pack("<8Q", *state) for state in states)


def extent_key(master, nonce):
    info = b"fscrypt\0" + bytes([9]) + nonce + b"\x01"
    return hmac.new(prk(master), info, hashlib.sha512).digest()


def name_key(master, nonce):
    info = b"fscrypt\0" + bytes([2]) + nonce + b"\x01"
    return hmac.new(prk(master), info, hashlib.sha512).digest()[:32]


def _sbox():
    box, p, q = [0] * 256, 1, 1
    while True:
        p = p ^ ((p << 1) & 0xFF) ^ (0x1B if p & 0x80 else 0)
        q ^= (q << 1) & 0xFF
        q ^= (q << 2) & 0xFF
        q ^= (q << 4) & 0xFF
        q ^= 0x09 if q & 0x80 else 0
        x = q
        for n in range(1, 5):
            x ^= ((q << n) | (q >> (8 - n))) & 0xFF
        box[p] = x ^ 0x63
        if p == 1:
            box[0] = 0x63
            return box


_SBOX = _sbox()


def round_keys(key32):
    words, rcon = [list(key32[i:i + 4]) for i in range(0, 32, 4)], 1
    for i in range(8, 60):
        t = list(words[i - 1])
        if i % 8 == 0:
            t = [_SBOX[x] for x in t[1:] + t[:1]]
            t[0] ^= rcon
            rcon = ((rcon << 1) ^ 0x1B) & 0xFF if rcon & 0x80 else rcon << 1
        elif i % 8 == 4:
            t = [_SBOX[x] for x in t]
        words.append([a ^ b for a, b in zip(words[i - 8], t)])
    flat = bytes(b for word in words for b in word)
    return [flat[i:i + 16] for i in range(0, 240, 16)]


def _times(a, b):
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a, b = (a << 1) ^ (0x11B if a & 0x80 else 0), b >> 1
    return product


_INVERSE_MIX = [[_times(byte, factor) for byte in range(256)] for factor in (14, 11, 13, 9)]


def inverse_round_keys(key32):
    """Those of the equivalent inverse cipher that are not the cipher's own (FIPS 197, 5.3.5)."""
    keys = []
    for key in round_keys(key32)[1:-1]:
        keys.append(bytes(
            _INVERSE_MIX[0][key[c + r]] ^ _INVERSE_MIX[1][key[c + (r + 1) % 4]] ^
            _INVERSE_MIX[2][key[c + (r + 2) % 4]] ^ _INVERSE_MIX[3][key[c + (r + 3) % 4]]
            for c in range(0, 16, 4) for r in range(4)))
    return keys


def needles(master, nonces):
    """Sixteen-byte pieces by group."""
    groups = {"master": [master[i:i + 16] for i in range(0, len(master) - 15, 16)]}
    states = hkdf_states(master)
    groups["hkdf_state"] = [states[i:i + 16] for i in range(0, 128, 16)]
    keys = [extent_key(master, nonce) for nonce in nonces]
    groups["extent_key"] = [key[i:i + 16] for key in keys for i in range(0, 64, 16)]
    groups["round_key"] = [piece for key in keys for half in (key[:32], key[32:])
                           for piece in round_keys(half)[2:]]
    groups["round_key"] += [piece for key in keys for piece in inverse_round_keys(key[:32])]
    return groups


def passing_needles(master, nonces, directories):
    """What is there only while a call works on it: the pseudo-random key between extract and
    expand, keys of names with their round keys, and words as SHA-512 has them, turned around."""
    names = [name_key(master, nonce) for nonce in directories]
    words = [master, prk(master), hkdf_states(master)]
    words += [extent_key(master, nonce) for nonce in nonces]
    return {"pseudo_random_key": [prk(master)],
            "name_key": [piece for key in names
                         for piece in round_keys(key) + inverse_round_keys(key)],
            "turned_word": [word[i:i + 8][::-1] for word in words
                            for i in range(0, len(word), 8)]}


_PAGE = 4096


def without_zero_pages(data):
    """What a needle can lie in; the pages that stay keep their order."""
    zero = bytes(_PAGE)
    pages = (data[at:at + _PAGE] for at in range(0, len(data), _PAGE))
    return b"".join(page for page in pages if page != zero)


def scan_process(pid, groups):
    """How many needles of each group lie in any readable mapping of the process."""
    found = {name: set() for name in groups}
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, access = line.split()[:2]
            if not access.startswith("r") or "[v" in line:
                continue
            first, end = (int(x, 16) for x in span.split("-"))
            try:
                memory.seek(first)
                data = without_zero_pages(memory.read(end - first))
            except (OSError, ValueError, OverflowError):
                continue  # secretmem answers EIO: that is its point
            for name, pieces in groups.items():
                found[name].update(p for p in pieces if p not in found[name] and p in data)
    return {name: len(hits) for name, hits in found.items()}
