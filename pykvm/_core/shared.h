/* What core.c, line.c and published.c share; Python does not see it. */
#ifndef PYKVM_SHARED_H
#define PYKVM_SHARED_H
#include "line.h"
#include "published.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000ull

/*
 * Room for collected writes.  The loop stops to hand them over while the largest batch that one
 * KVM_RUN can bring still fits: a page of one-byte string output and the kernel's coalescing ring.
 */
#define WRITES (16 * 1024)
#define LARGEST_BATCH (4096 + 512)

static inline uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static inline uint64_t ones(uint32_t size)
{
    return size >= 8 ? UINT64_MAX : (1ull << 8 * size) - 1;
}

/*
 * A mutex of a word, in line: what leaves the guest finds cold TLBs, and a call into another library
 * costs more than the lock.  0 is free, 1 taken, 2 taken and waited for (Drepper, "Futexes Are
 * Tricky", section 5).
 */
static inline void lock(uint32_t *word)
{
    uint32_t seen = 0;

    if (__atomic_compare_exchange_n(word, &seen, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return;
    while (__atomic_exchange_n(word, 2, __ATOMIC_ACQUIRE))
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
}

static inline void unlock(uint32_t *word)
{
    if (__atomic_exchange_n(word, 0, __ATOMIC_RELEASE) == 2)
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* A number of 1 to 8 bytes; of more, their first.  No call for the sizes that accesses have. */
static inline uint64_t load(const void *data, uint32_t size)
{
    uint64_t value = 0;

    switch (size) {
    case 1:
        return *(const uint8_t *)data;
    case 2:
        memcpy(&value, data, 2);
        return value;
    case 4:
        memcpy(&value, data, 4);
        return value;
    default:
        memcpy(&value, data, size <= sizeof value ? size : sizeof value);
        return value;
    }
}

void pykvm_shared_hold(struct pykvm_shared *shared);
void pykvm_table_hold(struct pykvm_table *table);
void pykvm_line_hold(struct pykvm_line *line);

/* A collected write that lies in a table: it is posted, whatever the rule says by now. */
void pykvm_table_post(struct pykvm_table *table, uint64_t offset, uint32_t size, uint64_t value);
#endif
