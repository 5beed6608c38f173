/* A bzImage, field by field (Documentation/arch/x86/boot.rst): boot sector with the setup header,
 * one sector of setup code that is not there, and the protected-mode code with its two entries.
 * Each leads to the same program (boot/linux.c), compiled for 32 and for 64 bits. */

.set SETUP_SIZE, 2 * 512
.set CODE_ADDRESS, 1 << 20      /* where a kernel goes that cannot be moved */
.set INIT_SIZE, 64 << 10        /* code, and the stack after it */
.set LOADED_HIGH, 1 << 0
.set XLF_KERNEL_64, 1 << 0

.text
image:
.org 0x1f1
        .byte   1                       /* setup_sects */
        .word   0                       /* root_flags */
        .long   (end - code) / 16       /* syssize */
        .word   0, 0, 0                 /* ram_size, vid_mode, root_dev */
        .word   0xaa55                  /* boot_flag */
header: .byte   0xeb, header_end - 1f   /* jump: over the rest of the header */
1:      .ascii  "HdrS"
        .word   0x020f                  /* version */
        .long   0                       /* realmode_swtch */
        .word   0                       /* start_sys_seg */
        .word   banner - header         /* kernel_version */
        .byte   0                       /* type_of_loader */
        .byte   LOADED_HIGH             /* loadflags */
        .word   0                       /* setup_move_size */
        .long   CODE_ADDRESS            /* code32_start */
        .long   0, 0                    /* ramdisk_image, ramdisk_size */
        .long   0                       /* bootsect_kludge */
        .word   0                       /* heap_end_ptr */
        .byte   0, 0                    /* ext_loader_ver, ext_loader_type */
        .long   0                       /* cmd_line_ptr */
        .long   0x7fffffff              /* initrd_addr_max */
        .long   1 << 12                 /* kernel_alignment */
        .byte   0                       /* relocatable_kernel */
        .byte   0                       /* min_alignment */
        .word   XLF_KERNEL_64           /* xloadflags */
        .long   255                     /* cmdline_size */
        .long   0                       /* hardware_subarch */
        .quad   0                       /* hardware_subarch_data */
        .long   0, 0                    /* payload_offset, payload_length */
        .quad   0                       /* setup_data */
        .quad   CODE_ADDRESS            /* pref_address */
        .long   INIT_SIZE               /* init_size */
        .long   0                       /* handover_offset */
        .long   0                       /* kernel_info_offset */
header_end:

banner: .asciz  "6.0.0-pykvm (a guest of pykvm)"

.org SETUP_SIZE
code:   jmp     entry32                 /* the 32-bit entry: 0 bytes into the code */
.org SETUP_SIZE + 0x200
.code64
        jmp     entry64                 /* the 64-bit entry: 0x200 bytes into it */
.org SETUP_SIZE + 0x400                 /* where boot/linux32.ld links it */
entry32:
        .incbin "32/boot/linux.bin"
        .balign 16
entry64:
        .incbin "PIE/boot/linux.bin"
        .balign 16
end:
