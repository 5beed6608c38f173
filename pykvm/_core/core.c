/*
 * The hot part of pykvm: enter the guest, take a kick, keep a deadline, find whose an access is.
 * Nothing here knows a device or a policy; accesses that need no Python are in published.c.
 */
#define _GNU_SOURCE
#include "core.h"

#include "claim.h"
#include "shared.h"

#include <errno.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

/* KVM writes the reason of every exit it reports; a failed KVM_RUN may leave the last one. */
#define STALE_REASON UINT32_MAX
/* Newer than some headers: <linux/kvm.h> of Linux 6.8. */
#define EXIT_MEMORY_FAULT 39

/*
 * The longest a guest runs before Python gets a look.  Two things need it: collected writes of
 * a guest that never exits again, and a Python signal (Ctrl-C) that arrived after the interpreter last
 * looked and before KVM_RUN.
 */
#define TICK_NS 50000000ull

/* So much longer may what was posted wait while the guest has interrupts off. */
#define PATIENCE 20
/* So many reads in a row that were answered here: the guest waits, and what it wrote is due. */
#define POLLS 64

struct range {
    uint64_t first;
    uint64_t last;
    uint64_t slot : 56;
    uint64_t sink : 8;
    struct pykvm_table *table; /* or NULL */
    uint64_t bias;             /* what the table calls `first` */
};

struct pykvm_map {
    uint64_t holders; /* who may read it: the caller of pykvm_map_new(), and vCPUs */
    struct pykvm_shared *shared;

    /* Index into `ports` plus one; 0 means nobody.  Pages that no device touches stay unmapped. */
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
    pthread_mutex_t lock; /* guards `owner` against pykvm_kick() */
    pid_t owner;          /* the thread between enter and leave, or 0 */
    uint64_t turn;        /* the run of the claim that it was entered for, or 0 */
    int by_hand;          /* a loop by hand is under way: kicks are kept for its next step */
    int inside;           /* the owner is inside pykvm_run(), or on its way into it or out of it */
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

/* ---- the signal ------------------------------------------------------------------------ */

static int kick_signal;
static pthread_mutex_t kick_signal_lock = PTHREAD_MUTEX_INITIALIZER;

static void ignore_kick(int number)
{
    (void)number;
}

/* Take the highest real-time signal that nobody in this process has a use for. */
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

static void collect_kicks(void)
{
    static const struct timespec now = {0, 0};
    sigset_t kick;

    sigemptyset(&kick);
    sigaddset(&kick, kick_signal);
    while (sigtimedwait(&kick, NULL, &now) > 0 || errno == EINTR)
        ;
}

/* ---- time ------------------------------------------------------------------------------ */

uint64_t pykvm_cycles(void)
{
    return __rdtsc();
}

static struct timespec timespec_of(uint64_t ns)
{
    struct timespec value = {.tv_sec = (time_t)(ns / SECOND_NS), .tv_nsec = (long)(ns % SECOND_NS)};

    return value;
}

/* Tick from now on, the first time at the deadline, the alarm or the flush if one is nearer. */
static void arm(struct pykvm_private *p, uint64_t now)
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

/* ---- the map --------------------------------------------------------------------------- */

static int64_t maps;

struct pykvm_map *pykvm_map_new(struct pykvm_shared *shared)
{
    struct pykvm_map *map = calloc(1, sizeof *map);

    if (map) {
        map->holders = 1;
        map->shared = shared;
        pykvm_shared_hold(shared);
        __atomic_add_fetch(&maps, 1, __ATOMIC_RELAXED);
    }
    return map;
}

static void hold_map(struct pykvm_map *map)
{
    if (map)
        __atomic_add_fetch(&map->holders, 1, __ATOMIC_RELAXED);
}

void pykvm_map_free(struct pykvm_map *map)
{
    if (!map || __atomic_sub_fetch(&map->holders, 1, __ATOMIC_ACQ_REL))
        return;
    for (size_t i = 0; i < map->port_ranges; i++)
        pykvm_table_free(map->ports[i].table);
    for (size_t i = 0; i < map->mmio_ranges; i++)
        pykvm_table_free(map->mmio[i].table);
    free(map->ports);
    free(map->mmio);
    pykvm_shared_free(map->shared);
    free(map);
    __atomic_sub_fetch(&maps, 1, __ATOMIC_RELAXED);
}

int64_t pykvm_maps(void)
{
    return __atomic_load_n(&maps, __ATOMIC_RELAXED);
}

int pykvm_map_add(struct pykvm_map *map, int space, uint64_t first, uint64_t last, uint64_t slot,
                  int sink, struct pykvm_table *table, uint64_t bias)
{
    struct range range = {.first = first, .last = last, .slot = slot, .sink = !!sink,
                          .table = table, .bias = bias};
    size_t *count = space == PYKVM_PIO ? &map->port_ranges : &map->mmio_ranges;
    struct range **ranges = space == PYKVM_PIO ? &map->ports : &map->mmio;
    struct range *grown;
    size_t at;

    if (last < first || slot >> 56 || (space == PYKVM_PIO && (last > 0xffff || *count >= 0xfffe)))
        return -EINVAL;
    grown = realloc(*ranges, (*count + 1) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    *ranges = grown;
    at = (*count)++;
    if (space == PYKVM_PIO) {
        for (uint64_t port = first; port <= last; port++)
            map->port[port] = (uint16_t)(at + 1);
    } else {
        for (; at > 0 && grown[at - 1].first > first; at--)
            grown[at] = grown[at - 1];
    }
    grown[at] = range;
    if (table)
        pykvm_table_hold(table);
    return 0;
}

/* Whether any of these addresses is some range's. */
static int claimed(const struct pykvm_map *map, int space, uint64_t address, uint64_t size)
{
    if (size > UINT64_MAX - address || (space == PYKVM_PIO && address + size > 0x10000))
        return 1; /* it goes on at 0, which is for the bus to find out */
    if (space == PYKVM_PIO) {
        for (uint64_t port = address; port < address + size; port++)
            if (map->port[port])
                return 1;
        return 0;
    }
    for (size_t low = 0, high = map->mmio_ranges; low < high;) {
        size_t middle = (low + high) / 2;

        if (address + (size - 1) < map->mmio[middle].first)
            high = middle;
        else if (address > map->mmio[middle].last)
            low = middle + 1;
        else
            return 1;
    }
    return 0;
}

static const struct range *search_ports(const struct pykvm_map *map, uint32_t port, uint32_t size)
{
    const struct range *range;

    if (!map->port[port])
        return NULL;
    range = &map->ports[map->port[port] - 1];
    return port + size - 1 <= range->last ? range : NULL;
}

static const struct range *search_mmio(const struct pykvm_map *map, uint64_t address, uint32_t size)
{
    size_t low = 0, high = map->mmio_ranges;

    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct range *range = &map->mmio[middle];

        if (address < range->first)
            high = middle;
        else if (address > range->last)
            low = middle + 1;
        else
            return range->last - address >= size - 1 ? range : NULL;
    }
    return NULL;
}

/* The range that holds the whole access, or NULL. */
static const struct range *find(struct pykvm_private *p, int space, uint64_t address, uint32_t size)
{
    struct range *recent = &p->recent[space];
    const struct range *found;

    if (address >= recent->first && address <= recent->last && recent->last - address >= size - 1)
        return recent;
    found = space == PYKVM_PIO ? search_ports(p->map, (uint32_t)address, size)
                               : search_mmio(p->map, address, size);
    if (found)
        *recent = *found;
    return found;
}

/* Forget what `find` remembers: the map has changed. */
static void forget(struct pykvm_private *p)
{
    static const struct range nowhere = {.first = 1, .last = 0};

    p->recent[PYKVM_PIO] = nowhere;
    p->recent[PYKVM_MMIO] = nowhere;
    memset(p->hole, 0, sizeof p->hole);
}

/* ---- what the kernel collected ------------------------------------------------------------ */

/*
 * Writes that the kernel coalesced happened before the exit that KVM_RUN just returned.  The ring
 * is shared with the kernel, not with another vCPU: a machine with several does not coalesce.
 */
static void drain_ring(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    struct kvm_coalesced_mmio_ring *ring = p->ring;
    uint32_t first = ring->first;
    uint32_t last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);

    if (first >= p->ring_entries || last >= p->ring_entries || p->ring_entries > 512)
        return;
    while (first != last) {
        const struct kvm_coalesced_mmio *entry = &ring->coalesced_mmio[first];
        int space = entry->pio ? PYKVM_PIO : PYKVM_MMIO;
        const struct range *range = find(p, space, entry->phys_addr, entry->len);
        uint64_t at = range ? entry->phys_addr - range->first : 0;

        if (range && range->table)
            pykvm_table_post(range->table, range->bias + at, entry->len,
                             load(entry->data, entry->len));
        else if (range)
            pykvm_collect(p->shared, range->slot, at, entry->len, entry->data, 1);
        first = (first + 1) % p->ring_entries;
    }
    __atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
}

/*
 * Another thread may change the bus while this one is in the guest.  The old map may be freed here:
 * nothing of it is in use but what was copied from it.
 */
static void take_map(struct pykvm_private *p)
{
    struct pykvm_map *map;

    if (!__atomic_load_n(&p->new_map, __ATOMIC_RELAXED))
        return;
    map = __atomic_exchange_n(&p->new_map, NULL, __ATOMIC_ACQUIRE);
    if (!map)
        return;
    pykvm_map_free(p->map);
    p->map = map;
    p->shared = map->shared;
    forget(p);
}

/* ---- one exit -------------------------------------------------------------------------- */

/* "No code to return: enter the guest again", and "once what was collected has been handed over." */
#define REENTER INT64_MIN
#define HAND_OVER (INT64_MIN + 1)

static int64_t hand_out(struct pykvm_vcpu *v, const struct range *range, uint64_t address,
                        void *data, uint32_t size, int is_write)
{
    v->offset = address - range->first;
    v->size = size;
    if (is_write) {
        v->value = load(data, size);
        return range->slot;
    }
    /* Until somebody answers, the bus floats. */
    v->value = UINT64_MAX;
    v->private_->answer = data;
    return PYKVM_READ - (int64_t)range->slot;
}

/*
 * What was posted may wait so long only: an interrupt hangs on it.  With interrupts off that cannot
 * be taken yet.
 */
static void flush_within(struct pykvm_private *p, uint64_t within)
{
    uint64_t now;

    if (!within || p->flush)
        return;
    now = now_ns();
    p->flush = now + (p->run->if_flag ? within : within * PATIENCE);
    if (p->flush < p->expiry || p->expiry <= now)
        arm(p, now);
}

/* What the table of the range's device makes of an access: a code, or 0 if it has to be asked. */
static int64_t take_published(struct pykvm_vcpu *v, const struct range *range, uint64_t address,
                              void *data, uint32_t size, int is_write)
{
    struct pykvm_private *p = v->private_;
    uint64_t offset = range->bias + (address - range->first), value = 0, within = 0;
    int answer;

    if (is_write) {
        answer = pykvm_table_write(range->table, offset, size, load(data, size), &within);
        /* What is taken is a part of polling, as a latch command before a count is read. */
        if (answer != PYKVM_TAKEN)
            p->polls = 0;
    } else {
        answer = pykvm_table_read(range->table, offset, size, &value, &within);
        if (answer)
            memcpy(data, &value, size);
        if (answer && p->polls++ >= POLLS) {
            p->polls = 0;
            answer = PYKVM_HAND_OVER;
        }
    }
    flush_within(p, within);
    if (answer == PYKVM_HAND_OVER && pykvm_waiting(p->shared))
        return HAND_OVER;
    return answer ? REENTER : 0;
}

static int64_t drop(struct pykvm_private *p, int space, uint64_t address, void *data, uint32_t size,
                    uint32_t count, int is_write)
{
    pykvm_drop(p->shared, space, is_write, address, size, is_write ? load(data, size) : 0, count);
    if (!is_write)
        memset(data, 0xff, (size_t)size * count);
    return REENTER;
}

/* Whether it is the access again that no device had a part of. */
static int same_hole(const struct pykvm_private *p, int space, uint64_t address, uint32_t size)
{
    return p->hole[space].address == address && p->hole[space].size == size;
}

/* No range holds all of the access.  If no device has any of it, it may be dropped here. */
static int64_t take_unclaimed(struct pykvm_vcpu *v, int space, uint64_t address, void *data,
                              uint32_t size, uint32_t count, int is_write)
{
    struct pykvm_private *p = v->private_;

    if (!p->shared->floats || claimed(p->map, space, address, size))
        return PYKVM_EXIT;
    p->hole[space].address = address;
    p->hole[space].size = size;
    return drop(p, space, address, data, size, count, is_write);
}

static int64_t take_io(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    struct kvm_run *run = p->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    int is_write = run->io.direction == KVM_EXIT_IO_OUT;
    const struct range *range;

    if (same_hole(p, PYKVM_PIO, run->io.port, run->io.size))
        return drop(p, PYKVM_PIO, run->io.port, data, run->io.size, run->io.count, is_write);
    range = find(p, PYKVM_PIO, run->io.port, run->io.size);
    if (!range)
        return take_unclaimed(v, PYKVM_PIO, run->io.port, data, run->io.size, run->io.count,
                              is_write);
    if (is_write && range->sink &&
        pykvm_collect(p->shared, range->slot, run->io.port - range->first, run->io.size, data,
                      run->io.count))
        return REENTER;
    if (run->io.count != 1)
        return PYKVM_EXIT;
    if (range->table) {
        int64_t code = take_published(v, range, run->io.port, data, run->io.size, is_write);

        if (code)
            return code;
    }
    return hand_out(v, range, run->io.port, data, run->io.size, is_write);
}

static int64_t take_mmio(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    struct kvm_run *run = p->run;
    uint64_t address = run->mmio.phys_addr;
    const struct range *range;

    /* An access across two pages comes in parts of any size: the bus cuts those up. */
    if (!run->mmio.len || run->mmio.len > 8 || run->mmio.len & (run->mmio.len - 1))
        return PYKVM_EXIT;
    if (same_hole(p, PYKVM_MMIO, address, run->mmio.len))
        return drop(p, PYKVM_MMIO, address, run->mmio.data, run->mmio.len, 1, run->mmio.is_write);
    range = find(p, PYKVM_MMIO, address, run->mmio.len);
    if (!range)
        return take_unclaimed(v, PYKVM_MMIO, address, run->mmio.data, run->mmio.len, 1,
                              run->mmio.is_write);
    if (run->mmio.is_write && range->sink &&
        pykvm_collect(p->shared, range->slot, address - range->first, run->mmio.len,
                      run->mmio.data, 1))
        return REENTER;
    if (range->table) {
        int64_t code = take_published(v, range, address, run->mmio.data, run->mmio.len,
                                      run->mmio.is_write);

        if (code)
            return code;
    }
    return hand_out(v, range, address, run->mmio.data, run->mmio.len, run->mmio.is_write);
}

static void count(struct pykvm_vcpu *v, const struct kvm_run *run)
{
    uint32_t index = run->exit_reason & 63;

    if ((run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT) ||
        (run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write))
        index += 64;
    v->exits[index]++;
}

static int64_t take_exit(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    if (!p->map || v->surface)
        return PYKVM_EXIT;
    if (p->ring)
        drain_ring(v);
    if (p->run->exit_reason == KVM_EXIT_IO)
        return take_io(v);
    if (p->run->exit_reason == KVM_EXIT_MMIO)
        return take_mmio(v);
    if (v->syscall && pykvm_make_syscall_good(v->syscall, p->run))
        return REENTER;
    if (v->native) {
        int done = pykvm_native_exit(v->native, p->fd, p->run);

        if (done < 0)
            v->error = -done;
        if (done)
            return done < 0 ? PYKVM_ERROR : REENTER;
    }
    return PYKVM_EXIT;
}

/* How many collected accesses wait to be handed over. */
static uint32_t waiting(const struct pykvm_private *p)
{
    return p->shared ? pykvm_waiting(p->shared) : 0;
}

/*
 * KVM_RUN was interrupted.  `kicked` is read last: a kick that comes in between leaves its signal
 * and immediate_exit behind, which costs one empty round and loses nothing.
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

static int64_t enter_guest(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int result, error;

    if (p->held) {
        p->held = 0;
        return take_exit(v);
    }
    p->run->exit_reason = STALE_REASON;
    v->runs++;
    result = ioctl(p->fd, KVM_RUN, 0);
    error = errno;
    if (result < 0) {
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
    count(v, p->run);
    /* The guest may leave often enough for a window that opened never to be an exit of its own. */
    if (p->run->request_interrupt_window && p->run->ready_for_interrupt_injection &&
        p->run->exit_reason != KVM_EXIT_IRQ_WINDOW_OPEN)
        __atomic_store_n(&v->attention, 1, __ATOMIC_RELAXED);
    if (v->watched) {
        v->watched--;
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

int64_t pykvm_run(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int64_t code = p->pending;
    uint64_t before;

    if (code != REENTER) {
        p->pending = REENTER;
        return code;
    }
    /* Either this sees the gate closed, or pykvm_shut() sees `inside`. */
    __atomic_store_n(&p->inside, 1, __ATOMIC_SEQ_CST);
    code = turned_away(v);
    if (code != REENTER) {
        __atomic_store_n(&p->inside, 0, __ATOMIC_SEQ_CST);
        return code;
    }
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
    if (code == REENTER)
        code = PYKVM_AGAIN; /* another vCPU has handed it over */
    __atomic_store_n(&p->inside, 0, __ATOMIC_RELEASE);
    return code;
}

int pykvm_complete(struct pykvm_vcpu *v)
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
    count(v, p->run);
    p->held = 1;
    return 1;
}

/* A string instruction may cause one exit after another, in KVM up to 1,024 without entering the guest. */
#define LONGEST_INSTRUCTION 4096

void pykvm_abandon(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    if (!v->runs)
        return;
    for (int i = 0; i < LONGEST_INSTRUCTION; i++) {
        p->held = 0;
        p->answer = NULL;
        if (pykvm_complete(v) != 1)
            break;
    }
    p->held = 0;
}

/* ---- a run ----------------------------------------------------------------------------- */

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

static void drop_timer(struct pykvm_private *p)
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
 * two steps goes to the empty handler, and the step behind it finds the time past.
 */
static void arm_for_step(struct pykvm_private *p, uint64_t now)
{
    if (!p->armed || p->expiry <= now || (p->deadline && p->deadline < p->expiry))
        arm(p, now);
}

/* Make the calling thread the owner, and `inside`; in a step of a loop by hand kicks are kept. */
static int take(struct pykvm_private *p, uint64_t turn, int step)
{
    int refusal = 0;

    pthread_mutex_lock(&p->lock);
    if (p->gate == SHUT)
        refusal = PYKVM_SHUT;
    else if (p->owner)
        refusal = PYKVM_BUSY;
    if (!refusal) {
        p->owner = this_thread();
        p->turn = turn;
        p->gate = OPEN;
        if (!step)
            p->by_hand = p->kicked = 0;
        p->run->immediate_exit = (uint8_t)!!p->kicked;
        /* Until it returns, pykvm_shut() waits: the file descriptor is in use. */
        __atomic_store_n(&p->inside, 1, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&p->lock);
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
    pthread_mutex_lock(&p->lock);
    if (p->owner == this_thread()) {
        p->owner = 0;
        if (!step)
            p->kicked = 0;
        p->run->immediate_exit = 0;
    }
    pthread_mutex_unlock(&p->lock);
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

int pykvm_by_hand(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int refusal = 0;

    if (!pykvm_kick_signal())
        return PYKVM_NO_SIGNAL;
    pthread_mutex_lock(&p->lock);
    if (p->gate == SHUT)
        refusal = PYKVM_SHUT;
    else if (p->owner)
        refusal = PYKVM_BUSY;
    else {
        p->by_hand = 1;
        p->kicked = 0;
        p->alarm = p->flush = 0;
    }
    pthread_mutex_unlock(&p->lock);
    return refusal;
}

void pykvm_by_hand_ends(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    pthread_mutex_lock(&p->lock);
    p->by_hand = 0;
    if (!p->owner) {
        p->kicked = 0;
        disarm(p);
    }
    pthread_mutex_unlock(&p->lock);
}

int64_t pykvm_step(struct pykvm_vcpu *v, uint64_t deadline)
{
    struct pykvm_private *p = v->private_;
    int64_t code = PYKVM_REFUSED;

    v->refusal = take(p, 0, 1);
    if (v->refusal)
        return code;
    v->refusal = prepare(v, deadline, 1);
    if (!v->refusal)
        code = pykvm_run(v);
    __atomic_store_n(&p->inside, 0, __ATOMIC_RELEASE);
    give_up(p, 1);
    return code;
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

int pykvm_is_here(struct pykvm_vcpu *v)
{
    return v->private_->owner == this_thread();
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

    pthread_mutex_lock(&p->lock);
    running = turn ? p->owner && p->turn == turn : p->owner || p->by_hand;
    if (running) {
        __atomic_store_n(&p->kicked, 1, __ATOMIC_SEQ_CST);
        if (p->owner)
            call_out(p);
    }
    pthread_mutex_unlock(&p->lock);
    return running;
}

void vcpu_bar(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    pthread_mutex_lock(&p->lock);
    if (p->owner && p->turn) {
        if (p->gate == OPEN)
            __atomic_store_n(&p->gate, OVER, __ATOMIC_SEQ_CST);
        __atomic_store_n(&p->kicked, 1, __ATOMIC_SEQ_CST);
        call_out(p);
    }
    pthread_mutex_unlock(&p->lock);
}

int pykvm_shut(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;
    int inside;

    /* Under the lock: either `take` sees the gate shut, or this sees `inside`. */
    pthread_mutex_lock(&p->lock);
    __atomic_store_n(&p->gate, SHUT, __ATOMIC_SEQ_CST);
    inside = __atomic_load_n(&p->inside, __ATOMIC_SEQ_CST);
    if (!inside)
        p->owner = p->by_hand = 0;
    pthread_mutex_unlock(&p->lock);
    if (inside)
        pykvm_kick(v, 0);
    return inside;
}

void pykvm_forget(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    pthread_mutex_init(&p->lock, NULL);
    p->gate = SHUT;
    p->owner = p->by_hand = p->inside = 0;
    p->timer_made = 0; /* the parent's: its number may be that of a timer of ours one day */
    if (p->masked && pthread_equal(p->thread, pthread_self()))
        pthread_sigmask(SIG_UNBLOCK, &p->blocked, NULL);
    p->masked = 0;
}

/* A signal without `kicked`: `attention` alone tells what it was for. */
void pykvm_attend(struct pykvm_vcpu *v)
{
    struct pykvm_private *p = v->private_;

    pthread_mutex_lock(&p->lock);
    __atomic_store_n(&v->attention, 1, __ATOMIC_SEQ_CST);
    if (p->owner && p->owner != this_thread())
        call_out(p);
    pthread_mutex_unlock(&p->lock);
}

/* ---- life ------------------------------------------------------------------------------ */

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
    forget(p);
    pthread_mutex_init(&p->lock, NULL);
    return &whole->vcpu;
}

void pykvm_vcpu_free(struct pykvm_vcpu *v)
{
    if (!v)
        return;
    if (v->private_->claim)
        claim_remove(v->private_->claim, v);
    drop_timer(v->private_);
    pthread_mutex_destroy(&v->private_->lock);
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

void pykvm_set_map(struct pykvm_vcpu *v, struct pykvm_map *map)
{
    hold_map(map);
    pykvm_map_free(__atomic_exchange_n(&v->private_->new_map, map, __ATOMIC_ACQ_REL));
}

/* ---- atomic access to guest memory ------------------------------------------------------- */

int pykvm_cmpxchg16b(void *target, uint64_t *expected, const uint64_t *desired)
{
    unsigned char same;

    __asm__ volatile("lock cmpxchg16b %1\n\tsetz %0"
                     : "=q"(same), "+m"(*(__int128 *)target), "+a"(expected[0]), "+d"(expected[1])
                     : "b"(desired[0]), "c"(desired[1])
                     : "cc", "memory");
    return same;
}
