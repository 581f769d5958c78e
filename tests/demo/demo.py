#!/usr/bin/env python3
"""The main job on real input: an encrypted store on a loop device, a real tree in and out, the key
removed while writers write, a check, the price of encryption, and the store mounted. ./run demo
calls it."""
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

import mounted
import secrets_oracle

ROOT = pathlib.Path(__file__).resolve().parents[2]
LATCHKEY = os.environ.get("LATCHKEY_BINARY", str(ROOT / "build/release/latchkey"))
TREE_BYTES_MAX = 400_000_000
IMAGE_BYTES = 4 << 30
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNAVAILABLE = 10  # latchkey's exit code where the kernel refuses io_uring
EXTENTS_EACH = 2  # of each writer, whose keys the scans look for


def say(text):
    print(text, flush=True)


class Failed(Exception):
    """Ends the demo with this exit code; a command that said why itself leaves nothing to say."""

    def __init__(self, why, code=1):
        super().__init__(why)
        self.code = code


def latchkey(*words, expect=0):
    done = subprocess.run([LATCHKEY, *map(str, words)], stdout=subprocess.PIPE, text=True)
    if done.returncode == UNAVAILABLE:
        raise Failed("", UNAVAILABLE)
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
        self.loop, self.fd = None, None
        # No signal between the two: the kernel detaches by itself when the last who has the device
        # open is gone, and from then on nothing that ends this process can leave it behind.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            why = self.attach()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.path = self.loop or str(self.image)
        if self.loop:
            say(f"1. a sparse image of 4 GiB on {self.loop}, 4 KiB sectors, direct I/O")
        else:
            say(f"1. no loop device can be had here ({why}): working on the plain image")

    def attach(self):
        losetup = shutil.which("losetup", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if not losetup:
            return "there is no losetup"
        command = [losetup, "--show", "-f", "--sector-size", "4096", "--direct-io=on",
                   str(self.image)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode == 0:
            self.loop = made.stdout.strip()
            self.fd = os.open(self.loop, os.O_RDONLY | os.O_CLOEXEC)
            subprocess.run([losetup, "-d", self.loop], check=True)
        return made.stderr.strip()

    def close(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


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
    latchkey("put", "-r", "--key-file", key, tree, f"{device.path}:/vault/tree")
    put = time.monotonic() - start
    start = time.monotonic()
    latchkey("get", "-r", "--key-file", key, f"{device.path}:/vault/tree", back)
    say(f"   put in {put:.1f} s, got in {time.monotonic() - start:.1f} s")
    say("   comparing")
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
    say("   searching the raw device")
    heads, samples = search(device, secret_heads, secret_samples)
    say(f"   raw device: {heads} of {len(secret_heads)} plaintext blocks and {samples} of "
        f"{len(secret_samples)} samples and names of the vault found")
    open_found = search(device, open_heads, open_samples)
    say(f"   the same search finds {open_found[0]} of {len(open_heads)} blocks and {open_found[1]} "
        f"of {len(open_samples)} samples and names of the plain directory")
    if heads or samples or open_found != (len(open_heads), len(open_samples)):
        raise Failed("the raw device holds what it must not, or the search is blind")
    inside = [f"/vault/tree/{path.relative_to(tree)}" for path in rng.sample(files, 20)]
    return [path for path in inside if not any(letter.isspace() for letter in path)]


class Session:
    def __init__(self, device, *options, own_options=(), **process):
        self.process = subprocess.Popen([LATCHKEY, *options, "session", *own_options, device.path],
                                        text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, **process)

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
    """Needles found and looked for, by group."""
    if inside:
        result = session("scan")
        return {name: (group["found_now"], group["needles"]) for name, group in result.items()
                if isinstance(group, dict)}
    groups = secrets_oracle.needles(master, [bytes.fromhex(nonce) for nonce in nonces])
    found = secrets_oracle.scan_process(session.process.pid, groups)
    return {name: (found[name], len(groups[name])) for name in groups}


def secrets_before(session, inside, key):
    """Every needle must be found while the key is there; answers the nonces of the extents' keys.
    The key's bytes are looked for between load and add, which wipes them."""
    master = pathlib.Path(key).read_bytes()
    session("load", key)
    seen = {"master": scan(session, inside, master, [])["master"]}
    session("add")
    name = f"/vault/log-{'in' if inside else 'out'}"
    session("write", name, 4)
    time.sleep(0.5)
    session("stop")  # while the scan looks: readers' slots are a bounded table
    nonces = session("maps", EXTENTS_EACH)["nonces"]
    seen = scan(session, inside, master, nonces) | seen
    session("go")
    say("   before, in memory: " + ", ".join(f"{hit} of {all_} {group}"
                                             for group, (hit, all_) in seen.items()))
    for group in ("master", "hkdf_state", "extent_key", "round_key"):
        expect(seen[group][0] == seen[group][1] > 0, f"the scan is blind: {group} {seen[group]}")
    time.sleep(0.3)
    return name, master, nonces


def refuse_opens(session, paths):
    for path in paths:
        refused = session("open", path)
        expect(refused["error"] == "no_key", refused)
    say(f"   {len(paths)} of {len(paths)} new opens are refused: {refused['message']}")


def remove_under_writers(device, key, tree, inside):
    session = Session(device, *([] if inside else ["--secrets", "locked"]))
    try:
        arena = session("scan")["arena"]
        how = f"{arena}, the process looks itself" if inside else \
            "arena's fallback, a scanner outside looks"
        say(f"3. the key is removed while writers write ({how})")
        if inside and arena != "memfd_secret":
            say("   this kernel has no memfd_secret (latchkey info says why): the fallback again")
        expect(inside or arena == "locked", f"the fallback was not forced: {arena}")
        name, master, nonces = secrets_before(session, inside, key)
        removed = session("remove", "soft")
        expect(removed["state"] == "incompletely-removed", removed)
        refuse_opens(session, [f"{name}-0", *tree])
        time.sleep(1)
        status = session("status")
        say(f"   {status['state']}; inside:")
        for holder in status["holders"]:
            say("     {path}: uid {uid}, handle {handle}, {dirty_bytes} bytes dirty, since {since}"
                .format(**holder))
        counts = session("stop")
        say(f"   fsyncs acknowledged: {counts['acknowledged']}, after the removal "
            f"{counts['after_removal']}, failed {counts['failures']}")
        expect(counts["after_removal"] > 0 and counts["failures"] == 0, counts)
        closed = session("close")
        expect(closed["state"] == "absent" and not closed["errors"], closed)
        after = scan(session, inside, master, nonces)
        left = sum(hit for hit, _ in after.values())
        say(f"   the last close made it {closed['state']}; secrets found in memory now: {left} of "
            f"{sum(all_ for _, all_ in after.values())}")
        expect(left == 0, after)
        session("load", key)
        session("add")
        verified = session("verify")
        expect(verified["files_wrong"] == 0, verified)
        say(f"   added again: all {verified['lines']} acknowledged lines are there, none more")
        session.close()
        return arena, counts["after_removal"]
    finally:
        if session.process.poll() is None:
            session.process.kill()
            session.process.wait()


def main():
    for number in SIGNALS:
        signal.signal(number, lambda n, frame: sys.exit(128 + n))
    start = time.monotonic()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / "build"))
    device = None
    try:
        device = Device(folder)
        say("   " + latchkey("mkfs", device.path).strip())
        key = folder / "key"
        say("   " + latchkey("key", "generate", key).strip())
        tree = store_a_tree(device, folder, key)
        removals = [remove_under_writers(device, key, tree, inside) for inside in (False, True)]
        check = answer("check", "check", device.path)
        expect(check["clean"], check)
        say(f"4. closed, opened again, checked: clean; {check['nodes']} nodes, {check['extents']} "
            f"extent records, {check['inodes']} files and directories")
        say("5. throughput of encrypted writeback beside the same engine in clear, alternating")
        row = answer("bench", "bench", "--size", "512M", device.path)["rows"][0]
        say(f"   sealed {row['sealed_mib_s']:.0f} MiB/s, clear {row['clear_mib_s']:.0f} MiB/s, "
            f"ratio {row['ratio']:.3f} at {row['extent_bytes'] // 1024} KiB extents")
        mounted.Mounted(latchkey, answer, device, folder, key, say, expect).run()
        arenas, after = zip(*removals)
        say(f"demo: all of it held, in {time.monotonic() - start:.0f} s; secrets were in "
            f"{' and in '.join(arenas)}; {sum(after)} fsyncs were acknowledged after a removal")
        return 0
    except Failed as failure:
        if failure.code != UNAVAILABLE:
            print(f"demo: FAILED: {failure}", file=sys.stderr)
        return failure.code
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # once is enough; this takes no time
        if device:
            device.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
