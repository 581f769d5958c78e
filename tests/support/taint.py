"""What in the code of a function depends on secrets: its instructions, interpreted.

Of each register and stack slot it is known whether it depends on a secret, and whether it is a
number (with bounds) or an address (of which memory, at which offset). What the parameters are is
told by the caller; memory tells what is loaded from it. Paths that meet are joined, loops are run
until nothing changes. Reported, with the instruction, are

  branch    a jump that depends on a secret
  address   a load, a store or a prefetch from an address that does
  mask      a secret in a mask register: masks decide which bytes are loaded and stored
  time      a secret in a division
  unknown   whatever else it does not understand: an instruction, a call, memory that no parameter
            leads to. So what is not understood is not passed.

It believes that the code keeps within its objects: an offset into one never leads to another.
"""
import collections
import re
from typing import NamedTuple

import x86
from taint_state import NUMBER, SECRET, State, Value, add, address_of, exactly
from taint_steps import Steps

CALLER_SAVED = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
PARAMETER_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
PASSES_BEFORE_WIDENING = 6
CALLS_DEEP = 4


class Finding(NamedTuple):
    function: str
    kind: str
    address: int
    text: str

    def __str__(self):
        return f"{self.function} at {self.address:x}: {self.kind}: {self.text}"


class Analysis(Steps):
    """memory: region -> what a load gives: one value for all of it, or {offset: value}, where what
    is at no offset is a number. Calls of a function whose name has one of `ends` in it do not
    return; those with one of `trusted` return, and tell nothing."""

    def __init__(self, binary, memory, ends, trusted):
        self.binary = binary
        self.memory = {"secret": SECRET, "constants": NUMBER, "globals": Value(False, "lost"),
                       **memory}
        self.ends, self.trusted = ends, trusted
        self.findings = set()
        self.instructions = set()

    def run(self, function, parameters):
        """The findings in a function (an entry of binary.functions) and in what it calls.
        `parameters`: for each the values of its eight-byte words."""
        state = State()
        state.registers["rsp"] = address_of("stack")
        registers, stack = list(PARAMETER_REGISTERS), 8  # above the return address
        for words in parameters:
            if len(words) <= len(registers):
                for word in words:
                    state.registers[registers.pop(0)] = word
            else:
                for word in words:
                    state.slots["stack", stack] = word
                    stack += 8
        before = self.findings
        self.findings = set()
        self.call(function[0], state, 0)
        found = sorted(self.findings, key=lambda each: (each.address, each.kind))
        self.findings = before | self.findings
        return found

    def report(self, kind, at, text=""):
        name = self.binary.function(at.address)[2]
        self.findings.add(Finding(name, kind, at.address, f"{text}{at.text}"))

    def call(self, start, state, depth):
        """Runs from `start` on; the state at its returns, None if it never does."""
        waiting, states, passes = {start}, {start: state}, collections.Counter()
        returned = None
        while waiting:
            at = min(waiting)
            waiting.remove(at)
            passes[at] += 1
            for place, reached in self.block(at, states[at].copy(), depth):
                if place is None:
                    if returned is None:
                        returned = reached
                    else:
                        returned.meet(reached, False)
                elif place not in states:
                    states[place] = reached
                    waiting.add(place)
                elif states[place].meet(reached, passes[place] > PASSES_BEFORE_WIDENING):
                    waiting.add(place)
        return returned

    def block(self, address, state, depth):
        """Where control goes from here, with which states; no place is a return."""
        first = True
        while True:
            at = self.binary.instruction(address)
            if at is None:
                self.findings.add(Finding("", "unknown", address, "no code"))
                return []
            if address in self.binary.leaders and not first:
                return [(address, state)]
            first = False
            self.instructions.add(address)
            name = at.name
            if name in ("ret", "retq"):
                return [(None, state)]
            if name in x86.ENDS:
                return []
            if name == "jmp" or name == "call":
                if at.operands[0].kind != "target":
                    self.report("unknown", at)
                    return []
                target, label = at.operands[0].what
                if name == "jmp" and self.same_function(address, target):
                    return [(target, state)]
                state = self.transfer(at, target, label, state, depth)
                if state is None or name == "jmp":
                    return [] if state is None else [(None, state)]
            elif name.startswith("j") and at.operands[0].kind == "target":
                if state.flags:
                    self.report("branch", at)
                return [(at.operands[0].what[0], state), (at.next, state.copy())]
            else:
                self.step(at, state)
            address = at.next

    def same_function(self, a, b):
        """Also of the part that a compiler moved away, which is a symbol of its own."""
        first, second = self.binary.function(a), self.binary.function(b)
        if first is None or second is None:
            return False
        plain = [re.sub(r" \[clone [^\]]*cold[^\]]*\]$", "", each[2]) for each in (first, second)]
        return first == second or (plain[0] == plain[1] and plain != [first[2], second[2]])

    def transfer(self, at, target, label, state, depth):
        found = self.binary.function(target)
        name = found[2] if found else label
        if any(each in name for each in self.ends):
            return None
        if any(each in name for each in self.trusted):
            # What it leaves in vectors and flags nobody may look at. In general registers neither,
            # but a compiler that writes one byte of them drags the rest along.
            state.registers.update(dict.fromkeys(CALLER_SAVED, NUMBER))
            state.vectors = dict.fromkeys(state.vectors, (SECRET,) * 8)
            state.flags = True
            return state
        if found is None or target != found[0] or depth == CALLS_DEEP:
            self.report("unknown", at)
            return None
        pushed = 8 if at.name == "call" else 0
        state.registers["rsp"] = add(state.registers["rsp"], exactly(-pushed))
        state = self.call(target, state, depth + 1)
        if state is not None:
            state.registers["rsp"] = add(state.registers["rsp"], exactly(pushed))
        return state
