/*
 * A vCPU as core.c, exit.c, map.c and thread.c know it; Python and other C files do not.
 */
#ifndef PYKVM_VCPU_H
#define PYKVM_VCPU_H
#include "core.h"

#include "claim.h"
#include "shared.h"
#include "vcpu_state.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

/* "No code to return: enter the guest again", and "once what was collected has been handed over." */
#define REENTER INT64_MIN
#define HAND_OVER (INT64_MIN + 1)

struct range {
    uint64_t first;
    uint64_t last;
    uint64_t slot : 56;
    uint64_t posted : 8;
    struct pykvm_table *table; /* or NULL */
    uint64_t bias;             /* what the table calls `first` */
};

struct pykvm_map {
    uint64_t holders; /* who may read it: the caller of pykvm_map_new(), and vCPUs */
    struct pykvm_shared *shared;

    /* Index into `ports` plus one; 0 means no device.  Pages that no device touches stay unmapped. */
    uint16_t port[65536];
    struct range *ports;
    struct range *mmio; /* sorted by address */
    size_t port_ranges;
    size_t mmio_ranges;
};

enum gate { OPEN, OVER, SHUT };

struct pykvm_private {
    int fd;
    struct kvm_run *run;
    struct kvm_coalesced_mmio_ring *ring;
    uint32_t ring_entries;
    struct pykvm_map *map;
    struct pykvm_shared *shared; /* the map's, or NULL */
    struct pykvm_map *new_map; /* what pykvm_set_map() left for the vCPU's thread, or NULL */

    /*
     * The range of the last access in each space, in the memory that every exit touches anyway:
     * after a world switch each further page costs a TLB miss.
     */
    struct range recent[2];
    /* The last access in each space that no device has a part of; `size` 0 for none. */
    struct {
        uint64_t address;
        uint32_t size;
    } hole[2];

    void *answer;    /* where KVM expects the answer to a read, or NULL */
    int held;        /* the page holds an exit that was not handed out yet */
    int64_t pending; /* what PYKVM_DRAIN held back, or 0 */

    struct pykvm_claim *claim; /* or NULL */
    uint32_t lock;        /* guards `owner` against pykvm_kick() */
    pid_t owner;          /* the thread between enter and leave, or 0 */
    uint64_t turn;        /* the run of the claim that it was entered for, or 0 */
    uint64_t loops;       /* how many loops by hand have begun */
    uint64_t by_hand;     /* the number of the one under way, or 0: kicks are kept for its next step */
    int inside;           /* the owner is inside pykvm_run(), or on its way into it or out of it */
    int borrowed;         /* how many others use the kvm_run page or the file descriptor */
    int gate;             /* whether the guest may be entered: one of enum gate */
    int kicked;

    /* Of the thread that entered last; only that thread touches them. */
    pthread_t thread;
    int masked;       /* leave has to unblock `blocked` */
    int was_blocked;  /* the kick's signal already was */
    sigset_t blocked;
    uint64_t inside_mask; /* what KVM_RUN is to block */

    uint32_t polls; /* reads in a row that were answered without Python */

    uint64_t deadline; /* of the run, and of what the guest programmed; 0 is never */
    uint64_t alarm;
    uint64_t flush;  /* when what was posted has to be handed over; 0 is never */
    uint64_t expiry; /* when the timer will next fire, or earlier */
    int armed;       /* it is to fire */
    int stepping;    /* of a loop by hand: it fires once, for the thread may not come back */
    timer_t timer;
    int timer_made;
    pid_t timer_thread; /* the one that it is aimed at */

    int mask_set;
    sigset_t mask; /* what KVM_RUN blocks */
};

/* How many collected accesses wait to be handed over. */
static inline uint32_t waiting(const struct pykvm_private *p)
{
    return p->shared ? pykvm_waiting(p->shared) : 0;
}

/* map.c */

void map_hold(struct pykvm_map *map);
/* Whether any of these addresses is some range's. */
int map_claimed(const struct pykvm_map *map, int space, uint64_t address, uint64_t size);
/* The range that holds the whole access, or NULL. */
const struct range *map_find(struct pykvm_private *p, int space, uint64_t address, uint32_t size);
/* Forget what `map_find` remembers: the map has changed. */
void forget_recent(struct pykvm_private *p);
/* Go over to the map that pykvm_set_map() has left, if there is one. */
void take_map(struct pykvm_private *p);

/* core.c */

/* pykvm_run() for one who is `inside` and stays so: the kvm_run page can be read afterwards. */
int64_t vcpu_run(struct pykvm_vcpu *v);

/* exit.c */

/* Take what the kernel has collected: it happened before the exit that KVM_RUN just returned. */
void drain_ring(struct pykvm_vcpu *v);
/* What the exit in the page is for, if it is a single access; a read is given all ones. */
void note_access(struct kvm_run *run, struct pykvm_access *access);
void count_exit(struct pykvm_vcpu *v, const struct kvm_run *run);
/* What to return for the exit in the page: a code, REENTER if it is done with, or HAND_OVER. */
int64_t take_exit(struct pykvm_vcpu *v);

/* thread.c */

/* Take the kick's signals that are pending in this thread. */
void collect_kicks(void);
/* Tick from now on, the first time at the deadline, the alarm or the flush if one is nearer. */
void arm(struct pykvm_private *p, uint64_t now);
void drop_timer(struct pykvm_private *p);
/*
 * Outside pykvm_run(): keep pykvm_shut() from letting go of the kvm_run page and the file descriptor
 * until vcpu_return().  0 if the vCPU is shut.
 */
int vcpu_borrow(struct pykvm_private *p);
void vcpu_return(struct pykvm_private *p);
#endif
