"""An open KVM file descriptor: issuing ioctls, telling errors, closing exactly once."""

from __future__ import annotations

import fcntl
import warnings
from errno import E2BIG, EBADF
from functools import cache

from pykvm._core import ffi
from pykvm.descriptor import Descriptor
from pykvm.errors import ClosedError, ConfigError, KVMError, KVMResourceError, is_exhaustion
from pykvm.kvm import uapi
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeAlias

    from typing_extensions import Self

    from pykvm.kvm.capabilities import Cap
    from pykvm.kvm.codec import Buffer, StructLayout
    from pykvm.kvm.flexible import FlexibleLayout
    from pykvm.kvm.records import Record

    # What setters take: a record, or a mapping whose missing fields are zero.
    Fields: TypeAlias = "Record | Mapping[str, Any]"

__all__ = ["Attributes", "Enabling", "Extensions", "Handle", "address_of", "bytes_of", "fd_of"]

_INT_MAX = (1 << 31) - 1
_GROWTH_LIMIT = 1 << 16
_ATTRIBUTE_ROOM = 64


def address_of(buffer: Buffer) -> int:
    """Return the address of a writable buffer, for structs that point at one.

    It stays valid while `buffer` lives and is not resized.
    """
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer, require_writable=True)))


def fd_of(file: int | object) -> int:
    """Return a file descriptor given as an int or as anything with fileno()."""
    if isinstance(file, int):
        return file
    fileno = getattr(file, "fileno", None)
    if fileno is None:
        raise ConfigError(f"expected a file descriptor or a file, not {file!r}")
    return int(fileno())


def bytes_of(value: int, size: int) -> bytes:
    """Return an integer as `size` little-endian bytes.  Raises ConfigError if it does not fit."""
    try:
        return value.to_bytes(size, "little", signed=value < 0)
    except OverflowError:
        raise ConfigError(f"{value:#x} does not fit in {size} bytes") from None


def name_of(number: int) -> str:
    """Return the kernel's name of an ioctl number.

    >>> name_of(0xAE80)
    'KVM_RUN'
    """
    return _names().get(number) or f"ioctl {number:#x}"


@cache
def _names() -> dict[int, str]:
    return {number: name for name, number in vars(uapi).items() if name.startswith("KVM_")}


def _check_word(number: int, word: int) -> None:
    if not 0 <= word < 1 << 64:
        raise ConfigError(f"{name_of(number)}: {word:#x} is no unsigned 64-bit integer")


class Handle:
    """One KVM file descriptor.

    Closing is deterministic (`close`, `with`) and idempotent; a handle that is only dropped closes
    its descriptor when it is collected, with a ResourceWarning.  Every ioctl raises KVMError when
    the kernel refuses and ClosedError after `close`.
    """

    def __init__(self, descriptor: Descriptor, what: str, *, warns: bool = True) -> None:
        """`warns` is False for a handle whose owner warns of itself when it was forgotten."""
        self._descriptor = descriptor
        self._what = what
        self._warns = warns

    @property
    def fd(self) -> int:
        """The file descriptor.  Raises ClosedError once the handle is closed."""
        try:
            return self._descriptor.fileno()
        except ValueError:
            raise ClosedError(f"this {self._what} is closed") from None

    def fileno(self) -> int:
        """Return the file descriptor, as files do."""
        return self.fd

    @property
    def closed(self) -> bool:
        """Whether the handle has been closed."""
        return self._descriptor.closed

    def close(self) -> None:
        """Close the file descriptor; closing twice does nothing."""
        self._descriptor.close()

    def __enter__(self) -> Self:
        self.fd  # noqa: B018  a closed handle is refused here
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The descriptor closes itself; a warning that is kept keeps this handle.
        if getattr(self, "_warns", False) and not self.closed:
            message = f"{self!r} was never closed"
            try:
                warnings.warn(message, ResourceWarning, source=self, stacklevel=2)
            finally:
                self._descriptor.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd {self.fd}"
        return f"<pykvm.kvm.{type(self).__name__} {state}>"

    def ioctl(self, number: int, arg: int | bytearray | memoryview = 0) -> int:
        """Issue an ioctl with a small integer or a buffer, which the kernel may write to."""
        try:
            return fcntl.ioctl(self.fd, number, arg)
        except OSError as error:
            raise self._refused(number, error.errno or 0) from None

    def ioctl_word(self, number: int, word: int) -> int:
        """Issue an ioctl with an unsigned integer of 64 bits, of which fcntl.ioctl takes 31."""
        if 0 <= word <= _INT_MAX:
            return self.ioctl(number, word)
        _check_word(number, word)
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        result = int(libc.ioctl(self.fd, ctypes.c_ulong(number), ctypes.c_ulong(word)))
        if result < 0:
            raise self._refused(number, ctypes.get_errno())
        return result

    def ioctl_open(self, number: int, word: int = 0) -> Descriptor:
        """Issue an ioctl that returns a file descriptor, with an unsigned integer of 64 bits."""
        _check_word(number, word)
        try:
            return Descriptor.ioctl(self.fd, number, word)
        except OSError as error:
            raise self._refused(number, error.errno or 0) from None

    def ioctl_read(self, number: int, layout: StructLayout) -> Record:
        """Issue an ioctl that fills in a struct."""
        buffer = bytearray(layout.size)
        self.ioctl(number, buffer)
        return layout.unpack(buffer)

    def ioctl_write(self, number: int, layout: StructLayout, value: Fields) -> int:
        """Issue an ioctl that takes a struct."""
        return self.ioctl(number, layout.pack(value))

    def ioctl_growing(
        self, number: int, layout: FlexibleLayout, count: int, *, fill: int = 0
    ) -> bytearray:
        """Issue an ioctl that fills in a list, first with room for `count` elements.

        The room consists of bytes of `fill`.

        While the kernel answers E2BIG it is asked again with as much room as it says it needs, or
        twice as much where it does not say.  The result starts with the kernel's count.
        """
        while True:
            buffer = layout.room(count, fill)
            try:
                self.ioctl(number, buffer)
            except KVMError as error:
                if error.errno != E2BIG or count > _GROWTH_LIMIT:
                    raise
                wanted = layout.count_in(buffer)
                count = wanted if wanted > count else 2 * count
            else:
                return buffer

    def _refused(self, number: int, errno: int) -> KVMError:
        from pykvm.kvm.hints import hint_for

        if errno == EBADF:
            self.fd  # noqa: B018  raises, if another thread has closed it meanwhile
        name = name_of(number)
        kind = KVMResourceError if is_exhaustion(errno) else KVMError
        return kind(name, errno, hint=hint_for(name, errno))


class Extensions(Handle):
    """A handle that can be asked for capabilities: /dev/kvm and VMs."""

    def check_extension(self, cap: Cap | int) -> int:
        """Return what this host (or, of a VM, this VM) says to a capability.

        0 is "not there"; what any other number means is up to the capability: 1 for yes, a
        maximum, a size, a mask.  KVM_CHECK_EXTENSION, api.rst 4.4; of a VM it needs
        KVM_CAP_CHECK_EXTENSION_VM.
        """
        return self.ioctl(uapi.KVM_CHECK_EXTENSION, int(cap))


class Enabling(Handle):
    """A handle on which capabilities can be enabled, and which keeps statistics: VMs and vCPUs."""

    def enable_cap(self, cap: Cap | int, *args: int, flags: int = 0) -> int:
        """Enable a capability with up to four 64-bit arguments.

        Returns what the kernel returns, mostly 0.  Needs KVM_CAP_ENABLE_CAP (vCPU) or
        KVM_CAP_ENABLE_CAP_VM (VM).  Raises KVMError: EINVAL for a capability, an argument or a
        moment that this does not fit.  KVM_ENABLE_CAP, api.rst 4.37; the capabilities in 6 and 7.
        """
        if len(args) > 4:
            raise ConfigError(f"KVM_ENABLE_CAP takes up to 4 arguments, not {len(args)}")
        padded = [*args, *[0] * (4 - len(args))]
        value = {"cap": int(cap), "flags": flags, "args": padded}
        return self.ioctl_write(uapi.KVM_ENABLE_CAP, uapi.kvm_enable_cap, value)

    def get_stats_fd(self) -> Descriptor:
        """Return a new file descriptor of the binary statistics; the caller closes it.

        `pykvm.kvm.stats.read_stats` decodes what it holds.  Needs KVM_CAP_BINARY_STATS_FD.
        KVM_GET_STATS_FD, api.rst 4.133.
        """
        return self.ioctl_open(uapi.KVM_GET_STATS_FD)


class Attributes(Handle):
    """A handle with attributes, addressed by group and number: devices, vCPUs, /dev/kvm."""

    def has_device_attr(self, group: int, attr: int) -> bool:
        """Return whether the attribute exists.

        KVM_HAS_DEVICE_ATTR, api.rst 4.81.  Needs KVM_CAP_DEVICE_CTRL for a device,
        KVM_CAP_VCPU_ATTRIBUTES for a vCPU, KVM_CAP_SYS_ATTRIBUTES for /dev/kvm.
        """
        from errno import EINVAL, ENOTTY, ENXIO, EPERM

        value = {"group": group, "attr": attr}
        try:
            self.ioctl_write(uapi.KVM_HAS_DEVICE_ATTR, uapi.kvm_device_attr, value)
        except KVMError as error:
            if error.errno in (ENXIO, EINVAL, ENOTTY, EPERM):
                return False
            raise
        return True

    def get_device_attr(self, group: int, attr: int, size: int = 8) -> int:
        """Return the attribute, an unsigned integer of `size` bytes.

        Raises KVMError: ENXIO where there is no such attribute, EPERM where it cannot be read.
        KVM_GET_DEVICE_ATTR, api.rst 4.80; capabilities as for `has_device_attr`.
        """
        # Room for a kernel that writes more than the caller thinks.
        data = bytearray(max(size, _ATTRIBUTE_ROOM))
        value = {"group": group, "attr": attr, "addr": address_of(data)}
        self.ioctl_write(uapi.KVM_GET_DEVICE_ATTR, uapi.kvm_device_attr, value)
        return int.from_bytes(data[:size], "little")

    def set_device_attr(self, group: int, attr: int, value: int | bytes, size: int = 8) -> None:
        """Set the attribute: an integer of `size` bytes, or the bytes that it consists of.

        Raises KVMError: ENXIO where there is no such attribute, EINVAL for its value.
        KVM_SET_DEVICE_ATTR, api.rst 4.80; capabilities as for `has_device_attr`.
        """
        content = bytes_of(value, size) if isinstance(value, int) else bytes(value)
        data = bytearray(content.ljust(_ATTRIBUTE_ROOM, b"\0"))
        fields = {"group": group, "attr": attr, "addr": address_of(data)}
        self.ioctl_write(uapi.KVM_SET_DEVICE_ATTR, uapi.kvm_device_attr, fields)
