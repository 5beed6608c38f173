/* How a multiboot boot loader knows a kernel, and where it enters: 32-bit code, flat segments, a
 * magic number in EAX and the address of the information in EBX, no stack.
 *
 * Built in three ways: with a multiboot 1 header that leaves the addresses to ELF, with one that
 * says them itself (ADDRESSES; then the file need not be an ELF file), and with a multiboot 2
 * header (MULTIBOOT2). */

.section .multiboot, "a"        /* the linker puts it first: it has to be near the file's start */

#ifdef MULTIBOOT2

.set MAGIC, 0xe85250d6
.set I386, 0
.set OPTIONAL, 1

.balign 8
header: .long   MAGIC, I386, header_end - header, -(MAGIC + I386 + header_end - header)
.balign 8
        .short  1, 0            /* tell me: command line, modules, memory, symbols, ACPI */
        .long   32, 1, 3, 4, 6, 9, 15
.balign 8
        .short  5, OPTIONAL     /* a framebuffer of any size would be nice */
        .long   20, 0, 0, 0
.balign 8
        .short  6, 0            /* modules start a page */
        .long   8
.balign 8
        .short  0, 0
        .long   8
header_end:

#else

.set MAGIC, 0x1badb002
.set PAGE_ALIGN, 1 << 0
.set MEMORY_INFO, 1 << 1
.set AOUT_KLUDGE, 1 << 16

#ifdef ADDRESSES
.set FLAGS, PAGE_ALIGN | MEMORY_INFO | AOUT_KLUDGE
#else
.set FLAGS, PAGE_ALIGN | MEMORY_INFO
#endif

.balign 4
header: .long   MAGIC, FLAGS, -(MAGIC + FLAGS)
#ifdef ADDRESSES
        .long   header, image_start, 0, image_end, _start       /* 0: the whole file is loaded */
#endif

#endif

.text
.globl _start
_start:
        mov     $stack_top, %esp
        push    %ebx
        push    %eax
        call    main            /* main(magic, information) */
        outb    %al, $0xf4      /* lib/exit.h */
halt:   cli
        hlt
        jmp     halt

.bss
.balign 16
        .skip   4096
stack_top:
