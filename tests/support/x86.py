"""x86-64 code as objdump prints it: the functions of a binary, their instructions and operands, and
what the instructions are that taint.py knows. One that is in none of these tables is "unknown"."""
import bisect
import re
import subprocess
from typing import NamedTuple, Optional

# Name -> (the register of eight bytes, bytes, whether it is bits 8 to 15).
REGISTERS = {}
for _name in "abcd":
    REGISTERS.update({f"r{_name}x": (f"r{_name}x", 8, False),
                      f"e{_name}x": (f"r{_name}x", 4, False),
                      f"{_name}x": (f"r{_name}x", 2, False), f"{_name}l": (f"r{_name}x", 1, False),
                      f"{_name}h": (f"r{_name}x", 1, True)})
for _name in ("si", "di", "bp", "sp"):
    REGISTERS.update({f"r{_name}": (f"r{_name}", 8, False), f"e{_name}": (f"r{_name}", 4, False),
                      _name: (f"r{_name}", 2, False), f"{_name}l": (f"r{_name}", 1, False)})
for _number in range(8, 16):
    for _suffix, _bytes in (("", 8), ("d", 4), ("w", 2), ("b", 1)):
        REGISTERS[f"r{_number}{_suffix}"] = (f"r{_number}", _bytes, False)
WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}
VECTOR_BYTES = {"x": 16, "y": 32, "z": 64}


def family(stems, suffixes):
    return {stem + suffix for stem in stems.split() for suffix in suffixes.split()}


def sized(stems):
    return {stem + suffix for stem in stems.split() for suffix in ("", *WIDTHS)}


MOVES = sized("mov") | {"movabs"} | {f"mov{kind}{pair}" for kind in "zs"
                                     for pair in ("bw", "bl", "bq", "wl", "wq", "lq")}
# With the plain name of each.
ARITHMETIC = {name: stem for stem in ("add", "sub", "and", "or", "xor", "imul", "shl", "shr", "sar",
                                      "rol", "ror", "inc", "dec", "neg", "not", "adc", "sbb")
              for name in sized(stem)}
ARITHMETIC.update((name, name) for name in ("andn", "shlx", "shrx", "sarx", "rorx", "blsr", "blsi",
                                            "blsmsk", "bzhi", "bextr"))
COMPARES = sized("cmp test bt")
DIVIDES = sized("div idiv mul")
NOTHING = {"nop", "nopw", "nopl", "data16", "cs", "endbr64", "vzeroupper", "sfence", "lfence",
           "mfence", "pause", "xchg"}  # xchg: of a register with itself, a filler (see decode)
ENDS = {"ud2", "hlt"}
PREFETCHES = family("prefetch", "t0 t1 t2 nta w")

VECTOR_MOVES = family("vmovdqa vmovdqu", "_ 8 16 32 64") | family("vmovap vmovup", "s d") | {
    "vmovntdq", "vmovntdqa", "vlddqu"}
VECTOR_MOVES = {name.rstrip("_") for name in VECTOR_MOVES}
# Each lane of eight bytes for itself; what they do to an address is an address.
VECTOR_SUMS = {"vpaddq", "vpsubq"}
# The destination is a function of the sources (bits of them, in the lanes that it likes).
VECTOR_PURE = (
    family("vaesenc vaesenclast vaesdec vaesdeclast vaesimc", "_")
    | {"vpclmul" + half for half in ("qdq", "lqlqdq", "hqlqdq", "lqhqdq", "hqhqdq")}
    | family("vpxor vpand vpandn vpor", "_ d q") | family("vpadd vpsub", "b w d")
    | family("vxorp vandp vandnp vorp vshufp vunpcklp vunpckhp vpermilp vblendp", "s d")
    | family("vpsll vpsrl", "w d q dq vd vq") | family("vpsra", "w d q vd vq")
    | family("vprol vpror", "d q vd vq") | family("vpshuf", "b d hw lw")
    | family("vpunpckl vpunpckh", "bw wd dq qdq") | family("vshufi vshuff", "64x2 32x4")
    | family("vperm", "q d w b pd ps 2i128 2f128") | family("valign", "q d") | {"vpalignr"}
    | family("vpblend", "d w vb mq md") | family("vpabs", "d q") | family("vpmull", "d q w")
    | family("vpack", "usdw uswb ssdw sswb") | family("vpmin vpmax", "ud uq sd sq ub sb")
    | family("vpmovzx vpmovsx", "bw bd bq wd wq dq") | family("vpmov", "qd qw qb dw db wb")
    | family("vinserti vinsertf vextracti vextractf", "128 32x4 64x2 32x8 64x4")
    | family("vbroadcasti vbroadcastf", "128 32x2 32x4 64x2 32x8 64x4")
    | family("vpbroadcast", "b w d") | family("vbroadcasts", "s d") | family("vmov", "hlps lhps")
    | family("vpcmpeq vpcmpgt", "b w d q"))
VECTOR_PURE = {name.rstrip("_") for name in VECTOR_PURE}
# The same, of what was in the destination, too.
VECTOR_KEEPS = family("vpternlog", "d q") | family("vpermt2 vpermi2", "b w d q ps pd")
VECTOR_TESTS = {"vptest", *family("vtestp", "s d"), *family("vucomis vcomis", "s d")}
VECTOR_SIGNS = {"vpmovmskb", *family("vmovmskp", "s d")}
GATHERS = re.compile(r"vp?(gather|scatter)")
MASK_OPERATIONS = {stem + size for stem in ("kmov", "kand", "kandn", "kor", "kxor", "kxnor", "knot",
                                            "kadd", "kshiftl", "kshiftr") for size in "bwdq"} | {
    "kunpckbw", "kunpckwd", "kunpckdq"}
MASK_TESTS = {stem + size for stem in ("kortest", "ktest") for size in "bwdq"}
MASK_MAKERS = re.compile(r"vp(cmp\w*|testn?m[bwdq]|mov[bwdq]2m)$|vcmp\w*p[sd]$|vfpclassp[sd]$")
# Bytes that an instruction reads of its memory operand, where that is less than its registers have.
READS = {"vpbroadcastb": 1, "vpbroadcastw": 2, "vpbroadcastd": 4, "vpbroadcastq": 8, "vmovq": 8,
         "vmovd": 4, "vpinsrb": 1, "vpinsrw": 2, "vpinsrd": 4, "vpinsrq": 8, "vpextrb": 1,
         "vpextrw": 2, "vpextrd": 4, "vpextrq": 8}
READS.update({name: {"128": 16, "32x4": 16, "64x2": 16, "32x2": 8}.get(name[11:], 32)
              for name in family("vbroadcasti vbroadcastf", "128 32x2 32x4 64x2 32x8 64x4")})


class Memory(NamedTuple):
    offset: int
    base: Optional[str]
    index: Optional[str]
    scale: int
    vector_index: bool


class Operand(NamedTuple):
    kind: str  # "immediate", "register", "vector", "mask", "memory", "target"
    what: object
    bytes: int = 0
    high: bool = False
    broadcast: bool = False


class Instruction(NamedTuple):
    address: int
    next: int
    name: str
    operands: list
    mask: Optional[str]  # the mask register and whether lanes that it leaves out turn zero
    zeroing: bool
    refers_to: Optional[int]  # what a %rip-relative operand names
    text: str


def split_operands(text):
    parts, depth, part = [], 0, ""
    for char in text:
        depth += (char in "({<") - (char in ")}>")
        if char == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += char
    return [each.strip() for each in [*parts, part] if each.strip()]


def signed(text):
    value = int(text, 16)
    return value - (1 << 64) if value >= 1 << 63 else value


def operand(text):
    broadcast = "{1to" in text
    text = re.sub(r"\{[^}]*\}", "", text).strip()
    if text.startswith("$"):
        return Operand("immediate", signed(text[1:]))
    if match := re.fullmatch(r"%([xyz])mm(\d+)", text):
        return Operand("vector", int(match[2]), VECTOR_BYTES[match[1]])
    if match := re.fullmatch(r"%k(\d)", text):
        return Operand("mask", match[1])
    if text.startswith("%") and text[1:] in REGISTERS:
        return Operand("register", *REGISTERS[text[1:]])
    if match := re.fullmatch(r"(-?0x[0-9a-f]+)?\((%\w+)?(?:,(%\w+),(\d))?\)", text):
        base, index = (name and name[1:] for name in match.group(2, 3))
        vector = index is not None and index[1:3] == "mm"
        known = {None, "rip", *REGISTERS}
        if base in known and (vector or index in known):
            memory = Memory(signed(match[1]) if match[1] else 0, base, index, int(match[4] or 1),
                            vector)
            return Operand("memory", memory, 0, False, broadcast)
    if match := re.match(r"([0-9a-f]+) <(.*)>$", text):
        return Operand("target", (int(match[1], 16), match[2]))
    return Operand("other", text)


def decode(address, following, text):
    text = text.strip()
    refers_to = None
    if match := re.search(r"\s+# ([0-9a-f]+) <", text):
        refers_to, text = int(match[1], 16), text[:match.start()]
    name, _, rest = text.partition(" ")
    mask = re.search(r"\{%k(\d)\}", rest)
    operands = [operand(each) for each in split_operands(rest)] if name not in NOTHING else []
    if name == "xchg" and re.fullmatch(r"%(\w+),%\1", rest.strip()) is None:
        name = "xchg of two"
    if name in ("cs", "data16") and "nop" not in rest:
        name = text
    return Instruction(address, following, name, operands, mask and mask[1], "{z}" in rest,
                       refers_to, re.sub(r"\s+", " ", text))


class Binary:
    """A linked program or library with its symbols."""

    def __init__(self, path):
        self.path = str(path)
        self.functions = []  # (address, size, name, file), in order
        self.code = {}       # address -> Instruction, of what was asked for
        self.leaders = set()
        self.sections = []
        file = None
        for line in self.objdump("-t", "-C"):
            match = re.match(r"([0-9a-f]{16}) (.)(.{6}) (\S+)\t([0-9a-f]+)\s+(?:\.\w+ )?(.*)", line)
            if match and match[3].endswith("df"):
                file = match[6]
            elif match and match[3].endswith("F") and match[4] != "*UND*":
                self.functions.append((int(match[1], 16), int(match[5], 16), match[6],
                                       file if match[2] == "l" else None))
        self.functions.sort()
        for line in self.objdump("-h"):
            if match := re.match(r"\s*\d+ (\S+)\s+([0-9a-f]+)\s+([0-9a-f]+)", line):
                start = int(match[3], 16)
                self.sections.append((start, start + int(match[2], 16), match[1]))

    def objdump(self, *options):
        done = subprocess.run(["objdump", *options, self.path], capture_output=True, text=True,
                              check=True)
        return done.stdout.splitlines()

    def section(self, address):
        return next((name for start, end, name in self.sections if start <= address < end), "")

    def function(self, address):
        """(address, size, name, file) of the function that contains it, or None."""
        at = bisect.bisect(self.functions, (address + 1,)) - 1
        if at >= 0 and address < self.functions[at][0] + self.functions[at][1]:
            return self.functions[at]
        return None

    def instruction(self, address):
        if address not in self.code and (found := self.function(address)):
            self.disassemble(*found[:2])
        return self.code.get(address)

    def disassemble(self, start, size):
        lines = [match.groups() for line in
                 self.objdump("-d", "--no-show-raw-insn", f"--start-address={start}",
                              f"--stop-address={start + size}")
                 if (match := re.match(r"\s*([0-9a-f]+):\t(.*)", line))]
        places = [int(place, 16) for place, _ in lines] + [start + size]
        for number, (_, text) in enumerate(lines):
            made = decode(places[number], places[number + 1], text)
            self.code[made.address] = made
            if made.name.startswith("j") and made.operands and made.operands[0].kind == "target":
                self.leaders.add(made.operands[0].what[0])
