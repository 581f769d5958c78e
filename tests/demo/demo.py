#!/usr/bin/env python3
"""The main job on real input: an encrypted store on a loop device, a real tree in and out, the key
removed while writers write, a check, and the price of encryption. ./run demo calls it."""
import hashlib
import json
import mmap
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import secrets_oracle

ROOT = pathlib.Path(__file__).resolve().parents[2]
LATCHKEY = os.environ.get("LATCHKEY_BINARY", str(ROOT / "build/release/latchkey"))
TREE_BYTES_MAX = 400_000_000
IMAGE_BYTES = 4 << 30


def say(text):
    print(text, flush=True)


class Failed(Exception):
    pass


def latchkey(*words, expect=0):
    done = subprocess.run([LATCHKEY, *map(str, words)], stdout=subprocess.PIPE, text=True)
    if done.returncode != expect:
        raise Failed(f"latchkey {' '.join(map(str, words))}: exit {done.returncode}, "
                     f"expected {expect}")
    return done.stdout


def answer(verb, *words):
    return json.loads(latchkey(*words, "--json"))[verb]


class Device:
    """A loop device on a sparse image, or the image itself; gone at the end whatever happens."""

    def __init__(self, folder):
        self.image = folder / "store.img"
        with open(self.image, "wb") as file:
            file.truncate(IMAGE_BYTES)
        self.loop = None
        command = ["losetup", "--show", "-f", "--sector-size", "4096", "--direct-io=on",
                   str(self.image)]
        try:
            made = subprocess.run(command, capture_output=True, text=True)
            why = made.stderr.strip()
            if made.returncode == 0:
                self.loop = made.stdout.strip()
        except FileNotFoundError:
            why = "there is no losetup"
        self.path = self.loop or str(self.image)
        if self.loop:
            say(f"1. a sparse image of 4 GiB on {self.loop}, 4 KiB sectors, direct I/O")
        else:
            say(f"1. no loop device can be had here ({why}): working on the plain image")

    def close(self):
        if self.loop:
            subprocess.run(["losetup", "-d", self.loop])
            self.loop = None


def collect(folder):
    """Copies of real files, so that the tree stands still: at most TREE_BYTES_MAX of them."""
    total, count = 0, 0
    for top in ("/usr/include", "/usr/share", "/usr/lib"):
        for here, names, files in os.walk(top):
            names.sort()
            for name in sorted(files):
                source = pathlib.Path(here, name)
                if source.is_symlink() or not source.is_file() or not os.access(source, os.R_OK):
                    continue
                size = source.stat().st_size
                if total + size > TREE_BYTES_MAX:
                    continue
                target = folder / str(source)[1:]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                total, count = total + size, count + 1
    return total, count


def sums(folder):
    result = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            result[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).digest()
    return result


def blocks_of(paths, tails=False):
    """The first 32 bytes of each whole 4 KiB block (with `tails` of any) with variety in them."""
    heads = set()
    for path in paths:
        data = path.read_bytes()
        for at in range(0, len(data) - (31 if tails else 4095), 4096):
            head = data[at:at + 32]
            if len(set(head)) >= 8:
                heads.add(head)
    return heads


def search(device, heads, samples):
    """Block heads at block borders, samples anywhere: how many of each are on the device."""
    found_heads, found_samples = set(), set()
    with open(device.image, "rb") as file, \
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            except OSError:
                break
            for block in range(at, end, 4096):
                head = data[block:block + 32]
                if head in heads:
                    found_heads.add(head)
            for sample in samples - found_samples:
                if data.find(sample, at, end) >= 0:
                    found_samples.add(sample)
            at = end
    return len(found_heads), len(found_samples)


def samples_of(paths, rng, count):
    picked = set()
    paths = [p for p in paths if p.stat().st_size >= 64]
    for path in rng.sample(paths, min(count * 3, len(paths))):
        data = path.read_bytes()
        at = rng.randrange(len(data) - 24)
        if len(set(data[at:at + 24])) >= 8:
            picked.add(data[at:at + 24])
        if len(picked) == count:
            break
    return picked


def store_a_tree(device, folder, key):
    tree, back, part = folder / "tree", folder / "back", folder / "part"
    total, count = collect(tree)
    say(f"2. a real tree: {count} files, {total / 1e6:.0f} MB, of /usr/include, share and lib")
    latchkey("policy", "set", "--key-file", key, f"{device.path}:/vault")
    start = time.monotonic()
    latchkey("put", "-q", "-r", "--key-file", key, tree, f"{device.path}:/vault/tree")
    put = time.monotonic() - start
    start = time.monotonic()
    latchkey("get", "-q", "-r", "--key-file", key, f"{device.path}:/vault/tree", back)
    say(f"   put in {put:.1f} s, got in {time.monotonic() - start:.1f} s")
    wanted, got = sums(tree), sums(back)
    if wanted != got:
        raise Failed("a file came back different")
    say(f"   SHA-256 of all {len(got)} files is what it was")
    shutil.rmtree(back)

    rng = random.Random(1)
    files = [p for p in tree.rglob("*") if p.is_file()]
    chosen = set(rng.sample(files, min(200, len(files))))
    part.mkdir()
    for number, path in enumerate(sorted(chosen)):
        shutil.copyfile(path, part / f"{number:04}-{path.name[:200]}")
    latchkey("put", "-q", "-r", part, f"{device.path}:/open")
    open_files = sorted(part.iterdir())
    open_data = b"\0".join(p.read_bytes() for p in open_files)
    open_heads = blocks_of(open_files)
    secret_heads = blocks_of([p for p in files if p not in chosen])
    secret_heads -= blocks_of(open_files, tails=True)
    secret_samples = {s for s in samples_of([p for p in files if p not in chosen], rng, 40)
                      if s not in open_data}
    secret_samples |= {p.name.encode() for p in rng.sample(files, min(400, len(files)))
                       if len(p.name) >= 16 and p not in chosen
                       and not any(p.name in q.name for q in open_files)
                       and p.name.encode() not in open_data}
    open_samples = samples_of(open_files, rng, 20)
    open_samples |= {p.name.encode() for p in open_files[:20] if len(p.name) >= 16}
    heads, samples = search(device, secret_heads, secret_samples)
    say(f"   raw device: {heads} of {len(secret_heads)} plaintext blocks and {samples} of "
        f"{len(secret_samples)} samples and names of the vault found")
    open_found = search(device, open_heads, open_samples)
    say(f"   the same search finds {open_found[0]} of {len(open_heads)} blocks and {open_found[1]} "
        f"of {len(open_samples)} samples and names of the plain directory")
    if heads or samples or open_found != (len(open_heads), len(open_samples)):
        raise Failed("the raw device holds what it must not, or the search is blind")
    return total


class Session:
    def __init__(self, device, *options):
        self.process = subprocess.Popen([LATCHKEY, *options, "session", device.path],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"the session ended at {words}")
        return json.loads(line)

    def close(self):
        if self.process.poll() is None:
            self.process.stdin.write("quit\n")
            self.process.stdin.close()
            if self.process.wait(60) != 0:
                raise Failed("the session failed to close")


def expect(condition, what):
    if not condition:
        raise Failed(what)


def scan(session, inside, master, nonces):
    if inside:
        result = session("scan")
        return {name: (group["found_now"], group["needles"]) for name, group in result.items()
                if isinstance(group, dict)}
    groups = secrets_oracle.needles(master, [bytes.fromhex(n) for n in nonces[-6:]])
    found = secrets_oracle.scan_process(session.process.pid, groups)
    return {name: (found[name], len(groups[name])) for name in groups}


def remove_under_writers(device, key, inside):
    how = "memfd_secret, the process looks itself" if inside else \
        "arena's fallback, a scanner outside looks"
    say(f"3. the key is removed while writers write ({how})")
    master = pathlib.Path(key).read_bytes()
    session = Session(device, *([] if inside else ["--secrets", "locked"]))
    try:
        session("load", key)
        before = scan(session, inside, master, [])
        expect(before["master"][0] == before["master"][1], "the scan is blind: no master key found")
        session("add")
        name = f"/vault/log-{'in' if inside else 'out'}"
        session("write", name, 4)
        time.sleep(0.5)
        session("stop")  # while the scan looks: readers' slots are a bounded table
        nonces = session("maps")["nonces"][-1000:]
        before = scan(session, inside, master, nonces)
        session("go")
        time.sleep(0.3)
        ever = ", ".join(f"{hit} of {all_} {group}" for group, (hit, all_) in before.items())
        say(f"   before, in memory: {ever}")
        for group, (hit, _) in before.items():
            expect(group == "master" or hit, f"the scan is blind: no {group} found")
        removed = session("remove", "soft")
        expect(removed["state"] == "incompletely-removed", removed)
        refused = session("open", f"{name}-0")
        expect(refused["error"] == "no_key", refused)
        time.sleep(1)
        status = session("status")
        say(f"   a new open answers: {refused['message']}")
        say(f"   {status['state']}; inside: " + ", ".join(
            f"{h['path']} (uid {h['uid']}, since {h['since']})" for h in status["holders"]))
        counts = session("stop")
        say(f"   fsyncs acknowledged: {counts['acknowledged']}, after the removal "
            f"{counts['after_removal']}, failed {counts['failures']}")
        expect(counts["after_removal"] > 0 and counts["failures"] == 0, counts)
        closed = session("close")
        expect(closed["state"] == "absent" and not closed["errors"], closed)
        after = scan(session, inside, master, nonces)
        left = sum(hit for hit, _ in after.values())
        say(f"   the last close made it {closed['state']}; secrets found in memory now: {left}")
        expect(left == 0, after)
        session("load", key)
        session("add")
        verified = session("verify")
        expect(verified["files_wrong"] == 0, verified)
        say(f"   added again: all {verified['lines']} acknowledged lines are there, none more")
        session.close()
        return counts["after_removal"]
    finally:
        if session.process.poll() is None:
            session.process.kill()
            session.process.wait()


def main():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, frame: sys.exit(128 + n))
    start = time.monotonic()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / "build"))
    device = None
    try:
        device = Device(folder)
        say("   " + latchkey("mkfs", device.path).strip())
        key = folder / "key"
        say("   " + latchkey("key", "generate", key).strip())
        store_a_tree(device, folder, key)
        after = [remove_under_writers(device, key, inside) for inside in (False, True)]
        check = answer("check", "check", device.path)
        expect(check["clean"], check)
        say(f"4. closed, opened again, checked: clean; {check['nodes']} nodes, {check['extents']} "
            f"extent records, {check['inodes']} files and directories")
        say("5. throughput of encrypted writeback beside the same engine in clear, alternating")
        row = answer("bench", "bench", "-q", "--size", "512M", device.path)["rows"][0]
        say(f"   sealed {row['sealed_mib_s']:.0f} MiB/s, clear {row['clear_mib_s']:.0f} MiB/s, "
            f"ratio {row['ratio']:.3f} at {row['extent_bytes'] // 1024} KiB extents")
        say(f"demo: all of it held, in {time.monotonic() - start:.0f} s; "
            f"{sum(after)} fsyncs were acknowledged after their key was removed")
        return 0
    except Failed as failure:
        print(f"demo: FAILED: {failure}", file=sys.stderr)
        return 1
    finally:
        if device:
            device.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
