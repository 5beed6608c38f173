/* Page faults of ring 3, and system calls between them: which is which?
 *
 * Ring 3 touches a page that is not there yet, reads what is ring 0's, and jumps to where SYSCALL
 * would lead: three page faults, told apart by their error codes (SDM 3A 4.7), and none of them may
 * get it into ring 0.  SYSCALL does, before, between and after.  Exit codes: 0, 1 something was not
 * as it should be. */

#include "lib/cpu.h"
#include "lib/exceptions.h"
#include "lib/exit.h"
#include "lib/paging.h"
#include "lib/print.h"
#include "lib/user.h"

#define LAZY 0x600000 /* a 2 MiB page that ring 3 is given when it asks */

#define NOT_THERE 0x4 /* a read, by ring 3 */
#define NOT_YOURS 0x5
#define FETCH 0x10 /* told only with EFER.NXE */

void syscall_entry(void), fault_entry(void);

/* Handlers of operating systems begin with what changes nothing: a landing pad, room for a patch. */
__asm__(".text\n"
        "fault_entry:\n\t"
        "endbr64\n\t"
        "cld\n\t"
        "pushq  $14\n\t"
        "jmp    save_and_call\n"
        "syscall_entry:\n\t"
        "inc    %rax\n\t"
        "sysretq");

static unsigned faults;

static uint64_t *page_entry(uint64_t address)
{
    uint64_t *table = (uint64_t *)(read_cr3() & PAGE_ADDRESS);
    for (int level = 3; level > 1; level--)
        table = (uint64_t *)(table[page_index(address, level)] & PAGE_ADDRESS);
    return &table[page_index(address, 1)];
}

static void on_page_fault(struct frame *frame)
{
    print("#PF %u: error code 0x%lx in ring %lu\n", ++faults, frame->error_code, frame->cs & 3);
    if (frame->error_code == NOT_THERE && read_cr2() == LAZY)
        *page_entry(LAZY) |= PAGE_PRESENT | PAGE_USER;
    else if (frame->error_code == NOT_YOURS && read_cr2() == (uint64_t)fault_entry)
        frame->rip = frame->rbx; /* where it wants to go on */
    else if ((frame->error_code & ~FETCH) == NOT_YOURS && read_cr2() == (uint64_t)syscall_entry)
        frame->rip = frame->rbx;
    else
        exit_guest(1);
}

void on_exception(struct frame *frame)
{
    if (frame->vector == VECTOR_PF) {
        on_page_fault(frame);
        return;
    }
    print("%s: %u page faults, %lu system calls\n", exception_name(frame->vector), faults, frame->rax);
    exit_guest(frame->vector == VECTOR_UD && (frame->cs & 3) == 3 && faults == 3 && frame->rax == 4
               ? 0 : 1);
}

USER_TEXT __attribute__((naked)) static void user_main(void)
{
    __asm__("xor    %%eax, %%eax\n\t"
            "syscall\n\t"
            "cmpl   $0, %c0\n\t" /* not there */
            "syscall\n\t"
            "lea    1f(%%rip), %%rbx\n\t"
            "cmpb   $0, %c1\n" /* not ours */
            "1:\n\t"
            "syscall\n\t"
            "lea    2f(%%rip), %%rbx\n\t"
            "mov    $%c2, %%rdx\n\t"
            "jmp    *%%rdx\n" /* not code of ours */
            "2:\n\t"
            "syscall\n\t"
            "ud2"
            :
            : "i"(LAZY), "i"(fault_entry), "i"(syscall_entry));
}

int main(void)
{
    load_descriptors();
    load_exceptions();
    allow_user_page((uint64_t)user_main);
    set_gate(VECTOR_PF, fault_entry);
    *page_entry(LAZY) &= ~(uint64_t)PAGE_PRESENT;
    write_cr3(read_cr3());
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE);
    write_msr(MSR_STAR, (uint64_t)KERNEL_CODE << 32 | (uint64_t)(KERNEL_DATA | 3) << 48);
    write_msr(MSR_LSTAR, (uint64_t)syscall_entry);
    write_msr(MSR_FMASK, 0x47700); /* cleared on entry: TF, IF, DF, IOPL, NT, AC */

    __asm__ volatile("pushq %0\n\t"       /* SS */
                     "pushq %1\n\t"       /* RSP */
                     "pushq $0x202\n\t"   /* RFLAGS: interrupts on, but none will come */
                     "pushq %2\n\t"       /* CS */
                     "pushq %3\n\t"       /* RIP */
                     "iretq"
                     :
                     : "i"(USER_DATA_SELECTOR), "r"(user_stack_top), "i"(USER_CODE_SELECTOR),
                       "r"(user_main));
    __builtin_unreachable();
}
