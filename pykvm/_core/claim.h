/*
 * What claim.c asks of core.c and thread.c, and they of it.
 */
#ifndef PYKVM_CLAIM_H
#define PYKVM_CLAIM_H
#include <stdint.h>
#include <sys/types.h>

struct pykvm_claim;
struct pykvm_vcpu;

/* Of a vCPU as long as it lives.  Returns 0 or -ENOMEM. */
int claim_add(struct pykvm_claim *claim, struct pykvm_vcpu *vcpu);
void claim_remove(struct pykvm_claim *claim, struct pykvm_vcpu *vcpu);

/* Whether a vCPU may be entered for this run: if so, claim_leave() has to follow. */
int claim_enter(struct pykvm_claim *claim, uint64_t turn);
void claim_leave(struct pykvm_claim *claim);
int claim_is_over(struct pykvm_claim *claim);

/* The number of the calling thread, as the kernel counts them: no system call but for the first. */
pid_t this_thread(void);

/* The thread between enter and leave, or 0. */
pid_t vcpu_owner(struct pykvm_vcpu *vcpu);
/* The run is over: take the vCPU out of the guest, and keep it out until the next enter. */
void vcpu_bar(struct pykvm_vcpu *vcpu);
#endif
