/*
 * COUNT times one instruction that a KVM without virtualisation hardware refuses in ring 0, then one
 * write to the stop port; over and over.  Which instruction, the command line of the assembler says.
 */
	.macro work
#if defined(STAC)
	stac
#elif defined(POPCNT)
	popcnt	%rax, %rbx
#elif defined(CMPXCHG16B)
	cmpxchg16b area(%rip)
#elif defined(FWAIT)
	fwait
#elif defined(LDMXCSR)
	ldmxcsr	mxcsr(%rip)
#elif defined(XSAVE)
	xsave	area(%rip)
#elif defined(ADDPS)
	addps	%xmm1, %xmm0
#elif defined(MULPS)
	mulps	area(%rip), %xmm0
	nop
#endif
	.endm

	.text
	.globl _start
_start:
	/* SSE and XSAVE are there once CR4 says so: OSFXSR and OSXSAVE (SDM 3A 2.5). */
	mov	%cr4, %rax
	or	$(1 << 9 | FLAGS), %rax
	mov	%rax, %cr4
	/* XSAVE is to save x87 and SSE. */
	mov	$3, %eax
	xor	%edx, %edx
batch:
	.rept	COUNT
	work
	.endr
	out	%al, $STOP
	jmp	batch

	.data
	.balign	64
area:
	.fill	4096, 1, 0
mxcsr:
	.long	0x1f80
