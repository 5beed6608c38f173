/* What a Linux kernel finds at its entry: the zero page (struct boot_params, the offsets below are
 * those of Documentation/arch/x86/zero-page.rst), and what hangs from it.  Compiled for both
 * entries; as nothing links a bzImage when it is loaded, nothing here may need a relocation. */

#include "lib/exit.h"
#include "lib/print.h"

#define ACPI_RSDP_ADDR 0x070
#define EXT_RAMDISK_IMAGE 0x0c0
#define EXT_CMD_LINE_PTR 0x0c8
#define E820_ENTRIES 0x1e8
#define SENTINEL 0x1ef
#define VERSION 0x206
#define TYPE_OF_LOADER 0x210
#define CODE32_START 0x214
#define RAMDISK_IMAGE 0x218
#define RAMDISK_SIZE 0x21c
#define CMD_LINE_PTR 0x228
#define SETUP_DATA 0x250
#define E820_TABLE 0x2d0

#define E820_RAM 1

struct __attribute__((packed)) e820_entry {
    uint64_t address, size;
    uint32_t type;
};

struct setup_data {
    uint64_t next;
    uint32_t type, len;
};

static uint32_t field(const uint8_t *page, unsigned offset)
{
    return *(const uint32_t *)(page + offset);
}

static void print_memory_map(const uint8_t *page)
{
    const struct e820_entry *entries = (const void *)(page + E820_TABLE);
    uint64_t ram = 0;
    for (unsigned i = 0; i < page[E820_ENTRIES]; i++)
        if (entries[i].type == E820_RAM)
            ram += entries[i].size;
    print("e820: %u entries, %u KiB of RAM\n", page[E820_ENTRIES], (uint32_t)(ram >> 10));
}

static void print_initrd(const uint8_t *page)
{
    const uint8_t *initrd = (const uint8_t *)(uintptr_t)field(page, RAMDISK_IMAGE);
    uint32_t size = field(page, RAMDISK_SIZE), sum = 0;
    for (uint32_t i = 0; i < size; i++)
        sum += initrd[i];
    print("initrd: %u bytes, sum %u\n", size, sum);
}

static void print_setup_data(const uint8_t *page)
{
    uintptr_t address = field(page, SETUP_DATA);
    while (address) {
        const struct setup_data *data = (const void *)address;
        print("setup data: type %u, %u bytes\n", data->type, data->len);
        address = data->next;
    }
}

_Noreturn void kernel_main(const uint8_t *page)
{
    uint16_t cs, ds, ss;
    __asm__("mov %%cs, %0" : "=r"(cs));
    __asm__("mov %%ds, %0" : "=r"(ds));
    __asm__("mov %%ss, %0" : "=r"(ss));
    print("%d-bit entry, cs=%x ds=%x ss=%x\n", (int)sizeof(void *) * 8, cs, ds, ss);
    print("loader %x, protocol %x, code at %x, sentinel %u\n", page[TYPE_OF_LOADER],
          field(page, VERSION) & 0xffff, field(page, CODE32_START), page[SENTINEL]);
    print("command line: %s\n", (const char *)(uintptr_t)field(page, CMD_LINE_PTR));
    print_memory_map(page);
    print_initrd(page);
    print("RSDP: %x\n", field(page, ACPI_RSDP_ADDR));
    print_setup_data(page);
    exit_guest(field(page, EXT_RAMDISK_IMAGE) || field(page, EXT_CMD_LINE_PTR));
}
