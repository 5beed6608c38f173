/* A guest sets its own time stamp counter: IA32_TSC is the counter, IA32_TSC_ADJUST what was added to
 * it since reset, and a write to either moves both (SDM 3B 18.17.3).
 *
 * Exit codes: 0, 1 the counter was set and IA32_TSC_ADJUST did not follow, 2 IA32_TSC_ADJUST was set
 * back and the counter did not follow, 3 the CPU has no IA32_TSC_ADJUST, 4 the counter cannot be set
 * on this host. */

#include "lib/cpu.h"
#include "lib/exceptions.h"
#include "lib/print.h"

#define MSR_TSC 0x10
#define MSR_TSC_ADJUST 0x3b
#define CPUID_TSC_ADJUST (1 << 1) /* leaf 7, EBX */

#define STEP (1l << 40) /* several minutes */
#define NEAR (1l << 38)

static int near(int64_t a, int64_t b)
{
    return a - b < NEAR && b - a < NEAR;
}

int main(void)
{
    load_exceptions();
    if (!(cpuid(7, 0).ebx & CPUID_TSC_ADJUST)) {
        print("TSC: no IA32_TSC_ADJUST\n");
        return 3;
    }
    int64_t adjust = read_msr(MSR_TSC_ADJUST), before = rdtsc();
    write_msr(MSR_TSC, before + STEP);
    if (!near(rdtsc(), before + STEP)) {
        print("TSC: a write has no effect on this host\n");
        return 4;
    }
    if (!near(read_msr(MSR_TSC_ADJUST), adjust + STEP))
        return 1;
    write_msr(MSR_TSC_ADJUST, adjust);
    if (!near(rdtsc(), before))
        return 2;
    print("TSC: set ahead by 2^40, set back by IA32_TSC_ADJUST\n");
    return 0;
}
