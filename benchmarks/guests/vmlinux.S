/*
 * The shape of a vmlinux: SIZE bytes that are LOADED or, as debugging information is, not, and the
 * note that marks an ELF file as a Linux kernel.  It is loaded, never run.
 */
	.section .start, "ax"
	.globl _start
_start:
	hlt
	jmp	_start

#if LOADED
	.section .rodata, "a"
#else
	.section .debug_info, ""
#endif
	.fill	SIZE / 8, 8, 0x0123456789abcdef

#include "../../guests/boot/linux_note.S"
