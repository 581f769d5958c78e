"""fscrypt's ioctls as a program makes them: a process of its own, of any user, with its argument
at the end of what it may touch."""
import ctypes
import errno
import mmap
import os
import pickle
import struct

ADD, REMOVE, REMOVE_ALL, STATUS = 0xc0506617, 0xc0406618, 0xc0406619, 0xc080661a
SET_POLICY, GET_POLICY, GET_POLICY_EX, NONCE = 0x800c6613, 0x400c6615, 0xc0096616, 0x8010661b
PAGE = mmap.PAGESIZE
ABSENT, PRESENT, INCOMPLETELY_REMOVED = 1, 2, 3
FILES_BUSY, OTHER_USERS, ADDED_BY_SELF = 1, 2, 1

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def specifier(identifier):
    return struct.pack("<II16s16x", 2, 0, bytes.fromhex(identifier))


def add(raw, key_id=0):
    return struct.pack("<II32xII32x", 2, 0, len(raw), key_id) + raw


def removal(identifier):
    return specifier(identifier) + bytes(24)


def status(identifier):
    return specifier(identifier) + bytes(88)


def policy(identifier):
    return struct.pack("<BBBB4x16s", 2, 1, 4, 3, bytes.fromhex(identifier))


def get_policy_ex(size=24):
    return struct.pack("<Q24x", size)


def flags_of_removal(answer):
    return struct.unpack_from("<I", answer, 40)[0]


def facts_of_status(answer):
    """State, flags, how many have a claim."""
    return struct.unpack_from("<III", answer, 64)


def ending_memory(content):
    """The address of what a program can touch, and not one byte more."""
    start = libc.mmap(None, 2 * PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert libc.mprotect(start + PAGE, PAGE, 0) == 0
    address = start + PAGE - len(content)
    ctypes.memmove(address, content, len(content))
    return address


def call_at(fd, command, address):
    """0 or the name of an errno."""
    if libc.ioctl(fd, command, address) == 0:
        return 0
    return errno.errorcode[ctypes.get_errno()]


def in_process(work, user=0):
    """What work() returns in a process of that user."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            answer = work()
        except BaseException as error:  # pylint: disable=broad-except
            answer = error
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pickle.load(pipe)
    os.waitpid(child, 0)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def call(path, command, content=b"", user=0):
    """What the ioctl answers a process of that user, and its memory after that."""
    def work():
        fd = os.open(path, os.O_RDONLY)
        address = ending_memory(content)
        return call_at(fd, command, address), ctypes.string_at(address, len(content))
    return in_process(work, user)
