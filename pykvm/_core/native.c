/*
 * One instruction of a guest's on this processor, in this process: arithmetic of x87, MMX, SSE and
 * AVX, whose operands are registers and a scratch area.
 *
 * Python decides which instructions come here and writes each anew: its operand in memory becomes
 * the scratch area, its general register RAX, and RET follows it.  So it can reach nothing but the
 * vector state, RAX, RCX, RDX, the status flags and the scratch area.  The vector state is the
 * guest's while it runs, with every floating-point exception masked.  Xen's emulator (invoke_stub in
 * x86_emulate.c) and KVM's fastop do the same in the kernel.
 *
 * Code that the processor refuses would raise SIGILL.  So each new piece of code is tried once in a
 * process of its own, which shares the memory and nothing else.
 */
#define _GNU_SOURCE
#include "core.h"

#include <cpuid.h>
#include <errno.h>
#include <linux/kvm.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STATUS_FLAGS 0x8d5ull /* CF, PF, AF, ZF, SF, OF */
#define STATE_SIZE 4096       /* more than the components below take */
#define STACK_SIZE 16384

/* x87, SSE, AVX and AVX-512: what is loaded and saved here.  Not PKRU, which guards this process. */
#define COMPONENTS 0xe7ull

/* Offsets in an XSAVE area (SDM 1 13.4). */
#define AREA_MXCSR 24
#define AREA_MXCSR_MASK 28
#define AREA_XSTATE_BV 512
#define AREA_HEADER_END 576

struct pykvm_native_private {
    uint64_t mask; /* of COMPONENTS, those that this host has enabled */
    uint8_t *own;  /* this thread's state meanwhile, an XSAVE area */
    uint8_t *map;  /* PYKVM_STUBS of code, then the scratch page */
};

/* int pykvm_native_call(struct pykvm_native *): registers in, the stub, registers out. */
void pykvm_native_call(struct pykvm_native *native);
_Static_assert(offsetof(struct pykvm_native, rax) == 0, "pykvm_native_call");
_Static_assert(offsetof(struct pykvm_native, rcx) == 8, "pykvm_native_call");
_Static_assert(offsetof(struct pykvm_native, rdx) == 16, "pykvm_native_call");
_Static_assert(offsetof(struct pykvm_native, rflags) == 24, "pykvm_native_call");
_Static_assert(offsetof(struct pykvm_native, entry) == 32, "pykvm_native_call");
__asm__(".text\n"
        ".type pykvm_native_call, @function\n"
        "pykvm_native_call:\n"
        "    endbr64\n"
        "    push    %rdi\n"
        "    push    24(%rdi)\n"
        "    mov     (%rdi), %rax\n"
        "    mov     8(%rdi), %rcx\n"
        "    mov     16(%rdi), %rdx\n"
        "    popfq\n"
        "    call    *32(%rdi)\n"
        "    pop     %rdi\n"
        "    mov     %rax, (%rdi)\n"
        "    mov     %rcx, 8(%rdi)\n"
        "    mov     %rdx, 16(%rdi)\n"
        "    pushfq\n"
        "    pop     24(%rdi)\n"
        "    ret\n"
        ".size pykvm_native_call, . - pykvm_native_call\n");

static void save(uint8_t *area, uint64_t mask)
{
    __asm__ volatile("xsave64 (%0)" : : "r"(area), "a"((uint32_t)mask), "d"(0) : "memory");
}

static void restore(const uint8_t *area, uint64_t mask)
{
    __asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"((uint32_t)mask), "d"(0) : "memory");
}

/* The components of COMPONENTS that the host's kernel has enabled, 0 without XSAVE. */
static uint64_t enabled_components(void)
{
    uint32_t a, b, c, d;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    a &= (uint32_t)COMPONENTS;
    /* Where the last of them ends, by CPUID leaf 0xD, has to fit. */
    for (uint32_t bit = 2; bit < 8; bit++) {
        uint32_t size, offset;

        __cpuid_count(0xd, bit, size, offset, c, d);
        if (a >> bit & 1 && offset + size > STATE_SIZE)
            a &= ~(1u << bit);
    }
    return a;
}

struct pykvm_native *pykvm_native_new(void)
{
    struct pykvm_native *native = calloc(1, sizeof *native);
    struct pykvm_native_private *p = calloc(1, sizeof *p);

    if (!native || !p)
        goto failed;
    native->private_ = p;
    p->map = MAP_FAILED;
    p->mask = enabled_components();
    if ((p->mask & 3) != 3)
        goto failed;
    native->state = aligned_alloc(64, STATE_SIZE);
    p->own = aligned_alloc(64, STATE_SIZE);
    if (!native->state || !p->own)
        goto failed;
    memset(native->state, 0, STATE_SIZE);
    memset(p->own, 0, STATE_SIZE);
    p->map = mmap(NULL, PYKVM_STUBS + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                  0);
    if (p->map == MAP_FAILED)
        goto failed;
    memset(p->map, 0xcc, PYKVM_STUBS);
    /* Some systems allow no new code: better to know now. */
    if (mprotect(p->map, PYKVM_STUBS, PROT_READ | PROT_EXEC))
        goto failed;
    native->scratch = p->map + PYKVM_STUBS;
    return native;
failed:
    pykvm_native_free(native);
    if (p && !native)
        free(p);
    return NULL;
}

void pykvm_native_free(struct pykvm_native *native)
{
    if (!native)
        return;
    if (native->private_) {
        if (native->private_->map != MAP_FAILED)
            munmap(native->private_->map, PYKVM_STUBS + 4096);
        free(native->private_->own);
        free(native->private_);
    }
    free(native->state);
    free(native);
}

int pykvm_native_put(struct pykvm_native *native, uint32_t at, const void *code, uint32_t size)
{
    uint8_t *map = native->private_->map;

    if (at > PYKVM_STUBS || size > PYKVM_STUBS - at)
        return -EINVAL;
    /* Never writable and executable at once. */
    if (mprotect(map, PYKVM_STUBS, PROT_READ | PROT_WRITE))
        return -errno;
    memcpy(map + at, code, size);
    if (mprotect(map, PYKVM_STUBS, PROT_READ | PROT_EXEC))
        return -errno;
    return 0;
}

/* XRSTOR would raise #GP for these (SDM 1 13.8.1). */
static int is_sound(const struct pykvm_native *native)
{
    const uint8_t *area = native->state;
    uint64_t header[8];
    uint32_t mxcsr, mxcsr_mask;

    memcpy(header, area + AREA_XSTATE_BV, sizeof header);
    memcpy(&mxcsr, area + AREA_MXCSR, sizeof mxcsr);
    memcpy(&mxcsr_mask, native->private_->own + AREA_MXCSR_MASK, sizeof mxcsr_mask);
    for (int i = 1; i < 8; i++)
        if (header[i])
            return 0;
    return !(mxcsr & ~(mxcsr_mask ? mxcsr_mask : 0xffbf));
}

int pykvm_native_run(struct pykvm_native *native, uint32_t at)
{
    struct pykvm_native_private *p = native->private_;
    uint64_t flags, state, others;

    if (at >= PYKVM_STUBS)
        return -EINVAL;
    save(p->own, p->mask);
    if (!is_sound(native))
        return -EINVAL;
    flags = __builtin_ia32_readeflags_u64();
    native->rflags = (flags & ~STATUS_FLAGS) | (native->rflags & STATUS_FLAGS);
    native->entry = (uint64_t)(p->map + at);
    /* Components that are not loaded here keep their bits. */
    memcpy(&state, native->state + AREA_XSTATE_BV, sizeof state);
    others = state & ~p->mask;
    state &= p->mask;
    memcpy(native->state + AREA_XSTATE_BV, &state, sizeof state);
    restore(native->state, p->mask);
    pykvm_native_call(native);
    save(native->state, p->mask);
    restore(p->own, p->mask);
    memcpy(&state, native->state + AREA_XSTATE_BV, sizeof state);
    state |= others;
    memcpy(native->state + AREA_XSTATE_BV, &state, sizeof state);
    native->rflags &= STATUS_FLAGS;
    return 0;
}

struct trial {
    struct pykvm_native *native;
    uint32_t at;
};

static void give_up(int signal)
{
    _exit(signal);
}

/* In the process of its own.  The signals' handlers and mask are its own, too. */
static int try_it(void *argument)
{
    static const int faults[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP};
    struct trial *trial = argument;
    struct sigaction action = {.sa_handler = give_up};
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        sigaction(faults[i], &action, NULL);
        sigaddset(&set, faults[i]);
    }
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    _exit(pykvm_native_run(trial->native, trial->at) ? 255 : 0);
}

int pykvm_native_try(struct pykvm_native *native, uint32_t at)
{
    struct trial trial = {native, at};
    uint8_t *stack = malloc(STACK_SIZE);
    sigset_t all, before;
    int status, error;
    pid_t child;

    if (!stack)
        return -ENOMEM;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    child = clone(try_it, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK, &trial);
    error = errno;
    if (child > 0)
        while (waitpid(child, &status, __WALL) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    free(stack);
    if (child < 0)
        return -error;
    return WIFEXITED(status) ? WEXITSTATUS(status) : SIGKILL;
}
