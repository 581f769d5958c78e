#!/usr/bin/env python3
"""Processes that write, and a model of what they were told is durable. Run as a program it is the
writer: acknowledged.py DIRECTORY NAME SEED FIRST_VERSION tells on standard output each thing before
it does it, and each fsync that succeeded after it.

A file is SLOTS slots of a thousand bytes, so that they lie across pages; each write of a slot has a
version of its own, from which its bytes follow. What is not there has version 0, zeros.
"""
import errno
import hashlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

SLOT, SLOTS, FILES = 1000, 300, 8
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


def bytes_of(name, slot, version):
    if version == 0:
        return bytes(SLOT)
    return hashlib.shake_128(f"{name} {slot} {version}".encode()).digest(SLOT)


class Writer:
    def __init__(self, directory, me, seed, version):
        self.directory, self.me, self.version = pathlib.Path(directory), me, version
        self.random = random.Random(seed)
        self.handles = {}

    @staticmethod
    def tell(*words):
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()

    def drop(self, name):
        if name in self.handles:
            self.tell("closed", name)
            try:
                os.close(self.handles.pop(name))
            except OSError:
                pass

    def sync_names(self):
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @staticmethod
    def put(fd, data, at):
        """A removal may come between two pages: the write is short then, and the next one fails."""
        while data:
            done = os.pwrite(fd, data, at)
            data, at = data[done:], at + done

    def overwrite(self, name):
        if name not in self.handles:
            self.handles[name] = os.open(self.directory / name, os.O_RDWR | os.O_CREAT, 0o644)
        for _ in range(self.random.randrange(1, 20)):
            self.version += 1
            slot = self.random.randrange(SLOTS)
            self.tell("write", name, slot, self.version)
            self.put(self.handles[name], bytes_of(name, slot, self.version), slot * SLOT)
        if self.random.random() < 0.7:
            os.fsync(self.handles[name])
            self.tell("synced", name)
        if self.random.random() < 0.3:
            self.drop(name)  # and what was not synced is written back as the daemon likes

    def replace(self, name):
        """By another file that is whole, or by nothing."""
        self.drop(name)
        self.version += 1
        count = self.random.choice((0, 0, 1, SLOTS // 3, SLOTS))
        fresh = self.directory / f"{name}.new"
        if count:
            with open(fresh, "wb") as file:
                for slot in range(count):
                    file.write(bytes_of(name, slot, self.version))
                file.flush()
                os.fsync(file.fileno())
        self.tell("whole", name, count, self.version)
        if count:
            fresh.rename(self.directory / name)
        else:
            (self.directory / name).unlink(missing_ok=True)
        self.sync_names()
        self.tell("replaced", name)

    def run(self):
        while True:
            name = f"{self.me}-{self.random.randrange(FILES)}"
            try:
                if self.random.random() < 0.08:
                    self.replace(name)
                else:
                    self.overwrite(name)
            except OSError as error:
                self.tell("error", name)
                self.drop(name)
                if error.errno in DEAD:
                    return
                time.sleep(0.02)


class Model:
    """`may[name][slot]` are the versions that may be there; one alone where it was acknowledged."""

    def __init__(self):
        self.may, self.pending, self.replacing = {}, {}, {}
        self.lossy = False  # a removal may drop what was written, and tells handles that are open
        self.version = 0
        self.fsyncs, self.acknowledged = 0, 0  # bytes

    def feed(self, line):
        what, name, *numbers = line.split()
        numbers = [int(number) for number in numbers]
        may = self.may.setdefault(name, [{0} for _ in range(SLOTS)])
        pending = self.pending.setdefault(name, {})
        if what == "write":
            slot, self.version = numbers[0], max(self.version, numbers[1])
            may[slot].add(numbers[1])
            pending[slot] = numbers[1]
        elif what == "synced":
            for slot, version in pending.items():
                may[slot] = {version}
            self.note(len(pending))
            pending.clear()
        elif what == "whole":
            pending.clear()
            count, version = numbers
            self.version = max(self.version, version)
            self.replacing[name] = [version if slot < count else 0 for slot in range(SLOTS)]
            for slot, version in enumerate(self.replacing[name]):
                may[slot].add(version)
        elif what == "replaced":
            self.may[name] = [{version} for version in self.replacing[name]]
            self.note(sum(version != 0 for version in self.replacing[name]))
        elif what == "error" or self.lossy:
            pending.clear()

    def note(self, slots):
        self.fsyncs += 1
        self.acknowledged += slots * SLOT

    def forget_pending(self):
        """Their handles are gone, so no later fsync says anything of them."""
        for pending in self.pending.values():
            pending.clear()

    def verify(self, directory, settled):
        """(slots with one version alone, what is wrong); `settled`: what is there is durable."""
        exact, wrong = 0, []
        for name, may in self.may.items():
            path = directory / name
            data = path.read_bytes() if path.exists() else b""
            for slot, versions in enumerate(may):
                there = data[slot * SLOT:(slot + 1) * SLOT].ljust(SLOT, b"\0")
                known = {bytes_of(name, slot, version): version for version in versions}
                exact += len(versions) == 1
                if there in known:
                    if settled:
                        may[slot] = {known[there]}
                elif len(known) == 1 or not all(byte in bytes_there for byte, *bytes_there
                                                in zip(there, *known)):
                    wrong.append(f"{name} slot {slot}: none of versions {sorted(versions)}, but "
                                 f"{self.parts(name, slot, there)}; {len(data)} bytes in all")
        return exact, wrong

    def parts(self, name, slot, there):
        """Of what version each piece is that lies in one block of 4096 bytes."""
        border = -slot * SLOT % 4096
        found = []
        pieces = (slice(0, border), slice(border, SLOT)) if border < SLOT else (slice(SLOT),)
        for part in pieces:
            of = [version for version in range(self.version + 1)
                  if bytes_of(name, slot, version)[part] == there[part]]
            found.append(f"{of or there[part][:16].hex()}")
        return " and ".join(found)


class Writers:
    """Some writers in a directory. What they tell goes to files beside, since a pipe would hold up
    who fills it."""

    def __init__(self, model, directory, logs, count, seed):
        self.model, self.processes, self.said = model, [], []
        model.forget_pending()
        for number in range(count):
            self.said.append(logs / f"told{number}")
            with open(self.said[-1], "wb") as output:
                self.processes.append(subprocess.Popen(
                    [sys.executable, __file__, str(directory), f"writer{number}",
                     str(seed + number), str(model.version)], stdout=output,
                    stderr=subprocess.PIPE))

    def end(self):
        """The model knows what they were told. What is wrong with one of them."""
        wrong = ""
        for process, said in zip(self.processes, self.said):
            process.terminate()
            error = process.communicate(timeout=120)[1].decode()
            if process.returncode not in (0, -signal.SIGTERM):
                wrong = f"a writer exits {process.returncode}: {error[-500:]}"
            for line in said.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    self.model.feed(line)
        return wrong


if __name__ == "__main__":
    Writer(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])).run()
