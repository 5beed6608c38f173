"""What travels between interrupt controllers: one message per interrupt.

An I/O APIC entry, a write to an interrupt command register and a message-signalled interrupt all
say the same few things in different bits; `Message` is what they say (SDM 3A 11.6.1, 11.11).
"""

from __future__ import annotations

from pykvm.values.frozen import NamedTuple

__all__ = [
    "DELIVERY_MODES",
    "EXTINT",
    "FIXED",
    "INIT",
    "LOWEST_PRIORITY",
    "NMI",
    "SHORTHAND_ALL",
    "SHORTHAND_NONE",
    "SHORTHAND_OTHERS",
    "SHORTHAND_SELF",
    "SMI",
    "STARTUP",
    "Message",
]

# Delivery modes (SDM 3A figure 11-12); 3 is reserved.
FIXED = 0
LOWEST_PRIORITY = 1
SMI = 2
NMI = 4
INIT = 5
STARTUP = 6
EXTINT = 7
DELIVERY_MODES = ("fixed", "lowest", "SMI", "reserved", "NMI", "INIT", "SIPI", "ExtINT")

# Destination shorthands (SDM 3A figure 11-12).
SHORTHAND_NONE = 0
SHORTHAND_SELF = 1
SHORTHAND_ALL = 2
SHORTHAND_OTHERS = 3

# Message address and data (SDM 3A figures 11-24 and 11-25).
_MSI_LOGICAL = 1 << 2
_MSI_REDIRECTION_HINT = 1 << 3
_MSI_ASSERT = 1 << 14
_MSI_LEVEL = 1 << 15


class Message(NamedTuple):
    """An interrupt on its way to one or more local APICs.

    `destination` is an APIC ID, or a message destination address where `logical` is true; it is of
    8 bits unless an x2APIC sent it.  `mode` is one of the delivery modes above.  `level` is the
    trigger mode (true: level-triggered), `assert_` the level itself, of which only INIT and
    level-triggered messages take notice.  A `shorthand` other than 0 overrides the destination.

    >>> Message.from_msi(0xFEE01004, 0x0131)
    Message(destination=1, logical=True, mode=1, vector=49, level=False, assert_=True, shorthand=0)
    """

    destination: int
    logical: bool
    mode: int
    vector: int
    level: bool = False
    assert_: bool = True
    shorthand: int = SHORTHAND_NONE

    @classmethod
    def from_msi(cls, address: int, data: int) -> Message:
        """The message that writing `data` (32 bits) to `address` (0xfeexxxxx) sends.

        Only address bits 2, 3 and 12-19 count.  A fixed interrupt with the redirection hint goes to
        one of the addressed processors: it is one of lowest priority.  (SDM 3A 11.11.)
        """
        mode = data >> 8 & 7
        if mode == FIXED and address & _MSI_REDIRECTION_HINT:
            mode = LOWEST_PRIORITY
        level = bool(data & _MSI_LEVEL)
        return cls(
            destination=address >> 12 & 0xFF,
            logical=bool(address & _MSI_LOGICAL),
            mode=mode,
            vector=data & 0xFF,
            level=level,
            assert_=not level or bool(data & _MSI_ASSERT),
        )

    def __str__(self) -> str:
        trigger = "level" if self.level else "edge"
        if self.shorthand:
            target = ("", "self", "all", "all others")[self.shorthand & 3]
        else:
            target = f"{'logical' if self.logical else 'APIC'} {self.destination:#x}"
        sense = "" if self.assert_ else " deassert"
        return f"{DELIVERY_MODES[self.mode & 7]} {self.vector:#04x} {trigger}{sense} to {target}"
