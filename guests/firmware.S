/* Firmware: the first code that a PC runs.
 *
 * The image ends at 4 GiB, and its last bytes are the reset vector.  The processor starts there in
 * real mode, with a base of FFFF0000 in CS that only lasts until CS is loaded.  From then on this
 * runs in the image's copy under 1 MiB, and asks fw_cfg about the machine: by its ports, and by DMA
 * (QEMU, docs/specs/fw_cfg.rst). */

.set COM1, 0x3f8
.set LINE_STATUS, COM1 + 5
.set TRANSMIT_EMPTY, 0x20
.set DEBUG_EXIT, 0xf4

.set SELECTOR, 0x510
.set DATA, 0x511
.set DMA_ADDRESS, 0x514
.set SIGNATURE, 0x00
.set NB_CPUS, 0x05
.set FILE_DIR, 0x19

/* struct fw_cfg_dma_access.control, and its bits. */
.set READ, 2
.set SELECT, 8

/* struct fw_cfg_file */
.set FILE_SELECT, 4
.set FILE_NAME, 8
.set FILE_SIZE, 64

.set BUFFER, 0x500                      /* RAM that nothing else uses */

        .code16
        .globl  _start
start:  ljmp    $0xf000, $shadow        /* CS is F000 already; its base becomes F0000 */

shadow: cli
        cld
        xor     %ax, %ax
        mov     %ax, %ss
        mov     $0x7000, %sp
        mov     %ax, %es                /* the buffer and fw_cfg's structure are at ES */
        mov     %cs, %ax
        mov     %ax, %ds
        mov     $hello, %si
        call    say

        incb    written                 /* the shadow is RAM, the image was ROM */
        mov     $1, %al
        cmp     %al, written
        jne     end

        mov     $SIGNATURE, %ax         /* by the ports, a byte at a time */
        mov     $SELECTOR, %dx
        out     %ax, %dx
        mov     $DATA, %dx
        mov     $BUFFER, %di
        mov     $4, %cx
        rep insb
        mov     $2, %al
        cmpl    $0x554d4551, %es:BUFFER /* "QEMU" */
        jne     end

        mov     $DMA_ADDRESS, %dx
        in      %dx, %eax
        cmp     $0x554d4551, %eax
        mov     $3, %al
        jne     end
        mov     $NB_CPUS << 16 | SELECT | READ, %eax
        mov     $2, %ecx
        call    dma
        mov     $cpus, %si
        call    say
        mov     %es:BUFFER, %al
        add     $'0', %al
        call    put

        mov     $FILE_DIR << 16 | SELECT | READ, %eax
        mov     $4, %ecx
        call    dma
        mov     %es:BUFFER, %ebx
        bswap   %ebx                    /* how many files there are */
entry:  sub     $1, %ebx
        mov     $newline, %si
        jc      done
        mov     $READ, %eax
        mov     $FILE_SIZE, %ecx
        call    dma
        mov     $name, %si
        mov     $BUFFER + FILE_NAME, %di
        mov     $name_end - name, %cx
        repe cmpsb
        jne     entry

        mov     $file, %si
        call    say
        mov     %es:BUFFER, %ecx
        bswap   %ecx                    /* size */
        push    %cx
        mov     %es:BUFFER + FILE_SELECT, %ax
        xchg    %al, %ah
        shl     $16, %eax
        mov     $SELECT | READ, %ax
        call    dma
        pop     %cx
        mov     $BUFFER, %di
letter: mov     %es:(%di), %al
        inc     %di
        call    put
        loop    letter
        mov     $newline, %si
done:   call    say
        xor     %al, %al                /* exit code 0 */
end:    outb    %al, $DEBUG_EXIT
halt:   cli
        hlt
        jmp     halt

/* EAX = control, ECX = length; copies into the buffer. */
dma:    mov     $BUFFER - 16, %di
        bswap   %eax
        stosl
        mov     %ecx, %eax
        bswap   %eax
        stosl
        xor     %eax, %eax
        stosl
        mov     $BUFFER, %eax
        bswap   %eax
        stosl
        mov     $BUFFER - 16, %eax
        bswap   %eax
        mov     $DMA_ADDRESS + 4, %dx
        out     %eax, %dx
        cmpl    $0, %es:BUFFER - 16     /* control: 0, or the error bit */
        mov     $4, %al
        jne     end
        ret

say:    lodsb                           /* AL = DS:[SI], SI += 1 */
        test    %al, %al
        jz      said
        call    put
        jmp     say
said:   ret

put:    mov     %al, %ah
        mov     $LINE_STATUS, %dx
ready:  inb     %dx, %al
        test    $TRANSMIT_EMPTY, %al
        jz      ready
        mov     $COM1, %dx
        mov     %ah, %al
        outb    %al, %dx
        ret

hello:  .asciz  "Hello from the reset vector!\n"
cpus:   .asciz  "fw_cfg: processors: "
file:   .asciz  "\nfw_cfg: "
newline:
        .asciz  "\n"
name:   .asciz  "opt/org.pykvm/greeting"
name_end:
written:
        .byte   0

        .org    0xfff0
_start: jmp     start
        .org    0x10000
