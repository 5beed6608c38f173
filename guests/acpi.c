/* ACPI as a small kernel meets it: from the root pointer to every table, each of which has to check,
 * the processors and overrides of the MADT, and switching off with what the DSDT's _S5_ says.
 *
 * Exit codes: 1 no root pointer, 2 a table does not check, 3 no FADT, 4 no _S5_, 5 it was not
 * switched off. */

#include "lib/acpi.h"
#include "lib/io.h"
#include "lib/print.h"

static bool show(const struct acpi_table *table)
{
    bool good = acpi_checks(table, table->length);
    const char *name = table->signature;
    print("%c%c%c%c: %u bytes, revision %u, %s\n", name[0], name[1], name[2], name[3],
          table->length, table->revision, good ? "checks" : "does not check");
    return good;
}

static void show_apics(const struct acpi_madt *madt)
{
    enum { PROCESSOR, IO_APIC, OVERRIDE };
    unsigned processors = 0;
    const uint8_t *end = (const uint8_t *)madt + madt->header.length;
    for (const uint8_t *entry = madt->entries; entry < end; entry += entry[1]) {
        processors += entry[0] == PROCESSOR;
        if (entry[0] == IO_APIC)
            print("I/O APIC at %x\n", *(const uint32_t *)(entry + 4));
        if (entry[0] == OVERRIDE)
            print("IRQ %u is GSI %u, flags %x\n", entry[3], *(const uint32_t *)(entry + 4),
                  *(const uint16_t *)(entry + 8));
    }
    print("%u processors\n", processors);
}

int main(void)
{
    const struct acpi_rsdp *root = acpi_root();
    if (!root || root->revision < 2 || !acpi_checks(root, root->length))
        return 1;
    print("ACPI: root pointer at %lx\n", (uintptr_t)root);
    const struct acpi_xsdt *xsdt = (const void *)root->xsdt;
    bool good = show(&xsdt->header);
    for (unsigned i = 0; i < (xsdt->header.length - sizeof *xsdt) / 8; i++)
        good &= show((const void *)xsdt->tables[i]);

    const struct acpi_fadt *fadt = (const void *)acpi_find("FACP");
    const struct acpi_madt *madt = (const void *)acpi_find("APIC");
    if (!fadt)
        return 3;
    const struct acpi_table *dsdt = (const void *)fadt->x_dsdt;
    if (!show(dsdt) || !good)
        return 2;
    if (madt)
        show_apics(madt);

    int type = acpi_s5_type(dsdt);
    if (type < 0)
        return 4;
    print("switching off: SLP_TYP %d at port %x\n", type, fadt->pm1a_control);
    outw(fadt->pm1a_control, type << PM1_SLEEP_TYPE_SHIFT | PM1_SLEEP);
    return 5;
}
