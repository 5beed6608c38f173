"""How instructions are written in the tables here, and what they are called.

As in the manual: mandatory prefix, opcode bytes, then /digit where ModRM.reg is part of the opcode;
after that ``m`` for an operand in memory, ``r`` for one in a register, or the whole ModRM byte
where that selects the instruction: ``f3 0f b8``, ``0f ae /4 m``, ``0f 01 /1 ca``.  Encodings with
VEX begin with ``vex``.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.x86.decode import Instruction

__all__ = ["name_of", "spellings"]

_MAPS = ("", "0f ", "0f 38 ", "0f 3a ")
_PREFIXES = (0, 0x66, 0xF3, 0xF2)

# Opcode in map 0F, and the instruction without a prefix and with 66, F3 and F2; - for none.
_SSE = """
10 movups movupd movss movsd
11 movups movupd movss movsd
12 movlps movlpd movsldup movddup
13 movlps movlpd
14 unpcklps unpcklpd
15 unpckhps unpckhpd
16 movhps movhpd movshdup
17 movhps movhpd
28 movaps movapd
29 movaps movapd
2a cvtpi2ps cvtpi2pd cvtsi2ss cvtsi2sd
2b movntps movntpd
2c cvttps2pi cvttpd2pi cvttss2si cvttsd2si
2d cvtps2pi cvtpd2pi cvtss2si cvtsd2si
2e ucomiss ucomisd
2f comiss comisd
50 movmskps movmskpd
51 sqrtps sqrtpd sqrtss sqrtsd
52 rsqrtps - rsqrtss
53 rcpps - rcpss
54 andps andpd
55 andnps andnpd
56 orps orpd
57 xorps xorpd
58 addps addpd addss addsd
59 mulps mulpd mulss mulsd
5a cvtps2pd cvtpd2ps cvtss2sd cvtsd2ss
5b cvtdq2ps cvtps2dq cvttps2dq
5c subps subpd subss subsd
5d minps minpd minss minsd
5e divps divpd divss divsd
5f maxps maxpd maxss maxsd
60 punpcklbw punpcklbw
61 punpcklwd punpcklwd
62 punpckldq punpckldq
63 packsswb packsswb
64 pcmpgtb pcmpgtb
65 pcmpgtw pcmpgtw
66 pcmpgtd pcmpgtd
67 packuswb packuswb
68 punpckhbw punpckhbw
69 punpckhwd punpckhwd
6a punpckhdq punpckhdq
6b packssdw packssdw
6c - punpcklqdq
6d - punpckhqdq
6e movd movd
6f movq movdqa movdqu
70 pshufw pshufd pshufhw pshuflw
74 pcmpeqb pcmpeqb
75 pcmpeqw pcmpeqw
76 pcmpeqd pcmpeqd
7c - haddpd - haddps
7d - hsubpd - hsubps
7e movd movd movq
7f movq movdqa movdqu
c2 cmpps cmppd cmpss cmpsd
c4 pinsrw pinsrw
c5 pextrw pextrw
c6 shufps shufpd
d4 paddq paddq
d6 - movq movq2dq movdq2q
d7 pmovmskb pmovmskb
db pand pand
df pandn pandn
e6 - cvttpd2dq cvtdq2pd cvtpd2dq
e7 movntq movntdq
eb por por
ef pxor pxor
f0 - - - lddqu
f8 psubb psubb
f9 psubw psubw
fa psubd psubd
fb psubq psubq
fc paddb paddb
fd paddw paddw
fe paddd paddd
"""

_OTHERS = {
    "0f 01 /7 fd": "rdpru",
    "0f 38 00": "pshufb",
    "66 0f 38 00": "pshufb",
    "66 0f 38 17": "ptest",
    "66 0f 38 2a": "movntdqa",
    "66 0f 38 db": "aesimc",
    "66 0f 38 dc": "aesenc",
    "66 0f 38 dd": "aesenclast",
    "66 0f 38 de": "aesdec",
    "66 0f 38 df": "aesdeclast",
    "66 0f 3a 0f": "palignr",
    "66 0f 3a 44": "pclmulqdq",
    "66 0f 3a df": "aeskeygenassist",
}


# x87 by ModRM.reg: with an operand in memory, then with registers.
_X87 = """
d8 m fadd fmul fcom fcomp fsub fsubr fdiv fdivr
d9 m fld - fst fstp
da m fiadd fimul ficom ficomp fisub fisubr fidiv fidivr
db m fild fisttp fist fistp - fld - fstp
dc m fadd fmul fcom fcomp fsub fsubr fdiv fdivr
dd m fld fisttp fst fstp
de m fiadd fimul ficom ficomp fisub fisubr fidiv fidivr
df m fild fisttp fist fistp fbld fild fbstp fistp
d8 r fadd fmul fcom fcomp fsub fsubr fdiv fdivr
d9 r fld fxch
da r fcmovb fcmove fcmovbe fcmovu
db r fcmovnb fcmovne fcmovnbe fcmovnu - fucomi fcomi
dc r fadd fmul - - fsubr fsub fdivr fdiv
dd r ffree - fst fstp fucom fucomp
de r faddp fmulp - - fsubrp fsubp fdivrp fdivp
df r - - - - - fucomip fcomip
"""
# D9 with the ModRM bytes from E0 on, and two others by the whole of it.
_X87_D9 = """
fchs fabs - - ftst fxam - - fld1 fldl2t fldl2e fldpi fldlg2 fldln2 fldz -
f2xm1 fyl2x fptan fpatan fxtract fprem1 fdecstp fincstp
fprem fyl2xp1 fsqrt fsincos frndint fscale fsin fcos
"""
_X87_WHOLE = {"d9 /2 d0": "fnop", "da /5 e9": "fucompp", "de /3 d9": "fcompp"}


def _x87_names() -> Iterator[tuple[str, str]]:
    yield from _X87_WHOLE.items()
    for line in _X87.strip().splitlines():
        opcode, kind, *names = line.split()
        for digit, name in enumerate(names):
            if name != "-":
                yield f"{opcode} /{digit} {kind}", name
    for modrm, name in enumerate(_X87_D9.split(), 0xE0):
        if name != "-":
            yield f"d9 /{modrm >> 3 & 7} {modrm:02x}", name


def _names() -> Iterator[tuple[str, str]]:
    for line in _SSE.split("\n"):
        opcode, *names = line.split() or [""]
        for prefix, name in zip(_PREFIXES, names, strict=False):
            if name != "-":
                yield _spell("", prefix, f"0f {opcode}"), name
    yield from _OTHERS.items()
    yield from _x87_names()


def _spell(vex: str, prefix: int, opcode: str) -> str:
    return f"{vex}{prefix:02x} {opcode}" if prefix else f"{vex}{opcode}"


def spellings(instruction: Instruction) -> tuple[str, ...]:
    """How the instruction may stand in a table, most particular first.

    >>> from pykvm.x86.decode import decode
    >>> spellings(decode(bytes.fromhex("0f01ca"), 64))
    ('0f 01 /1 ca', '0f 01 /1 r', '0f 01 /1', '0f 01 r', '0f 01')
    """
    vex = "vex " if instruction.vex else ""
    opcode = f"{_MAPS[instruction.map]}{instruction.opcode:02x}"
    prefix = instruction.prefix if instruction.map or instruction.vex else 0
    plain = _spell(vex, prefix, opcode)
    if instruction.modrm is None:
        return (plain,)
    kind = "r" if instruction.memory is None else "m"
    digit = f"{plain} /{instruction.digit}"
    found = (f"{digit} {kind}", digit, f"{plain} {kind}", plain)
    return (f"{digit} {instruction.modrm:02x}", *found) if kind == "r" else found


_NAMES: dict[str, str] = {}


def name_of(instruction: Instruction) -> str:
    """The mnemonic where it is in the list, otherwise the opcode bytes.

    With VEX, what SSE calls so has a V before it.

    >>> from pykvm.x86.decode import decode
    >>> name_of(decode(bytes.fromhex("f20f58c1"), 64)), name_of(decode(bytes.fromhex("d9e8"), 64))
    ('addsd', 'fld1')
    """
    if not _NAMES:
        _NAMES.update(_names())
    for spelling in spellings(instruction):
        if spelling in _NAMES:
            return _NAMES[spelling]
        if instruction.vex and spelling.removeprefix("vex ") in _NAMES:
            return "v" + _NAMES[spelling.removeprefix("vex ")]
    x87 = not instruction.map and 0xD8 <= instruction.opcode <= 0xDF
    return spellings(instruction)[2 if x87 and instruction.memory is None else 1 if x87 else -1]
