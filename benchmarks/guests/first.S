/* The shortest life a machine can have: its first instruction ends it. */
	.text
	.globl _start
_start:
	out	%al, $STOP
	jmp	_start
