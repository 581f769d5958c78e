#!/usr/bin/env python3
"""Published test vectors, re-typed from their public files into tests/vectors.

    tests/scripts/vectors.py --source "WHERE IT IS FROM, WHICH VERSION" PUBLIC_FILE...

What a file is, its name says: one of FORMATS below. Written is one record for each case that our
interfaces can express; how many cannot, and why, is in the head of the file that is written.
"""
import argparse
import collections
import hashlib
import json
import pathlib
import re

VECTORS = pathlib.Path(__file__).resolve().parents[1] / "vectors"
BLOCK = 16


class Skipped(Exception):
    """A case that is left out: the reason, in a few words."""


def require(condition, reason):
    if not condition:
        raise Skipped(reason)


def xts_record(name, key, iv, plain, cipher):
    """iv: the 16 bytes that are encrypted under the tweak key; ours are a 64-bit number."""
    require(len(key) == 128, "a key of another length than 512 bits")
    require(len(iv) <= 16 or int(iv[16:], 16) == 0, "a tweak of more than 64 bits")
    require(len(plain) % (2 * BLOCK) == 0, "not a whole number of blocks")
    tweak = int.from_bytes(bytes.fromhex(iv), "little")
    return {"name": name, "key": key, "tweak": f"{tweak:x}", "plaintext": plain,
            "ciphertext": cipher}


def aes_record(name, key, plain, cipher):
    require(len(key) == 64, "a key of another length than 256 bits")
    return {"name": name, "key": key, "plaintext": plain, "ciphertext": cipher}


def stanzas(text):
    """NIST's and OpenSSL's form: `name = value` lines, a blank line between cases; [SECTION]."""
    section, case = "", {}
    for line in text.splitlines() + [""]:
        if found := re.fullmatch(r"\[(\w+)\]", line.strip()):
            section = found[1].lower()
        elif found := re.fullmatch(r"(\w+) = *(\S*)", line.strip()):
            case[found[1].lower()] = found[2].lower()
        elif not line.strip() and case:
            yield section, case
            case = {}


def nist_xts(text):
    for section, case in stanzas(text):
        def record(case=case, section=section):
            require(int(case["dataunitlen"]) % 128 == 0, "not a whole number of blocks")
            iv = int(case["dataunitseqnumber"]).to_bytes(16, "little").hex()
            return xts_record(f"nist-{section}-{case['count']}", case["key"], iv, case["pt"],
                              case["ct"])
        yield record


def nist_aes(text, kind):
    for section, case in stanzas(text):
        def record(case=case, section=section):
            require(section == "encrypt", "the same case, for decryption")
            return aes_record(f"nist-{kind}-{case['count']}", case["key"], case["plaintext"],
                              case["ciphertext"])
        yield record


def openssl(text, cipher, name, record_of):
    """Cases of one cipher, in the file's order; all others do not count as skipped."""
    for _, case in stanzas(text):
        if case.get("cipher") == cipher:
            yield lambda case=case: record_of(name(case), case)


def openssl_fips_197(text):
    def record(name, case):
        require(case["plaintext"].startswith("00112233"), "not of FIPS-197")
        return aes_record(name, case["key"], case["plaintext"], case["ciphertext"])
    return openssl(text, "aes-256-ecb", lambda case: "fips-197-c3", record)


def openssl_ieee_1619(text):
    numbers = iter(range(10, 100))  # annex B's first vector with 256-bit keys is number 10
    def record(name, case):
        return xts_record(name, case["key"], case["iv"], case["plaintext"], case["ciphertext"])
    return openssl(text, "aes-256-xts", lambda case: f"ieee-{next(numbers)}", record)


def gcm_record(name, key, iv, aad, plain, cipher, tag, result):
    require(len(key) == 64, "a key of another length than 256 bits")
    require(len(iv) == 24, "a nonce of another length than 96 bits")
    require(len(tag) == 32, "a tag of another length than 128 bits")
    return {"name": name, "key": key, "nonce": iv, "associated": aad, "plaintext": plain,
            "ciphertext": cipher, "tag": tag, "result": result}


def nist_gcm(text):
    for _, case in stanzas(text):
        def record(case=case):
            name = f"nist-{len(case['pt']) * 4}-{len(case['aad']) * 4}-{case['count']}"
            taken = gcm_record(name, case["key"], case["iv"], case["aad"], case["pt"], case["ct"],
                               case["tag"], "valid")
            require(int(case["count"]) < 4, "a fifth or later case of its lengths")
            return taken
        yield record


def wycheproof(text, record_of, results=("valid",)):
    for group in json.loads(text)["testGroups"]:
        for case in group["tests"]:
            def record(case=case):
                require(case["result"] in results, "to be refused for its length")
                return record_of(f"wycheproof-{case['tcId']}", case)
            yield record


def wycheproof_xts(text):
    def record(name, case):
        require(1 <= len(case["iv"]) // 2 <= 16, "a tweak of more than 128 bits")
        return xts_record(name, case["key"], case["iv"], case["msg"], case["ct"])
    return wycheproof(text, record)


def wycheproof_hkdf(text):
    """A salt of zero bytes is no salt. Of an output of several blocks the first is ours."""
    def record(name, case):
        require(32 <= len(case["ikm"]) // 2 <= 64, "an input key of less than 32 bytes")
        require(len(case["salt"]) // 2 <= 128 and not case["salt"].strip("0"), "with a salt")
        require(len(case["info"]) // 2 <= 110, "an info of more than 110 bytes")
        return {"name": name, "ikm": case["ikm"], "info": case["info"], "okm": case["okm"][:128]}
    return wycheproof(text, record)


def wycheproof_gcm(text):
    def record(name, case):
        return gcm_record(name, case["key"], case["iv"], case["aad"], case["msg"], case["ct"],
                          case["tag"], case["result"])
    return wycheproof(text, record, ("valid", "invalid"))


XTS = "AES-256-XTS, one data unit; the tweak is its number, in hex"
AES = "AES-256, one block"
GCM = "AES-256-GCM, nonces of 96 bits, tags of 128; an invalid one does not verify"
HKDF = "HKDF-SHA512 without a salt; the first 64 bytes where there are more"

# public file -> what is written from it: our file, what it holds, who reads the public one
FORMATS = {
    "evpciph_aes_common.txt": [
        ("aes_fips_197.txt", AES, openssl_fips_197),
        ("xts_ieee_1619.txt", XTS, openssl_ieee_1619)],
    "XTSGenAES256.rsp": [("xts_nist.txt", XTS, nist_xts)],
    "aes_xts_test.json": [("xts_wycheproof.txt", XTS, wycheproof_xts)],
    "gcmEncryptExtIV256.rsp": [("gcm_nist.txt", GCM, nist_gcm)],
    "aes_gcm_test.json": [("gcm_wycheproof.txt", GCM, wycheproof_gcm)],
    "hkdf_sha512_test.json": [("hkdf_wycheproof.txt", HKDF, wycheproof_hkdf)],
} | {f"ECB{kind}256.rsp": [(f"aes_nist_{kind.lower()}.txt", AES,
                            lambda text, kind=kind: nist_aes(text, kind.lower()))]
     for kind in ("KeySbox", "VarKey")}  # GFSbox and VarTxt have a key of zeros, which we refuse


def write(public, source, ours, holds, cases):
    data = public.read_bytes()
    records, skipped = [], collections.Counter()
    for case in cases(data.decode()):
        try:
            records.append(case())
        except Skipped as reason:
            skipped[str(reason)] += 1
    if not records or len({record["name"] for record in records}) != len(records):
        raise SystemExit(f"{public.name}: no case, or two of one name")
    head = [f"{holds}.", f"Written by tests/scripts/vectors.py from {public.name} of {source},",
            f"sha256 {hashlib.sha256(data).hexdigest()}.",
            f"Taken: {len(records)} of {len(records) + skipped.total()}.",
            *(f"Left out: {count}, {reason}." for reason, count in skipped.most_common())]
    text = "".join(f"# {line}\n" for line in head)
    for record in records:
        text += "\n" + "".join(f"{k} = {v}".rstrip() + "\n" for k, v in record.items())
    (VECTORS / ours).write_text(text)
    print(f"tests/vectors/{ours}: {len(records)} of {len(records) + skipped.total()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="project and version, for the heads")
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="PUBLIC_FILE")
    options = parser.parse_args()
    for public in options.files:
        if public.name not in FORMATS:
            parser.error(f"{public.name} is none of {', '.join(FORMATS)}")
        for ours, holds, cases in FORMATS[public.name]:
            write(public, options.source, ours, holds, cases)


if __name__ == "__main__":
    main()
