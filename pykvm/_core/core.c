/*
 * The hot part of pykvm: the loop around KVM_RUN.
 * Nothing here knows a device or a policy; accesses that need no Python are in published.c.
 */
#define _GNU_SOURCE
#include "vcpu.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

/* KVM writes the reason of every exit it reports; a failed KVM_RUN may leave the last one. */
#define STALE_REASON UINT32_MAX
/* Newer than some headers: <linux/kvm.h> of Linux 6.8. */
#define EXIT_MEMORY_FAULT 39

/*
 * KVM_RUN was interrupted.  `kicked` is read last: a kick that comes in between leaves its signal
 * and immediate_exit set, which costs one empty round and loses nothing.
 */
static int64_t interrupted(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    uint64_t now;
    int flushed;

    if (p->ring && p->map && !v->surface)
        drain_ring(v);
    collect_kicks();
    __atomic_store_n(&p->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    if (__atomic_exchange_n(&p->kicked, 0, __ATOMIC_SEQ_CST))
        return PYKVM_KICKED;
    now = now_ns();
    if (p->deadline && now >= p->deadline)
        return PYKVM_DEADLINE;
    if (p->alarm && now >= p->alarm) {
        p->alarm = 0;
        return PYKVM_ALARM;
    }
    if (now < p->expiry)
        return PYKVM_AGAIN;
    flushed = p->flush && now >= p->flush;
    if (flushed)
        p->flush = 0;
    arm(p, now);
    if (flushed)
        return waiting(p) ? HAND_OVER : REENTER;
    return PYKVM_AGAIN;
}

/* Whether an exit that is watched is one to look at; without its registers it may be. */
static int is_occasion(const struct pykvm_vcpu *v)
{
    const struct kvm_run *run = v->private_->run;
    const struct kvm_sregs *sregs = &run->s.regs.sregs;

    return !v->watched_idt || !(run->kvm_valid_regs & KVM_SYNC_X86_SREGS) ||
           (sregs->efer & EFER_LMA && sregs->idt.limit >= v->watched_idt);
}

static int64_t enter_guest(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    if (p->held) {
        p->held = 0;
        return take_exit(v);
    }
    p->run->exit_reason = STALE_REASON;
    v->runs++;
    if (ioctl(p->fd, KVM_RUN, 0) < 0) {
        int error = errno;

        if (error == EINTR)
            return interrupted(v);
        /* An application processor that has just seen INIT or SIPI. */
        if (error == EAGAIN)
            return REENTER;
        if (error != EFAULT || p->run->exit_reason != EXIT_MEMORY_FAULT) {
            v->error = error;
            return PYKVM_ERROR;
        }
    }
    count_exit(v, p->run);
    /* The guest may leave often enough for a window that opened never to be an exit of its own. */
    if (p->run->request_interrupt_window && p->run->ready_for_interrupt_injection &&
        p->run->exit_reason != KVM_EXIT_IRQ_WINDOW_OPEN)
        __atomic_store_n(&v->attention, 1, __ATOMIC_RELAXED);
    if (v->watched) {
        v->watched--;
        if (is_occasion(v))
            __atomic_store_n(&v->attention, 1, __ATOMIC_RELAXED);
    }
    take_map(p);
    return take_exit(v);
}

/* What to return instead of entering the guest. */
static int64_t turned_away(struct pykvm_vcpu *v)
{
    switch (__atomic_load_n(&v->private_->gate, __ATOMIC_SEQ_CST)) {
    case OPEN:
        return REENTER;
    case OVER:
        return PYKVM_OVER;
    default:
        v->error = EBADF;
        return PYKVM_ERROR;
    }
}

int64_t vcpu_run(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int64_t code = p->pending;
    uint64_t before;

    if (code != REENTER) {
        p->pending = REENTER;
        return code;
    }
    code = turned_away(v);
    if (code != REENTER)
        return code;
    if (p->answer) {
        memcpy(p->answer, &v->value, v->size);
        p->answer = NULL;
    }
    take_map(p);
    before = __rdtsc();
    while (code == REENTER && waiting(p) <= WRITES - LARGEST_BATCH) {
        if (__atomic_load_n(&v->attention, __ATOMIC_RELAXED) && !p->held)
            code = PYKVM_ATTENTION;
        else
            code = enter_guest(v);
    }
    v->guest_cycles += __rdtsc() - before;
    if (code == HAND_OVER)
        code = REENTER;
    if (waiting(p)) {
        p->flush = 0;
        p->pending = code;
        code = PYKVM_DRAIN;
    }
    return code == REENTER ? PYKVM_AGAIN : code; /* another vCPU has handed it over */
}

int64_t pykvm_run(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int64_t code;

    /* Either vcpu_run() sees the gate closed, or pykvm_shut() sees `inside`. */
    __atomic_store_n(&p->inside, 1, __ATOMIC_SEQ_CST);
    code = vcpu_run(v);
    __atomic_store_n(&p->inside, 0, __ATOMIC_RELEASE);
    return code;
}

int pykvm_interrupt(struct pykvm_vcpu *v, uint32_t vector)
{
    struct kvm_interrupt argument = {.irq = vector};

    return ioctl(v->private_->fd, KVM_INTERRUPT, &argument) < 0 ? -errno : 0;
}

static int complete(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    uint32_t reason = p->run->exit_reason;
    int result, error;

    if (p->held)
        return 1;
    if (p->answer)
        return -EBUSY;
    v->runs++;
    __atomic_store_n(&p->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    result = ioctl(p->fd, KVM_RUN, 0);
    error = errno;
    if (!__atomic_load_n(&p->kicked, __ATOMIC_SEQ_CST))
        __atomic_store_n(&p->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    if (result < 0) {
        p->run->exit_reason = reason;
        return error == EINTR ? 0 : -error;
    }
    count_exit(v, p->run);
    p->held = 1;
    return 1;
}

int pykvm_complete(struct pykvm_vcpu *v)
{
    int result;

    if (!vcpu_borrow(v->private_))
        return -EBADF;
    result = complete(v);
    vcpu_return(v->private_);
    return result;
}

/* A string instruction may cause one exit after another, in KVM up to 1,024 without entering the guest. */
#define LONGEST_INSTRUCTION 4096

int pykvm_abandon(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    if (!vcpu_borrow(p))
        return -EBADF;
    for (int i = 0; v->runs && i < LONGEST_INSTRUCTION; i++) {
        p->held = 0;
        p->answer = NULL;
        if (complete(v) != 1)
            break;
    }
    p->held = 0;
    vcpu_return(p);
    return 0;
}

int64_t pykvm_wait(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    /* A tick comes sooner. */
    static const struct timespec enough = {.tv_sec = 1};
    int64_t code = turned_away(v);

    if (code != REENTER)
        return code;
    if (__atomic_load_n(&v->attention, __ATOMIC_SEQ_CST))
        return PYKVM_ATTENTION;
    /* The mask as inside KVM_RUN: the kick's signal ends this, also one that is pending. */
    ppoll(NULL, 0, &enough, &p->mask);
    code = turned_away(v);
    return code == REENTER ? interrupted(v) : code;
}

/* Both halves in one piece: see `recent`. */
struct whole {
    struct pykvm_vcpu vcpu;
    struct pykvm_private private_;
};

struct pykvm_vcpu *pykvm_vcpu_new(int fd, void *page, void *ring, uint32_t ring_entries)
{
    struct whole *whole = calloc(1, sizeof *whole);
    struct pykvm_private *p;

    if (!whole)
        return NULL;
    p = &whole->private_;
    whole->vcpu.private_ = p;
    p->fd = fd;
    p->run = page;
    p->ring = ring;
    p->ring_entries = ring_entries;
    p->pending = REENTER;
    forget_recent(p);
    return &whole->vcpu;
}

void pykvm_vcpu_free(struct pykvm_vcpu *v)
{
    if (!v)
        return;
    if (v->private_->claim)
        claim_remove(v->private_->claim, v);
    drop_timer(v->private_);
    pykvm_map_free(v->private_->map);
    pykvm_map_free(v->private_->new_map);
    free(v); /* it begins the struct whole */
}

int pykvm_join(struct pykvm_vcpu *v, struct pykvm_claim *claim)
{
    int result = claim_add(claim, v);

    if (!result)
        v->private_->claim = claim;
    return result;
}

uint64_t pykvm_cycles(void)
{
    return __rdtsc();
}
