"""The last 16 bytes of a firmware image: whether they are code that gets away from there.

A processor starts 16 bytes below 4 GiB, so what stands there must jump before they end.  Some
firmware jumps at once (SeaBIOS); some first turns interrupts off (U-Boot) or asks CR0 whether this
is a reset at all (OVMF).

Sources: SDM 3A 10.1.4, "First Instruction Executed"; SDM 2A and 2B for the opcodes; EDK II,
UefiCpuPkg/ResetVector/Vtf0; U-Boot, arch/x86/cpu/start16.S.
"""

from __future__ import annotations

__all__ = ["VECTOR_SIZE", "escape"]

VECTOR_SIZE = 16
# Where the vector is in the segment F000, in which firmware starts.
_VECTOR_IP = 0xFFF0
_SEGMENT_SIZE = 1 << 16
_MIB = 1 << 20

# Instructions that firmware has before its jump, by their first bytes, and their lengths.
_BEFORE = (
    (b"\x90", 1),  # nop
    (b"\xfa", 1),  # cli
    (b"\xfc", 1),  # cld
    (b"\x0f\x08", 2),  # invd
    (b"\x0f\x09", 2),  # wbinvd
    (b"\x0f\x20", 3),  # mov r32, cr
    (b"\x0f\x6e", 3),  # movd mm, r32: keeps the result of the processor's self-test
    (b"\x89", 2),  # mov r, r
    (b"\x8b", 2),
    (b"\x31", 2),  # xor r, r
    (b"\x33", 2),
    (b"\xa8", 2),  # test al, imm8
    (b"\x74", 2),  # jz: falls through on a reset
    (b"\x75", 2),  # jnz
    (b"\xb0", 2),  # mov al, imm8
    (b"\xe6", 2),  # out imm8, al: a POST code
)
_OPERAND_SIZE = b"\x66"


def escape(vector: bytes, shadow: int) -> int | None:
    """Where the code in `vector`, an image's last 16 bytes, jumps to; None if it does not.

    The target counts from the image's end (-16 is the vector itself).  It lies in the last
    `shadow` bytes, which are all that real mode reaches.

    >>> escape(bytes.fromhex("ea 5b e0 00 f0").ljust(16), 0x10000)  # jmp f000:e05b
    -8101
    >>> escape(bytes.fromhex("fa fc e9 0b f8").ljust(16), 0x10000)  # cli; cld; jmp f800
    -2048
    >>> escape(bytes.fromhex("f4").ljust(16), 0x10000)  # hlt
    """
    position = 0
    while position < len(vector):
        rest = vector[position:]
        wide = rest.startswith(_OPERAND_SIZE)
        code = rest.removeprefix(_OPERAND_SIZE)
        length = next((size for start, size in _BEFORE if code.startswith(start)), None)
        if length is None:
            target = _target(code, _VECTOR_IP + position + wide, 4 if wide else 2)
            return target if target is not None and -shadow <= target < 0 else None
        position += wide + length
    return None


def _target(code: bytes, ip: int, word: int) -> int | None:
    """Where the jump `code` at `ip` leads, counted from the image's end."""
    kind, operand = code[:1], code[1:]
    if kind == b"\xea" and len(operand) >= word + 2:  # jmp ptr16:16, ptr16:32
        offset = int.from_bytes(operand[:word], "little")
        segment = int.from_bytes(operand[word : word + 2], "little")
        # The copy below 1 MiB is what such a jump reaches.
        return (segment << 4) + offset - _MIB
    size = {b"\xeb": 1, b"\xe9": word}.get(kind)  # jmp rel8; rel16, rel32
    if size is None or len(operand) < size:
        return None
    next_ip = ip + 1 + size
    return (next_ip + int.from_bytes(operand[:size], "little", signed=True)) % _SEGMENT_SIZE - (
        _SEGMENT_SIZE
    )
