/* A multiboot kernel that prints what its boot loader passed.  The same source is linked as
 * multiboot.elf (ELF32) and multiboot-64.elf (the same in an ELF64 file), as multiboot.bin (no ELF:
 * the header has the addresses), and for multiboot 2 as multiboot2.elf.
 *
 * Exit codes: 0, 1 not a multiboot boot loader, 2 it did not tell something that it must know. */

#include "lib/multiboot.h"
#include "lib/print.h"

/* What either version of the information comes to. */
static struct {
    const char *loader, *command_line;
    uint32_t lower, upper; /* KiB */
    unsigned ranges, modules;
    uint32_t ram; /* KiB */
    const uint8_t *headers; /* ELF section headers */
    uint32_t count, header_size, names;
} found;

static void note_range(uint64_t length, uint32_t type)
{
    found.ranges++;
    if (type == MULTIBOOT_MEMORY_AVAILABLE)
        found.ram += length >> 10;
}

static void note_module(uint32_t start, uint32_t end, const char *words)
{
    uint32_t sum = 0;
    for (uint32_t byte = start; byte < end; byte++)
        sum += *(const uint8_t *)byte;
    print("module %u: \"%s\", %u bytes, sum %u%s\n", found.modules++, words, end - start, sum,
          start % 4096 ? ", not at a page" : "");
}

static void read_multiboot(const struct multiboot_info *info)
{
    if (info->flags & MULTIBOOT_INFO_BOOT_LOADER_NAME)
        found.loader = (const char *)info->boot_loader_name;
    if (info->flags & MULTIBOOT_INFO_CMDLINE)
        found.command_line = (const char *)info->cmdline;
    if (info->flags & MULTIBOOT_INFO_MEMORY) {
        found.lower = info->mem_lower;
        found.upper = info->mem_upper;
    }
    if (info->flags & MULTIBOOT_INFO_MEM_MAP) {
        uint32_t at = info->mmap_addr;
        while (at < info->mmap_addr + info->mmap_length) {
            const struct multiboot_mmap_entry *entry = (const void *)at;
            note_range(entry->len, entry->type);
            at += entry->size + sizeof entry->size;
        }
    }
    if (info->flags & MULTIBOOT_INFO_MODS) {
        const struct multiboot_module *module = (const void *)info->mods_addr;
        for (uint32_t i = 0; i < info->mods_count; i++, module++)
            note_module(module->mod_start, module->mod_end, (const char *)module->cmdline);
    }
    if (info->flags & MULTIBOOT_INFO_ELF_SHDR) {
        found.headers = (const uint8_t *)info->addr;
        found.count = info->num;
        found.header_size = info->size;
        found.names = info->shndx;
    }
}

static void read_tag(const struct multiboot2_tag *tag)
{
    switch (tag->type) {
    case MULTIBOOT2_TAG_BOOT_LOADER_NAME:
        found.loader = tag->string;
        break;
    case MULTIBOOT2_TAG_CMDLINE:
        found.command_line = tag->string;
        break;
    case MULTIBOOT2_TAG_BASIC_MEMINFO:
        found.lower = tag->meminfo.mem_lower;
        found.upper = tag->meminfo.mem_upper;
        break;
    case MULTIBOOT2_TAG_MMAP:
        for (uint32_t i = 0; 16 + (i + 1) * tag->mmap.entry_size <= tag->size; i++)
            note_range(tag->mmap.entries[i].len, tag->mmap.entries[i].type);
        break;
    case MULTIBOOT2_TAG_MODULE:
        note_module(tag->module.mod_start, tag->module.mod_end, tag->module.cmdline);
        break;
    case MULTIBOOT2_TAG_ELF_SECTIONS:
        found.headers = tag->elf.headers;
        found.count = tag->elf.num;
        found.header_size = tag->elf.entsize;
        found.names = tag->elf.shndx;
        break;
    case MULTIBOOT2_TAG_ACPI_NEW:
        print("RSDP: \"%c%c%c\", revision %u\n", tag->string[0], tag->string[1], tag->string[2],
              tag->string[15]);
        break;
    }
}

static void read_multiboot2(const struct multiboot2_info *info)
{
    const struct multiboot2_tag *tag = info->tags;
    while (tag->type != MULTIBOOT2_TAG_END) {
        read_tag(tag);
        tag = (const void *)((uint32_t)tag + ((tag->size + 7) & ~7u));
    }
}

/* Where a section header and a symbol have what, in ELF32 and ELF64 (gABI 4.1, chapter 4). */
struct shape {
    unsigned sh_addr, sh_size, sh_link, symbol, st_value;
};
static const struct shape elf32 = {12, 20, 24, 16, 4}, elf64 = {16, 32, 40, 24, 8};

#define SHT_SYMTAB 2

static uint32_t word(const uint8_t *at)
{
    return *(const uint32_t *)at;
}

static int same(const char *one, const char *other)
{
    while (*one && *one == *other)
        one++, other++;
    return *one == *other;
}

/* The address of a symbol, by the tables that the boot loader put somewhere; 0 if it has none. */
static uint32_t symbol(const char *wanted)
{
    const struct shape *shape = found.header_size == 64 ? &elf64 : &elf32;
    for (uint32_t i = 0; i < found.count; i++) {
        const uint8_t *header = found.headers + i * found.header_size;
        if (word(header + 4) != SHT_SYMTAB)
            continue;
        const uint8_t *strings = found.headers + word(header + shape->sh_link) * found.header_size;
        uint32_t names = word(strings + shape->sh_addr);
        uint32_t at = word(header + shape->sh_addr), end = at + word(header + shape->sh_size);
        for (; at < end; at += shape->symbol)
            if (same((const char *)names + word((const uint8_t *)at), wanted))
                return word((const uint8_t *)at + shape->st_value);
    }
    return 0;
}

int main(uint32_t magic, const void *information)
{
    if (magic == MULTIBOOT_BOOTLOADER_MAGIC)
        read_multiboot(information);
    else if (magic == MULTIBOOT2_BOOTLOADER_MAGIC)
        read_multiboot2(information);
    else
        return 1;
    if (!found.loader || !found.command_line || !found.upper || !found.ranges)
        return 2;
    print("multiboot %d by %s\n", magic == MULTIBOOT_BOOTLOADER_MAGIC ? 1 : 2, found.loader);
    print("command line: \"%s\"\n", found.command_line);
    print("memory: %u KiB and %u KiB, %u KiB in %u ranges\n", found.lower, found.upper, found.ram,
          found.ranges);
    if (found.count)
        print("symbols: main is %s\n",
              symbol("main") == (uint32_t)main ? "where it says" : "elsewhere");
    return 0;
}
