/* A vCPU's state as a whole (vcpu_state.h). */
#define _GNU_SOURCE
#include "vcpu.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

uint32_t pykvm_transfer(struct pykvm_vcpu *v, const struct pykvm_step *steps, uint32_t count,
                        void *buffer)
{
    uint32_t done = 0;

    if (!vcpu_borrow(v->private_)) {
        v->error = EBADF;
        return 0;
    }
    for (; done < count; done++) {
        int result = ioctl(v->private_->fd, steps[done].request,
                           (char *)buffer + steps[done].argument);

        if (result != steps[done].result) {
            v->error = result < 0 ? errno : 0;
            v->value = (uint64_t)result;
            break;
        }
    }
    vcpu_return(v->private_);
    return done;
}

/*
 * Whether KVM may have something left to do of the exit in the page: those that are known to leave nothing
 * are spared the ioctl.
 */
static int is_half_done(const struct pykvm_vcpu *v)
{
    if (!v->runs)
        return 0;
    switch (v->private_->run->exit_reason) {
    case KVM_EXIT_HLT:
    case KVM_EXIT_SHUTDOWN:
    case KVM_EXIT_DEBUG:
    case KVM_EXIT_INTERNAL_ERROR:
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return 0;
    default:
        return 1;
    }
}

/*
 * What PYKVM_DRAIN has held back when a run ended there: an exit is looked at once more, and what else there
 * was to say to that run is no longer of interest.
 */
static void take_back(struct pykvm_private *p)
{
    int64_t code = p->pending;

    p->pending = REENTER;
    if (code >= 0 || code == PYKVM_EXIT || code <= PYKVM_READ) {
        p->held = code != REENTER && code != HAND_OVER;
        p->answer = NULL;
    }
}

static int settle(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int result = 0;

    if (p->pending != REENTER)
        take_back(p);
    if (p->held)
        return 1;
    if (p->answer) {
        memcpy(p->answer, &v->value, v->size);
        p->answer = NULL;
    }
    if (is_half_done(v))
        result = pykvm_complete(v);
    if (!result)
        p->run->exit_reason = KVM_EXIT_INTR;
    if (p->ring && p->map)
        drain_ring(v);
    return result;
}

int pykvm_settle(struct pykvm_vcpu *v)
{
    int result;

    if (!vcpu_borrow(v->private_))
        return -EBADF;
    result = settle(v);
    vcpu_return(v->private_);
    return result;
}

void pykvm_hand_out(struct pykvm_vcpu *v)
{
    v->private_->held = 0;
}

int pykvm_forget_exit(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    if (!vcpu_borrow(p))
        return -EBADF;
    if (is_half_done(v))
        pykvm_abandon(v);
    p->held = 0;
    p->answer = NULL;
    p->pending = REENTER;
    p->polls = 0;
    p->run->exit_reason = KVM_EXIT_INTR;
    if (p->ring)
        __atomic_store_n(&p->ring->first, p->ring->last, __ATOMIC_RELEASE);
    vcpu_return(p);
    return 0;
}
