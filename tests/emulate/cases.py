"""Instructions to compare, and what they find: encodings, operands, what is left undefined."""

from __future__ import annotations

import random
import re
import struct
from typing import NamedTuple

from emulate.rig import DATA, Outcome, Rig, make_rig
from pykvm.x86.registers import RFLAGS
from support.host import host_probe

__all__ = [
    "ALL",
    "LOOSE",
    "NOT_IN_RING_0",
    "Case",
    "Operands",
    "comparable",
    "identity",
    "operands",
]

OPERAND = DATA + 0x40

# What the manuals leave undefined of RFLAGS (SDM 2, each instruction).
AF_PF = RFLAGS.AF | RFLAGS.PF
UNDEFINED = {"": 0, "af pf": AF_PF, "af pf sf": AF_PF | RFLAGS.SF}
# Of x87's status word C0, C2 and C3 are undefined after every instruction but these.
C0_C2_C3 = 0x4500
CONDITIONS_DEFINED = {
    *("fxam", "ftst", "fcom", "fcompp", "fcomi", "fucomip", "fninit"),
    *("fnstenv", "fldenv", "fnsave", "frstor", "fnstenv16", "fnsave16"),
}
# What processors may store as they like, as ranges of the operand in memory.  Of FOP, FIP and FDP,
# with their selectors, they keep more or less (CPUID.7.0:EBX[13], CPUID.80000008H:EBX[2];
# SDM 1 8.1.8, 13.5.1, APM 2 11.5).  Reserved are the upper halves of an environment's words
# (SDM 1 figure 8-9) and what is above the ten bytes of an x87 register (SDM 1 table 10-2).
ENVIRONMENT = ((2, 4), (6, 8), (10, 28))
ENVIRONMENT_16 = ((6, 14),)
AREA = ((6, 24), *((42 + 16 * number, 48 + 16 * number) for number in range(8)))
LOOSE: dict[str, tuple[tuple[int, int], ...]] = {
    **dict.fromkeys(("fnstenv", "fnsave"), ENVIRONMENT),
    **dict.fromkeys(("fnstenv16", "fnsave16"), ENVIRONMENT_16),
    **dict.fromkeys(("xsave", "xsave64", "xsaveopt", "xsavec"), AREA),
}

# By group, the extension that the host's processor needs: name, bytes, undefined flags.
CASES = {
    "sse": """
        xorps           0f 57 c1
        xorps m         0f 57 07
        andnpd          66 0f 55 c1
        addps           0f 58 c1
        addps m         0f 58 07
        addpd           66 0f 58 c1
        addss           f3 0f 58 c1
        addsd           f2 0f 58 c1
        addsd m         f2 0f 58 07
        subps           0f 5c c1
        mulps           0f 59 c1
        mulsd           f2 0f 59 c1
        divps           0f 5e c1
        divsd           f2 0f 5e c1
        sqrtps          0f 51 c1
        sqrtsd          f2 0f 51 c1
        minps           0f 5d c1
        maxsd           f2 0f 5f c1
        cmpltps         0f c2 c1 01
        cmpunordsd      f2 0f c2 c1 03
        ucomisd         66 0f 2e c1
        comiss          0f 2f c1
        cvtsi2sd        f2 48 0f 2a c0
        cvtsi2ss m      f3 0f 2a 07
        cvttsd2si       f2 48 0f 2c c1
        cvtss2si        f3 0f 2d c1
        cvtps2pd        0f 5a c1
        cvtpd2ps        66 0f 5a c1
        cvtdq2ps        0f 5b c1
        cvttps2dq       f3 0f 5b c1
        cvtdq2pd        f3 0f e6 c1
        haddps          f2 0f 7c c1
        addsubpd        66 0f d0 c1
        movaps          0f 28 c1
        movups m        0f 10 47 03
        movups to m     0f 11 47 03
        movss m         f3 0f 10 07
        movss           f3 0f 10 c1
        movsd to m      f2 0f 11 07
        movlps m        0f 12 07
        movlps to m     0f 13 07
        movhps m        0f 16 07
        movhlps         0f 12 c1
        movddup         f2 0f 12 c1
        movshdup        f3 0f 16 c1
        movmskps        0f 50 c1
        movd            66 0f 6e c0
        movq            66 48 0f 6e c0
        movd to r       66 0f 7e c0
        movq to r       66 48 0f 7e c0
        movq xmm        f3 0f 7e c1
        movq to m       66 0f d6 07
        movdqu m        f3 0f 6f 47 05
        movdqu to m     f3 0f 7f 47 05
        movntdq         66 0f e7 07
        movntps         0f 2b 07
        lddqu           f2 0f f0 47 01
        pxor            66 0f ef c1
        pxor m          66 0f ef 07
        pand            66 0f db c1
        pandn           66 0f df c1
        paddb           66 0f fc c1
        paddusw         66 0f dd c1
        psubd           66 0f fa c1
        pmullw          66 0f d5 c1
        pmuludq         66 0f f4 c1
        pmaddwd         66 0f f5 c1
        psadbw          66 0f f6 c1
        pavgb           66 0f e0 c1
        pcmpeqb         66 0f 74 c1
        pcmpgtd         66 0f 66 c1
        pminub          66 0f da c1
        psllq           66 0f f3 c1
        psrlw imm       66 0f 71 d0 03
        psrad imm       66 0f 72 e1 05
        pslldq          66 0f 73 f9 04
        pshufd          66 0f 70 c1 1b
        pshuflw         f2 0f 70 c1 1b
        pshufhw         f3 0f 70 c1 1b
        shufps          0f c6 c1 1b
        unpcklps        0f 14 c1
        punpckhqdq      66 0f 6d c1
        packsswb        66 0f 63 c1
        pinsrw          66 0f c4 c0 03
        pextrw          66 0f c5 c1 03
        pmovmskb        66 0f d7 c1
        xmm8 and up     66 45 0f ef fb
        rip relative    66 0f ef 05 38 00 01 00
        fs segment      64 f3 0f 6f 07
        sib             f3 0f 6f 44 cf 08
    """,
    "mmx": """
        paddb mm        0f fc c1
        pxor mm m       0f ef 07
        movq mm         0f 6f c1
        movq mm m       0f 6f 07
        movq m mm       0f 7f 07
        movd mm         0f 6e c0
        movd r mm       0f 7e c0
        pmovmskb mm     0f d7 c1
        psllq mm imm    0f 73 f1 05
        pshufw mm       0f 70 c1 1b
        pinsrw mm       0f c4 c0 02
        movntq          0f e7 07
        movdq2q         f2 0f d6 c1
        movq2dq         f3 0f d6 c1
        cvtps2pi        0f 2d c1
        cvtpi2ps        0f 2a c1
        emms            0f 77
    """,
    "x87": """
        fld1            d9 e8
        fldz            d9 ee
        fldpi           d9 eb
        fld m64         dd 07
        fld m32         d9 07
        fld m80         db 2f
        fild m32        db 07
        fild m64        df 2f
        fst m64         dd 17
        fstp m64        dd 1f
        fstp m80        db 3f
        fistp m32       db 1f
        fisttp m32      db 0f
        fadd            d8 c1
        faddp           de c1
        fsub m64        dc 27
        fmul            d8 c9
        fdiv            d8 f1
        fdivrp          de f1
        fsqrt           d9 fa
        fabs            d9 e1
        fchs            d9 e0
        fxch            d9 c9
        frndint         d9 fc
        fxam            d9 e5
        ftst            d9 e4
        fcom            d8 d1
        fcompp          de d9
        fucomip         df e9
        fcomi           db f1
        fcmovb          da c1
        ffree           dd c1
        fincstp         d9 f7
        fdecstp         d9 f6
        fnstcw          d9 3f
        fldcw           d9 2f
        fnstsw m        dd 3f
        fnstsw ax       df e0
        fnclex          db e2
        fninit          db e3
        fwait           9b
        fnstenv         d9 37
        fldenv          d9 27
        fnsave          dd 37
        frstor          dd 27
        fnstenv16       66 d9 37
        fnsave16        66 dd 37
    """,
    "sse4": """
        popcnt          f3 48 0f b8 c3
        popcnt32        f3 0f b8 c3
        popcnt16        66 f3 0f b8 c3
        popcnt m        f3 48 0f b8 07
        crc32 b         f2 0f 38 f0 c3
        crc32 q         f2 48 0f 38 f1 c3
        crc32 m         f2 48 0f 38 f1 07
        pshufb          66 0f 38 00 c1
        phaddw          66 0f 38 01 c1
        pmaddubsw       66 0f 38 04 c1
        pabsd           66 0f 38 1e c1
        pshufb mm       0f 38 00 c1
        palignr         66 0f 3a 0f c1 05
        ptest           66 0f 38 17 c1
        pmovzxbw        66 0f 38 30 c1
        pmovsxdq m      66 0f 38 25 47 01
        movntdqa        66 0f 38 2a 07
        pcmpeqq         66 0f 38 29 c1
        pcmpgtq         66 0f 38 37 c1
        pminsb          66 0f 38 38 c1
        pmulld          66 0f 38 40 c1
        packusdw        66 0f 38 2b c1
        pblendvb        66 0f 38 10 c1
        roundps         66 0f 3a 08 c1 03
        roundsd         66 0f 3a 0b c1 02
        pblendw         66 0f 3a 0e c1 5a
        dpps            66 0f 3a 40 c1 ff
        mpsadbw         66 0f 3a 42 c1 03
        pextrb          66 0f 3a 14 c0 03
        pextrq m        66 48 0f 3a 16 07 01
        pinsrd          66 0f 3a 22 c3 02
        insertps        66 0f 3a 21 c1 1c
        pcmpistri       66 0f 3a 63 c1 0c
        pcmpestrm       66 0f 3a 60 c1 44
        pcmpestri       66 0f 3a 61 c1 0c
        pcmpistri m     66 0f 3a 63 07 0c
        phminposuw      66 0f 38 41 c1
        extractps m     66 0f 3a 17 07 02
        pinsrb m        66 0f 3a 20 07 03
    """,
    "aes": """
        aesenc          66 0f 38 dc c1
        aesenclast      66 0f 38 dd c1
        aesdec          66 0f 38 de c1
        aesimc          66 0f 38 db c1
        aeskeygen       66 0f 3a df c1 1b
        pclmulqdq       66 0f 3a 44 c1 11
    """,
    "adx": """
        adcx            66 48 0f 38 f6 c3
        adox            f3 48 0f 38 f6 c3
        adcx m          66 0f 38 f6 07
    """,
    "bmi": """
        andn            c4 e2 e0 f2 c1                 af pf
        andn m          c4 e2 60 f2 07                 af pf
        bextr           c4 e2 f0 f7 c3                 af pf sf
        blsr            c4 e2 f8 f3 cb                 af pf
        blsmsk          c4 e2 f8 f3 d3                 af pf
        blsi            c4 e2 f8 f3 db                 af pf
        blsi m          c4 e2 78 f3 1f                 af pf
        bzhi            c4 e2 f0 f5 c3                 af pf
        pdep            c4 e2 e3 f5 c1
        pext            c4 e2 e2 f5 c1
        mulx            c4 e2 e3 f6 c1
        rorx            c4 e3 fb f0 c3 05
        sarx            c4 e2 f2 f7 c3
        shlx            c4 e2 f1 f7 c3
        shrx            c4 e2 f3 f7 c3
    """,
    "movbe": """
        movbe           48 0f 38 f0 07
        movbe16         66 0f 38 f0 07
        movbe to m      0f 38 f1 07
    """,
    "cx16": """
        cmpxchg16b      48 0f c7 0f
        lock            f0 48 0f c7 0f
        misaligned      48 0f c7 4f 08
    """,
    "clwb": """
        clwb            66 0f ae 37
        clflushopt      66 0f ae 3f
    """,
    "state": """
        stmxcsr         0f ae 1f
        enter 16,1      c8 10 00 01
        enter 8,3       c8 08 00 03
        xsave           0f ae 27
        xsave64         48 0f ae 27
        xsaveopt        48 0f ae 37
    """,
    "xsavec": """
        xsavec          48 0f c7 27
    """,
    "avx": """
        vmovdqu         c5 fe 6f 07
        vmovdqu xmm     c5 fa 6f 07
        vmovdqa         c5 fd 6f c1
        vmovdqu to m    c5 fe 7f 47 03
        vmovups to m    c5 f8 11 07
        vmovaps         c5 fc 28 c1
        vmovss m        c5 fa 10 07
        vmovsd to m     c5 fb 11 07
        vmovd           c5 f9 6e c0
        vmovq           c4 e1 f9 6e c0
        vmovd to r      c5 f9 7e c0
        vmovq xmm       c5 fa 7e c1
        vmovq to m      c5 f9 d6 07
        vmovntdq        c5 fd e7 07
        vlddqu          c5 ff f0 07
        vpxor           c5 f5 ef d3
        vpand m         c5 f5 db 17
        vpandn          c5 f1 df d3
        vpor            c4 41 35 eb d3
        vxorps          c5 f4 57 d3
        vandnpd         c5 f5 55 d3
        vzeroupper      c5 f8 77
        vzeroall        c5 fc 77
        vaddps          c5 f4 58 d3
        vaddps m        c5 f4 58 17
        vmulsd m        c5 f3 59 17
        vdivpd xmm      c5 f1 5e d3
        vcvtps2pd m     c5 fc 5a 17
        vcvttsd2si      c4 e1 fb 2c c1
        vmovddup m      c5 ff 12 17
        vpaddd          c5 f1 fe d3
        vcmpps          c5 f4 c2 d3 03
        vpermilps m     c4 e3 7d 04 17 1b
        vblendvps       c4 e3 75 4a d3 10
        vbroadcastss    c4 e2 7d 18 17
        vbroadcastf128  c4 e2 7d 1a 17
        vinsertf128 m   c4 e3 75 18 17 01
        vextractf128 m  c4 e3 7d 19 17 01
        vtestps         c4 e2 7d 0e c1
        vpmovzxbw m     c4 e2 79 30 17
        vpslld count m  c5 f1 f2 17
        vpinsrq         c4 e3 f1 22 d0 01
        vpextrq m       c4 e3 f9 16 0f 01
        vaesenc         c4 e2 71 dc d3
        vpclmulqdq m    c4 e3 71 44 17 11
        vpcmpistri      c4 e3 79 63 c1 0c
    """,
    "avx2": """
        vpaddd          c5 f5 fe d3
        vpaddd m        c5 f5 fe 17
        vpslld count m  c5 f5 f2 17
        vpmovsxbd m     c4 e2 7d 21 17
        vpmovsxwd m     c4 e2 7d 23 17
        vpbroadcastb m  c4 e2 7d 78 17
        vpbroadcastw m  c4 e2 7d 79 17
        vpbroadcastq m  c4 e2 7d 59 17
        vbroadcasti128  c4 e2 7d 5a 17
        vpermd m        c4 e2 75 36 17
        vpermq m        c4 e3 fd 00 17 1b
        vperm2i128 m    c4 e3 75 46 17 31
        vpsllvd m       c4 e2 75 47 17
        vpblendd m      c4 e3 75 02 17 5a
        vinserti128 m   c4 e3 75 38 17 01
        vextracti128 m  c4 e3 7d 39 17 01
        vpalignr m      c4 e3 75 0f 17 05
        vpmovmskb       c5 fd d7 c1
    """,
    "fma": """
        vfmadd231ps     c4 e2 75 b8 d3
        vfmadd231ps m   c4 e2 75 b8 17
        vfmadd231pd m   c4 e2 f5 b8 17
        vfmadd213ss m   c4 e2 71 a9 17
        vfnmsub132sd m  c4 e2 f1 9f 17
        vfmaddsub213pd  c4 e2 f5 a6 17
    """,
    "f16c": """
        vcvtph2ps       c4 e2 7d 13 d1
        vcvtph2ps m     c4 e2 7d 13 17
        vcvtps2ph m     c4 e3 7d 1d 0f 00
        vcvtps2ph xm m  c4 e3 79 1d 0f 00
    """,
    "sha": """
        sha1msg1        0f 38 c9 c1
        sha256rnds2 m   0f 38 cb 0f
        sha1rnds4       0f 3a cc c1 02
    """,
    "gfni": """
        gf2p8mulb       66 0f 38 cf c1
        gf2p8affine m   66 0f 3a ce 07 05
    """,
    "vaes": """
        vaesdec         c4 e2 75 de d3
        vaesenc m       c4 e2 75 dc 17
    """,
}


# What some KVMs get wrong in ring 0 without refusing it.
NOT_IN_RING_0 = {"movbe"}


class Case(NamedTuple):
    group: str
    name: str
    code: bytes
    undefined: int


def parse() -> list[Case]:
    found = []
    for group, text in CASES.items():
        for line in text.strip().splitlines():
            name, hexadecimal, *notes = re.split(r"\s{2,}", line.strip())
            undefined = UNDEFINED["".join(notes)]
            found.append(Case(group, name, bytes.fromhex(hexadecimal), undefined))
    return found


ALL = parse()


def probe_for(group: str) -> None:
    """Register a probe: does ring 3 execute the first instruction of the group?"""
    code = next(case.code for case in ALL if case.group == group)

    @host_probe(f"processor-has-{group}")
    def probe() -> str | None:
        with make_rig() as rig:
            outcome = rig.run(code, 3, registers={"rdi": OPERAND})
        missing = outcome.exception is not None and outcome.exception[0] == 6
        return f"the processor has no {group}" if missing else None


for each in CASES:
    probe_for(each)


def extended(value: float) -> bytes:
    """A number in x87's 80 bits."""
    bits: int = struct.unpack("<Q", struct.pack("<d", value))[0]
    sign, exponent, fraction = bits >> 63, bits >> 52 & 0x7FF, bits & (1 << 52) - 1
    significand = 1 << 63 | fraction << 11
    return significand.to_bytes(8, "little") + (sign << 15 | exponent + 15360).to_bytes(2, "little")


class Operands(NamedTuple):
    """What an instruction finds."""

    registers: dict[str, int]
    flags: int
    data: bytes
    xsave: bytes


def operands(rig: Rig, seed: int, *, group: str = "sse") -> Operands:
    source = random.Random(seed)
    registers = {name: source.getrandbits(64) for name in ("rax", "rbx", "rdx", "r8", "r9", "r11")}
    registers |= {"rcx": source.randrange(64), "rdi": OPERAND, "rbp": DATA + 0x400}
    data = bytearray(source.randbytes(0x1000))
    image = bytearray(rig.pristine)
    image[160:416] = source.randbytes(256)
    image[576:832] = source.randbytes(256)
    numbers = [source.choice([0.0, 1.5, -2.25, 1e10, 0.1, -7.0]) for _ in range(4)]
    data[0x40:0x50] = struct.pack("<2d", source.uniform(-1e6, 1e6), 2.5)
    packing = source.choice(["<4f", "<2d"])
    for at in (160, 176):
        source.shuffle(numbers)
        image[at : at + 16] = struct.pack(packing, *numbers[: int(packing[1])])
    image[24:28] = (0x1F80).to_bytes(4, "little")
    image[512] = 7
    if group == "x87":
        # Three registers in use, a status word without exceptions.
        image[0:6] = bytes.fromhex("7f0300280000")
        image[4] = 0xE0
        for number in range(3):
            start = 32 + 16 * number
            image[start : start + 10] = extended(source.uniform(1, 1000) * source.choice([1, -1]))
        data[0x40:0x5C] = bytes.fromhex("7f03ffff0028ffffff03ffff") + bytes(12) + b"\0\0\xff\xff"
        for number in range(8):
            start = 0x5C + 10 * number
            data[start : start + 10] = extended(source.uniform(1, 1000))
    if group == "mmx":
        image[0:6] = bytes.fromhex("7f030000ff00")
        for number in range(8):
            start = 32 + 16 * number
            image[start : start + 10] = source.randbytes(8) + b"\xff\xff"
    if group in ("state", "xsavec"):
        registers |= {"rax": seed % 8, "rdx": 0, "rcx": 0}
        image[0:2] = b"\x7f\x02"
        data[0x240:0x280] = bytes(64)
    if group == "cx16" and seed % 2:
        registers["rax"] = int.from_bytes(data[0x40:0x48], "little")
        registers["rdx"] = int.from_bytes(data[0x48:0x50], "little")
    return Operands(registers, source.getrandbits(12) & 0x8D5, bytes(data), bytes(image))


def comparable(outcome: Outcome, case: Case) -> Outcome:
    xsave = bytearray(outcome.xsave)
    status = int.from_bytes(xsave[2:4], "little")
    if case.group == "x87" and case.name not in CONDITIONS_DEFINED:
        status &= ~C0_C2_C3
    xsave[2:4] = status.to_bytes(2, "little")
    memory = bytearray(outcome.memory)
    for first, end in LOOSE.get(case.name, ()):
        at = OPERAND - DATA + first
        memory[at : at + end - first] = bytes(end - first)
    return outcome._replace(
        flags=outcome.flags & ~case.undefined, xsave=bytes(xsave), memory=bytes(memory)
    )


def identity(case: Case) -> str:
    return f"{case.group}-{case.name}".replace(" ", "-")
