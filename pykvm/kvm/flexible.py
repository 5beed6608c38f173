"""KVM's variable-length structs: a fixed head, then as many elements as a counter says.

kvm_cpuid2, kvm_msrs, kvm_msr_list, kvm_irq_routing, kvm_signal_mask, kvm_xsave, ... all share this
one layout.  `pack` counts the elements by itself; `room(n)` makes the buffer for an answer of up
to n; a kernel that answers E2BIG is asked again with more (`Handle.ioctl_growing`).
"""

from __future__ import annotations

import struct
from functools import cached_property

from pykvm.errors import ConfigError
from pykvm.kvm.codec import StructLayout, check, size_of
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from pykvm.kvm.codec import Buffer, Type
    from pykvm.kvm.records import Record

__all__ = ["FlexibleLayout"]


class FlexibleLayout(StructLayout):
    """The layout of a C struct that ends in a flexible array, `tail`.

    `size` is C's sizeof: the head alone.  `counter` names the field that holds the number of
    elements, or is None where the array takes all that is left of the buffer.  Elements are a
    `struct` format character, "s" for bytes, or a layout.

    >>> from pykvm.kvm import uapi
    >>> uapi.kvm_msr_list.pack({"indices": [0x10, 0x174]}).hex(" ", 4)
    '02000000 10000000 74010000'
    """

    def __init__(
        self,
        name: str,
        size: int,
        fields: tuple[tuple[str, int, Type], ...],
        *,
        tail: str,
        element: Type,
        counter: str | None = None,
    ) -> None:
        super().__init__(name, size, fields)
        self.tail = tail
        self.element = element
        self.counter = counter

    @cached_property
    def element_size(self) -> int:
        """The size in bytes of one element."""
        return size_of("B" if self.element == "s" else self.element)

    def zero(self) -> Record:
        """Return a record of zeros without elements."""
        record = super().zero()
        record.__dict__[self.tail] = b"" if self.element == "s" else []
        return record

    def room(self, count: int, fill: int = 0, **head: Any) -> bytearray:
        """Return a buffer with room for `count` elements and its counter set to that.

        The room consists of bytes of `fill`.
        """
        if self.counter is not None:
            head[self.counter] = count
        return super().pack(head) + bytes((fill,)) * (count * self.element_size)

    def count_in(self, buffer: Buffer) -> int:
        """Return the number of elements that the counter in `buffer` gives."""
        if self.counter is None:
            raise ConfigError(f"{self.name} does not count its elements")
        return int(super().unpack(buffer).__dict__[self.counter])

    def complete(self, packed: bytes | bytearray) -> bytearray:
        """Return a struct packed elsewhere, for the kernel to read as far as its counter says.

        Raises ConfigError if it is shorter than that.
        """
        buffer = bytearray(packed)
        if len(buffer) < self.size:
            raise ConfigError(f"{self.name} has {self.size} bytes or more, not {len(buffer)}")
        wanted = self.size + self.count_in(buffer) * self.element_size
        if len(buffer) < wanted:
            raise ConfigError(f"{self.name} counts {wanted} bytes but has {len(buffer)}")
        return buffer

    def pack(self, value: Any = None) -> bytearray:
        """Return head and elements as bytes; the counter becomes the number of elements."""
        fields = dict(self.fields_of(value, self.name))
        elements = self._pack_elements(fields.pop(self.tail))
        if self.counter is not None:
            fields[self.counter] = len(elements) // self.element_size
        return super().pack(fields) + elements

    def _pack_elements(self, elements: Any) -> bytes:
        where = f"{self.name}.{self.tail}"
        if self.element == "s":
            if isinstance(elements, int | str):
                raise ConfigError(f"{where}: expected bytes, not {elements!r}")
            return bytes(elements)
        elements = list(elements)
        if isinstance(self.element, StructLayout):
            return b"".join(map(self.element.pack, elements))
        format_ = str(self.element)
        try:
            return struct.pack(f"<{len(elements)}{format_}", *elements)
        except struct.error:
            for index, item in enumerate(elements):
                check(f"{where}[{index}]", format_, item)
            raise

    def unpack(self, buffer: Buffer, offset: int = 0) -> Record:
        """Return the struct at `offset` of `buffer`, its elements as a list (or bytes)."""
        record = super().unpack(buffer, offset)
        view = memoryview(buffer)[offset + self.size :]
        if self.counter is None:
            count = len(view) // self.element_size
        else:
            count = record.__dict__[self.counter]
        record.__dict__[self.tail] = self._unpack_elements(view[: count * self.element_size])
        return record

    def _unpack_elements(self, data: memoryview) -> Any:
        if self.element == "s":
            return bytes(data)
        if isinstance(self.element, StructLayout):
            element = self.element
            return [element.load(values) for values in element.packer.iter_unpack(data)]
        return list(struct.unpack(f"<{len(data) // self.element_size}{self.element}", data))
