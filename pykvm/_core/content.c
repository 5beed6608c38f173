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
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A leaf has the pages of one word of the bitmaps. */
#define FAN 64
#define FAN_BITS 6

/* So many changed pages make a base of their own, where there is none, and a fork copies at most so many. */
#define FEW_PAGES 256
/* At most so many mappings for one region of a fork. */
#define MAPPINGS 64

struct frame {
    uint32_t refs;
    uint8_t bytes[PAGE] __attribute__((aligned(16)));
};

/* Of a leaf, frames; of other nodes, nodes.  NULL is what the base has. */
struct node {
    uint32_t refs;
    void *child[FAN];
};

/* A file, mapped; read-only, and private so that an old kernel maps a sealed one. */
struct base {
    uint32_t refs;
    int fd;
    uint64_t offset;   /* in the file */
    uint64_t size;
    const uint8_t *at;
    uint64_t *present; /* a bit for each page that is not zero; NULL: any may be */
};

struct pykvm_content {
    uint32_t refs;
    int levels; /* of nodes, the leaves included */
    uint64_t count;
    uint64_t overrides; /* pages in the tree */
    struct base *base;
    struct node *root;
    struct base *flat; /* all of it in one file, once a fork has needed that */
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

static int is_zero(const uint8_t *page)
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

/* Where a base gets its pages from: the bytes of one, or NULL if it is zero. */
typedef const uint8_t *source(const void *of, uint64_t page);

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

/* NULL with errno in *error. */
static struct base *base_from(uint64_t count, source *bytes_of, const void *of, int32_t *error)
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

/* The bytes of a page; NULL if it is zero. */
static const uint8_t *page_of(const struct pykvm_content *c, uint64_t page)
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
        if (*data && !is_zero(*data))
            return page;
        page++;
    }
    return c->count;
}

static int same_page(const uint8_t *one, const uint8_t *other)
{
    if (one == other)
        return 1;
    if (!one)
        return is_zero(other);
    return other ? !memcmp(one, other, PAGE) : is_zero(one);
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
        if (!same_page(page_of(one, page), page_of(other, page)))
            return page;
        page++;
    }
    return one->count;
}

/* Move the marks to `taken`.  Returns how many there are. */
static uint64_t take(struct pykvm_pages *p)
{
    uint64_t count = 0;

    for (uint64_t group = 0; group < groups_of(p); group++) {
        if (!__atomic_load_n(&p->summary[group], __ATOMIC_SEQ_CST))
            continue;
        p->taken_summary[group] = __atomic_exchange_n(&p->summary[group], 0, __ATOMIC_SEQ_CST);
        for (uint64_t words = p->taken_summary[group]; words; words &= words - 1) {
            uint64_t word = group * 64 + (uint64_t)__builtin_ctzll(words);

            p->taken[word] = __atomic_exchange_n(&p->dirty[word], 0, __ATOMIC_SEQ_CST);
            count += (uint64_t)__builtin_popcountll(p->taken[word]);
        }
    }
    return count;
}

/* The first word from `word` on of which something was taken; the number of words if there is none. */
static uint64_t next_taken(const struct pykvm_pages *p, uint64_t word)
{
    while (word < words_of(p)) {
        uint64_t words = p->taken_summary[word / 64] >> word % 64;

        if (words)
            return word + (uint64_t)__builtin_ctzll(words);
        word = (word / 64 + 1) * 64;
    }
    return words_of(p);
}

/* Done with what was taken; or it is marked again. */
static void give_back(struct pykvm_pages *p, int again)
{
    for (uint64_t word = next_taken(p, 0); word < words_of(p); word = next_taken(p, word + 1)) {
        if (p->taken[word] && again)
            mark_word(p, word, p->taken[word]);
        p->taken[word] = 0;
    }
    memset(p->taken_summary, 0, groups_of(p) * sizeof *p->taken_summary);
}

static const uint8_t *memory_page(const void *of, uint64_t page)
{
    const struct pykvm_pages *p = of;
    const uint8_t *bytes = p->host + page * PAGE;

    /* What is not taken is as it was: to read what nobody has touched would allocate it. */
    if (!(p->taken[page / 64] >> page % 64 & 1) && !page_of(p->content, page))
        return NULL;
    return is_zero(bytes) ? NULL : bytes;
}

static const uint8_t *content_page(const void *of, uint64_t page)
{
    return page_of(of, page);
}

/* Let `c` have what is in memory.  Returns 0 without memory for that. */
static int refreeze_page(struct pykvm_content *c, const uint8_t *bytes, uint64_t page)
{
    const uint8_t *base = base_page(c->base, page);
    struct frame *frame;

    if (same_page(page_of(c, page), bytes))
        return 1;
    if (same_page(base, bytes))
        return put(c, page, NULL);
    frame = is_zero(bytes) ? &zero_frame : frame_new(bytes);
    if (frame && put(c, page, frame))
        return 1;
    frame_free(frame);
    return 0;
}

static int refreeze(struct pykvm_content *c, const struct pykvm_pages *p)
{
    for (uint64_t word = next_taken(p, 0); word < words_of(p); word = next_taken(p, word + 1)) {
        for (uint64_t bits = p->taken[word]; bits; bits &= bits - 1) {
            uint64_t page = word * 64 + (uint64_t)__builtin_ctzll(bits);

            if (!refreeze_page(c, p->host + page * PAGE, page))
                return 0;
        }
    }
    return 1;
}

/* Let a new content be as another one. */
static void share_content(struct pykvm_content *c, const struct pykvm_content *other)
{
    if (other->base)
        hold(&other->base->refs);
    c->base = other->base;
    if (other->root)
        hold(&other->root->refs);
    c->root = other->root;
    c->overrides = other->overrides;
}

static int fill_content(struct pykvm_content *c, struct pykvm_pages *p, uint64_t changed)
{
    const struct pykvm_content *before = p->content;

    if (!before->base && before->overrides + changed > FEW_PAGES) {
        c->base = base_from(p->count, memory_page, p, &p->error);
        return c->base != NULL;
    }
    share_content(c, before);
    if (refreeze(c, p))
        return 1;
    p->error = ENOMEM;
    return 0;
}

struct pykvm_content *pykvm_freeze(struct pykvm_pages *p)
{
    struct pykvm_content *c;
    uint64_t changed = take(p);

    if (!changed) {
        give_back(p, 0);
        return pykvm_content_hold(p->content);
    }
    p->error = ENOMEM;
    c = pykvm_content_new(p->count);
    if (c && !fill_content(c, p, changed)) {
        pykvm_content_free(c);
        c = NULL;
    }
    give_back(p, c == NULL);
    if (!c)
        return NULL;
    pykvm_content_free(p->content);
    p->content = c;
    return pykvm_content_hold(c);
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
    return refreeze_page(c, bytes, page) ? 0 : -ENOMEM;
}

void pykvm_relate(struct pykvm_pages *p, struct pykvm_content *to)
{
    struct pykvm_content *from = p->content;

    if (from == to)
        return;
    if (from->base == to->base) {
        mark_differing(p, from->root, to->root, to->levels - 1, 0);
    } else {
        mark_content(p, from);
        mark_content(p, to);
    }
    /* From here on every page that is not marked holds what `to` says. */
    hold(&to->refs);
    p->content = to;
    pykvm_content_free(from);
}

static int thaw_page(const uint8_t *bytes, uint8_t *target, int compare)
{
    if (compare && same_page(bytes, target))
        return 0;
    if (bytes)
        memcpy(target, bytes, PAGE);
    else
        memset(target, 0, PAGE);
    return 1;
}

uint64_t pykvm_thaw(struct pykvm_pages *p, struct pykvm_content *to, int compare)
{
    uint64_t copied = 0;

    pykvm_relate(p, to);
    take(p);
    for (uint64_t word = next_taken(p, 0); word < words_of(p); word = next_taken(p, word + 1)) {
        for (uint64_t bits = p->taken[word]; bits; bits &= bits - 1) {
            uint64_t page = word * 64 + (uint64_t)__builtin_ctzll(bits);

            copied += (uint64_t)thaw_page(page_of(to, page), p->host + page * PAGE, compare);
        }
    }
    give_back(p, 0);
    return copied;
}

/* One file that has all of it, or all but a few pages; NULL if none has anything. */
static struct base *flat_of(struct pykvm_content *c, int32_t *error)
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

/* The end of the run of pages that begins at `page`, over holes of up to `gap` pages. */
static uint64_t run_end(const struct base *base, uint64_t page, uint64_t count, uint64_t gap)
{
    uint64_t end = page + 1;

    if (!base->present)
        return count;
    for (uint64_t next = end; next < count && next - end <= gap; next++)
        if (base->present[next / 64] >> next % 64 & 1)
            end = next + 1;
    return end;
}

static uint64_t next_present(const struct base *base, uint64_t page, uint64_t count)
{
    while (page < count && base->present) {
        uint64_t bits = base->present[page / 64] >> page % 64;

        if (bits) {
            page += (uint64_t)__builtin_ctzll(bits);
            break;
        }
        page = (page / 64 + 1) * 64;
    }
    return page < count ? page : count;
}

static uint64_t runs(const struct base *base, uint64_t count, uint64_t gap)
{
    uint64_t found = 0;

    for (uint64_t page = next_present(base, 0, count); page < count; found++)
        page = next_present(base, run_end(base, page, count, gap), count);
    return found;
}

/* Holes stay what they are, pages of zero that cost nothing, unless that took too many mappings. */
static int map_base(const struct base *base, struct pykvm_pages *p)
{
    uint64_t gap = 16, end;

    while (runs(base, p->count, gap) > MAPPINGS)
        gap *= 4;
    for (uint64_t page = next_present(base, 0, p->count); page < p->count;
         page = next_present(base, end, p->count)) {
        end = run_end(base, page, p->count, gap);
        if (mmap(p->host + page * PAGE, (end - page) * PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, base->fd,
                 (off_t)(base->offset + page * PAGE)) == MAP_FAILED)
            return -errno;
    }
    return 0;
}

int pykvm_content_map(struct pykvm_content *c, struct pykvm_pages *p)
{
    int32_t error = 0;
    struct base *base = flat_of(c, &error);
    int result = base ? map_base(base, p) : -error;

    if (result)
        return result;
    if (base == c->base && c->root)
        mark_differing(p, c->root, NULL, c->levels - 1, 0);
    hold(&c->refs);
    pykvm_content_free(p->content);
    p->content = c;
    pykvm_thaw(p, c, 0);
    return 0;
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
