"""Looks for secrets in another process: in all of its mappings, and in a core of it that gdb makes
with excluded mappings included, where the notes hold the registers of each thread."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import unittest

TOOL = pathlib.Path(os.path.abspath(os.environ.get("LATCHKEY_TOOLS", "build/release/tests")),
                    "needle_tool")
MAY_NOT_READ = 77  # the tool's one reason that is none of ours
GROUPS = ("master", "hkdf_state", "extent_key", "round_key", "name_key")  # the session's
SECRET_MEMORY = "/secretmem (deleted)"
CLOSED = (SECRET_MEMORY, "[vvar", "[vsyscall", "[io_uring]")
UNREAD = re.compile(r"(?i)\bfail|(cannot|can't|could ?n[o']t|unable to) (access|read|save|write)")
REGISTER_NOTES = ("NT_PRSTATUS", "NT_FPREGSET", "NT_X86_XSTATE")


def compiler_of(binary):
    """The compiler that a binary names; a binary of clang's also names the one of its library."""
    data = pathlib.Path(binary).read_bytes()
    for mark, name in ((b"clang version ", "clang"), (b"GCC: (", "g++")):
        at = data.find(mark)
        if at >= 0:
            text = data[at + len(mark):data.index(b"\0", at)].decode()
            return f"{name}-{text.split(') ')[-1].split('.')[0]}"
    return "unknown"


def halves(pieces):
    """Needles of eight bytes: half of a round key, of a lane, of what is cut in two by chance."""
    return sorted({piece[i:i + 8] for piece in pieces for i in range(0, len(piece), 8)})


def _find(groups, *words):
    lines = "".join(f"{group} {needle.hex()}\n" for group, pieces in groups.items()
                    for needle in halves(pieces))
    done = subprocess.run([TOOL, "find", *map(str, words)], input=lines, text=True,
                          capture_output=True)
    if done.returncode == MAY_NOT_READ:
        raise unittest.SkipTest(done.stderr.strip())
    if done.returncode != 0:
        raise AssertionError(f"the scanner failed ({done.returncode}): {done.stderr.strip()}")
    return json.loads(done.stdout)


def find_in_process(pid, groups):
    look = _find(groups, "pid", pid)
    if "at" in look:
        look["where"]["at"] = places(pid, look["at"])
    return look


def places(pid, found):
    """Of each address: how far it is from the next stack pointer, and the mapping's length."""
    pointers = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        words = (task / "syscall").read_text().split()
        if len(words) > 2:  # else it runs just now
            pointers.append(int(words[-2], 16))
    ends = [(end, end - first) for _, first, end in mappings(pid)]
    told = {}
    for group, addresses in found.items():
        for at in addresses:
            below = min((sp - at for sp in pointers), key=abs, default=0)
            size = next(size for end, size in ends if at < end)
            told.setdefault(group, []).append(
                f"{at:#x}, {below} below a stack pointer, in a mapping of {size}")
    return told


def gdb_missing():
    """Why no core can be made here, or nothing."""
    return None if shutil.which("gdb") else "there is no gdb (Debian package gdb)"


def mappings(pid):
    """(name, first address, end) of each."""
    found = []
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses = line.split(maxsplit=1)[0]
        first, end = (int(address, 16) for address in addresses.split("-"))
        at = re.search(r"[/[]", line)
        found.append((line[at.start():] if at else "anonymous", first, end))
    return found


def check_core(pid, core, done):
    """Whole but for memfd_secret, and what the kernel keeps for itself: a partial core is blind."""
    said = f"{done.stdout}{done.stderr}".strip()
    if done.returncode != 0 or not core.exists():
        raise AssertionError(f"gdb made no core ({done.returncode}): {said}")
    closed = [(first, end) for name, first, end in mappings(pid) if name.startswith(CLOSED)]
    for line in said.splitlines():
        if not UNREAD.search(line):
            continue
        address = re.search(r"bytes at (0x[0-9a-f]+)", line)
        if not address or not any(first <= int(address[1], 16) < end for first, end in closed):
            raise AssertionError(f"gdb's core is partial: {line}")


def find_in_core(pid, groups, folder):
    core = pathlib.Path(folder, f"core.{pid}")
    done = subprocess.run(
        ["gdb", "-nx", "-q", "-batch", "-readnever", "-iex", "set auto-load no",
         "-iex", "set debuginfod enabled off", "-ex", "set dump-excluded-mappings on",
         "-ex", "set use-coredump-filter off", "-p", str(pid), "-ex", f"gcore {core}"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    check_core(pid, core, done)
    try:
        return _find(groups, "core", core)
    finally:
        core.unlink()


def find_in_kernels_core(core, groups):
    """In one that the kernel wrote, without what is excluded from dumps."""
    return _find(groups, "core", core)


class Storm:
    """SIGUSR1 to every thread of a process, as fast as it can."""

    def __init__(self, pid):
        self.process = subprocess.Popen([TOOL, "storm", str(pid)], stdin=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()
