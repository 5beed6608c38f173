#include "lib/acpi.h"

static bool same(const char *a, const char *b, unsigned length)
{
    while (length--)
        if (a[length] != b[length])
            return false;
    return true;
}

bool acpi_checks(const void *data, unsigned length)
{
    const uint8_t *bytes = data;
    uint8_t sum = 0;
    while (length--)
        sum += *bytes++;
    return sum == 0;
}

const struct acpi_rsdp *acpi_root(void)
{
    for (uintptr_t at = 0xe0000; at < 0x100000; at += 16) {
        const struct acpi_rsdp *rsdp = (const void *)at;
        if (same(rsdp->signature, "RSD PTR ", 8) && acpi_checks(rsdp, 20))
            return rsdp;
    }
    return 0;
}

const struct acpi_table *acpi_find(const char *signature)
{
    const struct acpi_rsdp *root = acpi_root();
    if (!root || root->revision < 2)
        return 0;
    const struct acpi_xsdt *xsdt = (const void *)root->xsdt;
    unsigned count = (xsdt->header.length - sizeof xsdt->header) / sizeof xsdt->tables[0];
    for (unsigned i = 0; i < count; i++) {
        const struct acpi_table *table = (const void *)xsdt->tables[i];
        if (same(table->signature, signature, 4))
            return acpi_checks(table, table->length) ? table : 0;
    }
    return 0;
}

/* Without an interpreter of AML one looks for what a name and a package look like: NameOp "_S5_"
 * PackageOp PkgLength NumElements, then SLP_TYPa as a byte or as the opcode of 0 or 1. */
int acpi_s5_type(const struct acpi_table *dsdt)
{
    enum { NAME_OP = 0x08, PACKAGE_OP = 0x12, BYTE_PREFIX = 0x0a };
    const uint8_t *aml = (const uint8_t *)(dsdt + 1);
    for (unsigned i = 1; i + 10 < dsdt->length - sizeof *dsdt; i++) {
        if (aml[i] != '_' || !same((const char *)aml + i, "_S5_", 4))
            continue;
        if (aml[i - 1] != NAME_OP || aml[i + 4] != PACKAGE_OP)
            continue;
        unsigned element = i + 5 + (aml[i + 5] >> 6) + 2;
        return aml[element] == BYTE_PREFIX ? aml[element + 1] : aml[element];
    }
    return -1;
}
