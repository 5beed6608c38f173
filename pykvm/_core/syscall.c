/*
 * SYSCALL on a host whose KVM lets it jump to LSTAR without entering ring 0.
 *
 * Ring 3 cannot execute there, so the guest's #PF handler is called, with a frame that reports a
 * fetch at LSTAR.  A breakpoint on that handler's first instruction ends KVM_RUN before it has done
 * anything, and from the frame the vCPU is set to what SYSCALL would have left (SDM 2B, SYSCALL).
 * Every other page fault comes here too, and is let through.
 *
 * This is in C because it is the guest's hot path: a look at three cold pages instead of an
 * interpreter's.
 */
#include "core.h"

#include <linux/kvm.h>
#include <string.h>

#define EFER_SCE (1ull << 0)
#define CR4_LA57 (1ull << 12)
#define RFLAGS_DF (1ull << 10)
#define RFLAGS_RF (1ull << 16)
#define RFLAGS_AC (1ull << 18)
#define DR6_BS (1ull << 14)
#define DB_VECTOR 1

/* SDM 3A 4.5: present, the page-size bit, and the address in an entry. */
#define PTE_P (1ull << 0)
#define PTE_PS (1ull << 7)
#define PTE_ADDRESS 0x000ffffffffff000ull
#define PAGE_SIZE 4096ull

/*
 * SDM 3A 4.7.  That the page is present need not be, and that it was a fetch is told only with
 * EFER.NXE or CR4.SMEP: these two bits may be either.
 */
#define PF_P (1ull << 0)
#define PF_U (1ull << 2)
#define PF_I (1ull << 4)

/* What the processor pushes for #PF (SDM 3A 6.14.2). */
struct frame {
    uint64_t error_code, rip, cs, rflags, rsp, ss;
};

static const uint8_t *host_address(const struct pykvm_syscall *s, uint64_t gpa, uint64_t size)
{
    for (uint32_t i = 0; i < s->region_count; i++) {
        const struct pykvm_region *region = &s->regions[i];

        if (gpa >= region->start && gpa - region->start <= region->size - size)
            return region->host + (gpa - region->start);
    }
    return NULL;
}

/* The guest's page tables, 4 or 5 levels (SDM 3A 4.5.4).  Rights do not matter here. */
static int translate(const struct pykvm_syscall *s, const struct kvm_sregs *sregs, uint64_t address,
                     uint64_t *gpa)
{
    uint64_t entry = sregs->cr3;
    const uint8_t *at;

    for (int shift = sregs->cr4 & CR4_LA57 ? 48 : 39; shift >= 12; shift -= 9) {
        at = host_address(s, (entry & PTE_ADDRESS) + (address >> shift & 511) * sizeof entry,
                          sizeof entry);
        if (!at)
            return 0;
        memcpy(&entry, at, sizeof entry);
        if (!(entry & PTE_P))
            return 0;
        if (shift == 12 || (shift <= 30 && entry & PTE_PS)) {
            uint64_t offset = (1ull << shift) - 1;

            *gpa = (entry & PTE_ADDRESS & ~offset) | (address & offset);
            return 1;
        }
    }
    return 0;
}

int pykvm_read_guest(const struct pykvm_syscall *s, const void *page, uint64_t address,
                     void *buffer, uint64_t left)
{
    const struct kvm_run *run = page;
    uint8_t *to = buffer;

    while (left) {
        uint64_t size = PAGE_SIZE - address % PAGE_SIZE, gpa;
        const uint8_t *from;

        if (size > left)
            size = left;
        from = translate(s, &run->s.regs.sregs, address, &gpa) ? host_address(s, gpa, size) : NULL;
        if (!from)
            return 0;
        memcpy(to, from, size);
        to += size;
        address += size;
        left -= size;
    }
    return 1;
}

/*
 * A SYSCALL, not a jump to LSTAR that ring 3 may well try: SYSCALL has cleared the flags of FMASK,
 * of which IF is one that ring 3 cannot clear by itself.
 */
static int is_syscall(const struct pykvm_syscall *s, const struct kvm_sregs *sregs,
                      const struct frame *frame)
{
    return (sregs->efer & (EFER_SCE | EFER_LMA)) == (EFER_SCE | EFER_LMA) &&
           (frame->error_code & ~(PF_P | PF_I)) == PF_U && s->lstar && frame->rip == s->lstar &&
           sregs->cr2 == s->lstar && (frame->cs & 3) == 3 &&
           !(frame->rflags & s->fmask & ~RFLAGS_RF);
}

/* RCX and R11 are right already. */
static void enter_ring_0(const struct pykvm_syscall *s, struct kvm_regs *regs,
                         struct kvm_sregs *sregs, const struct frame *frame)
{
    struct kvm_segment flat = {.limit = 0xffffffff, .present = 1, .s = 1, .g = 1};

    regs->rip = s->lstar;
    regs->rsp = frame->rsp;
    regs->rflags = frame->rflags & ~RFLAGS_RF;
    sregs->cs = flat;
    sregs->cs.selector = s->cs;
    sregs->cs.type = 0xb; /* execute/read, accessed */
    sregs->cs.l = 1;
    sregs->ss = flat;
    sregs->ss.selector = (uint16_t)(s->cs + 8);
    sregs->ss.type = 0x3; /* read/write, accessed */
    sregs->ss.db = 1;
    /* Here KVM collects every interrupt that it has ever injected, and would inject them again. */
    memset(sregs->interrupt_bitmap, 0, sizeof sregs->interrupt_bitmap);
}

/* How long a NOP is, in the forms that assemblers fill with (SDM 2B, NOP), or 0 for none. */
static unsigned nop_length(const uint8_t *code)
{
    static const uint8_t displacement[] = {0, 1, 4, 0};
    unsigned prefixes = 0, mod, rm;

    while (prefixes < 3 && code[prefixes] == 0x66)
        prefixes++;
    code += prefixes;
    if (code[0] == 0x90)
        return prefixes + 1;
    if (code[0] != 0x0f || code[1] != 0x1f)
        return 0;
    mod = code[2] >> 6;
    rm = code[2] & 7;
    if (mod == 3 || (mod == 0 && (rm == 4 || rm == 5)))
        return 0;
    return prefixes + 3 + (rm == 4) + displacement[mod];
}

/*
 * Execute the handler's first instruction, if it is one that kernels begin with: the breakpoint
 * would hit again, as KVM's own ones do not look at RFLAGS.RF.
 */
static int execute_first(const struct pykvm_syscall *s, struct kvm_run *run)
{
    static const uint8_t endbr64[] = {0xf3, 0x0f, 0x1e, 0xfa}, clac[] = {0x0f, 0x01, 0xca};
    struct kvm_regs *regs = &run->s.regs.regs;
    uint8_t code[12];
    unsigned length;

    if (!pykvm_read_guest(s, run, regs->rip, code, sizeof code))
        return 0;
    length = nop_length(code);
    if (!memcmp(code, endbr64, sizeof endbr64)) {
        length = sizeof endbr64;
    } else if (!memcmp(code, clac, sizeof clac)) {
        length = sizeof clac;
        regs->rflags &= ~RFLAGS_AC;
    } else if (code[0] == 0xfc) { /* CLD */
        length = 1;
        regs->rflags &= ~RFLAGS_DF;
    }
    regs->rip += length;
    return length != 0;
}

/* The exit is the breakpoint on the #PF handler. */
static int at_handler(const struct pykvm_syscall *s, const struct kvm_run *run)
{
    const struct kvm_debug_exit_arch *debug = &run->debug.arch;

    return run->exit_reason == KVM_EXIT_DEBUG && s->handler && debug->pc == s->handler &&
           debug->exception == DB_VECTOR && !(debug->dr6 & DR6_BS);
}

/* A guest without an IDT: the page fault came to a triple fault, and ring 3 is as it was. */
static struct frame undelivered(const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
    struct frame frame = {.error_code = PF_U, .rip = regs->rip, .cs = sregs->ss.dpl,
                          .rflags = regs->rflags, .rsp = regs->rsp};

    return frame;
}

int pykvm_work_around_syscall(struct pykvm_syscall *s, void *page)
{
    struct kvm_run *run = page;
    struct kvm_regs *regs = &run->s.regs.regs;
    struct kvm_sregs *sregs = &run->s.regs.sregs;
    const uint64_t both = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
    int shut_down = run->exit_reason == KVM_EXIT_SHUTDOWN;
    struct frame frame;

    if ((run->kvm_valid_regs & both) != both || !(shut_down || at_handler(s, run)))
        return 0;
    if (shut_down)
        frame = undelivered(regs, sregs);
    else if (!pykvm_read_guest(s, page, regs->rsp, &frame, sizeof frame))
        memset(&frame, 0, sizeof frame);
    if (is_syscall(s, sregs, &frame)) {
        enter_ring_0(s, regs, sregs, &frame);
        run->kvm_dirty_regs |= both;
        s->worked_around++;
        return 1;
    }
    if (shut_down || s->shared || !execute_first(s, run))
        return 0;
    run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
    s->passed_on++;
    return 1;
}
