#!/usr/bin/env python3
"""Goal: what programs do with the bytes of files works through the mount, mappings and direct I/O
included. Method: as mount_test.py's."""
import ctypes
import ctypes.util
import hashlib
import mmap
import os
import pathlib
import random
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from mounted import *  # noqa: E402,F403

LIBC = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE = 1, 2, 8, 16
BLOCK = 4096


def fallocate(fd, mode, offset, length):
    if LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def pattern(size, seed=1):
    return random.Random(seed).randbytes(size)


class Data(MountTest):
    def test_random_writes_and_cuts_agree_with_the_hosts_file(self):
        def work(folder):
            draw = random.Random(7)
            fd = os.open(folder / "a", os.O_CREAT | os.O_RDWR)
            for step in range(400):
                offset, size = draw.randrange(3 << 20), draw.randrange(1, 200_000)
                kind = draw.randrange(10)
                if kind < 6:
                    os.pwrite(fd, draw.randbytes(size), offset)
                elif kind == 6:
                    os.ftruncate(fd, offset)
                elif kind == 7:
                    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, size)
                elif kind == 8:
                    fallocate(fd, draw.choice((0, KEEP_SIZE, ZERO_RANGE,
                                               ZERO_RANGE | KEEP_SIZE)), offset, size)
                else:
                    got = os.pread(fd, size, offset)
                    if step % 3 == 0:
                        os.fsync(fd)
                    yield hashlib.sha256(got).hexdigest()
            os.close(fd)
            yield os.path.getsize(folder / "a")
            yield hashlib.sha256((folder / "a").read_bytes()).hexdigest()

        self.same(lambda folder: list(work(folder)))
        self.remount()
        self.same(lambda folder: hashlib.sha256((folder / "a").read_bytes()).hexdigest())

    def test_fallocate_in_all_its_forms(self):
        def work(folder):
            with open(folder / "a", "w+b") as file:
                fd = file.fileno()
                os.pwrite(fd, pattern(10 * BLOCK), 0)
                seen = []
                for mode, offset, length in ((PUNCH_HOLE | KEEP_SIZE, BLOCK, 2 * BLOCK),
                                             (PUNCH_HOLE | KEEP_SIZE, 5 * BLOCK + 100, 300),
                                             (ZERO_RANGE, 9 * BLOCK + 5, 3 * BLOCK),
                                             (ZERO_RANGE | KEEP_SIZE, 7 * BLOCK, 90 * BLOCK),
                                             (KEEP_SIZE, 20 * BLOCK, BLOCK),
                                             (0, 20 * BLOCK, BLOCK)):
                    said = error_of(fallocate, fd, mode, offset, length)
                    seen.append((said, os.fstat(fd).st_size, os.pread(fd, 1 << 20, 0)))
                return seen

        self.same(work)
        for area in self.areas:
            with open(area / "a", "w+b") as file:
                file.write(pattern(10 * BLOCK))
                file.flush()
                self.assertIn(error_of(fallocate, file.fileno(), COLLAPSE, 0, BLOCK),
                              ("EOPNOTSUPP", "ENOTSUP"))

    def test_holes_are_found(self):
        def work(folder):
            fd = os.open(folder / "a", os.O_CREAT | os.O_RDWR)
            os.ftruncate(fd, 1 << 20)
            os.pwrite(fd, b"x" * BLOCK, 256 << 10)
            os.pwrite(fd, b"y" * (2 * BLOCK), 512 << 10)
            os.fsync(fd)
            seen = [(error_of(os.lseek, fd, place, os.SEEK_DATA),
                     error_of(os.lseek, fd, place, os.SEEK_HOLE))
                    for place in (0, 256 << 10, (256 << 10) + 1, 300_000, 512 << 10, 800_000,
                                  (1 << 20) - 1, 1 << 20, 2 << 20)]
            return seen, os.fstat(fd).st_blocks

        self.same(work)

    def test_appends_of_many_processes_do_not_overlap(self):
        for area in self.areas:
            path = area / "log"
            path.write_bytes(b"")
            writers = []
            for number in range(4):
                pid = os.fork()
                if pid == 0:
                    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
                    for line in range(200):
                        os.write(fd, f"{number} {line:04}\n".encode())
                    os._exit(0)
                writers.append(pid)
            for pid in writers:
                self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
            lines = path.read_text().splitlines()
            self.assertEqual(sorted(lines),
                             sorted(f"{n} {i:04}" for n in range(4) for i in range(200)))

    def test_direct_io(self):
        for area in self.areas:
            path = area / "direct"
            whole = mmap.mmap(-1, 1 << 20)
            whole.write(pattern(1 << 20))
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
            self.assertEqual(os.pwritev(fd, [whole], 0), 1 << 20)
            self.assertEqual(path.read_bytes(), whole[:])
            path_fd = os.open(path, os.O_RDWR)
            os.pwrite(path_fd, b"buffered", BLOCK)
            back = mmap.mmap(-1, 2 * BLOCK)
            self.assertEqual(os.preadv(fd, [back], 0), 2 * BLOCK)
            self.assertEqual(back[BLOCK:BLOCK + 8], b"buffered")
            os.close(path_fd)
            os.close(fd)

    # --- mappings ---------------------------------------------------------------------------------

    def test_shared_stores_reach_the_store_and_private_ones_do_not(self):
        wanted = {}
        for area in self.areas:
            path = area / "mapped"
            data = bytearray(pattern(64 * BLOCK))
            path.write_bytes(data)
            fd = os.open(path, os.O_RDWR)
            shared = mmap.mmap(fd, len(data))
            private = mmap.mmap(fd, len(data), flags=mmap.MAP_PRIVATE)
            for page in range(0, 64, 3):
                shared[page * BLOCK:page * BLOCK + 7] = b"stored!"
                data[page * BLOCK:page * BLOCK + 7] = b"stored!"
            private[BLOCK:BLOCK + 7] = b"private"
            self.assertEqual(os.pread(fd, len(data), 0), data, "a read sees stores")
            os.pwrite(fd, b"written", 2 * BLOCK)
            data[2 * BLOCK:2 * BLOCK + 7] = b"written"
            self.assertEqual(shared[2 * BLOCK:2 * BLOCK + 7], b"written")
            os.close(fd)  # the mapping keeps the file
            shared[5 * BLOCK] = data[5 * BLOCK] = 200
            shared.close()
            private.close()
            wanted[path] = bytes(data)
        self.remount()
        for path, data in wanted.items():
            self.assertEqual(path.read_bytes(), data)

    def test_a_program_runs_from_the_mount(self):
        self.umount()
        self.mount("-o", "exec")
        for area in self.areas:
            program = area / "true"
            program.write_bytes(pathlib.Path("/bin/true").read_bytes())
            program.chmod(0o755)
            self.assertEqual(subprocess.run([program], check=False).returncode, 0)

    # --- copies -----------------------------------------------------------------------------------

    def test_copy_file_range_clones_what_is_aligned(self):
        for area in self.areas:
            data = pattern((4 << 20) + 1000)
            (area / "from").write_bytes(data)
            source = os.open(area / "from", os.O_RDONLY)
            os.fsync(source)
            before = os.statvfs(self.root).f_bavail
            target = os.open(area / "to", os.O_CREAT | os.O_RDWR)
            self.copy(source, target, len(data), 0, 0)
            os.fsync(target)
            self.assertEqual((area / "to").read_bytes(), data)
            taken = (before - os.statvfs(self.root).f_bavail) * BLOCK
            self.assertLess(taken, 1 << 20, "four megabytes are shared")
            os.pwrite(target, b"mine", 0)
            self.assertEqual((area / "from").read_bytes(), data)
            os.close(source)
            os.close(target)

    def copy(self, source, target, size, source_offset, target_offset):
        while size > 0:
            done = os.copy_file_range(source, target, size, source_offset, target_offset)
            self.assertGreater(done, 0)
            size -= done
            source_offset += done
            target_offset += done

    def test_copy_file_range_copies_the_rest(self):
        def work(folder):
            data = pattern(300_000)
            (folder / "from").write_bytes(data)
            (folder / "to").write_bytes(pattern(500_000, 2))
            source = os.open(folder / "from", os.O_RDONLY)
            target = os.open(folder / "to", os.O_RDWR)
            for size, source_offset, target_offset in (
                    (100, 5, 77), (200_000, 1, 10_001), (8192, 4096, 4000), (50_000, 4096, 8192),
                    (10_000, 290_000, 250_000), (10_000, 299_999, 100)):
                size = min(size, len(data) - source_offset)
                self.copy(source, target, size, source_offset, target_offset)
            past = os.copy_file_range(source, target, 10, 300_000, 0)
            os.close(source)
            os.close(target)
            return past, hashlib.sha256((folder / "to").read_bytes()).hexdigest()

        self.same(work)

    def test_a_copy_between_a_plain_and_an_encrypted_file_is_a_copy(self):
        plain, vault = self.areas
        data = pattern(1 << 20)
        (plain / "p").write_bytes(data)
        source = os.open(plain / "p", os.O_RDONLY)
        target = os.open(vault / "v", os.O_CREAT | os.O_RDWR)
        self.copy(source, target, len(data), 0, 0)
        os.close(source)
        os.close(target)
        self.assertEqual((vault / "v").read_bytes(), data)

    # --- many at once -----------------------------------------------------------------------------

    def test_threads_work_side_by_side(self):
        failures = []

        def work(folder, number):
            try:
                for step in range(20):
                    path = folder / f"{number}-{step}"
                    data = pattern(50_000 + number * 1000 + step, number)
                    path.write_bytes(data)
                    if path.read_bytes() != data:
                        failures.append(path)
                    path.rename(folder / f"{number}-moved-{step}")
                    if step % 2:
                        (folder / f"{number}-moved-{step}").unlink()
            except OSError as error:
                failures.append(error)

        for area in self.areas:
            threads = [threading.Thread(target=work, args=(area, number)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(len(os.listdir(area)), 80)
        self.assertEqual(failures, [])
        self.umount()
        self.assert_clean()

    def test_a_full_store_says_so_and_stays_whole(self):
        path = self.root / "vault" / "big"
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
        chunk = pattern(1 << 20)
        written = 0
        while (done := error_of(os.write, fd, chunk)) != "ENOSPC":
            written += done
            self.assertLess(written, 512 << 20)
        self.assertGreater(written, 150 << 20)
        os.close(fd)
        path.unlink()
        (self.root / "vault" / "small").write_bytes(chunk)
        self.umount()
        self.assert_clean()


if __name__ == "__main__":
    unittest.main()
