/*
 * What the pages of a region held when they were frozen.
 *
 * The first content of a region is a sparse memfd, laid out as the region is, of the pages that are not
 * zero: its base.  Those made from it share the base, and have a tree of the pages that differ from it.
 * Nodes and pages of the tree are counted and shared: to freeze again copies the changed pages and the few
 * nodes above them, to find a page takes as many steps as the tree has levels, and what differs between any
 * two contents of one base is found without looking at what they share.
 */
#define _GNU_SOURCE
#include "content.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A leaf has the pages of one word of the bitmaps. */
#define FAN 64
#define FAN_BITS 6

struct frame {
    uint32_t refs;
    uint8_t bytes[PAGE] __attribute__((aligned(16)));
};

/* Of a leaf, frames; of other nodes, nodes.  NULL is what the base has. */
struct node {
    uint32_t refs;
    void *child[FAN];
};

/* In the tree where a page is zero and the base's is not. */
static struct frame zero_frame;
static int64_t frames;

int64_t pykvm_frames(void)
{
    return __atomic_load_n(&frames, __ATOMIC_RELAXED);
}

static void hold(uint32_t *refs)
{
    __atomic_fetch_add(refs, 1, __ATOMIC_RELAXED);
}

static int drop(uint32_t *refs)
{
    return __atomic_sub_fetch(refs, 1, __ATOMIC_ACQ_REL) == 0;
}

int is_zero_page(const uint8_t *page)
{
    static const uint8_t none[16];

    return !memcmp(page, none, sizeof none) && !memcmp(page, page + 16, PAGE - 16);
}

static struct frame *frame_new(const uint8_t *bytes)
{
    struct frame *frame = malloc(sizeof *frame);

    if (!frame)
        return NULL;
    frame->refs = 1;
    memcpy(frame->bytes, bytes, PAGE);
    __atomic_fetch_add(&frames, 1, __ATOMIC_RELAXED);
    return frame;
}

static void frame_free(struct frame *frame)
{
    if (!frame || frame == &zero_frame || !drop(&frame->refs))
        return;
    __atomic_fetch_sub(&frames, 1, __ATOMIC_RELAXED);
    free(frame);
}

/* `level` is 0 for a leaf. */
static void node_free(struct node *node, int level)
{
    if (!node || !drop(&node->refs))
        return;
    for (int i = 0; i < FAN; i++) {
        if (level)
            node_free(node->child[i], level - 1);
        else
            frame_free(node->child[i]);
    }
    free(node);
}

static void child_hold(void *child, int level)
{
    if (child && child != &zero_frame)
        hold(level ? &((struct node *)child)->refs : &((struct frame *)child)->refs);
}

/* Make `*slot` a node that no other content has.  Returns 0 without memory. */
static int own_node(struct node **slot, int level)
{
    struct node *shared = *slot, *node;

    if (shared && __atomic_load_n(&shared->refs, __ATOMIC_ACQUIRE) == 1)
        return 1;
    node = calloc(1, sizeof *node);
    if (!node)
        return 0;
    node->refs = 1;
    if (shared) {
        memcpy(node->child, shared->child, sizeof node->child);
        for (int i = 0; i < FAN; i++)
            child_hold(node->child[i], level);
        node_free(shared, level);
    }
    *slot = node;
    return 1;
}

/* Put a frame, which the tree takes over, or NULL.  Returns 0 without memory. */
static int put(struct pykvm_content *c, uint64_t page, struct frame *frame)
{
    struct node **slot = &c->root;
    struct frame **leaf;

    for (int level = c->levels - 1; level; level--) {
        if (!own_node(slot, level))
            return 0;
        slot = (struct node **)&(*slot)->child[page >> FAN_BITS * level & (FAN - 1)];
    }
    if (!own_node(slot, 0))
        return 0;
    leaf = (struct frame **)&(*slot)->child[page & (FAN - 1)];
    c->overrides += (frame != NULL) - (*leaf != NULL);
    frame_free(*leaf);
    *leaf = frame;
    return 1;
}

/* The leaf of a word of pages, or NULL. */
static const struct node *leaf_of(const struct pykvm_content *c, uint64_t word)
{
    const struct node *node = c->root;

    for (int level = c->levels - 1; level && node; level--)
        node = node->child[word >> FAN_BITS * (level - 1) & (FAN - 1)];
    return node;
}

/* Mark the pages in which two trees differ. */
static void mark_differing(struct pykvm_pages *p, const struct node *one, const struct node *other,
                           int level, uint64_t first)
{
    uint64_t bits = 0;

    if (one == other)
        return;
    for (uint64_t i = 0; i < FAN; i++) {
        void *mine = one ? one->child[i] : NULL, *theirs = other ? other->child[i] : NULL;

        if (mine == theirs)
            continue;
        if (level)
            mark_differing(p, mine, theirs, level - 1, first + (i << FAN_BITS * level));
        else
            bits |= 1ull << i;
    }
    if (bits)
        mark_word(p, first / 64, bits);
}

static void base_free(struct base *base)
{
    if (!base || !drop(&base->refs))
        return;
    if (base->at)
        munmap((void *)base->at, base->size);
    if (base->fd >= 0)
        close(base->fd);
    free(base->present);
    free(base);
}

static struct base *base_new(uint64_t size)
{
    struct base *base = calloc(1, sizeof *base);

    if (!base)
        return NULL;
    base->refs = 1;
    base->fd = -1;
    base->size = size;
    return base;
}

static int base_map(struct base *base)
{
    void *at = mmap(NULL, base->size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, base->fd,
                    (off_t)base->offset);

    if (at == MAP_FAILED)
        return -errno;
    base->at = at;
    return 0;
}

static int write_all(int fd, const uint8_t *data, uint64_t size, uint64_t offset)
{
    while (size) {
        ssize_t done = pwrite(fd, data, size, (off_t)offset);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -ENOSPC;
        data += done;
        offset += (uint64_t)done;
        size -= (uint64_t)done;
    }
    return 0;
}

/* By pwrite: storing into a mapping would be SIGBUS where the host has no memory left. */
static int base_fill(struct base *base, source *bytes_of, const void *of)
{
    uint64_t count = base->size / PAGE;
    const uint8_t *run = NULL;
    uint64_t first = 0, length = 0;
    int result = 0;

    for (uint64_t page = 0; page <= count && !result; page++) {
        const uint8_t *bytes = page < count ? bytes_of(of, page) : NULL;

        if (bytes)
            base->present[page / 64] |= 1ull << page % 64;
        if (run && bytes == run + length * PAGE) {
            length++;
            continue;
        }
        if (run)
            result = write_all(base->fd, run, length * PAGE, first * PAGE);
        run = bytes;
        first = page;
        length = 1;
    }
    return result;
}

static int base_make(struct base *base, source *bytes_of, const void *of)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
    int result;

    base->present = calloc((base->size / PAGE + 63) / 64, sizeof *base->present);
    if (!base->present)
        return -ENOMEM;
    base->fd = memfd_create("pykvm-frozen", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (base->fd < 0 || ftruncate(base->fd, (off_t)base->size))
        return -errno;
    result = base_fill(base, bytes_of, of);
    if (!result && fcntl(base->fd, F_ADD_SEALS, seals))
        result = -errno;
    return result ? result : base_map(base);
}

struct base *base_from(uint64_t count, source *bytes_of, const void *of, int32_t *error)
{
    struct base *base = base_new(count * PAGE);
    int result = base ? base_make(base, bytes_of, of) : -ENOMEM;

    if (!result)
        return base;
    base_free(base);
    *error = -result;
    return NULL;
}

struct pykvm_content *pykvm_content_new(uint64_t count)
{
    struct pykvm_content *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;
    c->refs = 1;
    c->count = count;
    c->levels = 1;
    while (count > 1ull << FAN_BITS * c->levels)
        c->levels++;
    return c;
}

struct pykvm_content *pykvm_content_hold(struct pykvm_content *c)
{
    hold(&c->refs);
    return c;
}

void pykvm_content_free(struct pykvm_content *c)
{
    if (!c || !drop(&c->refs))
        return;
    node_free(c->root, c->levels - 1);
    base_free(c->base);
    base_free(c->flat);
    free(c);
}

uint64_t pykvm_content_pages(const struct pykvm_content *c)
{
    return c->count;
}

static const uint8_t *base_page(const struct base *base, uint64_t page)
{
    if (!base || (base->present && !(base->present[page / 64] >> page % 64 & 1)))
        return NULL;
    return base->at + page * PAGE;
}

const uint8_t *page_of(const struct pykvm_content *c, uint64_t page)
{
    const struct node *leaf = c->root ? leaf_of(c, page / 64) : NULL;
    const struct frame *frame = leaf ? leaf->child[page & (FAN - 1)] : NULL;

    if (frame)
        return frame == &zero_frame ? NULL : frame->bytes;
    return base_page(c->base, page);
}

/* Which pages of a word may be other than zero. */
static uint64_t mask_of(const struct pykvm_content *c, uint64_t word)
{
    uint64_t left = c->count - word * 64, mask = 0;
    const struct node *leaf = c->root ? leaf_of(c, word) : NULL;

    if (c->base)
        mask = c->base->present ? c->base->present[word] : UINT64_MAX;
    for (int i = 0; leaf && i < FAN; i++) {
        if (leaf->child[i] == &zero_frame)
            mask &= ~(1ull << i);
        else if (leaf->child[i])
            mask |= 1ull << i;
    }
    return left < 64 ? mask & ((1ull << left) - 1) : mask;
}

void mark_content(struct pykvm_pages *p, const struct pykvm_content *c)
{
    for (uint64_t word = 0; word < words_of(p); word++) {
        uint64_t mask = mask_of(c, word);

        if (mask)
            mark_word(p, word, mask);
    }
}

void mark_overrides(struct pykvm_pages *p, const struct pykvm_content *c)
{
    mark_differing(p, c->root, NULL, c->levels - 1, 0);
}

void mark_between(struct pykvm_pages *p, const struct pykvm_content *one, const struct pykvm_content *other)
{
    if (one->base == other->base) {
        mark_differing(p, one->root, other->root, other->levels - 1, 0);
    } else {
        mark_content(p, one);
        mark_content(p, other);
    }
}

uint64_t pykvm_content_next(const struct pykvm_content *c, uint64_t page, const uint8_t **data)
{
    while (page < c->count) {
        uint64_t mask = mask_of(c, page / 64) >> page % 64;

        if (!mask) {
            page = (page / 64 + 1) * 64;
            continue;
        }
        page += (uint64_t)__builtin_ctzll(mask);
        *data = page_of(c, page);
        if (*data && !is_zero_page(*data))
            return page;
        page++;
    }
    return c->count;
}

int is_same_page(const uint8_t *one, const uint8_t *other)
{
    if (one == other)
        return 1;
    if (!one)
        return is_zero_page(other);
    return other ? !memcmp(one, other, PAGE) : is_zero_page(one);
}

uint64_t pykvm_content_differs(const struct pykvm_content *one, const struct pykvm_content *other,
                               uint64_t page)
{
    int is_shared = one->base == other->base;

    while (page < one->count) {
        uint64_t word = page / 64;

        if (is_shared && leaf_of(one, word) == leaf_of(other, word)) {
            page = (word + 1) * 64;
            continue;
        }
        if (!is_same_page(page_of(one, page), page_of(other, page)))
            return page;
        page++;
    }
    return one->count;
}

int set_page(struct pykvm_content *c, const uint8_t *bytes, uint64_t page)
{
    const uint8_t *base = base_page(c->base, page);
    struct frame *frame;

    if (is_same_page(page_of(c, page), bytes))
        return 1;
    if (is_same_page(base, bytes))
        return put(c, page, NULL);
    frame = is_zero_page(bytes) ? &zero_frame : frame_new(bytes);
    if (frame && put(c, page, frame))
        return 1;
    frame_free(frame);
    return 0;
}

void share_content(struct pykvm_content *c, const struct pykvm_content *other)
{
    if (other->base)
        hold(&other->base->refs);
    c->base = other->base;
    if (other->root)
        hold(&other->root->refs);
    c->root = other->root;
    c->overrides = other->overrides;
}

struct pykvm_content *pykvm_content_copy(const struct pykvm_content *other)
{
    struct pykvm_content *c = pykvm_content_new(other->count);

    if (c)
        share_content(c, other);
    return c;
}

int pykvm_content_put(struct pykvm_content *c, uint64_t page, const uint8_t *bytes)
{
    return set_page(c, bytes, page) ? 0 : -ENOMEM;
}

static const uint8_t *content_page(const void *of, uint64_t page)
{
    return page_of(of, page);
}

struct base *flat_of(struct pykvm_content *c, int32_t *error)
{
    struct base *flat = __atomic_load_n(&c->flat, __ATOMIC_ACQUIRE), *none = NULL;

    if (flat)
        return flat;
    if (c->overrides <= FEW_PAGES)
        return c->base;
    flat = base_from(c->count, content_page, c, error);
    if (flat && !__atomic_compare_exchange_n(&c->flat, &none, flat, 0, __ATOMIC_ACQ_REL,
                                             __ATOMIC_ACQUIRE)) {
        base_free(flat); /* another thread was first */
        flat = none;
    }
    return flat;
}

struct pykvm_content *pykvm_content_of_file(int fd, uint64_t offset, uint64_t size, int32_t *error)
{
    struct pykvm_content *c = pykvm_content_new(size / PAGE);
    struct base *base = base_new(size);
    int result = c && base ? 0 : -ENOMEM;

    if (!result) {
        base->offset = offset;
        base->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        result = base->fd < 0 ? -errno : base_map(base);
    }
    if (result) {
        base_free(base);
        pykvm_content_free(c);
        *error = -result;
        return NULL;
    }
    c->base = base;
    return c;
}
