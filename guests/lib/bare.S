/* Asks pykvm by name for the bare protocol, whatever other ways into the file there are. */

.set PYKVM_PROTOCOL, 1

.section .note.pykvm, "a", @note
        .balign 4
        .long   2f - 1f, 4f - 3f, PYKVM_PROTOCOL
1:      .asciz  "pykvm"
2:      .balign 4
3:      .asciz  "elf"
4:
