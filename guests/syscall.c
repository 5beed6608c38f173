/* SYSCALL and SYSRET: the fast way from ring 3 to ring 0 and back (SDM 3A 5.8.8).
 *
 * Ring 3 asks ring 0 to print, twice, then leaves.  Hosts that run ring 3 natively but have no
 * virtualisation hardware may jump to LSTAR and stay in ring 3; the page there is not ring 3's, so
 * a page fault says.  Exit codes: 0 SYSCALL entered ring 0, 3 it stayed in ring 3, 4 it faulted. */

#include "lib/cpu.h"
#include "lib/exceptions.h"
#include "lib/exit.h"
#include "lib/print.h"
#include "lib/user.h"

void syscall_entry(void);

/* SYSCALL leaves the return address in RCX, the flags in R11, and the stack to us. */
__asm__(".text\n"
        "syscall_entry:\n\t"
        "mov    %rsp, user_rsp\n\t"
        "mov    $syscall_stack + 4096, %rsp\n\t"
        "push   %rcx\n\t"
        "push   %r11\n\t"
        "call   on_syscall\n\t"
        "pop    %r11\n\t"
        "pop    %rcx\n\t"
        "mov    user_rsp, %rsp\n\t"
        "sysretq");

char syscall_stack[4096] __attribute__((aligned(16)));
uint64_t user_rsp;

uint64_t on_syscall(uint64_t number)
{
    print("SYSCALL %lu entered ring 0\n", number);
    return number + 1;
}

USER_TEXT static uint64_t syscall(uint64_t number)
{
    uint64_t result; /* ring 0's C code may change whatever a call may change */
    __asm__ volatile("syscall"
                     : "=a"(result), "+D"(number)
                     :
                     : "rcx", "r11", "rdx", "rsi", "r8", "r9", "r10", "memory");
    return result;
}

USER_TEXT static uint64_t user_main(uint64_t number, uint64_t unused)
{
    (void)unused;
    return syscall(syscall(number));
}

void on_exception(struct frame *frame)
{
    if (frame->vector == VECTOR_PF && frame->cs & 3 && frame->rip == (uint64_t)syscall_entry) {
        print("SYSCALL jumped to LSTAR but stayed in ring %lu\n", frame->cs & 3);
        exit_guest(3);
    }
    print("SYSCALL failed: %s, error code 0x%lx, rip 0x%lx\n", exception_name(frame->vector),
          frame->error_code, frame->rip);
    exit_guest(4);
}

int main(void)
{
    load_user();
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE);
    write_msr(MSR_STAR, (uint64_t)KERNEL_CODE << 32 | (uint64_t)(KERNEL_DATA | 3) << 48);
    write_msr(MSR_LSTAR, (uint64_t)syscall_entry);
    write_msr(MSR_FMASK, 0x47700); /* cleared on entry: TF, IF, DF, IOPL, NT, AC */

    uint64_t result = call_user(user_main, 1, 0);
    print("back from ring 3 with %lu\n", result);
    return result == 3 ? 0 : 4;
}
