/* The ways in which a guest can end a PC's life, one for each argument:
 *
 *   off       ACPI: the sleeping state S5, soft off
 *   register  ACPI: the reset register in the FADT
 *   keyboard  the keyboard controller pulses the processor's reset line
 *   port92    bit 0 of port 0x92
 *   fault     a triple fault: the processor shuts down, which the chipset turns into a reset
 *   panic     pvpanic: the guest is dead and says so
 *   shutdown  pvpanic: the guest is done
 *
 * Exit codes: 1 no such way, 2 no ACPI, 3 it is still alive. */

#include <stdbool.h>

#include "lib/acpi.h"
#include "lib/cpu.h"
#include "lib/io.h"
#include "lib/print.h"

#define KEYBOARD_COMMAND 0x64
#define PULSE_RESET 0xfe

#define PORT92 0x92
#define INIT_NOW 0x01

#define PVPANIC 0x505
#define PVPANIC_PANICKED 0x01
#define PVPANIC_SHUTDOWN 0x04

static bool is(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static void triple_fault(void)
{
    static const struct table_register empty = {.limit = 0, .base = 0};
    __asm__ volatile("lidt %0\n\t"
                     "ud2"
                     :
                     : "m"(empty));
}

int main(int argc, char **argv)
{
    const char *way = argc > 1 ? argv[1] : "off";
    const struct acpi_fadt *fadt = (const void *)acpi_find("FACP");

    print("ending by %s\n", way);
    if (is(way, "keyboard"))
        outb(KEYBOARD_COMMAND, PULSE_RESET);
    else if (is(way, "port92"))
        outb(PORT92, inb(PORT92) | INIT_NOW);
    else if (is(way, "fault"))
        triple_fault();
    else if (is(way, "panic"))
        outb(PVPANIC, PVPANIC_PANICKED);
    else if (is(way, "shutdown"))
        outb(PVPANIC, PVPANIC_SHUTDOWN);
    else if (!fadt)
        return 2;
    else if (is(way, "register"))
        outb(fadt->reset.address, fadt->reset_value);
    else if (is(way, "off"))
        outw(fadt->pm1a_control,
             acpi_s5_type((const void *)fadt->x_dsdt) << PM1_SLEEP_TYPE_SHIFT | PM1_SLEEP);
    else
        return 1;
    return 3;
}
