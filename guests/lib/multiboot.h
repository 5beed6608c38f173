/* What a multiboot boot loader hands over: the Multiboot Specification 0.6.96, chapter 3, and the
 * Multiboot2 Specification 2.0, section 3.6. */
#pragma once

#define MULTIBOOT_BOOTLOADER_MAGIC 0x2badb002 /* in EAX; EBX leads to the information */
#define MULTIBOOT2_BOOTLOADER_MAGIC 0x36d76289

#define MULTIBOOT_MEMORY_AVAILABLE 1

#ifndef __ASSEMBLER__

#include <stdint.h>

#define MULTIBOOT_INFO_MEMORY 0x001
#define MULTIBOOT_INFO_CMDLINE 0x004
#define MULTIBOOT_INFO_MODS 0x008
#define MULTIBOOT_INFO_ELF_SHDR 0x020
#define MULTIBOOT_INFO_MEM_MAP 0x040
#define MULTIBOOT_INFO_BOOT_LOADER_NAME 0x200

struct multiboot_info {
    uint32_t flags;
    uint32_t mem_lower, mem_upper; /* KiB */
    uint32_t boot_device;
    uint32_t cmdline;
    uint32_t mods_count, mods_addr;
    uint32_t num, size, addr, shndx; /* ELF section headers */
    uint32_t mmap_length, mmap_addr;
    uint32_t drives_length, drives_addr;
    uint32_t config_table;
    uint32_t boot_loader_name;
};

struct multiboot_module {
    uint32_t mod_start, mod_end, cmdline, pad;
};

struct multiboot_mmap_entry {
    uint32_t size; /* of what follows */
    uint64_t addr, len;
    uint32_t type;
} __attribute__((packed));

enum {
    MULTIBOOT2_TAG_END = 0,
    MULTIBOOT2_TAG_CMDLINE = 1,
    MULTIBOOT2_TAG_BOOT_LOADER_NAME = 2,
    MULTIBOOT2_TAG_MODULE = 3,
    MULTIBOOT2_TAG_BASIC_MEMINFO = 4,
    MULTIBOOT2_TAG_MMAP = 6,
    MULTIBOOT2_TAG_ELF_SECTIONS = 9,
    MULTIBOOT2_TAG_ACPI_OLD = 14,
    MULTIBOOT2_TAG_ACPI_NEW = 15,
    MULTIBOOT2_TAG_LOAD_BASE_ADDR = 21,
};

struct multiboot2_tag {
    uint32_t type, size; /* the next tag starts at the next multiple of 8 */
    union {
        char string[0];
        struct {
            uint32_t mod_start, mod_end;
            char cmdline[0];
        } module;
        struct {
            uint32_t mem_lower, mem_upper;
        } meminfo;
        struct {
            uint32_t entry_size, entry_version;
            struct {
                uint64_t addr, len;
                uint32_t type, zero;
            } entries[0];
        } mmap;
        struct {
            uint32_t num, entsize, shndx;
            uint8_t headers[0];
        } elf;
        uint32_t load_base_addr;
    };
};

struct multiboot2_info {
    uint32_t total_size, reserved;
    struct multiboot2_tag tags[0];
};

#endif
