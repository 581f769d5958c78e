"""The kernel's own asynchronous I/O: O_DIRECT reads and writes that nobody waits for."""
import ctypes
import mmap
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
IO_SETUP, IO_DESTROY, IO_GETEVENTS, IO_SUBMIT = 206, 207, 208, 209  # x86-64
PREAD, PWRITE = 0, 1


def call(number, *words):
    answer = LIBC.syscall(number, *words)
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return answer


class DirectFile:
    """Reads and writes of one size of a file that is open with O_DIRECT; `depth` at most at a time,
    each with a buffer of its own."""

    def __init__(self, fd, size, depth=1):
        self.fd, self.size = fd, size
        self.buffers = [mmap.mmap(-1, size) for _ in range(depth)]
        self.idle = list(range(depth))
        self.context = ctypes.c_ulong()
        call(IO_SETUP, depth, ctypes.byref(self.context))

    def submit(self, kind, offset, data=None):
        """Its number, by which done() tells of it."""
        number = self.idle.pop()
        if data is not None:
            self.buffers[number][:] = data
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffers[number]))
        request = ctypes.create_string_buffer(struct.pack(
            "<QIIHhIQQqQII", number, 0, 0, kind, 0, self.fd, address, self.size, offset, 0, 0, 0))
        requests = (ctypes.c_void_p * 1)(ctypes.addressof(request))
        call(IO_SUBMIT, self.context, ctypes.c_long(1), requests)
        return number

    def done(self):
        """Waits for any: (number, what came of it); a read's bytes are in its buffer."""
        event = ctypes.create_string_buffer(32)
        call(IO_GETEVENTS, self.context, ctypes.c_long(1), ctypes.c_long(1), event, None)
        number, _, result, _ = struct.unpack("<QQqq", event.raw)
        self.idle.append(number)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        if result != self.size:
            raise OSError(f"{result} of {self.size} bytes")
        return number

    def write(self, offset, data):
        self.submit(PWRITE, offset, data)
        self.done()

    def close(self):
        call(IO_DESTROY, self.context)
        os.close(self.fd)
