/* ACPI tables, found and checked, and what a kernel does with them before it has an interpreter
 * (ACPI Specification 6.5, 5.2 and 4.8.3). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct __attribute__((packed)) acpi_rsdp {
    char signature[8];
    uint8_t checksum;
    char oem[6];
    uint8_t revision;
    uint32_t rsdt, length;
    uint64_t xsdt;
    uint8_t extended_checksum, reserved[3];
};

struct __attribute__((packed)) acpi_table {
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char oem[6], oem_table[8];
    uint32_t oem_revision;
    char creator[4];
    uint32_t creator_revision;
};

struct __attribute__((packed)) acpi_xsdt {
    struct acpi_table header;
    uint64_t tables[];
};

struct __attribute__((packed)) acpi_address {
    uint8_t space, bits, offset, access;
    uint64_t address;
};

struct __attribute__((packed)) acpi_fadt {
    struct acpi_table header;
    uint32_t facs, dsdt;
    uint8_t reserved, profile;
    uint16_t sci;
    uint32_t smi_command;
    uint8_t enable, disable, s4bios, pstate;
    uint32_t pm1a_events, pm1b_events, pm1a_control;
    uint8_t unused[48];
    struct acpi_address reset;
    uint8_t reset_value;
    uint8_t unused_too[11];
    uint64_t x_dsdt;
};

struct __attribute__((packed)) acpi_madt {
    struct acpi_table header;
    uint32_t local_apic, flags;
    uint8_t entries[];
};

/* PM1_STS and PM1_EN, which follows it in the event block, and PM1_CNT. */
#define PM1_POWER_BUTTON 0x0100
#define PM1_SLEEP_TYPE_SHIFT 10
#define PM1_SLEEP 0x2000

const struct acpi_rsdp *acpi_root(void); /* null where there is none, or one that does not check */
const struct acpi_table *acpi_find(const char *signature); /* likewise */
bool acpi_checks(const void *data, unsigned length);       /* its bytes add up to 0 */

/* What SLP_TYP of PM1_CNT switches the machine off, or -1 if the DSDT does not say. */
int acpi_s5_type(const struct acpi_table *dsdt);
