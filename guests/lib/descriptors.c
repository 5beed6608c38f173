#include "lib/descriptors.h"

#include <stddef.h>
#include <stdint.h>

#include "lib/cpu.h"

/* The 64-bit TSS (SDM 3A 8.7) with an I/O permission bitmap for all 65,536 ports. */
struct __attribute__((packed)) tss {
    uint32_t reserved0;
    uint64_t rsp[3]; /* rsp[0]: the stack on which an exception from ring 3 arrives */
    uint64_t reserved1;
    uint64_t ist[7];
    uint64_t reserved2;
    uint16_t reserved3;
    uint16_t io_bitmap_offset;
    uint8_t io_bitmap[65536 / 8]; /* a bit that is clear opens its port to ring 3 */
    uint8_t io_bitmap_end;        /* all ones, as the CPU reads two bytes at a time */
};

static uint64_t gdt[] = {
    0,
    0x00209b0000000000, /* KERNEL_CODE: present, DPL 0, execute/read, 64-bit */
    0x0000930000000000, /* KERNEL_DATA: present, DPL 0, read/write */
    0x0000f30000000000, /* user data:   present, DPL 3, read/write */
    0x0020fb0000000000, /* user code:   present, DPL 3, execute/read, 64-bit */
    0, 0,               /* TSS_SELECTOR: a system descriptor takes two entries in long mode */
};

static char interrupt_stack[4096] __attribute__((aligned(16)));

static struct tss tss;

static void fill_tss(void)
{
    tss.rsp[0] = (uint64_t)(interrupt_stack + sizeof interrupt_stack);
    tss.io_bitmap_offset = sizeof tss; /* beyond the limit: there is no bitmap */
    tss.io_bitmap_end = 0xff;

    uint64_t base = (uint64_t)&tss, limit = sizeof tss - 1;
    gdt[5] = (limit & 0xffff) | (base & 0xffffff) << 16 | 0x89ul << 40 /* present, 64-bit TSS */
             | (limit >> 16 & 0xf) << 48 | (base >> 24 & 0xff) << 56;
    gdt[6] = base >> 32;
}

void load_descriptors(void)
{
    struct table_register gdtr = {sizeof gdt - 1, (uint64_t)gdt};
    fill_tss();
    __asm__ volatile("lgdt %0\n\t"
                     "pushq %1\n\t" /* a far return is how 64-bit code loads CS */
                     "lea 1f(%%rip), %%rax\n\t"
                     "pushq %%rax\n\t"
                     "lretq\n"
                     "1:\n\t"
                     "mov %2, %%ds\n\t"
                     "mov %2, %%es\n\t"
                     "mov %2, %%ss\n\t"
                     "ltr %w3"
                     :
                     : "m"(gdtr), "i"(KERNEL_CODE), "r"(KERNEL_DATA), "r"(TSS_SELECTOR)
                     : "rax", "memory");
}

void set_stack(unsigned ist, void *top)
{
    tss.ist[ist - 1] = (uint64_t)top;
}

void allow_user_ports(void)
{
    tss.io_bitmap_offset = offsetof(struct tss, io_bitmap);
}
