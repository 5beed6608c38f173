/* Which pages of guest memory were written: by the host, as it stores, and by the guest, as KVM logged it. */
#define _GNU_SOURCE
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_HERE (3ull << 62) /* present, or swapped out */
#define PAGEMAP_ENTRIES 4096

struct pykvm_pages *pykvm_pages_new(void *host, uint64_t count)
{
    struct pykvm_pages *p = calloc(1, sizeof *p);

    if (!p)
        return NULL;
    p->host = host;
    p->count = count;
    p->dirty = calloc(words_of(p), sizeof *p->dirty);
    p->taken = calloc(words_of(p), sizeof *p->taken);
    p->summary = calloc(groups_of(p), sizeof *p->summary);
    p->taken_summary = calloc(groups_of(p), sizeof *p->taken_summary);
    p->content = pykvm_content_new(count);
    if (!p->dirty || !p->taken || !p->summary || !p->taken_summary || !p->content) {
        pykvm_pages_free(p);
        return NULL;
    }
    return p;
}

void pykvm_pages_free(struct pykvm_pages *p)
{
    if (!p)
        return;
    pykvm_content_free(p->content);
    free(p->dirty);
    free(p->taken);
    free(p->summary);
    free(p->taken_summary);
    free(p);
}

void mark_range(struct pykvm_pages *p, uint64_t first, uint64_t last)
{
    for (uint64_t word = first / 64; word <= last / 64; word++) {
        uint64_t bits = UINT64_MAX;

        if (word == first / 64)
            bits &= UINT64_MAX << first % 64;
        if (word == last / 64)
            bits &= UINT64_MAX >> (63 - last % 64);
        mark_word(p, word, bits);
    }
}

void pykvm_mark(struct pykvm_pages *p, uint64_t offset, uint64_t size)
{
    if (size)
        mark_range(p, offset / PAGE, (offset + size - 1) / PAGE);
}

uint64_t pykvm_marked(const struct pykvm_pages *p)
{
    uint64_t count = 0;

    for (uint64_t word = 0; word < words_of(p); word++)
        count += __builtin_popcountll(p->dirty[word]);
    return count;
}

static int mark_by_pagemap(struct pykvm_pages *p, int pagemap)
{
    uint64_t entries[PAGEMAP_ENTRIES];
    uint64_t first = (uintptr_t)p->host / PAGE;

    for (uint64_t page = 0; page < p->count;) {
        uint64_t wanted = p->count - page;
        ssize_t got;

        if (wanted > PAGEMAP_ENTRIES)
            wanted = PAGEMAP_ENTRIES;
        got = pread(pagemap, entries, wanted * sizeof *entries,
                    (off_t)((first + page) * sizeof *entries));
        if (got < (ssize_t)sizeof *entries)
            return got < 0 ? -errno : -EIO;
        for (uint64_t i = 0; i < (uint64_t)got / sizeof *entries; i++)
            if (entries[i] & PAGEMAP_HERE)
                mark_range(p, page + i, page + i);
        page += (uint64_t)got / sizeof *entries;
    }
    return 0;
}

int pykvm_mark_touched(struct pykvm_pages *p)
{
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int result = pagemap < 0 ? -errno : mark_by_pagemap(p, pagemap);

    if (result)
        mark_range(p, 0, p->count - 1);
    if (pagemap >= 0)
        close(pagemap);
    return result;
}

static int mark_by_extents(struct pykvm_pages *p, int fd)
{
    off_t size = (off_t)(p->count * PAGE), begin = 0, end;

    while (begin < size) {
        begin = lseek(fd, begin, SEEK_DATA);
        if (begin < 0)
            return errno == ENXIO ? 0 : -errno; /* ENXIO: a hole up to the end */
        end = lseek(fd, begin, SEEK_HOLE);
        if (end < 0)
            return -errno;
        pykvm_mark(p, (uint64_t)begin, (uint64_t)((end < size ? end : size) - begin));
        begin = end;
    }
    return 0;
}

int pykvm_mark_data(struct pykvm_pages *p, int fd)
{
    char name[64];
    int own, result;

    /* What was there when it was frozen, and may be a hole now. */
    mark_content(p, p->content);
    /* Opened anew: the offset of `fd` is that of every process which has it. */
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    own = open(name, O_RDONLY | O_CLOEXEC);
    result = own < 0 ? -errno : mark_by_extents(p, own);
    if (result)
        mark_range(p, 0, p->count - 1);
    if (own >= 0)
        close(own);
    return result;
}

/* Done with these words of the log: clear them here, and with `manual` in KVM. */
static int clear_log(struct pykvm_pages *p, int vm, struct kvm_dirty_log *of, int manual,
                     uint64_t first, uint64_t end)
{
    struct kvm_clear_dirty_log log = {
        .slot = of->slot,
        .first_page = first * 64,
        .num_pages = (uint32_t)((end * 64 < p->count ? end * 64 : p->count) - first * 64),
        .dirty_bitmap = p->taken + first,
    };
    int result = manual && ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log) ? -errno : 0;

    memset(p->taken + first, 0, (end - first) * sizeof *p->taken);
    return result;
}

/* Whether any of the words is not zero; GCC makes vectors of the hardware's size of these. */
static int is_any(const uint64_t *words, uint64_t count)
{
    typedef uint64_t vector __attribute__((vector_size(64), aligned(8), may_alias));
    vector all = {0};
    uint64_t any = 0, i = 0;

    for (; i + 8 <= count; i += 8)
        all |= *(const vector *)(words + i);
    for (int lane = 0; lane < 8; lane++)
        any |= all[lane];
    for (; i < count; i++)
        any |= words[i];
    return any != 0;
}

/* Mark what some words of the log have; whether that is anything. */
static int merge_group(struct pykvm_pages *p, uint64_t first, uint64_t end)
{
    const uint64_t *log = p->taken;

    if (!is_any(log + first, end - first))
        return 0;
    for (uint64_t word = first; word < end; word++)
        if (log[word])
            mark_word(p, word, log[word]);
    return 1;
}

int pykvm_merge_dirty_log(struct pykvm_pages *p, int vm, uint32_t slot, int manual)
{
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = p->taken};
    uint64_t words = words_of(p), begin = 0;
    int result = 0, in_run = 0;

    if (ioctl(vm, KVM_GET_DIRTY_LOG, &log))
        return -errno;
    /* One KVM_CLEAR_DIRTY_LOG for each run of groups with something in them, not for each page. */
    for (uint64_t first = 0, end; first < words; first = end) {
        end = first + 64 < words ? first + 64 : words;
        if (merge_group(p, first, end)) {
            if (!in_run)
                begin = first;
            in_run = 1;
        } else if (in_run) {
            in_run = 0;
            result = clear_log(p, vm, &log, manual, begin, first) ?: result;
        }
    }
    if (in_run)
        result = clear_log(p, vm, &log, manual, begin, words) ?: result;
    return result;
}

void pykvm_store(struct pykvm_pages *p, uint64_t offset, const void *data, uint64_t size)
{
    uint8_t *target = p->host + offset;
    uint64_t value = 0;

    if (size <= 8 && (size & (size - 1)) == 0 && size && !(offset & (size - 1))) {
        memcpy(&value, data, size);
        if (size == 8)
            __atomic_store_n((uint64_t *)target, value, __ATOMIC_RELAXED);
        else if (size == 4)
            __atomic_store_n((uint32_t *)target, (uint32_t)value, __ATOMIC_RELAXED);
        else if (size == 2)
            __atomic_store_n((uint16_t *)target, (uint16_t)value, __ATOMIC_RELAXED);
        else
            __atomic_store_n(target, (uint8_t)value, __ATOMIC_RELAXED);
    } else {
        memmove(target, data, size); /* the data may be guest memory, too */
    }
    pykvm_mark(p, offset, size);
}

void pykvm_fill(struct pykvm_pages *p, uint64_t offset, int byte, uint64_t size)
{
    memset(p->host + offset, byte, size);
    pykvm_mark(p, offset, size);
}

int pykvm_cmpxchg16b(struct pykvm_pages *p, uint64_t offset, uint64_t *expected,
                     const uint64_t *desired)
{
    unsigned char same;

    __asm__ volatile("lock cmpxchg16b %1\n\tsetz %0"
                     : "=q"(same), "+m"(*(__int128 *)(p->host + offset)), "+a"(expected[0]),
                       "+d"(expected[1])
                     : "b"(desired[0]), "c"(desired[1])
                     : "cc", "memory");
    pykvm_mark(p, offset, 16);
    return same;
}
