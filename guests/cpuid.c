/* CPUID: what processor the guest believes it has.  Under KVM the VMM decides (KVM_SET_CPUID2). */

#include "lib/cpu.h"
#include "lib/print.h"

/* Registers hold their characters lowest byte first. */
static void print_text(uint32_t value)
{
    for (; value; value >>= 8)
        print("%c", (char)value);
}

static const struct {
    uint32_t leaf;
    enum { EBX, ECX, EDX } in;
    int bit;
    const char *name;
} features[] = {
    {1, EDX, 4, "tsc"},
    {1, EDX, 9, "apic"},
    {1, EDX, 26, "sse2"},
    {1, ECX, 20, "sse4.2"},
    {1, ECX, 21, "x2apic"},
    {1, ECX, 24, "tsc-deadline"},
    {1, ECX, 28, "avx"},
    {1, ECX, 31, "hypervisor"},
    {7, EBX, 5, "avx2"},
    {0x80000001, EDX, 20, "nx"},
    {0x80000001, EDX, 26, "1g-pages"},
    {0x80000001, EDX, 29, "long-mode"},
};

static int has(unsigned i)
{
    if (features[i].leaf > cpuid(features[i].leaf & 0x80000000, 0).eax)
        return 0;
    struct cpuid r = cpuid(features[i].leaf, 0);
    uint32_t value = features[i].in == EBX ? r.ebx : features[i].in == ECX ? r.ecx : r.edx;
    return value >> features[i].bit & 1;
}

int main(void)
{
    struct cpuid r = cpuid(0, 0);
    uint32_t highest = r.eax;
    print("vendor:      ");
    print_text(r.ebx), print_text(r.edx), print_text(r.ecx);
    print("\nleaves:      up to 0x%x and 0x%x\n", highest, cpuid(0x80000000, 0).eax);

    r = cpuid(1, 0);
    print("signature:   0x%x\n", r.eax);
    if (r.ecx >> 31) {
        r = cpuid(0x40000000, 0);
        print("hypervisor:  ");
        print_text(r.ebx), print_text(r.ecx), print_text(r.edx);
        print("\n");
    }

    print("features:   ");
    for (unsigned i = 0; i < sizeof features / sizeof *features; i++)
        if (has(i))
            print(" %s", features[i].name);
    print("\n");
    return 0;
}
