/*
 * EXITS writes in a row, unrolled so that nothing but the VM exit itself is measured, then one
 * write to the stop port; over and over.
 *
 * RING 0 or 3, MMIO 0 (OUT) or 1 (a store to an address without RAM), chosen on the command line
 * of the assembler, as are the port and the address.
 */
	.text
	.globl _start
_start:
#if RING == 3
	/* The base of a TSS descriptor is scattered over four fields. */
	lea	tss(%rip), %rax
	mov	%ax, gdt_tss + 2(%rip)
	shr	$16, %rax
	mov	%al, gdt_tss + 4(%rip)
	mov	%ah, gdt_tss + 7(%rip)
	lgdt	gdt_pointer(%rip)
	mov	$(gdt_tss - gdt), %eax
	ltr	%ax
	lea	pml4(%rip), %rax
	mov	%rax, %cr3
	pushq	$(user_data - gdt + 3)
	pushq	$0
	pushq	$2
	pushq	$(user_code - gdt + 3)
	lea	batch(%rip), %rax
	push	%rax
	iretq
#endif

batch:
	mov	$0x5a, %eax
#if MMIO
	mov	$ADDRESS, %edi
	.rept	EXITS
	mov	%eax, (%rdi)
	.endr
#else
	mov	$PORT, %edx
	.rept	EXITS
	out	%al, %dx
	.endr
#endif
	out	%al, $STOP
	jmp	batch

#if RING == 3
	.data
	.balign	8
gdt:
	.quad	0
kernel_code:
	.quad	0x00af9b000000ffff
kernel_data:
	.quad	0x00cf93000000ffff
user_data:
	.quad	0x00cff3000000ffff
user_code:
	.quad	0x00affb000000ffff
gdt_tss:
	.quad	0x0000890000000000 + (tss_end - tss - 1)
	.quad	0
gdt_end:

gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	gdt

	/* I/O map base at offset 102; every bit clear: ring 3 may use these ports (SDM 1 19.5.2). */
	.balign	8
tss:
	.fill	102, 1, 0
	.word	io_bitmap - tss
io_bitmap:
	.fill	256 / 8, 1, 0
	.byte	0xff
tss_end:

	/* The first GiB at its own address in 2M pages, open to ring 3. */
	.balign	4096
pml4:
	.quad	pdpt + 7
	.fill	511, 8, 0
pdpt:
	.quad	pd + 7
	.fill	511, 8, 0
pd:
	.set	page, 0
	.rept	512
	.quad	page + 0x87
	.set	page, page + 0x200000
	.endr
#endif
