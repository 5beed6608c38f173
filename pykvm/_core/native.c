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
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
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
    native->learnt = calloc(PYKVM_LEARNT, sizeof *native->learnt);
    if (!native->learnt)
        goto failed;
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
    free(native->learnt);
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

/* -- refused instructions without Python -------------------------------------------------------- */

#define CR0_PE (1ull << 0)
#define CR0_EM (1ull << 2)
#define CR0_TS (1ull << 3)
#define CR0_PG (1ull << 31)
#define CR4_OSFXSR (1ull << 9)
#define CR4_LA57 (1ull << 12)
#define CR4_SMAP (1ull << 21)
#define CR4_PKE (1ull << 22)
#define CR4_PKS (1ull << 24)
#define RFLAGS_TF (1ull << 8)
#define RFLAGS_RF (1ull << 16)
#define RFLAGS_VM (1ull << 17)

/* SDM 3A 4.5: bits of an entry of 4-level paging. */
#define PTE_P (1ull << 0)
#define PTE_W (1ull << 1)
#define PTE_U (1ull << 2)
#define PTE_A (1ull << 5)
#define PTE_D (1ull << 6)
#define PTE_PS (1ull << 7)
#define PTE_ADDRESS 0x000ffffffffff000ull
#define PAGE 4096ull

#define AREA_FCW 0
#define AREA_FSW 2
#define AREA_FOP 6
#define AREA_FIP 8
#define AREA_FDP 16
#define FLAGS 0x3fu           /* exception flags of the x87 status word and of MXCSR, masks of FCW */
#define OLD_FLAGS 0x7fu       /* with x87's stack fault */
#define CONDITION 0x7f00u     /* C0 to C3 and TOP */
#define ES (1u << 7)
#define MXCSR_MASKS 0x1f80u

#define TOGETHER 512 /* so many instructions in a row, then a look at interrupts */
#define NONE 255
#define RIP_BASE 16

static uint8_t *ram(const struct pykvm_native *n, uint64_t gpa, uint64_t size)
{
    for (uint32_t i = 0; i < n->region_count; i++) {
        const struct pykvm_region *region = &n->regions[i];

        if (region->size >= size && gpa >= region->start &&
            gpa - region->start <= region->size - size)
            return (uint8_t *)region->host + (gpa - region->start);
    }
    return NULL;
}

static void mark(const struct pykvm_native *n, const uint8_t *data, uint64_t size)
{
    for (uint32_t i = 0; i < n->region_count; i++) {
        const struct pykvm_region *region = &n->regions[i];

        if (data >= region->host && (uint64_t)(data - region->host) < region->size)
            pykvm_mark(region->pages, (uint64_t)(data - region->host), size);
    }
}

/*
 * Guest RAM at a linear address, all of one page, where nothing is in the way: 4-level paging,
 * all rights there, accessed and dirty bits set.  NULL for what takes a closer look (SDM 3A 4.5 and
 * 4.6).
 */
static uint8_t *data_at(const struct pykvm_native *n, const struct kvm_sregs *sregs,
                        uint64_t address, uint64_t size, int write)
{
    int user = sregs->ss.dpl == 3;
    uint64_t needed = PTE_P | PTE_A | (write ? PTE_W : 0) | (user ? PTE_U : 0);
    uint64_t entry = sregs->cr3, pages;

    if (address % PAGE + size > PAGE || (address >> 47 != 0 && address >> 47 != 0x1ffff))
        return NULL;
    for (int shift = 39;; shift -= 9) {
        const uint8_t *at =
            ram(n, (entry & PTE_ADDRESS) + (address >> shift & 511) * sizeof entry, sizeof entry);

        if (!at)
            return NULL;
        memcpy(&entry, at, sizeof entry);
        if ((entry & needed) != needed)
            return NULL;
        if (shift == 12 || (shift == 21 && entry & PTE_PS)) {
            pages = (1ull << shift) - 1;
            break;
        }
        if (shift > 21 && entry & PTE_PS)
            return NULL;
    }
    if ((write && !(entry & PTE_D)) || (!user && sregs->cr4 & CR4_SMAP && entry & PTE_U))
        return NULL;
    return ram(n, (entry & PTE_ADDRESS & ~pages) | (address & pages), size);
}

static uint64_t *general(struct kvm_regs *regs, unsigned number)
{
    switch (number) {
    case 0: return (uint64_t *)&regs->rax;
    case 1: return (uint64_t *)&regs->rcx;
    case 2: return (uint64_t *)&regs->rdx;
    case 3: return (uint64_t *)&regs->rbx;
    case 4: return (uint64_t *)&regs->rsp;
    case 5: return (uint64_t *)&regs->rbp;
    case 6: return (uint64_t *)&regs->rsi;
    case 7: return (uint64_t *)&regs->rdi;
    default: return (uint64_t *)&regs->r8 + (number - 8);
    }
}

/* The offset of the operand in memory, in its segment. */
static uint64_t offset_of(const struct pykvm_learnt *l, struct kvm_regs *regs)
{
    uint64_t offset = (uint64_t)l->displacement;

    if (l->base == RIP_BASE)
        offset += regs->rip + l->length;
    else if (l->base != NONE)
        offset += *general(regs, l->base);
    if (l->index != NONE)
        offset += *general(regs, l->index) * l->scale;
    return offset;
}

static uint32_t get(const uint8_t *at, unsigned size)
{
    uint32_t value = 0;

    memcpy(&value, at, size);
    return value;
}

static void put(uint8_t *at, uint32_t value, unsigned size)
{
    memcpy(at, &value, size);
}

/* Whether the guest may execute it now (check_x87 and its siblings in pykvm/emulate/fpu.py). */
static int is_enabled(const struct kvm_sregs *sregs, uint8_t kind)
{
    if (sregs->cr0 & (CR0_TS | CR0_EM))
        return 0;
    return kind == PYKVM_X87 || kind == PYKVM_MMX || sregs->cr4 & CR4_OSFXSR;
}

/*
 * Run the instruction on the state.  0 where one exception could be raised or waits: nothing has
 * changed then.
 */
static int compute(struct pykvm_native *n, const struct pykvm_learnt *l, struct kvm_regs *regs)
{
    uint8_t *area = n->state;
    uint32_t control = get(area + AREA_FCW, 2), status = get(area + AREA_FSW, 2);
    uint32_t mxcsr = get(area + AREA_MXCSR, 4), raised, found;
    uint8_t pointers[AREA_FDP + 8 - AREA_FOP];
    int fpu = l->kind <= PYKVM_BOTH, simd = l->kind >= PYKVM_BOTH;

    if (fpu && status & ES)
        return 0;
    /* Unmasked exceptions may leave no trace: Python keeps the state for them. */
    if ((fpu && (control & FLAGS) != FLAGS) || (simd && (mxcsr & MXCSR_MASKS) != MXCSR_MASKS))
        return 0;
    memcpy(pointers, area + AREA_FOP, sizeof pointers);
    if (fpu)
        put(area + AREA_FSW, status & CONDITION, 2);
    n->rax = *general(regs, l->general == NONE ? 0 : l->general);
    n->rcx = regs->rcx;
    n->rdx = regs->rdx;
    n->rflags = regs->rflags;
    if (pykvm_native_run(n, l->place)) {
        put(area + AREA_FSW, status, 2);
        return 0;
    }
    memcpy(area + AREA_FOP, pointers, sizeof pointers);
    raised = get(area + AREA_MXCSR, 4) & FLAGS;
    put(area + AREA_MXCSR, mxcsr | raised, 4);
    if (fpu) {
        found = get(area + AREA_FSW, 2);
        put(area + AREA_FSW, found | (status & OLD_FLAGS), 2);
    }
    if (l->kind == PYKVM_X87) {
        uint64_t rip = regs->rip, offset = offset_of(l, regs);

        put(area + AREA_FOP, l->opcode, 2);
        memcpy(area + AREA_FIP, &rip, sizeof rip);
        if (l->memory)
            memcpy(area + AREA_FDP, &offset, sizeof offset);
    }
    if (l->general == NONE)
        regs->rcx = n->rcx;
    else
        *general(regs, l->general) = n->rax;
    regs->rflags = (regs->rflags & ~(STATUS_FLAGS | RFLAGS_RF)) | n->rflags;
    return 1;
}

/* The instruction at RIP, if it was learnt and stands there still. */
static struct pykvm_learnt *learnt_at(struct pykvm_native *n, uint64_t rip, const uint8_t *code,
                                      unsigned size)
{
    struct pykvm_learnt *l = &n->learnt[rip % PYKVM_LEARNT];

    if (!l->length || l->rip != rip || l->length > size || memcmp(l->raw, code, l->length))
        return NULL;
    return l;
}

/* Do one instruction.  0 leaves it to Python, with nothing changed. */
static int step(struct pykvm_native *n, struct pykvm_learnt *l, struct kvm_sync_regs *all)
{
    struct kvm_regs *regs = (struct kvm_regs *)&all->regs;
    uint8_t *data = NULL;

    if (!is_enabled(&all->sregs, l->kind))
        return 0;
    if (l->memory) {
        uint64_t address = offset_of(l, regs);

        if (l->segment)
            address += l->segment == 1 ? all->sregs.fs.base : all->sregs.gs.base;
        if (l->aligned && address % 16)
            return 0;
        data = data_at(n, &all->sregs, address, l->size, l->store);
        if (!data)
            return 0;
        if (!l->store)
            memcpy(n->scratch, data, l->size);
    }
    if (!compute(n, l, regs))
        return 0;
    if (l->memory && l->store) {
        memcpy(data, n->scratch, l->size);
        mark(n, data, l->size);
    }
    regs->rip += l->length;
    l->count++;
    return 1;
}

/* Whether this is 64-bit code, nothing is pending, and Python need not see each instruction. */
static int is_plain(const struct kvm_run *run)
{
    const struct kvm_sync_regs *all = &run->s.regs;
    const uint64_t sets = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
    const uint64_t paging = CR0_PE | CR0_PG;

    return run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
           run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
           run->emulation_failure.ndata >= 3 &&
           run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES &&
           (run->kvm_valid_regs & sets) == sets && !run->kvm_dirty_regs &&
           (all->sregs.cr0 & paging) == paging && all->sregs.efer & EFER_LMA && all->sregs.cs.l &&
           !(all->sregs.cr4 & (CR4_LA57 | CR4_PKE | CR4_PKS)) &&
           !(all->regs.rflags & (RFLAGS_TF | RFLAGS_VM)) && !all->events.exception.injected &&
           !all->events.exception.pending && !all->events.interrupt.injected &&
           !all->events.interrupt.shadow;
}

static int has_breakpoint(const struct pykvm_native *n, uint64_t rip)
{
    for (uint32_t i = 0; i < n->breakpoint_count; i++)
        if (n->breakpoints[i] == rip)
            return 1;
    return 0;
}

/*
 * The instruction after one that was done, if it was learnt.  In the same page as the one
 * that KVM has fetched, it may be executed, too.
 */
static struct pykvm_learnt *next(struct pykvm_native *n, const struct kvm_sync_regs *all,
                                 uint64_t first)
{
    uint64_t rip = all->regs.rip;
    struct pykvm_learnt *l = &n->learnt[rip % PYKVM_LEARNT];
    const uint8_t *code;

    if (!l->length || l->rip != rip || rip / PAGE != first / PAGE || has_breakpoint(n, rip))
        return NULL;
    code = data_at(n, &all->sregs, rip, l->length, 0);
    return code ? learnt_at(n, rip, code, l->length) : NULL;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int pykvm_native_steps(struct pykvm_native *n, void *page)
{
    struct kvm_run *run = page;
    struct kvm_sync_regs *all = &run->s.regs;
    /* The instruction's length and its bytes (api.rst, KVM_INTERNAL_ERROR_EMULATION). */
    const uint8_t *told = (const uint8_t *)&run->emulation_failure.insn_size;
    uint64_t first = all->regs.rip;
    struct pykvm_learnt *l = learnt_at(n, first, told + 1, told[0]);
    int done = 0;

    while (l && step(n, l, all)) {
        if (++done == TOGETHER || __atomic_load_n(&run->immediate_exit, __ATOMIC_RELAXED))
            break;
        l = next(n, all, first);
    }
    return done;
}

int pykvm_native_exit(struct pykvm_native *n, int fd, void *page)
{
    struct kvm_run *run = page;
    uint64_t began, used;

    if (!is_plain(run) || !n->learnt[run->s.regs.regs.rip % PYKVM_LEARNT].length)
        return 0;
    began = now_ns();
    if (ioctl(fd, KVM_GET_XSAVE, n->state) || !pykvm_native_steps(n, page))
        return 0;
    run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
    /* The kernel takes MXCSR from an image only together with SSE. */
    if (get(n->state + AREA_MXCSR, 4) != MXCSR_MASKS) {
        memcpy(&used, n->state + AREA_XSTATE_BV, sizeof used);
        used |= 2;
        memcpy(n->state + AREA_XSTATE_BV, &used, sizeof used);
    }
    if (ioctl(fd, KVM_SET_XSAVE, n->state))
        return -errno;
    n->nanoseconds += now_ns() - began;
    return 1;
}
