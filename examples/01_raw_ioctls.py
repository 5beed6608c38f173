"""A hypervisor in one page: /dev/kvm with nothing but the standard library.

Run it:  python examples/01_raw_ioctls.py

KVM is a file and a handful of ioctls on three kinds of file descriptor: the system (/dev/kvm), a
virtual machine (VM), and a virtual CPU (vCPU) of that machine.  The kernel runs the guest's
instructions.  It returns to this program when the guest needs more than a processor: a port, an
address without memory, a halt.  That is a VM exit.

The next example does the same with pykvm, which does steps 1 to 5 for you.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

# The guest: real mode, where every x86 processor starts.  It says a few words on port 0x3f8 (the
# first serial port of a PC), reads a digit from port 0x10, and stores it plus one at 0x100000,
# where this machine has no memory.
CODE_ADDRESS = 0x1000
CODE = bytes.fromhex(
    "be 1b 10       "  # 1000        mov  si, 0x101b     ; the message
    "ba f8 03       "  # 1003        mov  dx, 0x3f8
    "ac             "  # 1006  next: lodsb               ; al = [ds:si], si += 1
    "84 c0          "  # 1007        test al, al
    "74 03          "  # 1009        jz   ask
    "ee             "  # 100b        out  dx, al         ; VM exit: port write
    "eb f8          "  # 100c        jmp  next
    "e4 10          "  # 100e  ask:  in   al, 0x10       ; VM exit: port read
    "fe c0          "  # 1010        inc  al
    "bb ff ff       "  # 1012        mov  bx, 0xffff     ; ds = 0xffff, so that ds:0x10 is
    "8e db          "  # 1015        mov  ds, bx         ; 0xffff0 + 0x10 = 0x100000
    "a2 10 00       "  # 1017        mov  [0x10], al     ; VM exit: memory that is not there
    "f4             "  # 101a        hlt                 ; VM exit: nothing left to do
)
MESSAGE = b"Hello from a guest\n\0"  # 101b, right after the code

# An ioctl's number packs a direction, the size of its argument, a type (0xAE is KVM's) and a number
# (<asm-generic/ioctl.h>).  Those that transfer no struct have only the last two.
WRITE, READ = 1, 2  # seen from this program: "write" hands a struct to the kernel


def ioctl_number(number: int, direction: int = 0, size: int = 0) -> int:
    return direction << 30 | size << 16 | 0xAE << 8 | number


# struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr
MEMORY_REGION = struct.Struct("=IIQQQ")
# struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags
REGS = struct.Struct("=18Q")
# struct kvm_sregs: eight segments of 24 bytes each (the first is CS), two descriptor tables, the
# control registers, EFER, the APIC's base, a bitmap of pending interrupts
SREGS_SIZE = 312

KVM_GET_API_VERSION = ioctl_number(0x00)
KVM_CREATE_VM = ioctl_number(0x01)
KVM_GET_VCPU_MMAP_SIZE = ioctl_number(0x04)
KVM_CREATE_VCPU = ioctl_number(0x41)
KVM_SET_USER_MEMORY_REGION = ioctl_number(0x46, WRITE, MEMORY_REGION.size)
KVM_RUN = ioctl_number(0x80)
KVM_SET_REGS = ioctl_number(0x82, WRITE, REGS.size)
KVM_GET_SREGS = ioctl_number(0x83, READ, SREGS_SIZE)
KVM_SET_SREGS = ioctl_number(0x84, WRITE, SREGS_SIZE)

KVM_EXIT_IO, KVM_EXIT_HLT, KVM_EXIT_MMIO = 2, 5, 6
KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT = 0, 1


def address_in_this_process(name: str) -> int:
    """Where a mapping of the file `name` starts: the kernel lists them all."""
    with open("/proc/self/maps") as maps:
        return next(int(line.split("-")[0], 16) for line in maps if name in line)


def main() -> None:
    # 1. The system.  12 is the only stable version of the API; everything newer is a "capability".
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    assert fcntl.ioctl(kvm, KVM_GET_API_VERSION) == 12

    # 2. A virtual machine: an address space and a place for CPUs, both still empty.
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)

    # 3. Memory.  A slot says: guest-physical addresses from 0 on are this stretch of our own
    # virtual memory.  No copy is made; what the guest writes is in `memory` at once.
    size = 64 * 1024
    ram_file = os.memfd_create("guest-ram")
    os.ftruncate(ram_file, size)
    memory = mmap.mmap(ram_file, size)
    memory[CODE_ADDRESS : CODE_ADDRESS + len(CODE + MESSAGE)] = CODE + MESSAGE
    host_address = address_in_this_process("guest-ram")
    slot, flags, guest_address = 0, 0, 0
    region = MEMORY_REGION.pack(slot, flags, guest_address, size, host_address)
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, region)

    # 4. A virtual CPU.  Besides its ioctls it has a page shared with the kernel, struct kvm_run,
    # in which the kernel says why it returned, and we put our answer.
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE))

    # 5. Registers.  The CPU is as after power-on: real mode, CS:IP just below 4 GiB, where a PC has
    # its BIOS.  There is none here, so CS goes to 0 (base: the first 8 bytes; selector: 2 bytes at
    # 12) and IP to the code.  Bit 1 of RFLAGS is always set.
    sregs = bytearray(SREGS_SIZE)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    struct.pack_into("=Q", sregs, 0, 0)
    struct.pack_into("=H", sregs, 12, 0)
    fcntl.ioctl(vcpu, KVM_SET_SREGS, sregs)
    general, rip, rflags = [0] * 16, CODE_ADDRESS, 0x2
    fcntl.ioctl(vcpu, KVM_SET_REGS, REGS.pack(*general, rip, rflags))

    # 6. Run.  KVM_RUN returns at each VM exit; exit_reason is at offset 8 of kvm_run and a union of
    # details, one struct a reason, at offset 32.  The next KVM_RUN completes the instruction.
    while True:
        fcntl.ioctl(vcpu, KVM_RUN)
        (exit_reason,) = struct.unpack_from("=I", run, 8)

        if exit_reason == KVM_EXIT_IO:
            # The data itself, `count` items of `width` bytes, lies elsewhere in the same mapping.
            direction, width, port, count, offset = struct.unpack_from("=BBHIQ", run, 32)
            data = slice(offset, offset + width * count)
            if direction == KVM_EXIT_IO_OUT:
                print(f"out  port {port:#x}: {run[data]!r}")
            else:
                run[data] = b"7" * (width * count)
                print(f"in   port {port:#x}: we answer {run[data]!r}")

        elif exit_reason == KVM_EXIT_MMIO:
            address, value, length, is_write = struct.unpack_from("=Q8sIB", run, 32)
            verb = "write" if is_write else "read"
            print(f"mmio address {address:#x}: {verb} {value[:length]!r}")

        elif exit_reason == KVM_EXIT_HLT:
            print("hlt  the guest is done")
            break

        else:  # <linux/kvm.h> lists some forty reasons
            raise SystemExit(f"exit reason {exit_reason}: not handled here")

    # 7. The VM lives as long as a descriptor or mapping of it does.
    run.close()
    memory.close()
    for descriptor in (vcpu, vm, ram_file, kvm):
        os.close(descriptor)


if __name__ == "__main__":
    main()
