/* Real mode: how every x86 CPU starts.  Addresses are segment * 16 + offset and reach 1 MiB.
 *
 * A flat image without headers, entered at 0000:7c00 with a stack below.  It ends in the boot
 * sector signature, so a BIOS starts it from a disk too. */

.set COM1, 0x3f8
.set LINE_STATUS, COM1 + 5
.set TRANSMIT_EMPTY, 0x20
.set DEBUG_EXIT, 0xf4

.code16
.globl _start
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds                /* a BIOS promises nothing about DS */
        mov     $message, %si
        cld
next:
        lodsb                           /* AL = DS:[SI], SI += 1 */
        test    %al, %al
        jz      end
        mov     %al, %ah
        mov     $LINE_STATUS, %dx
wait:
        inb     %dx, %al
        test    $TRANSMIT_EMPTY, %al
        jz      wait
        mov     $COM1, %dx
        mov     %ah, %al
        outb    %al, %dx
        jmp     next
end:
        xor     %al, %al                /* exit code 0 */
        outb    %al, $DEBUG_EXIT
halt:
        cli
        hlt
        jmp     halt

message:
        .asciz  "Hello from real mode!\n"
