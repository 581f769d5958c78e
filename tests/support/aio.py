"""The kernel's own asynchronous I/O: what becomes of O_DIRECT writes that nobody waits for."""
import ctypes
import mmap
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
IO_SETUP, IO_DESTROY, IO_GETEVENTS, IO_SUBMIT = 206, 207, 208, 209  # x86-64
PWRITE = 1


def call(number, *words):
    answer = LIBC.syscall(number, *words)
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return answer


class DirectWriter:
    """Writes of one size to a file that is open with O_DIRECT."""

    def __init__(self, fd, size):
        self.fd = fd
        self.buffer = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))
        self.context = ctypes.c_ulong()
        call(IO_SETUP, 1, ctypes.byref(self.context))

    def write(self, byte, offset):
        self.buffer[:] = byte * len(self.buffer)
        request = ctypes.create_string_buffer(struct.pack(
            "<QIIHhIQQqQII", 0, 0, 0, PWRITE, 0, self.fd, self.address, len(self.buffer), offset,
            0, 0, 0))
        requests = (ctypes.c_void_p * 1)(ctypes.addressof(request))
        call(IO_SUBMIT, self.context, ctypes.c_long(1), requests)
        event = ctypes.create_string_buffer(32)
        call(IO_GETEVENTS, self.context, ctypes.c_long(1), ctypes.c_long(1), event, None)
        _, _, result, _ = struct.unpack("<QQqq", event.raw)
        if result != len(self.buffer):
            raise OSError(-result, "an asynchronous write")

    def close(self):
        call(IO_DESTROY, self.context)
        os.close(self.fd)
