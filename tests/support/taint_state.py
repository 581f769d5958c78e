"""What taint.py knows at one place of a function: values, and a state of registers and stack."""
from typing import NamedTuple

import x86

INFINITY = 1 << 64
STACK = ("stack", "aligned")  # above and below where the stack pointer was rounded down


class Value(NamedTuple):
    secret: bool = False
    region: str = ""  # of an address; "" is a number, "lost" an address that nobody can follow
    low: int = -INFINITY
    high: int = INFINITY


NUMBER, SECRET, ZERO = Value(), Value(True), Value(low=0, high=0)


def address_of(region):
    return Value(False, region, 0, 0)


def exactly(number):
    return Value(False, "", number, number)


def bounded(value):
    if value.low < -(1 << 63) or value.high > 1 << 63:
        return value._replace(low=-INFINITY, high=INFINITY)
    return value


def join(a, b):
    if a == b:
        return a
    low, high, secret = min(a.low, b.low), max(a.high, b.high), a.secret or b.secret
    if a.region != b.region:
        if a[1:] == ZERO[1:] or b[1:] == ZERO[1:]:  # null, or an address
            return (b if a[1:] == ZERO[1:] else a)._replace(secret=secret)
        return Value(secret, "lost")
    return Value(secret, a.region, low, high)


def add(a, b, sign=1):
    secret = a.secret or b.secret
    if a.region and b.region:
        same = sign < 0 and a.region == b.region != "lost"
        if not same:
            return Value(secret, "lost")
    elif b.region and sign < 0:
        return Value(secret, "lost")
    region = "" if a.region and b.region else a.region or b.region
    low, high = (b.low, b.high) if sign > 0 else (-b.high, -b.low)
    return bounded(Value(secret, region, a.low + low, a.high + high))


def arithmetic(name, a, b):
    """a OP b; b is the source in objdump's order."""
    secret = a.secret or b.secret
    if name in ("add", "sub"):
        return add(a, b, 1 if name == "add" else -1)
    positive = not (a.region or b.region) and a.low >= 0 and b.low >= 0
    exact = b.low == b.high
    if name == "and" and not b.region and b.low >= 0:
        return Value(secret, "", 0, min(b.high, a.high if a.low >= 0 and not a.region else b.high))
    if name in ("or", "xor") and positive:
        bits = max(a.high, b.high).bit_length()
        return bounded(Value(secret, "", 0, (1 << bits) - 1))
    if positive and exact and b.low < 64 and name == "shl":
        return bounded(Value(secret, "", a.low << b.low, a.high << b.low))
    if not a.region and exact and 0 < b.low < 64 and name == "shr":
        low, high = (a.low, a.high) if a.low >= 0 else (0, INFINITY)
        return Value(secret, "", low >> b.low, high >> b.low)
    return Value(secret)


class State:
    def __init__(self):
        self.registers = dict.fromkeys({name for name, _, _ in x86.REGISTERS.values()}, NUMBER)
        self.vectors = dict.fromkeys(range(32), (NUMBER,) * 8)
        self.masks = dict.fromkeys("01234567", False)
        self.flags = False
        self.slots = {}  # (region, offset) of eight bytes -> Value
        self.elsewhere = dict.fromkeys(STACK, NUMBER)  # slots that are not in it
        self.rounded_at = None  # where in "stack" the stack pointer was rounded down

    def copy(self):
        made = State.__new__(State)
        made.__dict__ = {name: dict(value) if isinstance(value, dict) else value
                         for name, value in self.__dict__.items()}
        return made

    def slot(self, key):
        return self.slots.get(key, self.elsewhere[key[0]])

    def meet(self, other, widen):
        """Becomes what holds on both paths; true where that is less than before."""
        before = self.copy()

        def met(old, new):
            both = join(old, new)
            if widen and both[2:] != old[2:]:
                both = both._replace(low=-INFINITY, high=INFINITY)
            return both
        for key in {*self.slots, *other.slots}:
            self.slots[key] = met(before.slot(key), other.slot(key))
        for name in STACK:
            self.elsewhere[name] = met(self.elsewhere[name], other.elsewhere[name])
        for name, value in other.registers.items():
            self.registers[name] = met(self.registers[name], value)
        for name, value in other.vectors.items():
            if value != self.vectors[name]:
                self.vectors[name] = tuple(map(met, self.vectors[name], value))
        for name, value in other.masks.items():
            self.masks[name] |= value
        self.flags |= other.flags
        if self.rounded_at is None:
            self.rounded_at = other.rounded_at
        return self.__dict__ != before.__dict__

    # The stack. A store to an offset that is known replaces, any other one joins.

    def touched(self, where, size):
        """The slots of some bytes, or None where that is any of them."""
        if where.high - where.low > 1 << 12:
            return None
        return [(where.region, offset)
                for offset in range(where.low // 8 * 8, where.high + size, 8)]

    def load_stack(self, where, size):
        lanes = (size + 7) // 8
        slots = self.touched(where, size)
        if slots and where.low == where.high and where.low % 8 == 0 and size % 8 == 0:
            return tuple(map(self.slot, slots))
        if slots is None:
            slots = [key for key in self.slots if key[0] == where.region]
            values = [self.elsewhere[where.region], *map(self.slot, slots)]
        else:
            values = list(map(self.slot, slots))
        met = values[0]
        for value in values[1:]:
            met = join(met, value)
        return (met if size >= 8 else Value(met.secret),) * lanes

    def store_stack(self, where, size, lanes, partly):
        slots = self.touched(where, size)
        exact = where.low == where.high and where.low % 8 == 0 and size % 8 == 0
        if slots and exact and not partly:
            self.slots.update(zip(slots, lanes))
            return
        if slots is None:
            slots = [key for key in self.slots if key[0] == where.region]
            self.elsewhere[where.region] = self.worse(self.elsewhere[where.region], lanes, size)
        for key in slots:
            self.slots[key] = self.worse(self.slot(key), lanes, size)

    @staticmethod
    def worse(value, lanes, size):
        if size < 8:
            return Value(value.secret or any(lane.secret for lane in lanes))
        for lane in lanes:
            value = join(value, lane)
        return value
