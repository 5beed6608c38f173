/* The environment of kvm-unit-tests: multiboot entry from ELF32, 64-bit code, QEMU's pc-testdev,
 * its fw_cfg, and an exit through isa-debug-exit.
 *
 * The test device lets a guest drive interrupt lines itself: this one raises pin 5 of the I/O APIC
 * twice, once as an edge and once as a level that stays until the handler lowers it.  Its four
 * bytes at port 0xe0 and its memory keep what is written, whatever the width.
 *
 * Exit codes: 0, 1 ports, 2 memory, 3 the edge, 4 the level. */

#include "lib/apic.h"
#include "lib/pic.h"
#include "lib/print.h"

#define TESTDEV 0xe0
#define TESTDEV_LINES 0x2000
#define TESTDEV_MEMORY 0xff000000

#define FW_CFG_SELECT 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_SIGNATURE 0
#define FW_CFG_NB_CPUS 5

#define PIN 5
#define VECTOR 0x40
#define LEVEL 0x8000 /* in an I/O APIC entry: level-triggered */

static volatile unsigned interrupts;

INTERRUPT static void on_line(struct interrupted *at)
{
    (void)at;
    interrupts++;
    outb(TESTDEV_LINES + PIN, 0);
    apic_eoi();
}

static void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static void select_config(uint16_t item)
{
    outw(FW_CFG_SELECT, item);
}

static int has_config(void)
{
    select_config(FW_CFG_SIGNATURE);
    for (int i = 0; i < 4; i++)
        if (inb(FW_CFG_DATA) != "QEMU"[i])
            return 0;
    return 1;
}

static int keeps_ports(void)
{
    outl(TESTDEV, 0x44332211);
    outb(TESTDEV + 1, 0xaa);
    return inb(TESTDEV) == 0x11 && inw(TESTDEV) == 0xaa11 && inw(TESTDEV + 2) == 0x4433;
}

static int keeps_memory(void)
{
    volatile uint8_t *byte = (volatile uint8_t *)TESTDEV_MEMORY;
    mmio_write32(TESTDEV_MEMORY, 0x44332211);
    byte[0xffff] = 0x55;
    return byte[2] == 0x33 && byte[0xffff] == 0x55;
}

int main(void)
{
    load_exceptions();
    set_handler(VECTOR, on_line);
    pic_init(0x20);
    apic_enable();

    if (!keeps_ports())
        return 1;
    if (!keeps_memory())
        return 2;

    ioapic_route(PIN, VECTOR, apic_id());
    outb(TESTDEV_LINES + PIN, 1);
    wait_for_interrupt();
    if (interrupts != 1)
        return 3;

    ioapic_route(PIN, VECTOR | LEVEL, apic_id());
    outb(TESTDEV_LINES + PIN, 1);
    wait_for_interrupt();
    if (interrupts != 2)
        return 4;

    print("testdev: ports, memory, an edge and a level");
    if (has_config()) {
        select_config(FW_CFG_NB_CPUS);
        print("; fw_cfg: %d processor(s)", inb(FW_CFG_DATA));
    }
    print("\n");
    return 0;
}
