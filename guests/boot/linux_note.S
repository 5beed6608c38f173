/* What marks an ELF file as a Linux kernel: any note of owner "Linux".  This one is
 * LINUX_ELFNOTE_LTO_INFO (include/linux/elfnote-lto.h), which has nothing of interest here. */

.set LINUX_ELFNOTE_LTO_INFO, 0x101

.section .note.Linux, "a", @note
        .balign 4
        .long   2f - 1f, 4f - 3f, LINUX_ELFNOTE_LTO_INFO
1:      .asciz  "Linux"
2:      .balign 4
3:      .long   0
4:
