/* Instructions of ring 0 that some hosts' KVM refuses, and what each of them is for.
 *
 * Where a processor helps KVM (VMX, SVM) it executes them like any other.  Without that help KVM's
 * emulator takes every instruction of ring 0, and knows none of these. */

#include "lib/cpu.h"
#include "lib/exceptions.h"
#include "lib/print.h"

static volatile unsigned breakpoints;

void on_exception(struct frame *frame)
{
    /* INT3 leaves RIP after itself: there is nothing to step over. */
    if (frame->vector == VECTOR_BP)
        breakpoints++;
}

#define CPUID_1_ECX_CX16 (1u << 13)

static uint64_t count_bits(uint64_t value)
{
    uint64_t bits;
    __asm__("popcnt %1, %0" : "=r"(bits) : "r"(value) : "cc");
    return bits;
}

/* Two 64-bit numbers in one piece, as a list with a generation count wants them. */
static int exchange(uint64_t *pair, uint64_t old_low, uint64_t old_high, uint64_t low, uint64_t high)
{
    unsigned char same;
    __asm__ volatile("lock cmpxchg16b %1\n\tsetz %0"
                     : "=q"(same), "+m"(*(unsigned __int128 *)pair), "+a"(old_low), "+d"(old_high)
                     : "b"(low), "c"(high)
                     : "cc", "memory");
    return same;
}

/* Four products at once; what is compiled here has no SSE, so the registers are free. */
static unsigned dot_product(const float *a, const float *b)
{
    unsigned result;
    __asm__("movups     (%1), %%xmm0\n\t"
            "movups     (%2), %%xmm1\n\t"
            "mulps      %%xmm1, %%xmm0\n\t"
            "haddps     %%xmm0, %%xmm0\n\t"
            "haddps     %%xmm0, %%xmm0\n\t"
            "cvtss2si   %%xmm0, %0"
            : "=r"(result)
            : "r"(a), "r"(b)
            : "memory");
    return result;
}

static unsigned square_root(unsigned value)
{
    unsigned result;
    __asm__("fninit\n\t"
            "fildl      %1\n\t"
            "fsqrt\n\t"
            "fistpl     %0\n\t"
            "fwait"
            : "=m"(result)
            : "m"(value));
    return result;
}

static unsigned segment_limit(unsigned selector)
{
    unsigned limit = 0;
    __asm__("lsl %1, %0" : "+r"(limit) : "r"(selector) : "cc");
    return limit;
}

int main(void)
{
    static const float a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 8};
    static uint64_t pair[2] __attribute__((aligned(16))) = {1, 2};
    uint16_t cs;

    load_exceptions();
    write_cr0((read_cr0() & ~CR0_EM) | CR0_MP);
    write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);

    uint64_t bits = count_bits(0x123456789abcdef0);
    /* Where CPUID does not show it, it is #UD. */
    int has_exchange = !!(cpuid(1, 0).ecx & CPUID_1_ECX_CX16);
    int exchanged = !has_exchange ||
                    (exchange(pair, 1, 2, 3, 4) && !exchange(pair, 1, 2, 5, 6));
    unsigned product = dot_product(a, b), root = square_root(1764);
    __asm__("mov %%cs, %0" : "=r"(cs));
    unsigned limit = segment_limit(cs);
    __asm__ volatile("int3");
    __asm__ volatile("int3");

    print("popcnt: %lu bits\n", bits);
    if (has_exchange)
        print("cmpxchg16b: %lu, %lu\n", pair[0], pair[1]);
    print("mulps, haddps: %u\n", product);
    print("fsqrt: %u\n", root);
    print("lsl: 0x%x\n", limit);
    print("int3: %u times\n", breakpoints);
    return bits == 32 && exchanged && product == 70 && root == 42 && limit == 0xffffffff &&
                   breakpoints == 2
               ? 0
               : 1;
}
