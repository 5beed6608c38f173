/*
 * Who runs a machine: one claim a machine, one run at a time.
 *
 * A claim is taken and given up in C (hold.c), so that it is never leaked.  Giving it up bars the
 * vCPUs first: none enters the guest for a run that is over, and those inside are taken out.
 */
#define _GNU_SOURCE
#include "core.h"
#include "claim.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* How long to wait before Python gets to look at its signals. */
#define PATIENCE_NS 20000000ll

struct claim {
    struct pykvm_claim shown;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* by CLOCK_MONOTONIC */
    unsigned references;    /* Python's, and one each of the vCPUs */
    pid_t process;          /* the one that made it: a VM works nowhere else */
    pid_t owner;            /* the thread whose run it is, or 0 */
    int over;               /* no vCPU may enter for it any more */
    int shut;               /* no run may begin */
    unsigned active;        /* vCPUs between enter and leave for a run of this claim */
    struct pykvm_vcpu **vcpus;
    unsigned count;
};

static void make_lock(struct claim *c)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&c->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

struct pykvm_claim *pykvm_claim_new(void)
{
    struct claim *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    make_lock(c);
    c->references = 1;
    c->process = getpid();
    return &c->shown;
}

static void drop(struct claim *c)
{
    unsigned left;

    pthread_mutex_lock(&c->lock);
    left = --c->references;
    pthread_mutex_unlock(&c->lock);
    if (left)
        return;
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c->vcpus);
    free(c);
}

void pykvm_claim_free(struct pykvm_claim *claim)
{
    struct claim *c = (struct claim *)claim;
    if (c)
        drop(c);
}

int claim_add(struct pykvm_claim *claim, struct pykvm_vcpu *v)
{
    struct claim *c = (struct claim *)claim;
    struct pykvm_vcpu **grown;

    pthread_mutex_lock(&c->lock);
    grown = realloc(c->vcpus, (c->count + 1) * sizeof *grown);
    if (grown) {
        c->vcpus = grown;
        c->vcpus[c->count++] = v;
        c->references++;
    }
    pthread_mutex_unlock(&c->lock);
    return grown ? 0 : -ENOMEM;
}

void claim_remove(struct pykvm_claim *claim, struct pykvm_vcpu *v)
{
    struct claim *c = (struct claim *)claim;
    pthread_mutex_lock(&c->lock);
    for (unsigned i = 0; i < c->count; i++) {
        if (c->vcpus[i] == v) {
            c->vcpus[i] = c->vcpus[--c->count];
            break;
        }
    }
    pthread_mutex_unlock(&c->lock);
    drop(c);
}

int claim_enter(struct pykvm_claim *claim, uint64_t turn)
{
    struct claim *c = (struct claim *)claim;
    int allowed;

    pthread_mutex_lock(&c->lock);
    allowed = c->owner && c->shown.turn == turn && !c->over;
    c->active += (unsigned)allowed;
    pthread_mutex_unlock(&c->lock);
    return allowed;
}

int claim_is_over(struct pykvm_claim *claim)
{
    struct claim *c = (struct claim *)claim;
    int over;

    pthread_mutex_lock(&c->lock);
    over = c->over;
    pthread_mutex_unlock(&c->lock);
    return over;
}

void claim_leave(struct pykvm_claim *claim)
{
    struct claim *c = (struct claim *)claim;
    pthread_mutex_lock(&c->lock);
    c->active--;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

/* Wait, with the lock, until something changes, but not for long. */
static void wait_a_little(struct claim *c)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += PATIENCE_NS;
    if (until.tv_nsec >= 1000000000l) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000l;
    }
    pthread_cond_timedwait(&c->changed, &c->lock, &until);
}

/* Whether the calling thread is one of a run; with the lock. */
static int mine(struct claim *c)
{
    pid_t self = this_thread();

    if (c->owner == self)
        return 1;
    for (unsigned i = 0; i < c->count; i++)
        if (vcpu_owner(c->vcpus[i]) == self)
            return 1;
    return 0;
}

int pykvm_claim_is_mine(struct pykvm_claim *claim)
{
    struct claim *c = (struct claim *)claim;
    int answer;

    if (c->process != getpid())
        return 0;
    pthread_mutex_lock(&c->lock);
    answer = mine(c);
    pthread_mutex_unlock(&c->lock);
    return answer;
}

int pykvm_begin(struct pykvm_claim *claim, int wait)
{
    struct claim *c = (struct claim *)claim;
    int answer = 0;

    if (c->process != getpid())
        return PYKVM_FORKED;
    pthread_mutex_lock(&c->lock);
    if (c->shut)
        answer = PYKVM_SHUT;
    else if (c->owner || (c->active && mine(c)))
        answer = PYKVM_BUSY;
    else if (c->active) {
        /* A vCPU's thread of the last run is still on its way out of a device. */
        if (wait)
            wait_a_little(c);
        answer = -1;
    } else {
        c->owner = this_thread();
        c->over = 0;
        c->shown.running = ++c->shown.turn;
    }
    pthread_mutex_unlock(&c->lock);
    return answer;
}

/* Keep all vCPUs out of the guest, and take out those inside; with the lock. */
static void bar(struct claim *c)
{
    if (c->over)
        return;
    c->over = 1;
    c->shown.running = 0;
    for (unsigned i = 0; i < c->count; i++)
        vcpu_bar(c->vcpus[i]);
}

int pykvm_finish(struct pykvm_claim *claim)
{
    struct claim *c = (struct claim *)claim;
    int left;

    if (c->process != getpid())
        return 0;
    pthread_mutex_lock(&c->lock);
    bar(c);
    if (c->active)
        wait_a_little(c);
    left = c->active != 0;
    pthread_mutex_unlock(&c->lock);
    return left ? -1 : 0;
}

int pykvm_end(struct pykvm_claim *claim, int wait)
{
    struct claim *c = (struct claim *)claim;
    int left;

    if (c->process != getpid())
        return 0;
    pthread_mutex_lock(&c->lock);
    if (c->owner == this_thread()) {
        bar(c);
        c->owner = 0;
        pthread_cond_broadcast(&c->changed);
    }
    /* Called again, it may find another thread's run. */
    if (!c->owner && c->active && wait)
        wait_a_little(c);
    left = !c->owner && c->active;
    pthread_mutex_unlock(&c->lock);
    return left ? -1 : 0;
}

int pykvm_claim_shut(struct pykvm_claim *claim, int wait)
{
    struct claim *c = (struct claim *)claim;
    int busy;

    if (c->process != getpid())
        return 0;
    pthread_mutex_lock(&c->lock);
    c->shut = 1;
    busy = c->owner || c->active;
    if (busy && wait) {
        wait_a_little(c);
        busy = c->owner || c->active;
    }
    pthread_mutex_unlock(&c->lock);
    return busy;
}

void pykvm_claim_forget(struct pykvm_claim *claim)
{
    struct claim *c = (struct claim *)claim;
    make_lock(c);
    c->owner = 0;
    c->active = 0;
    c->over = c->shut = 1;
    c->shown.running = 0;
}
