/* SSE in ring 3: the dot product of two vectors, four floats at a time.
 *
 * The state of SSE is the guest's own: KVM keeps it apart from the host's.  The rest of the guest is
 * compiled without SSE, as kernels are, so the vector code is written out here. */

#include "lib/cpu.h"
#include "lib/print.h"
#include "lib/user.h"

#define LENGTH 8

USER_DATA static float a[LENGTH] = {1, 2, 3, 4, 5, 6, 7, 8};
USER_DATA static float b[LENGTH] = {8, 7, 6, 5, 4, 3, 2, 1};

/* uint64_t dot(const float *a, const float *b) */
__asm__(".section .user.text, \"ax\"\n"
        "dot:\n\t"
        "xorps      %xmm0, %xmm0\n\t" /* four partial sums */
        "xor        %ecx, %ecx\n"
        "1:\n\t"
        "movups     (%rdi,%rcx,4), %xmm1\n\t"
        "movups     (%rsi,%rcx,4), %xmm2\n\t"
        "mulps      %xmm2, %xmm1\n\t"
        "addps      %xmm1, %xmm0\n\t"
        "add        $4, %ecx\n\t"
        "cmp        $8, %ecx\n\t"
        "jb         1b\n\t"
        "movhlps    %xmm0, %xmm1\n\t" /* add the upper two to the lower two, then those two */
        "addps      %xmm1, %xmm0\n\t"
        "movaps     %xmm0, %xmm1\n\t"
        "shufps     $1, %xmm1, %xmm1\n\t"
        "addss      %xmm1, %xmm0\n\t"
        "cvtss2si   %xmm0, %rax\n\t"
        "ret\n"
        ".text");

uint64_t dot(uint64_t a, uint64_t b);

int main(void)
{
    load_user();
    write_cr0((read_cr0() & ~CR0_EM) | CR0_MP); /* SDM 3A 13.1.3: the system enables SSE */
    write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);

    uint64_t result = call_user(dot, (uint64_t)a, (uint64_t)b);
    print("dot product: %lu\n", result);
    return result == 120 ? 0 : 1;
}
