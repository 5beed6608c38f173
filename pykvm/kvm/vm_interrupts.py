"""The interrupts of a VM: controllers, lines, routes, MSIs; eventfds; coalesced writes."""

from __future__ import annotations

from pykvm.kvm import uapi
from pykvm.kvm.constants import (
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
)
from pykvm.kvm.handle import Handle, fd_of
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.kvm.handle import Fields
    from pykvm.kvm.records import Record

__all__ = ["Interrupts"]


class Interrupts(Handle):
    """The part of a VM that has to do with interrupts and with events in place of exits."""

    def create_irqchip(self) -> None:
        """Put two 8259 PICs, an IOAPIC and, into each vCPU made later, a local APIC in the kernel.

        Needs KVM_CAP_IRQCHIP.  Raises KVMError: EEXIST the second time, EINVAL once there are
        vCPUs.  KVM_CREATE_IRQCHIP, api.rst 4.24; for local APICs alone, enable
        KVM_CAP_SPLIT_IRQCHIP.
        """
        self.ioctl(uapi.KVM_CREATE_IRQCHIP)

    def get_irqchip(self, chip_id: int) -> Record:
        """Return a chip's state (KVM_IRQCHIP_...) as kvm_irqchip: `chip.pic` or `chip.ioapic`.

        Needs KVM_CAP_IRQCHIP.  Raises KVMError: ENXIO without an irqchip.  KVM_GET_IRQCHIP,
        api.rst 4.26.
        """
        data = uapi.kvm_irqchip.pack({"chip_id": chip_id})
        self.ioctl(uapi.KVM_GET_IRQCHIP, data)
        return uapi.kvm_irqchip.unpack(data)

    def set_irqchip(self, value: Fields) -> None:
        """Set a chip's state from a kvm_irqchip.

        Needs KVM_CAP_IRQCHIP.  Raises KVMError: ENXIO without an irqchip.  KVM_SET_IRQCHIP,
        api.rst 4.27.
        """
        self.ioctl_write(uapi.KVM_SET_IRQCHIP, uapi.kvm_irqchip, value)

    def irq_line(self, irq: int, level: int) -> None:
        """Set interrupt line `irq`, a GSI, to `level` 0 or 1; an edge takes 1 and then 0.

        Needs KVM_CAP_IRQCHIP.  Raises KVMError: ENXIO without an irqchip.  KVM_IRQ_LINE,
        api.rst 4.25.
        """
        if type(irq) is int and 0 <= irq < 1 << 32 and level in (0, 1):
            # What devices do at every interrupt: struct kvm_irq_level in one piece.
            word = (irq | (1 << 32 if level else 0)).to_bytes(8, "little")
            self.ioctl(uapi.KVM_IRQ_LINE, bytearray(word))
            return
        value = {"irq": irq, "level": level}
        self.ioctl_write(uapi.KVM_IRQ_LINE, uapi.kvm_irq_level, value)

    def irq_line_status(self, irq: int, level: int) -> int:
        """Set a line as `irq_line` does and return what became of it.

        Above 0 the number of vCPUs that it reached, 0 if it merged with one already pending, -1
        if it was masked.  Needs KVM_CAP_IRQ_INJECT_STATUS.  KVM_IRQ_LINE_STATUS.
        """
        data = uapi.kvm_irq_level.pack({"irq": irq, "level": level})
        self.ioctl(uapi.KVM_IRQ_LINE_STATUS, data)
        status: int = uapi.kvm_irq_level.unpack(data).status
        return status

    def create_pit(self) -> None:
        """Put an 8254 PIT in the kernel, the old way: `create_pit2` takes flags.

        Needs KVM_CAP_PIT and an irqchip.  KVM_CREATE_PIT.
        """
        self.ioctl(uapi.KVM_CREATE_PIT)

    def create_pit2(self, flags: int = 0) -> None:
        """Put an 8254 PIT in the kernel; KVM_PIT_SPEAKER_DUMMY answers port 0x61 too.

        Needs KVM_CAP_PIT2.  Raises KVMError: ENOENT without an irqchip, EEXIST the second time.
        KVM_CREATE_PIT2, api.rst 4.71.
        """
        self.ioctl_write(uapi.KVM_CREATE_PIT2, uapi.kvm_pit_config, {"flags": flags})

    def get_pit(self) -> Record:
        """Return the PIT's channels as kvm_pit_state.

        Needs KVM_CAP_PIT.  Raises KVMError: ENXIO without a PIT.  KVM_GET_PIT.
        """
        return self.ioctl_read(uapi.KVM_GET_PIT, uapi.kvm_pit_state)

    def set_pit(self, value: Fields) -> None:
        """Set the PIT's channels from a kvm_pit_state.

        Needs KVM_CAP_PIT.  Raises KVMError: ENXIO without a PIT.  KVM_SET_PIT.
        """
        self.ioctl_write(uapi.KVM_SET_PIT, uapi.kvm_pit_state, value)

    def get_pit2(self) -> Record:
        """Return the PIT's channels and flags (KVM_PIT_FLAGS_...) as kvm_pit_state2.

        Needs KVM_CAP_PIT_STATE2.  Raises KVMError: ENXIO without a PIT.  KVM_GET_PIT2,
        api.rst 4.72.
        """
        return self.ioctl_read(uapi.KVM_GET_PIT2, uapi.kvm_pit_state2)

    def set_pit2(self, value: Fields) -> None:
        """Set the PIT from a kvm_pit_state2.

        Needs KVM_CAP_PIT_STATE2.  Raises KVMError: ENXIO without a PIT.  KVM_SET_PIT2,
        api.rst 4.73.
        """
        self.ioctl_write(uapi.KVM_SET_PIT2, uapi.kvm_pit_state2, value)

    def reinject_control(self, pit_reinject: bool) -> None:
        """Choose whether PIT ticks that the guest missed are made up for (the default) or lost.

        Needs KVM_CAP_REINJECT_CONTROL.  Raises KVMError: ENXIO without a PIT.
        KVM_REINJECT_CONTROL.
        """
        value = {"pit_reinject": int(pit_reinject)}
        self.ioctl_write(uapi.KVM_REINJECT_CONTROL, uapi.kvm_reinject_control, value)

    def set_gsi_routing(self, entries: Iterable[Fields]) -> None:
        """Replace all routes from GSIs to chip pins, MSIs or Hyper-V SINTs.

        Each entry is a kvm_irq_routing_entry: ``{"gsi": 4, "type": KVM_IRQ_ROUTING_IRQCHIP, "u":
        {"irqchip": {"irqchip": KVM_IRQCHIP_IOAPIC, "pin": 4}}}``.  Needs KVM_CAP_IRQ_ROUTING,
        whose value is the number of GSIs.  KVM_SET_GSI_ROUTING, api.rst 4.52.
        """
        value = {"entries": list(entries)}
        self.ioctl_write(uapi.KVM_SET_GSI_ROUTING, uapi.kvm_irq_routing, value)

    def signal_msi(self, address: int, data: int, *, devid: int | None = None) -> int:
        """Deliver a message-signalled interrupt: `data` written to `address`.

        Returns more than 0 if it was delivered, 0 if the guest blocked it.  Needs
        KVM_CAP_SIGNAL_MSI.  Raises KVMError: EINVAL or ENXIO without in-kernel local APICs.
        KVM_SIGNAL_MSI, api.rst 4.71.
        """
        value = {"address_lo": address & 0xFFFFFFFF, "address_hi": address >> 32, "data": data}
        if devid is not None:
            from pykvm.kvm.constants import KVM_MSI_VALID_DEVID

            value |= {"flags": KVM_MSI_VALID_DEVID, "devid": devid}
        return self.ioctl_write(uapi.KVM_SIGNAL_MSI, uapi.kvm_msi, value)

    def irqfd(
        self,
        fd: int | object,
        gsi: int,
        *,
        resamplefd: int | object | None = None,
        deassign: bool = False,
    ) -> None:
        """Raise `gsi` whenever the eventfd `fd` is written to.

        With `resamplefd` the line is level-triggered: KVM lowers it at the guest's EOI and signals
        `resamplefd`.  Needs KVM_CAP_IRQFD (KVM_CAP_IRQFD_RESAMPLE).  Raises KVMError: EBUSY for an
        eventfd in use.  KVM_IRQFD, api.rst 4.75.
        """
        value = {"fd": fd_of(fd), "gsi": gsi}
        if deassign:
            value["flags"] = KVM_IRQFD_FLAG_DEASSIGN
        if resamplefd is not None:
            value["flags"] = value.get("flags", 0) | KVM_IRQFD_FLAG_RESAMPLE
            value["resamplefd"] = fd_of(resamplefd)
        self.ioctl_write(uapi.KVM_IRQFD, uapi.kvm_irqfd, value)

    def ioeventfd(
        self,
        fd: int | object,
        addr: int,
        len: int,
        *,
        pio: bool = False,
        datamatch: int | None = None,
        deassign: bool = False,
    ) -> None:
        """Write to the eventfd `fd` when the guest writes `len` bytes to `addr`, with no exit.

        `len` is 1, 2, 4 or 8, or 0 for any (KVM_CAP_IOEVENTFD_ANY_LENGTH); `datamatch` limits it
        to one value.  To undo, repeat the call with `deassign`.  Needs KVM_CAP_IOEVENTFD.  Raises
        KVMError: EEXIST, EINVAL, ENOENT.  KVM_IOEVENTFD, api.rst 4.59.
        """
        flags = (KVM_IOEVENTFD_FLAG_PIO if pio else 0) | (
            KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        )
        if datamatch is not None:
            flags |= KVM_IOEVENTFD_FLAG_DATAMATCH
        value = {
            "datamatch": datamatch or 0,
            "addr": addr,
            "len": len,
            "fd": fd_of(fd),
            "flags": flags,
        }
        self.ioctl_write(uapi.KVM_IOEVENTFD, uapi.kvm_ioeventfd, value)

    def register_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        """Collect writes to `size` bytes at `addr` in the ring beside kvm_run, without exits.

        The ring is the page KVM_CAP_COALESCED_MMIO of each vCPU's mapping; the next exit for
        another reason is the moment to empty it.  Needs KVM_CAP_COALESCED_MMIO, for ports
        KVM_CAP_COALESCED_PIO.  KVM_REGISTER_COALESCED_MMIO, api.rst 4.116.
        """
        value = {"addr": addr, "size": size, "pio": int(pio)}
        layout = uapi.kvm_coalesced_mmio_zone
        self.ioctl_write(uapi.KVM_REGISTER_COALESCED_MMIO, layout, value)

    def unregister_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        """Let writes to a range registered with `register_coalesced_mmio` exit again.

        KVM_UNREGISTER_COALESCED_MMIO, api.rst 4.116.
        """
        value = {"addr": addr, "size": size, "pio": int(pio)}
        layout = uapi.kvm_coalesced_mmio_zone
        self.ioctl_write(uapi.KVM_UNREGISTER_COALESCED_MMIO, layout, value)
