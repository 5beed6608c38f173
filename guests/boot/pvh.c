/* What a PVH kernel finds at its entry: the start info that EBX points to (Xen's
 * public/arch-x86/hvm/start_info.h), and what hangs from it. */

#include "lib/exit.h"
#include "lib/print.h"

#define MEMMAP_TYPE_RAM 1

struct start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr;
    uint64_t memmap_paddr;
    uint32_t memmap_entries, reserved;
};

struct module {
    uint64_t paddr, size, cmdline_paddr, reserved;
};

struct memmap_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

static void print_module(const struct module *module)
{
    const uint8_t *data = (const uint8_t *)(uintptr_t)module->paddr;
    const char *line = (const char *)(uintptr_t)module->cmdline_paddr;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < module->size; i++)
        sum += data[i];
    print("module: %u bytes, sum %u: %s\n", (uint32_t)module->size, sum, line ? line : "-");
}

static uint32_t mtrr_def_type(void)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0x2ff));
    return low;
}

_Noreturn void pvh_main(const struct start_info *info)
{
    uint32_t cr0;
    uint16_t tr;
    __asm__("mov %%cr0, %0" : "=r"(cr0));
    __asm__("str %0" : "=r"(tr));
    print("magic %x, version %u, cr0=%x, tr %s\n", info->magic, info->version, cr0,
          tr ? "loaded" : "empty");
    print("command line: %s\n", (const char *)(uintptr_t)info->cmdline_paddr);

    const struct memmap_entry *entries = (const void *)(uintptr_t)info->memmap_paddr;
    uint64_t ram = 0;
    for (uint32_t i = 0; i < info->memmap_entries; i++)
        if (entries[i].type == MEMMAP_TYPE_RAM)
            ram += entries[i].size;
    print("memory map: %u entries, %u KiB of RAM\n", info->memmap_entries, (uint32_t)(ram >> 10));

    const struct module *modules = (const void *)(uintptr_t)info->modlist_paddr;
    for (uint32_t i = 0; i < info->nr_modules; i++)
        print_module(&modules[i]);
    print("memory types: %x\n", mtrr_def_type());
    print("RSDP: %x\n", (uint32_t)info->rsdp_paddr);
    exit_guest(info->flags);
}
