/* INIT and start-up: what they leave of a processor's registers, and that INIT ends everything that
 * was under way, a handler of NMIs too (SDM 3A 9.4.4 and table 10-1).
 *
 * The second processor prints in real mode what it finds, makes its registers other than INIT leaves
 * them, gets one NMI and stays in its handler until the next INIT.
 *
 * Exit codes: 0, 1 it did not come, 2 an NMI was lost, 3 it came twice. */

#include "lib/apic.h"
#include "lib/cpu.h"
#include "lib/descriptors.h"
#include "lib/print.h"

#define ROUNDS 3
#define PAGE 0x9000 /* where the second processor begins */
#define CAME (*(volatile uint32_t *)0x9800)
#define NMIS (*(volatile uint32_t *)0x9804)
#define NEXT_CR0 (*(volatile uint32_t *)0x9808)
#define FOUND ((volatile uint32_t *)0x9840)

static const char *const names[] = {
    "eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp", "eflags", "cr0",
    "cr2", "cr3", "cr4", "dr0", "dr3", "dr6", "dr7", "efer", "sysenter_cs",
};
#define FINDINGS (sizeof names / sizeof *names)

extern const char ap_code[], ap_code_end[];

__asm__(".section .rodata\n"
        ".macro save value at\n"
        "        mov \\value, %eax\n"
        "        mov %eax, 0x9840 + 4 * \\at\n"
        ".endm\n"
        ".code16\n"
        "ap_code:\n"
        "        mov %eax, %cs:0x9840 - 0x9000\n"
        "        mov $0, %ax\n" /* flags stay */
        "        mov %ax, %ds\n"
        "        save %ebx 1\n"
        "        save %ecx 2\n"
        "        save %edx 3\n"
        "        save %esi 4\n"
        "        save %edi 5\n"
        "        save %ebp 6\n"
        "        save %esp 7\n"
        "        mov $0x9f00, %sp\n"
        "        pushfl\n"
        "        pop %eax\n"
        "        mov %eax, 0x9840 + 4 * 8\n"
        "        save %cr0 9\n"
        "        save %cr2 10\n"
        "        save %cr3 11\n"
        "        save %cr4 12\n"
        "        save %db0 13\n"
        "        save %db3 14\n"
        "        save %db6 15\n"
        "        save %db7 16\n"
        "        mov $0xc0000080, %ecx\n"
        "        rdmsr\n"
        "        mov %eax, 0x9840 + 4 * 17\n"
        "        bts $0, %eax\n" /* SCE */
        "        wrmsr\n"
        "        mov $0x174, %ecx\n"
        "        rdmsr\n"
        "        mov %eax, 0x9840 + 4 * 18\n"
        "        mov $0x5678, %eax\n"
        "        wrmsr\n"
        "        mov 0x9808, %eax\n"
        "        mov %eax, %cr0\n"
        "        mov $0x1234, %eax\n"
        "        mov %eax, %cr2\n"
        "        mov %eax, %db0\n"
        "        mov %eax, %db3\n"
        "        mov $0x20, %eax\n" /* PAE */
        "        mov %eax, %cr4\n"
        "        movw $on_nmi - ap_code + 0x9000, 2 * 4\n"
        "        movw $0, 2 * 4 + 2\n"
        "        incl 0x9800\n"
        "1:      pause\n"
        "        inb $0x80, %al\n"
        "        jmp 1b\n"
        "on_nmi: incl 0x9804\n"
        "2:      inb $0x80, %al\n" /* no IRET: NMIs stay blocked */
        "        jmp 2b\n"
        "ap_code_end:\n"
        ".code64\n"
        ".text\n");

static unsigned wait_for(volatile uint32_t *count, unsigned wanted)
{
    for (int i = 0; i < 20000 && *count < wanted; i++)
        inb(0x80);
    return *count;
}

int main(void)
{
    static const uint32_t cr0[ROUNDS] = {0x10, 0x40000010, 0x60000010};

    load_descriptors();
    load_exceptions();
    apic_enable();
    for (const char *from = ap_code, *end = ap_code_end; from < end; from++)
        ((volatile char *)PAGE)[from - ap_code] = *from;
    for (unsigned round = 0; round < ROUNDS; round++) {
        CAME = NMIS = 0;
        NEXT_CR0 = cr0[round];
        apic_send(1, DELIVER_INIT);
        apic_send(1, DELIVER_STARTUP | PAGE >> 12);
        if (wait_for(&CAME, 1) != 1)
            return 1;
        apic_send(1, DELIVER_STARTUP | PAGE >> 12); /* it waits for none */
        print("start %u:", round);
        for (unsigned i = 0; i < FINDINGS; i++)
            print(" %s=%x", names[i], FOUND[i]);
        print("\n");
        apic_send(1, DELIVER_NMI);
        if (wait_for(&NMIS, 1) != 1)
            return 2;
        if (CAME != 1)
            return 3;
    }
    return 0;
}
