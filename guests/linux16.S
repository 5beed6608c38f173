/* The oldest way into a Linux kernel: its set-up code, entered in real mode by a boot loader or an
 * option ROM.  This one prints the command line and the initrd instead of booting.
 *
 * The file is a bzImage: two sectors of set-up code with the header in it, loaded anywhere below
 * 1 MiB, then the kernel, loaded at 1 MiB.  DS is the segment of the set-up code, CS is 0x20 more
 * (Linux, Documentation/arch/x86/boot.rst). */

.set COM1, 0x3f8
.set LINE_STATUS, COM1 + 5
.set TRANSMIT_EMPTY, 0x20
.set DEBUG_EXIT, 0xf4
.set KERNEL, 0x100000

        .section .setup, "ax"
        .code16
        .org    0x1f1
        .byte   1                       /* setup_sects: sectors after the first */
        .org    0x1fe
        .word   0xaa55
        .globl  _start
_start: .byte   0xeb, start - header    /* JMP over the header; CS:IP point here */
header: .ascii  "HdrS"
        .word   0x020f                  /* version */
        .org    0x211
loadflags:
        .byte   0x01                    /* LOADED_HIGH */
        .org    0x214
        .long   KERNEL                  /* code32_start */
ramdisk_image:
        .long   0
ramdisk_size:
        .long   0
        .org    0x224
heap_end_ptr:
        .word   0
        .org    0x228
cmd_line_ptr:
        .long   0
        .long   0x7fffffff              /* initrd_addr_max */
        .org    0x238
        .long   255                     /* cmdline_size */
        .org    0x258
        .quad   KERNEL                  /* pref_address */
        .long   0x10000                 /* init_size */
        .org    0x268

start:  cld
        mov     $command_line, %si
        call    say
        push    %ds
        mov     cmd_line_ptr, %eax
        shr     $4, %eax
        mov     %ax, %ds
        xor     %si, %si
        call    say
        pop     %ds
        mov     $newline, %si
        call    say

        mov     %ds, %ax                /* the GDT's address is linear */
        movzwl  %ax, %esi
        shl     $4, %esi
        add     %esi, gdt_base
        lgdtl   gdt_limit
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $8, $KERNEL

say:    lodsb                           /* AL = DS:[SI], SI += 1 */
        test    %al, %al
        jz      said
        mov     %al, %ah
        mov     $LINE_STATUS, %dx
ready:  inb     %dx, %al
        test    $TRANSMIT_EMPTY, %al
        jz      ready
        mov     $COM1, %dx
        mov     %ah, %al
        outb    %al, %dx
        jmp     say
said:   ret

command_line:
        .asciz  "command line: "
newline:
        .asciz  "\n"
        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      /* flat code, 32 bits */
        .quad   0x00cf93000000ffff      /* flat data */
gdt_limit:
        .word   . - gdt - 1
gdt_base:
        .long   gdt
        .org    0x400

/* ESI = the set-up code. */
        .section .kernel, "ax"
        .code32
kernel: mov     $16, %eax
        mov     %eax, %ds
        mov     ramdisk_size(%esi), %ecx
        mov     ramdisk_image(%esi), %esi
        test    %ecx, %ecx
        jz      end
next:   mov     $LINE_STATUS, %dx
        inb     %dx, %al
        test    $TRANSMIT_EMPTY, %al
        jz      next
        lodsb
        mov     $COM1, %dx
        outb    %al, %dx
        loop    next
end:    xor     %al, %al                /* exit code 0 */
        outb    %al, $DEBUG_EXIT
halt:   cli
        hlt
        jmp     halt
