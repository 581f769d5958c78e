#!/usr/bin/env python3
"""Goal: what the kernel leaves undone behind direct I/O that it does not wait for is done: nobody
reads what was there before, times are told as they are, and who waits for a key can be killed.
Method: libaio and O_DIRECT beside reads of the kernel's pages and of a mapping; a suspended key
holds calls up for as long as is wanted."""
import ctypes
import mmap
import os
import pathlib
import random
import signal
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
from aio import PREAD, PWRITE, DirectFile  # noqa: E402
from mounted_keys import *  # noqa: E402,F403

PAGE = 4096
SYS_EXIT = 60  # of one thread; x86-64
PAGES = 64


def page_of(number):
    return bytes([number % 251 + 1]) * PAGE


class Direct(Children, Keys):
    def setUp(self):
        super().setUp()
        self.path = self.root / "vault" / "file"
        self.path.write_bytes(b"".join(map(page_of, range(PAGES))))

    def direct(self, depth=1, flags=os.O_RDWR):
        return DirectFile(os.open(self.path, flags | os.O_DIRECT), PAGE, depth)

    def suspend(self):
        self.run_ok("key", "remove", "--mode", "suspend", "--key-file", self.key, self.root)

    def add(self):
        self.run_ok("key", "add", "-q", "--key-file", self.key, self.root)

    def waiting(self, work):
        """A child whose work() waits for the key."""
        pid = self.child(work)
        time.sleep(0.3)
        self.assertEqual(os.waitpid(pid, os.WNOHANG), (0, 0), "it waits")
        return pid

    def test_many_at_once(self):
        file = self.direct(depth=32)
        pages = list(range(PAGES))
        random.shuffle(pages)
        for first in range(0, PAGES, 32):
            for page in pages[first:first + 32]:
                file.submit(PWRITE, page * PAGE, page_of(page + 7))
            for _ in range(32):
                file.done()
        for first in range(0, PAGES, 32):
            of = {file.submit(PREAD, page * PAGE): page for page in pages[first:first + 32]}
            for _ in range(32):
                number = file.done()
                self.assertEqual(file.buffers[number][:], page_of(of[number] + 7))
        file.close()
        self.assertEqual(self.path.read_bytes(),
                         b"".join(page_of(page + 7) for page in range(PAGES)))

    def waiting_at_the_device(self):
        """Threads of the daemon that a request may go to, and all that it has."""
        device = {name for name in os.listdir(f"/proc/{self.server}/fd")
                  if os.path.realpath(f"/proc/{self.server}/fd/{name}") == "/dev/fuse"}
        calls = [(task / "syscall").read_text().split()
                 for task in pathlib.Path(f"/proc/{self.server}/task").iterdir()]
        there = [call for call in calls
                 if call[0] == "0" and str(int(call[1], 16)) in device]  # read; x86-64
        return len(there), len(calls)

    def test_behind_many_at_once_few_threads_wait_for_more(self):
        self.path.write_bytes(bytes(16 << 20))
        file = self.direct(depth=32)
        for _ in range(100):
            for _ in range(32):
                file.submit(PREAD, random.randrange(4096) * PAGE)
            for _ in range(32):
                file.done()
        file.close()
        time.sleep(0.5)  # a companion has ended by then
        waiting, threads = self.waiting_at_the_device()
        self.assertGreater(threads, 12)
        self.assertLessEqual(waiting, 5)
        self.assertGreater(waiting, 0)

    def test_what_was_read_meanwhile_goes(self):
        file = self.direct()
        reader = os.open(self.path, os.O_RDONLY)
        mapping = mmap.mmap(reader, PAGES * PAGE, prot=mmap.PROT_READ)
        ends = threading.Event()

        def read_on():
            while not ends.is_set():
                os.pread(reader, 8 * PAGE, 0)

        threads = [threading.Thread(target=read_on) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1500):
                page = number % 8
                file.write(page * PAGE, page_of(number))
                self.assertEqual(os.pread(reader, PAGE, page * PAGE), page_of(number), number)
                self.assertEqual(mapping[page * PAGE:(page + 1) * PAGE], page_of(number), number)
        finally:
            ends.set()
            for thread in threads:
                thread.join()
        mapping.close()
        os.close(reader)
        file.close()

    def test_times_that_were_asked_for_meanwhile(self):
        os.utime(self.path, ns=(0, 0))
        file = self.direct()
        self.suspend()
        file.submit(PWRITE, 0, page_of(1))
        time.sleep(0.1)
        self.assertEqual(os.fstat(file.fd).st_mtime_ns, 0)
        self.add()
        file.done()
        self.assertGreater(os.fstat(file.fd).st_mtime_ns, 0)
        file.close()

    def test_who_waits_can_be_killed(self):
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        buffer = mmap.mmap(-1, PAGE)
        self.suspend()

        def read_beside_a_thread():
            thread = threading.Thread(target=lambda: os.preadv(fd, [buffer], 2 * PAGE))
            thread.start()
            thread.join()

        def submit():
            DirectFile(fd, PAGE).submit(PREAD, 0)
            time.sleep(1000)

        calls = (lambda: os.preadv(fd, [buffer], 0), lambda: os.pwritev(fd, [buffer], PAGE),
                 read_beside_a_thread, submit)
        for end in (signal.SIGKILL, signal.SIGTERM):
            for call in calls:
                pid = self.waiting(call)
                began = time.monotonic()
                os.kill(pid, end)
                self.assertEqual(self.ended(pid), -end, call)
                self.assertLess(time.monotonic() - began, 10)
        os.close(fd)
        self.add()
        self.assertEqual(self.path.read_bytes()[PAGE], page_of(1)[0], "the writes were not made")

    def test_who_is_not_killed_waits_on(self):
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)

        signal.signal(signal.SIGUSR1, lambda *_: None)

        def read():
            buffer = mmap.mmap(-1, PAGE)
            return 0 if os.preadv(fd, [buffer], 3 * PAGE) == PAGE and \
                buffer[:] == page_of(3) else 1

        def submit_in_a_thread_that_ends():
            file = DirectFile(fd, PAGE)
            thread = threading.Thread(
                target=lambda: (file.submit(PREAD, 4 * PAGE), time.sleep(0.1)))
            thread.start()
            thread.join()
            return 0 if file.buffers[file.done()][:] == page_of(4) else 1

        def submit_without_the_first_thread():
            file = DirectFile(fd, PAGE)

            def work():
                code = 1
                try:
                    file.submit(PREAD, 5 * PAGE)
                    code = 0 if file.buffers[file.done()][:] == page_of(5) else 1
                finally:
                    os._exit(code)

            threading.Thread(target=work).start()
            ctypes.CDLL(None).syscall(SYS_EXIT, 0)

        self.suspend()
        children = [self.waiting(read), self.waiting(submit_in_a_thread_that_ends),
                    self.waiting(submit_without_the_first_thread)]
        os.kill(children[0], signal.SIGUSR1)
        os.kill(children[0], signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(children[0], signal.SIGCONT)
        time.sleep(0.3)
        for pid in children:
            self.assertEqual(os.waitpid(pid, os.WNOHANG), (0, 0), "it waits")
        self.add()
        self.assertEqual([self.ended(pid) for pid in children], [0, 0, 0])
        os.close(fd)


if __name__ == "__main__":
    unittest.main()
