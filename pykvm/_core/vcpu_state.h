/*
 * A vCPU's state taken and put back by many ioctls in one call.  Which ones, in which order, is Python's
 * (pykvm/vcpu/transfer.py).  build.py hands this file to cffi, too.
 */
#ifndef PYKVM_VCPU_STATE_H
#define PYKVM_VCPU_STATE_H
#include <stdint.h>

struct pykvm_vcpu;

/* One ioctl of the vCPU's. */
struct pykvm_step {
    uint64_t request;
    uint64_t argument; /* where in the buffer it lies */
    int64_t result;    /* what the ioctl returns if all of it was done */
};

/*
 * Do the steps in their order; returns how many were done.  If that is not all of them, the vCPU's `error`
 * is the errno of the one after those, or 0 if it returned less than it should: that is `value`.
 * Of a vCPU that is shut none is done, and `error` is EBADF.
 */
uint32_t pykvm_transfer(struct pykvm_vcpu *vcpu, const struct pykvm_step *steps, uint32_t count,
                        void *buffer);

/*
 * Have the instruction of the last exit completed, without entering the guest, and take what the kernel
 * has collected.  A read gets the answer that is there.  Returns 0; 1 if the page holds an exit that was not
 * handed out yet, since the instruction accesses more or the run ended before; or a negative errno.
 */
int pykvm_settle(struct pykvm_vcpu *vcpu);
/* The exit in the page is dealt with elsewhere. */
void pykvm_hand_out(struct pykvm_vcpu *vcpu);

/*
 * Where the local APIC is KVM's: have it take what its timer has brought since the guest was left.
 * KVM_GET_LAPIC does not show that.  Returns 0; 1 if there was an exit, which the page holds; or -1, with
 * `refusal` or `error`.
 */
int pykvm_deliver_timers(struct pykvm_vcpu *vcpu);

/*
 * Forget the instruction of the last exit, what a device owes it, and what the kernel has collected: all of
 * the vCPU's state is about to be set.  Returns 0, or -EBADF for a vCPU that is shut.
 */
int pykvm_forget_exit(struct pykvm_vcpu *vcpu);
#endif
