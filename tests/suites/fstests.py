#!/usr/bin/env python3
"""fstests (https://git.kernel.org/pub/scm/fs/xfs/xfstests-dev.git) through its fuse support, on a
mounted store and beside it.

    fstests.py FOLDER [--on TARGET]... [-g GROUP]... [TEST]... --results FILE [--minutes M]

FOLDER is a checkout in which `make` was run. Targets: latchkey, latchkey-encrypted (in
the root), latchkey-fscrypt (it answers fscrypt's ioctls, for the group encrypt), gocryptfs; all if
nothing is said. Needs root and /dev/fuse. Test by test; what is in FILE already is not run
again, so it can be stopped and goes on. The last lines name what fails, and where it passes; exit 1
if anything fails on latchkey but EXCLUDED.

A mount namespace for each test has other files over /sbin/mount.fuse3, by which mount(8) finds a
file system's program, and /etc/passwd, for fstests' users; on latchkey also over some of fstests',
which learn what it knows of other file systems: how to make one, check it, cut it off. So nothing
is changed, of the machine or of fstests.
"""
import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from targets import LATCHKEY, PASSWORD, ext4, folder, run  # noqa: E402

SIZE = 4 << 30
SECONDS = 900  # of one test
# What fails and may, by its reason in docs/posix.md.
EXCLUDED = {
    "a promise of space keeps room for its records": "103",
    "a store has one mount": "409 410 411 732",
    "no policies of fscrypt's first version": "395 580 581 593 613",
    "of a file's names one keeps its directory": "440",
    "a handle is stale once the kernel has forgotten its file": "426 467 477 756 777",
    "root may not raise its limits here": "394 530 531 564",
}
EXCLUDED = {f"generic/{number}": why for why, of in EXCLUDED.items() for number in of.split()}
OURS = pathlib.Path(__file__).resolve().with_name("fstests_latchkey.sh")

HELPER = """#!/bin/sh
# SOURCE DIRECTORY [FLAG]... -o OPTIONS -t TYPE, as mount(8) calls it
source=$1 directory=$2 options=
while [ $# -gt 2 ]; do
  [ "$3" = -o ] && options=$4
  shift
done
case ,$options, in *,remount,*)
  exec mount -i -o "$options" "$directory" ;;  # the kernel does that alone
esac
exec {command} >/dev/null
"""

# It looks for "fuse" there, and our type is fuse.latchkey.
DF = """#!/bin/sh
{df} "$@" | sed 's/fuse[.][a-z]*/fuse/'
"""

# Of FUSE the kernel keeps it to itself; of the root it is of everything, also on the device.
SYNC = """#!/bin/sh
{sync} "$@"
[ $# -eq 0 ] || exit
for directory in {at}/TEST {at}/SCRATCH; do
  findmnt $directory >/dev/null && {sync} $directory
done
"""

# src/godown: no ioctl, but a daemon that is no more. -f is to keep what was done before.
GODOWN = """#!/bin/sh
while [ $# -gt 1 ]; do
  [ "$1" = -f ] && sync "$2"  # of the root: of everything
  shift
done
daemon=$(getfattr --absolute-names --only-values -n latchkey.daemon "$1") || exit 1
kill -9 "$daemon"
while [ -e "/proc/$daemon/exe" ]; do sleep 0.02; done
"""

USERS = ("fsgqa", "fsgqa2", "123456-fsgqa")


class Target:
    """Two file systems, TEST and SCRATCH, and the command that mounts one."""

    settings = ""  # lines of the config
    patched = ()  # files of fstests that end with OURS
    programs = ()

    def config(self, at):
        for directory in ("TEST", "SCRATCH"):
            (at / directory).mkdir()
        test, scratch = self.devices
        return (f"export FSTYP=fuse FUSE_SUBTYP=.{self.kind}\n"
                f"export TEST_DEV={test} TEST_DIR={at}/TEST\n"
                f"export SCRATCH_DEV={scratch} SCRATCH_MNT={at}/SCRATCH\n{self.settings}")


class Gocryptfs(Target):
    kind = "gocryptfs"

    def __init__(self, at, stack):
        (at / "password").write_text(PASSWORD)
        self.devices = ("below-test", "below-scratch")  # umount(8) shall not find a directory
        for name in self.devices:
            below = stack.enter_context(ext4(SIZE))
            run("gocryptfs", "-q", "-init", "-passfile", at / "password", below)
            (at / name).symlink_to(below)
        self.command = (f"gocryptfs -q -nosyslog -passfile {at}/password -fsname $source "
                        f"-o allow_other,dev,suid,$options {at}/$source $directory")


class Latchkey(Target):
    """On loop devices, so that fstests can make them anew, of another size, and cut them off."""

    kind = "latchkey"
    patched = ("common/rc", "common/dmflakey", "common/encrypt")
    programs = (("src/godown", GODOWN),)
    words = ""
    options = ""

    def __init__(self, at, stack):
        self.devices = [stack.enter_context(loop(at / name)) for name in ("test", "scratch")]
        for device in self.devices:
            run(LATCHKEY, "mkfs", "-q", "-f", device)
        self.command = (f"{LATCHKEY} mount {self.words} -o "
                        f"allow_other,dev,suid,{self.options}$options $source $directory")
        self.settings = f"export LATCHKEY_PROG={LATCHKEY} LATCHKEY_SIZE={SIZE}\n"


class Encrypted(Latchkey):
    """The root itself is encrypted, from when it is empty."""

    def __init__(self, at, stack):
        run(LATCHKEY, "key", "generate", at / "key")
        self.words = f"--key-file {at}/key"
        super().__init__(at, stack)
        self.settings += f"export LATCHKEY_KEY={at}/key\n"
        (at / "mnt").mkdir()
        for device in self.devices:
            run(LATCHKEY, "mount", "--key-file", at / "key", device, at / "mnt")
            run(LATCHKEY, "policy", "set", "--key-file", at / "key", at / "mnt")
            run(LATCHKEY, "umount", at / "mnt")


class Fscrypt(Latchkey):
    """It answers fscrypt's ioctls, all of them, as the kernel does."""

    options = "caller_memory,compat=fscrypt,"


TARGETS = {"latchkey": Latchkey, "latchkey-encrypted": Encrypted, "latchkey-fscrypt": Fscrypt,
           "gocryptfs": Gocryptfs}


@contextlib.contextmanager
def loop(path):
    with open(path, "wb") as file:
        file.truncate(SIZE)
    device = run("losetup", "-f", "--show", path).strip()
    try:
        yield device
    finally:
        run("losetup", "-d", device)


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def with_users(path, line):
    """A list of users or groups with those that fstests wants."""
    names = {line.split(":")[0] for line in path.read_text().splitlines()}
    missing = [line.format(name=name, number=30000 + number)
               for number, name in enumerate(USERS) if name not in names]
    return path.read_text() + "".join(missing)


def overlays(target, fstests, at):
    """[file of this machine or of fstests, what lies there while a test runs]"""
    (at / "over").mkdir()
    over = [(os.path.realpath("/sbin/mount.fuse3"),
             program(at / "over/helper", HELPER.format(command=target.command)))]
    for path, line in (("/etc/passwd", "{name}:*:{number}:{number}::/tmp:/bin/bash\n"),
                       ("/etc/group", "{name}:*:{number}:\n")):
        (at / "over" / path[5:]).write_text(with_users(pathlib.Path(path), line))
        over.append((path, at / "over" / path[5:]))
    for path in target.patched:
        copy = at / "over" / pathlib.Path(path).name
        copy.write_text((fstests / path).read_text() + f"\n. {OURS}\n")
        over.append((fstests / path, copy))
    for path, text in target.programs:
        over.append((fstests / path, program(at / "over" / pathlib.Path(path).name, text)))
    return over


def run_test(name, fstests, at, over):
    """{"how": passed, failed or notrun, "why", "seconds"}"""
    begun = time.monotonic()
    # The daemon is in this namespace, too, which would keep it and its mounts alive.
    script = "".join(f"mount --bind {ours} {theirs} && " for theirs, ours in over)
    script += (f"PATH={at}:$PATH HOST_OPTIONS={at}/config ./check {name}; "
               f"umount {at}/TEST {at}/SCRATCH 2>/dev/null")
    process = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", script],
                               cwd=fstests, text=True, errors="replace", start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said = process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.stdout.close()  # a daemon may have it for long
        process.wait()
        said = "[hung]"
    seconds = round(time.monotonic() - begun, 1)
    not_run = re.search(r"\[not run\] (.*)", said)
    if not_run:
        return {"how": "notrun", "why": not_run[1], "seconds": seconds}
    if re.search(r"^Passed all 1 tests", said, re.MULTILINE):
        return {"how": "passed", "why": "", "seconds": seconds}
    return {"how": "failed", "why": said[-1500:], "seconds": seconds}


def tests_of(fstests, groups, names):
    if names:
        return names
    found = set()
    for line in (fstests / "tests/generic/group.list").read_text().splitlines():
        number, *of = line.split("#")[0].split() or [""]
        if number.isdigit() and set(of) & set(groups):
            found.add(f"generic/{number}")
    return sorted(found)


def run_on(kind, names, fstests, results, options, ends):
    wanted = [name for name in names if name not in results[kind]]
    if not wanted:
        return
    with folder() as at, contextlib.ExitStack() as stack:
        at.chmod(0o755)
        target = TARGETS[kind](at, stack)
        kept = options.results.resolve().with_suffix(f".{kind}")  # what failed tests wrote
        (at / "config").write_text(target.config(at) + f"export RESULT_BASE={kept}\n")
        program(at / "df", DF.format(df=shutil.which("df")))
        program(at / "sync", SYNC.format(sync=shutil.which("sync"), at=at))
        over = overlays(target, fstests, at)
        for name in wanted:
            if time.monotonic() > ends:
                return
            results[kind][name] = done = run_test(name, fstests, at, over)
            print(f"{kind:20} {name} {done['how']} {done['seconds']} s "
                  f"{done['why'].splitlines()[0] if done['how'] == 'notrun' else ''}", flush=True)
            options.results.write_text(json.dumps(results, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--on", action="append", choices=TARGETS)
    parser.add_argument("-g", "--group", action="append")
    parser.add_argument("--results", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=1e6)
    options = parser.parse_intermixed_args()
    fstests = options.folder.resolve()
    if not (fstests / "ltp/fsx").exists():
        sys.exit(f"{fstests} has no program ltp/fsx: make")
    names = tests_of(fstests, options.group or ["quick"], options.tests)
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    ends = time.monotonic() + options.minutes * 60
    for kind in options.on or TARGETS:
        results.setdefault(kind, {})
        run_on(kind, names, fstests, results, options, ends)
    return report(results)


def report(results):
    def of(kind, how):
        return {name for name, done in results[kind].items() if done["how"] == how}

    for kind in results:
        print(f"{kind}: {len(results[kind])} tests, {len(of(kind, 'passed'))} passed, "
              f"{len(of(kind, 'failed'))} failed, {len(of(kind, 'notrun'))} not run")
    bad = set()
    for ours in results:
        for name in sorted(of(ours, "failed")):
            others = [kind for kind in results if name in of(kind, "passed")]
            print(f"{ours} fails {name}: {EXCLUDED.get(name, 'NOT EXPLAINED')}"
                  f"{''.join(f', passes on {kind}' for kind in others)}")
            if ours.startswith("latchkey") and name not in EXCLUDED:
                bad.add(name)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
