"""What one instruction does to a State: the operands, and the instructions that x86.py lists. Part
of taint.py, which walks from one instruction to the next."""
import x86
from taint_state import (INFINITY, NUMBER, SECRET, STACK, ZERO, Value, add, address_of, arithmetic,
                         exactly, join)

BROADCAST_BYTES = 8


class Steps:
    """Needs self.binary, self.memory and self.report(kind, instruction, text)."""

    # Operands

    def where(self, at, operand, state):
        """The address of a memory operand."""
        memory = operand.what
        if memory.vector_index:
            self.report("address", at)
            return Value(False, "lost")
        if memory.base == "rip":
            constant = self.binary.section(at.refers_to or 0).startswith(".rodata")
            return Value(False, "constants" if constant else "globals")
        found = exactly(memory.offset)
        if memory.base:
            found = add(found, state.registers[memory.base])
        if memory.index:
            index = state.registers[memory.index]
            found = add(found, index if memory.scale == 1 else
                        arithmetic("shl", index, exactly(memory.scale.bit_length() - 1)))
        return found

    def place(self, at, operand, state, size):
        """The same for a load or a store of `size` bytes."""
        where = self.where(at, operand, state)
        if where.secret:
            self.report("address", at)
        if where.region == "aligned" and where.high + size > 0 and where.high < INFINITY:
            if where.low + size > 0:
                self.report("unknown", at, "above the frame: ")
            where = where._replace(high=-size)  # it keeps within its objects
        if where.region == "stack" and state.rounded_at is not None \
                and -INFINITY < where.low < state.rounded_at:
            self.report("unknown", at, "below the frame: ")
        return where

    def load(self, at, operand, state, size):
        where = self.place(at, operand, state, size)
        lanes = (size + 7) // 8
        if where.region in STACK:
            values = state.load_stack(where, size)
        elif where.region not in self.memory:
            self.report("unknown", at, "loads from memory that no parameter leads to: ")
            values = (SECRET,) * lanes
        elif isinstance(self.memory[where.region], Value):
            value = self.memory[where.region]
            values = (value if size >= 8 else Value(value.secret),) * lanes
        else:
            words = self.memory[where.region]
            known = where.low == where.high and size >= 8
            values = tuple(words.get(where.low + 8 * i, NUMBER) if known else
                           Value(any(word.secret for word in words.values())) for i in range(lanes))
        if size < 8 and not values[0].secret:
            values = (Value(False, "", 0, (1 << 8 * size) - 1),)
        return tuple(value._replace(secret=value.secret or where.secret) for value in values)

    def store(self, at, operand, state, size, lanes, whole=True):
        """`whole`: every byte is written."""
        where = self.place(at, operand, state, size)
        if where.region in STACK:
            state.store_stack(where, size, lanes, at.mask is not None or not whole)
        elif where.region != "secret":
            self.report("unknown", at, "stores to memory that is no secret's: ")

    def read(self, at, operand, state, size):
        """The value of a general operand."""
        if operand.kind == "immediate":
            return exactly(operand.what)
        if operand.kind == "memory":
            return self.load(at, operand, state, size)[0]
        value = state.registers[operand.what]
        if operand.bytes == 8:
            return value
        mask = (1 << 8 * operand.bytes) - 1
        if value.region or value.low < 0 or value.high > mask or operand.high:
            return Value(value.secret, "", 0, mask)
        return value

    def write(self, at, operand, state, size, value):
        if operand.kind == "memory":
            self.store(at, operand, state, size, (value,))
        elif operand.kind != "register":
            self.report("unknown", at)
        elif operand.bytes == 8:
            state.registers[operand.what] = value
        elif operand.bytes == 4:
            fits = not value.region and value.low >= 0 and value.high < 1 << 32
            state.registers[operand.what] = value if fits else \
                Value(value.secret, "", 0, (1 << 32) - 1)
        else:
            before = state.registers[operand.what]
            state.registers[operand.what] = Value(before.secret or value.secret)

    # General instructions

    def step(self, at, state):
        if at.text.startswith("rep stos "):
            self.fill(at, state)
            return
        if any(operand.kind == "other" for operand in at.operands):
            self.report("unknown", at)
            return
        name = at.name
        wide = any(operand.kind in ("vector", "mask") for operand in at.operands)
        if x86.GATHERS.match(name):
            self.report("address", at)
        elif name in x86.NOTHING:
            pass
        elif wide:
            self.wide_step(at, state)
        elif name in x86.PREFETCHES:
            self.place(at, at.operands[0], state, 1)
        elif name in ("push", "pop", "leave"):
            self.stack_step(at, state)
        elif name in x86.MOVES:
            self.move(at, state)
        elif name.startswith("lea") and len(at.operands) == 2:
            self.write(at, at.operands[1], state, 8, self.where(at, at.operands[0], state))
        elif name in x86.COMPARES:
            size = self.size(at)
            state.flags = any([self.read(at, each, state, size).secret for each in at.operands])
        elif name in x86.DIVIDES or (name in x86.sized("imul") and len(at.operands) == 1):
            self.divide(at, state)
        elif name in x86.ARITHMETIC:
            self.arithmetic_step(at, state)
        elif name in ("cltq", "cwtl"):
            state.registers["rax"] = Value(state.registers["rax"].secret)
        elif name in ("cqto", "cltd"):
            state.registers["rdx"] = Value(state.registers["rax"].secret)
        elif name.startswith("bswap"):
            value = self.read(at, at.operands[0], state, 8)
            self.write(at, at.operands[0], state, 8, Value(value.secret))
        elif name.startswith("set"):
            self.write(at, at.operands[0], state, 1, Value(state.flags, "", 0, 1))
        elif name.startswith("cmov") and len(at.operands) == 2:
            source, target = at.operands
            both = join(self.read(at, target, state, target.bytes),
                        self.read(at, source, state, target.bytes))
            self.write(at, target, state, target.bytes,
                       both._replace(secret=both.secret or state.flags))
        else:
            self.report("unknown", at)

    @staticmethod
    def size(at):
        """Bytes of the operands: of the registers, else of the name's suffix."""
        for operand in reversed(at.operands):
            if operand.kind == "register":
                return operand.bytes
        return x86.WIDTHS.get(at.name[-1], 8)

    def stack_step(self, at, state):
        if at.name == "leave":
            state.registers["rsp"] = state.registers["rbp"]
            operand, pops = None, True
        else:
            operand, pops = at.operands[0], at.name == "pop"
        top = x86.Operand("memory", x86.Memory(0, "rsp", None, 1, False))
        if not pops:
            value = self.read(at, operand, state, 8)
            state.registers["rsp"] = add(state.registers["rsp"], exactly(-8))
            self.store(at, top, state, 8, (value,))
            return
        value = self.load(at, top, state, 8)[0]
        state.registers["rsp"] = add(state.registers["rsp"], exactly(8))
        if at.name == "leave":
            state.registers["rbp"] = value
        else:
            self.write(at, operand, state, 8, value)

    def fill(self, at, state):
        """rcx times rax, from rdi on."""
        registers = state.registers
        where = registers["rdi"]._replace(low=-INFINITY, high=INFINITY)
        if where.secret or registers["rcx"].secret:
            self.report("address", at)
        if where.region in STACK:
            state.store_stack(where, 8, (registers["rax"],), True)
        elif where.region != "secret":
            self.report("unknown", at)
        registers["rdi"], registers["rcx"] = where, ZERO

    def divide(self, at, state):
        """Or multiply: of one operand, rax and rdx."""
        value = self.read(at, at.operands[0], state, self.size(at))
        secret = value.secret or state.registers["rax"].secret
        if at.name.startswith(("div", "idiv")):
            secret = secret or state.registers["rdx"].secret
            if secret:
                self.report("time", at)
        state.registers["rax"] = state.registers["rdx"] = Value(secret)
        state.flags = secret

    def move(self, at, state):
        source, target = at.operands
        size = target.bytes or self.size(at)
        loaded = x86.WIDTHS[at.name[4]] if at.name[:4] in ("movz", "movs") and len(at.name) == 6 \
            else size
        value = self.read(at, source, state, loaded)
        if loaded != size and at.name.startswith("movs") and value.high >= 1 << (8 * loaded - 1):
            value = Value(value.secret)
        self.write(at, target, state, size, value)

    def arithmetic_step(self, at, state):
        *sources, target = at.operands
        name = x86.ARITHMETIC[at.name]
        size = target.bytes or self.size(at)
        values = [self.read(at, each, state, size) for each in sources]
        before = self.read(at, target, state, size)
        if name == "and" and sources[0].kind == "immediate" and sources[0].what < 0 \
                and target.what == "rsp" and before.region == "stack" and before.low == before.high:
            state.rounded_at = before.low
            state.registers["rsp"] = address_of("aligned")
            return
        if name in ("xor", "sub") and sources and sources[0] == target:
            value = ZERO
        elif name in ("inc", "dec"):
            value = arithmetic("add", before, exactly(1 if name == "inc" else -1))
        elif len(sources) == 1 and name not in ("not", "neg", "adc", "sbb"):
            value = arithmetic(name, before, values[0])
        elif not sources:
            value = Value(before.secret)
        elif len(sources) == 2:  # three operands: the target is written only
            value = Value(values[0].secret or values[1].secret)
        else:
            value = Value(before.secret or values[0].secret or state.flags)
        if size < 8 and (value.low < 0 or value.high >= 1 << 8 * size) and not value.region:
            value = Value(value.secret, "", 0, (1 << 8 * size) - 1)
        self.write(at, target, state, size, value)
        if name not in ("not", "shlx", "shrx", "sarx", "rorx"):
            state.flags = value.secret

    # Vectors and masks

    def lanes(self, at, operand, state, size):
        if operand.kind == "vector":
            return state.vectors[operand.what][:operand.bytes // 8]
        if operand.kind == "mask":
            return (Value(state.masks[operand.what]),)
        if operand.kind == "memory":
            if operand.broadcast:
                return self.load(at, operand, state, BROADCAST_BYTES) * (size // 8)
            return self.load(at, operand, state, x86.READS.get(at.name, size))
        return (self.read(at, operand, state, 8),)

    def write_vector(self, at, operand, state, lanes):
        lanes = (tuple(lanes) + (ZERO,) * 8)[:8]
        if at.mask is not None and not at.zeroing:
            lanes = tuple(map(join, lanes, state.vectors[operand.what]))
        if at.mask is not None and state.masks[at.mask]:
            lanes = tuple(lane._replace(secret=True) for lane in lanes)
        state.vectors[operand.what] = lanes

    def wide_step(self, at, state):
        name, target = at.name, at.operands[-1]
        size = max([operand.bytes for operand in at.operands if operand.kind == "vector"] or [8])
        inputs = [self.lanes(at, operand, state, size) for operand in at.operands[:-1]
                  if operand.kind != "immediate"]
        secret = any(lane.secret for lanes in inputs for lane in lanes)
        if name in x86.VECTOR_TESTS or name in x86.MASK_TESTS:
            state.flags = secret or any(lane.secret for lane in self.lanes(at, target, state, size))
            return
        if target.kind == "mask":
            if name not in x86.MASK_OPERATIONS and not x86.MASK_MAKERS.match(name):
                self.report("unknown", at)
            if secret or (at.mask is not None and state.masks[at.mask]):
                self.report("mask", at)
            state.masks[target.what] = secret
            return
        lanes = self.result(at, state, inputs, secret, size // 8)
        if lanes is None:
            self.report("unknown", at)
        elif target.kind == "vector":
            self.write_vector(at, target, state, lanes)
        elif target.kind == "memory":
            stored = x86.READS.get(name, 8 * len(lanes))
            whole = name in x86.VECTOR_MOVES or name in x86.READS or name.startswith("vextract")
            self.store(at, target, state, stored, lanes, whole)
        else:
            self.write(at, target, state, 8, lanes[0])

    def result(self, at, state, inputs, secret, count):
        """The lanes of eight bytes that a vector instruction gives; None where nobody knows."""
        name, target = at.name, at.operands[-1]
        registers = [each.what for each in at.operands if each.kind == "vector"]
        one_register = len(registers) == 3 == len(at.operands) and len({*registers}) == 1
        immediate = at.operands[0].what if at.operands[0].kind == "immediate" else None
        if one_register and name in ("vpxor", "vpxord", "vpxorq", "vxorps", "vxorpd", "vpsubq"):
            return (ZERO,) * count
        if one_register and name.startswith("vpcmpeq"):
            return (NUMBER,) * count
        if name in x86.VECTOR_KEEPS:
            if name.startswith("vpternlog") and immediate in (0, 255):
                return (NUMBER,) * count
            kept = any(lane.secret for lane in state.vectors[target.what])
            return (Value(secret or kept),) * count
        if name in x86.VECTOR_MOVES:
            return inputs[0]
        if name in ("vmovq", "vmovd"):
            return (inputs[0][0] if name == "vmovq" else Value(inputs[0][0].secret),)
        if name == "vpbroadcastq":
            return inputs[0][:1] * count
        if name in x86.VECTOR_SUMS:
            b, a = inputs
            return tuple(add(x, y, 1 if name == "vpaddq" else -1) for x, y in zip(a, b))
        if name == "vpinsrq":
            lanes = list(inputs[1][:2])
            lanes[immediate & 1] = inputs[0][0]
            return tuple(lanes)
        if name == "vpextrq":
            return (inputs[0][immediate & 1],)
        if name == "vpunpcklqdq" and count == 2:
            return (inputs[1][0], inputs[0][0])
        if name in x86.VECTOR_PURE or name in x86.VECTOR_SIGNS or name in x86.MASK_OPERATIONS \
                or name[:6] in ("vpinsr", "vpextr"):
            if name.startswith("vextract"):
                count = x86.READS[name.replace("extract", "broadcast")] // 8
            return (Value(secret),) * count
        return None
