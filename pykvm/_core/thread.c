/*
 * The thread that runs a vCPU: its signals and its timer, how it comes to the vCPU and leaves it, and
 * how others take it out of the guest.
 */
#define _GNU_SOURCE
#include "vcpu.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * The longest a guest runs before Python gets a look.  Two things need it: collected writes of
 * a guest that never exits again, and a Python signal (Ctrl-C) that arrived after the interpreter last
 * looked and before KVM_RUN.
 */
#define TICK_NS 50000000ull

static int kick_signal;
static pthread_mutex_t kick_signal_lock = PTHREAD_MUTEX_INITIALIZER;

static void ignore_kick(int number)
{
    (void)number;
}

/* Take the highest real-time signal that this process does not use. */
static void choose_kick_signal(void)
{
    for (int number = SIGRTMAX; number > SIGRTMIN; number--) {
        struct sigaction action;

        if (sigaction(number, NULL, &action) || action.sa_handler != SIG_DFL)
            continue;
        memset(&action, 0, sizeof action);
        action.sa_handler = ignore_kick;
        action.sa_flags = SA_RESTART;
        if (!sigaction(number, &action, NULL)) {
            __atomic_store_n(&kick_signal, number, __ATOMIC_RELEASE);
            return;
        }
    }
}

int pykvm_kick_signal(void)
{
    if (__atomic_load_n(&kick_signal, __ATOMIC_ACQUIRE))
        return kick_signal;
    pthread_mutex_lock(&kick_signal_lock);
    if (!kick_signal)
        choose_kick_signal();
    pthread_mutex_unlock(&kick_signal_lock);
    return kick_signal;
}

void collect_kicks(void)
{
    static const struct timespec now = {0, 0};
    sigset_t kick;

    sigemptyset(&kick);
    sigaddset(&kick, kick_signal);
    while (sigtimedwait(&kick, NULL, &now) > 0 || errno == EINTR)
        ;
}

static struct timespec timespec_of(uint64_t ns)
{
    struct timespec value = {.tv_sec = (time_t)(ns / SECOND_NS), .tv_nsec = (long)(ns % SECOND_NS)};

    return value;
}

void arm(struct pykvm_private *p, uint64_t now)
{
    struct itimerspec when = {.it_interval = timespec_of(p->stepping ? 0 : TICK_NS)};

    p->armed = 1;
    p->expiry = now + TICK_NS;
    if (p->deadline && p->deadline < p->expiry)
        p->expiry = p->deadline;
    if (p->alarm && p->alarm < p->expiry)
        p->expiry = p->alarm;
    if (p->flush && p->flush < p->expiry)
        p->expiry = p->flush;
    when.it_value = timespec_of(p->expiry > now ? p->expiry - now : 1);
    timer_settime(p->timer, 0, &when, NULL);
}

void pykvm_set_alarm(struct pykvm_vcpu *v, uint64_t when)
{
    struct pykvm_private *p = v->private_;
    uint64_t now = now_ns();

    p->alarm = when;
    if (when && (when < p->expiry || p->expiry <= now))
        arm(p, now);
}

static __thread pid_t thread_id;
static __thread int main_thread;

static void forget_thread(void)
{
    thread_id = 0;
}

/* In the child of a fork the thread that called it has another number. */
static __attribute__((constructor)) void mind_forks(void)
{
    pthread_atfork(NULL, NULL, forget_thread);
}

pid_t this_thread(void)
{
    if (!thread_id) {
        thread_id = (pid_t)syscall(SYS_gettid);
        main_thread = thread_id == getpid();
    }
    return thread_id;
}

static int is_main_thread(void)
{
    this_thread();
    return main_thread;
}

/* The signals 1 to 64 as the kernel counts them, in the first word of a sigset_t. */
static uint64_t bits(const sigset_t *set)
{
    uint64_t word;

    memcpy(&word, set, sizeof word);
    return word;
}

#define BIT(number) (1ull << ((number) - 1))
/* Signals that a fault raises in the thread at fault: blocked, they would kill without a handler. */
#define FAULTS                                                                                     \
    (BIT(SIGSEGV) | BIT(SIGBUS) | BIT(SIGFPE) | BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGSYS) |         \
     BIT(SIGABRT))

/*
 * Block the kick's signal, and outside the main thread all others but the faults': a signal sent to
 * the process wakes the main thread, where Python acts upon it, only if no other thread takes it.
 */
static void block_signals(struct pykvm_private *p)
{
    uint64_t wanted = BIT(kick_signal);
    sigset_t set, before;

    if (!is_main_thread())
        wanted |= ~FAULTS;
    sigemptyset(&set);
    memcpy(&set, &wanted, sizeof wanted);
    pthread_sigmask(SIG_BLOCK, &set, &before);
    p->was_blocked = sigismember(&before, kick_signal);
    /* Inside another run: what is pending is meant for that one, and comes back to it at the end. */
    if (p->was_blocked)
        collect_kicks();
    p->inside_mask = (bits(&before) | wanted) & ~BIT(kick_signal);
    wanted &= ~bits(&before);
    memcpy(&set, &wanted, sizeof wanted);
    p->blocked = set;
    p->thread = pthread_self();
    p->masked = 1;
}

/* Signals of the process that came meanwhile are the main thread's: give it the time to take them. */
static void leave_signals_to_main(const struct pykvm_private *p)
{
    static const struct timespec moment = {0, 500000};
    sigset_t pending;

    if (is_main_thread())
        return;
    for (int tries = 0; tries < 20; tries++) {
        sigpending(&pending);
        if (!(bits(&pending) & bits(&p->blocked) & (BIT(SIGRTMIN) - 1)))
            return;
        nanosleep(&moment, NULL);
    }
}

/* What a step leaves pending goes to the empty handler: most leave nothing, and to look is dear. */
static void unblock_signals(struct pykvm_private *p, int step)
{
    if (!p->masked || !pthread_equal(p->thread, pthread_self()))
        return;
    p->masked = 0;
    if (!step || p->was_blocked)
        collect_kicks();
    if (p->was_blocked) {
        /* This run was inside another one, whose kick or deadline it may have collected. */
        syscall(SYS_tgkill, getpid(), this_thread(), kick_signal);
        return;
    }
    leave_signals_to_main(p);
    pthread_sigmask(SIG_UNBLOCK, &p->blocked, NULL);
}

/* Inside KVM_RUN the thread's own mask holds, but for the kick signal, which gets through. */
static int set_signal_mask(struct pykvm_private *p)
{
    struct {
        struct kvm_signal_mask head;
        uint8_t set[8];
    } argument = {.head = {.len = 8}};

    if (p->mask_set && bits(&p->mask) == p->inside_mask)
        return 0;
    memcpy(argument.head.sigset, &p->inside_mask, sizeof argument.set);
    if (ioctl(p->fd, KVM_SET_SIGNAL_MASK, &argument) < 0)
        return -errno;
    sigemptyset(&p->mask);
    memcpy(&p->mask, &p->inside_mask, sizeof p->inside_mask);
    p->mask_set = 1;
    return 0;
}

void drop_timer(struct pykvm_private *p)
{
    if (p->timer_made)
        timer_delete(p->timer);
    p->timer_made = p->armed = 0;
}

/* A timer aimed at the calling thread. */
static int make_timer(struct pykvm_private *p)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = kick_signal};

    event._sigev_un._tid = this_thread();
    if (p->timer_made && p->timer_thread == event._sigev_un._tid)
        return 0;
    drop_timer(p);
    if (timer_create(CLOCK_MONOTONIC, &event, &p->timer))
        return -errno;
    p->timer_made = 1;
    p->timer_thread = event._sigev_un._tid;
    return 0;
}

static void disarm(struct pykvm_private *p)
{
    static const struct itimerspec never;

    if (p->armed)
        timer_settime(p->timer, 0, &never, NULL);
    p->armed = 0;
}

/*
 * The timer of a step goes on after it, for the next one: to set it is dear.  A tick that comes between
 * two steps goes to the empty handler, and the step after it finds the time past.
 */
static void arm_for_step(struct pykvm_private *p, uint64_t now)
{
    if (!p->armed || p->expiry <= now || (p->deadline && p->deadline < p->expiry))
        arm(p, now);
}

/* Make the calling thread the owner, and `inside`; in a step of a loop by hand, if any, kicks are kept. */
static int take(struct pykvm_private *p, uint64_t turn, uint64_t loop)
{
    int refusal = 0;

    lock(&p->lock);
    if (p->gate == SHUT)
        refusal = PYKVM_SHUT;
    else if (p->owner)
        refusal = PYKVM_BUSY;
    else if (loop && loop != p->by_hand)
        refusal = PYKVM_SUCCEEDED;
    if (!refusal) {
        p->owner = this_thread();
        p->turn = turn;
        p->gate = OPEN;
        if (!loop)
            p->by_hand = p->kicked = 0;
        p->run->immediate_exit = (uint8_t)!!p->kicked;
        /* Until it returns, pykvm_shut() waits: the file descriptor is in use. */
        __atomic_store_n(&p->inside, 1, __ATOMIC_SEQ_CST);
    }
    unlock(&p->lock);
    return refusal;
}

/* The thread's signals, the vCPU's mask, the timer. */
static int prepare(struct pykvm_vcpu *v, uint64_t deadline, int step)
{
    struct pykvm_private *p = v->private_;
    int result;

    block_signals(p);
    result = set_signal_mask(p);
    v->error = -result;
    if (result)
        return PYKVM_NO_MASK;
    result = make_timer(p);
    v->error = -result;
    if (result)
        return PYKVM_NO_TIMER;
    p->deadline = deadline;
    p->stepping = step;
    if (step)
        arm_for_step(p, now_ns());
    else
        arm(p, now_ns());
    return 0;
}

/* Give up what `take` took, if it is still this thread's, and the thread its signals. */
static void give_up(struct pykvm_private *p, int step)
{
    lock(&p->lock);
    if (p->owner == this_thread()) {
        p->owner = 0;
        if (!step)
            p->kicked = 0;
        p->run->immediate_exit = 0;
    }
    unlock(&p->lock);
    if (!step)
        drop_timer(p);
    unblock_signals(p, step);
}

static int enter(struct pykvm_vcpu *v, uint64_t deadline, uint64_t turn)
{
    struct pykvm_private *p = v->private_;
    int refusal = pykvm_kick_signal() ? take(p, turn, 0) : PYKVM_NO_SIGNAL;

    if (refusal)
        return refusal;
    p->alarm = p->flush = 0;
    refusal = prepare(v, deadline, 0);
    /* Either pykvm_finish() has seen the owner and closes the gate, or this sees that it is over. */
    if (!refusal && turn && claim_is_over(p->claim))
        refusal = PYKVM_LATE;
    __atomic_store_n(&p->inside, 0, __ATOMIC_RELEASE);
    if (refusal)
        give_up(p, 0);
    return refusal;
}

int pykvm_enter(struct pykvm_vcpu *v, uint64_t deadline, uint64_t turn)
{
    struct pykvm_private *p = v->private_;

    if (turn && (!p->claim || !claim_enter(p->claim, turn)))
        return v->refusal = PYKVM_LATE;
    v->refusal = enter(v, deadline, turn);
    if (turn && v->refusal)
        claim_leave(p->claim);
    return v->refusal;
}

int pykvm_leave(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    uint64_t turn = p->turn;

    give_up(p, 0);
    p->turn = 0;
    if (turn)
        claim_leave(p->claim);
    return 0;
}

int64_t pykvm_by_hand(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int64_t loop = 0;

    if (!pykvm_kick_signal())
        return -PYKVM_NO_SIGNAL;
    lock(&p->lock);
    if (p->gate == SHUT)
        loop = -PYKVM_SHUT;
    else if (p->owner)
        loop = -PYKVM_BUSY;
    else {
        loop = (int64_t)(p->by_hand = ++p->loops);
        p->kicked = 0;
        p->alarm = p->flush = 0;
    }
    unlock(&p->lock);
    return loop;
}

void pykvm_by_hand_ends(struct pykvm_vcpu *v, uint64_t loop)
{
    struct pykvm_private *p = v->private_;

    lock(&p->lock);
    if (p->by_hand == loop) {
        p->by_hand = 0;
        if (!p->owner) {
            p->kicked = 0;
            disarm(p);
        }
    }
    unlock(&p->lock);
}

int64_t pykvm_step(struct pykvm_vcpu *v, uint64_t deadline, uint64_t loop,
                   struct pykvm_access *access)
{
    struct pykvm_private *p = v->private_;
    int64_t code = PYKVM_REFUSED;

    access->kind = PYKVM_NO_ACCESS;
    v->refusal = take(p, 0, loop);
    if (v->refusal)
        return code;
    v->refusal = prepare(v, deadline, 1);
    if (!v->refusal)
        code = vcpu_run(v);
    /* As long as this is inside: after that the page may be gone. */
    if (code == PYKVM_EXIT)
        note_access(p->run, access);
    __atomic_store_n(&p->inside, 0, __ATOMIC_RELEASE);
    give_up(p, 1);
    return code;
}

/*
 * KVM_RUN with a signal pending: KVM moves timers that have expired to the local APIC's IRR before it
 * looks at the signal, and enters no guest.
 */
static int run_without_entry(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    uint8_t window = p->run->request_interrupt_window;
    int result, error;

    p->run->request_interrupt_window = 0;
    __atomic_store_n(&p->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    syscall(SYS_tgkill, getpid(), this_thread(), kick_signal);
    v->runs++;
    result = ioctl(p->fd, KVM_RUN, 0);
    error = errno;
    collect_kicks();
    p->run->request_interrupt_window = window;
    if (result >= 0) {
        p->held = 1;
        return 1;
    }
    v->error = error == EINTR || error == EAGAIN ? 0 : error;
    return v->error ? -1 : 0;
}

int pykvm_deliver_timers(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int result = -1;

    v->refusal = pykvm_kick_signal() ? take(p, 0, p->by_hand) : PYKVM_NO_SIGNAL;
    if (v->refusal)
        return result;
    v->refusal = prepare(v, 0, 1);
    if (!v->refusal)
        result = run_without_entry(v);
    __atomic_store_n(&p->inside, 0, __ATOMIC_RELEASE);
    if (!p->by_hand)
        disarm(p);
    give_up(p, 1);
    return result;
}

int pykvm_is_here(struct pykvm_vcpu *v)
{
    return v->private_->owner == this_thread();
}

int pykvm_is_elsewhere(struct pykvm_vcpu *v)
{
    pid_t owner = vcpu_owner(v);

    return owner && owner != this_thread();
}

pid_t vcpu_owner(struct pykvm_vcpu *v)
{
    return __atomic_load_n(&v->private_->owner, __ATOMIC_RELAXED);
}

/* With the lock: take the owner out of the guest, or off its way into it. */
static void call_out(struct pykvm_private *p)
{
    __atomic_store_n(&p->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_tgkill, getpid(), p->owner, kick_signal);
}

/*
 * `kicked` and immediate_exit are set before the signal is sent, and the signal only while the
 * thread is between enter and leave, where it is blocked outside KVM_RUN: so it is either seen by
 * the KVM_RUN in progress, or by the next one, or collected by leave.
 */
int pykvm_kick(struct pykvm_vcpu *v, uint64_t turn)
{
    struct pykvm_private *p = v->private_;
    int running;

    lock(&p->lock);
    running = turn ? p->owner && p->turn == turn : p->owner || p->by_hand;
    if (running) {
        __atomic_store_n(&p->kicked, 1, __ATOMIC_SEQ_CST);
        if (p->owner)
            call_out(p);
    }
    unlock(&p->lock);
    return running;
}

void vcpu_bar(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    lock(&p->lock);
    if (p->owner && p->turn) {
        if (p->gate == OPEN)
            __atomic_store_n(&p->gate, OVER, __ATOMIC_SEQ_CST);
        __atomic_store_n(&p->kicked, 1, __ATOMIC_SEQ_CST);
        call_out(p);
    }
    unlock(&p->lock);
}

int vcpu_borrow(struct pykvm_private *p)
{
    int open;

    lock(&p->lock);
    open = p->gate != SHUT;
    p->borrowed += open;
    unlock(&p->lock);
    return open;
}

void vcpu_return(struct pykvm_private *p)
{
    lock(&p->lock);
    p->borrowed--;
    unlock(&p->lock);
}

int pykvm_shut(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int inside;

    /* Under the lock: either `take` and vcpu_borrow() see the gate shut, or this sees what they did. */
    lock(&p->lock);
    __atomic_store_n(&p->gate, SHUT, __ATOMIC_SEQ_CST);
    inside = __atomic_load_n(&p->inside, __ATOMIC_SEQ_CST) || p->borrowed;
    if (!inside)
        p->owner = p->by_hand = 0;
    unlock(&p->lock);
    if (inside)
        pykvm_kick(v, 0);
    return inside;
}

void pykvm_forget(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    p->lock = 0;
    p->gate = SHUT;
    p->owner = p->by_hand = p->inside = p->borrowed = 0;
    p->timer_made = 0; /* the parent's: its number may be that of a timer of ours one day */
    if (p->masked && pthread_equal(p->thread, pthread_self()))
        pthread_sigmask(SIG_UNBLOCK, &p->blocked, NULL);
    p->masked = 0;
}

/* A signal without `kicked`: `attention` alone says what it was for. */
void pykvm_attend(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    lock(&p->lock);
    __atomic_store_n(&v->attention, 1, __ATOMIC_SEQ_CST);
    if (p->owner && p->owner != this_thread())
        call_out(p);
    unlock(&p->lock);
}
