/* A third way in, for long-mode guests: a multiboot 1 header, in front of what lib/pvh.S does with
 * the same state of the processor.  The file is made ELF32, as kvm-unit-tests makes its own: QEMU
 * takes no ELF64 kernel by multiboot. */

.set MAGIC, 0x1badb002

.section .multiboot, "a"
.balign 4
        .long   MAGIC, 0, -MAGIC
