/* Freezing the pages of a region, putting them back as they were frozen, and mapping them for a fork. */
#define _GNU_SOURCE
#include "content.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* At most so many mappings for one region of a fork. */
#define MAPPINGS 64

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

    /* What is not taken is as it was: to read what was never touched would allocate it. */
    if (!(p->taken[page / 64] >> page % 64 & 1) && !page_of(p->content, page))
        return NULL;
    return is_zero_page(bytes) ? NULL : bytes;
}

static int refreeze(struct pykvm_content *c, const struct pykvm_pages *p)
{
    for (uint64_t word = next_taken(p, 0); word < words_of(p); word = next_taken(p, word + 1)) {
        for (uint64_t bits = p->taken[word]; bits; bits &= bits - 1) {
            uint64_t page = word * 64 + (uint64_t)__builtin_ctzll(bits);

            if (!set_page(c, p->host + page * PAGE, page))
                return 0;
        }
    }
    return 1;
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

void pykvm_relate(struct pykvm_pages *p, struct pykvm_content *to)
{
    struct pykvm_content *from = p->content;

    if (from == to)
        return;
    mark_between(p, from, to);
    /* From here on every page that is not marked holds what `to` says. */
    p->content = pykvm_content_hold(to);
    pykvm_content_free(from);
}

static int thaw_page(const uint8_t *bytes, uint8_t *target, int compare)
{
    if (compare && is_same_page(bytes, target))
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
        mark_overrides(p, c);
    pykvm_content_hold(c);
    pykvm_content_free(p->content);
    p->content = c;
    pykvm_thaw(p, c, 0);
    return 0;
}
