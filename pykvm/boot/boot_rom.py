"""The option ROM that boots a Linux kernel which firmware finds in fw_cfg.

A BIOS copies it below 1 MiB and, when it comes to booting, calls its boot entry vector.  It has
fw_cfg copy each part of the kernel to its place, by DMA, and enters the set-up code in real mode
with what the boot protocol asks for: all segments at the set-up code, the stack at the end of its
64 KiB, interrupts off, CS 0x20 above.

Sources: BIOS Boot Specification 1.01, 3.1 and appendix A; Plug and Play BIOS Specification 1.0A,
3.2 "Expansion header"; Linux, Documentation/arch/x86/boot.rst, "Running the kernel".
"""

from __future__ import annotations

import struct

from pykvm.devices.fw_cfg import Key

__all__ = ["FILE_NAME", "LISTING", "boot_rom"]

FILE_NAME = "genroms/pykvm-linuxboot.bin"

BLOCK = 512
HEADER_AT = 0x20
CODE_AT = 0x40
PARTS_AT = 0x100
FAILED_AT = 0x110
PRODUCT_AT = 0x150
MAKER_AT = 0x170

FAILED = b"\r\nThe kernel does not fit in memory.\r\n\0"
PRODUCT = b"Linux kernel from fw_cfg\0"
MAKER = b"pykvm\0"

#: Where each part belongs, how many bytes it has, and which.
PARTS = (
    (Key.SETUP_ADDR, Key.SETUP_SIZE, Key.SETUP_DATA),
    (Key.CMDLINE_ADDR, Key.CMDLINE_SIZE, Key.CMDLINE_DATA),
    (Key.KERNEL_ADDR, Key.KERNEL_SIZE, Key.KERNEL_DATA),
    (Key.INITRD_ADDR, Key.INITRD_SIZE, Key.INITRD_DATA),
)

#: The code, at CODE_AT: its bytes, and what the GNU assembler makes them of.
LISTING = """
                                  .code16
                                  .set PARTS, 0x100
                                  .set FAILED, 0x110
                                  .set SETUP_ADDR, 0x16
                                  .set SELECTOR, 0x510
                                  .set DMA, 0x518

    FC                    boot:   cld
    BE 00 01                      mov     $PARTS, %si
    2E AC                 part:   cs lodsb                        # key of the address; 0 ends
    84 C0                         test    %al, %al
    74 2A                         jz      enter
    E8 45 00                      call    number
    66 89 C7                      mov     %eax, %edi
    2E AC                         cs lodsb                        # of its size
    E8 3D 00                      call    number
    66 89 C1                      mov     %eax, %ecx
    2E AC                         cs lodsb                        # of its bytes
    E8 47 00                      call    copy
    74 E5                         jz      part

    BE 10 01                      mov     $FAILED, %si
    2E AC                 say:    cs lodsb
    84 C0                         test    %al, %al
    74 08                         jz      end
    B4 0E                         mov     $0x0e, %ah              # teletype output
    31 DB                         xor     %bx, %bx
    CD 10                         int     $0x10
    EB F2                         jmp     say
    CD 18                 end:    int     $0x18                   # boot something else
    EB FC                         jmp     end

    B0 16                 enter:  mov     $SETUP_ADDR, %al
    E8 19 00                      call    number
    66 C1 E8 04                   shr     $4, %eax                # the segment of the set-up code
    FA                            cli
    8E D0                         mov     %ax, %ss
    BC F0 FF                      mov     $0xfff0, %sp
    8E D8                         mov     %ax, %ds
    8E C0                         mov     %ax, %es
    8E E0                         mov     %ax, %fs
    8E E8                         mov     %ax, %gs
    83 C0 20                      add     $0x20, %ax
    50                            push    %ax
    6A 00                         push    $0
    CB                            lret

                          # AL = key; returns the item in EAX, a number
    30 E4                 number: xor     %ah, %ah
    BA 10 05                      mov     $SELECTOR, %dx
    EF                            out     %ax, %dx
    42                            inc     %dx
    B9 04 00                      mov     $4, %cx
    EC                    byte:   in      %dx, %al
    66 C1 C8 08                   ror     $8, %eax
    E2 F9                         loop    byte
    C3                            ret

                          # AL = key, ECX = bytes, EDI = where to; ZF is set if that worked.  struct
                          # fw_cfg_dma_access, big-endian, is built on the stack.
    66 0F CF              copy:   bswap   %edi
    66 57                         push    %edi                    # address
    66 6A 00                      pushl   $0
    66 0F C9                      bswap   %ecx
    66 51                         push    %ecx                    # length
    68 00 0A                      pushw   $0x0a00                 # control: SELECT and READ,
    88 C4                         mov     %al, %ah
    30 C0                         xor     %al, %al
    50                            push    %ax                     # and the key
    66 31 C0                      xor     %eax, %eax
    8C D0                         mov     %ss, %ax
    66 C1 E0 04                   shl     $4, %eax
    66 0F B7 D4                   movzwl  %sp, %edx
    66 01 D0                      add     %edx, %eax
    66 0F C8                      bswap   %eax
    BA 18 05                      mov     $DMA, %dx
    66 EF                         out     %eax, %dx
    66 58                         pop     %eax                    # control: 0, or the error bit
    83 C4 0C                      add     $12, %sp
    66 85 C0                      test    %eax, %eax
    C3                            ret
"""
# Columns that the bytes of a line take.
_BYTES = 24


def boot_rom() -> bytes:
    """The ROM, one block of 512 bytes that add up to 0.

    >>> rom = boot_rom()
    >>> rom[:3].hex(" "), len(rom), sum(rom) % 256
    ('55 aa 01', 512, 0)
    """
    rom = bytearray(BLOCK)
    # Signature, length in blocks, and what initialises it: a far return.
    rom[:4] = b"\x55\xaa\x01\xcb"
    struct.pack_into("<H", rom, 0x1A, HEADER_AT)
    pieces = {
        HEADER_AT: _expansion_header(),
        CODE_AT: bytes.fromhex("".join(line[:_BYTES] for line in LISTING.splitlines())),
        PARTS_AT: bytes(key for part in PARTS for key in part),
        FAILED_AT: FAILED,
        PRODUCT_AT: PRODUCT,
        MAKER_AT: MAKER,
    }
    for start, piece in pieces.items():
        rom[start : start + len(piece)] = piece
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)


def _expansion_header() -> bytes:
    """What says that this ROM boots the machine: its boot entry vector is the code."""
    header = bytearray(struct.pack("<4sBB8xHH8xH4x", b"$PnP", 1, 2, MAKER_AT, PRODUCT_AT, CODE_AT))
    header[9] = -sum(header) & 0xFF
    return bytes(header)
