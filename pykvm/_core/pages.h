/* What dirty.c, content.c and freeze.c share; Python does not see it. */
#ifndef PYKVM_PAGES_H
#define PYKVM_PAGES_H
#include "dirty.h"

#define PAGE 4096ull

static inline uint64_t words_of(const struct pykvm_pages *p)
{
    return (p->count + 63) / 64;
}

static inline uint64_t groups_of(const struct pykvm_pages *p)
{
    return (words_of(p) + 63) / 64;
}

static inline void mark_word(struct pykvm_pages *p, uint64_t word, uint64_t bits)
{
    uint64_t group = 1ull << word % 64;

    /* The word first: who takes the summary meanwhile finds it, or leaves its bit for the next. */
    if ((__atomic_load_n(&p->dirty[word], __ATOMIC_SEQ_CST) & bits) != bits)
        __atomic_fetch_or(&p->dirty[word], bits, __ATOMIC_SEQ_CST);
    if (!(__atomic_load_n(&p->summary[word / 64], __ATOMIC_SEQ_CST) & group))
        __atomic_fetch_or(&p->summary[word / 64], group, __ATOMIC_SEQ_CST);
}

void mark_range(struct pykvm_pages *p, uint64_t first, uint64_t last);

/* Mark the pages that are not zero in `content`. */
void mark_content(struct pykvm_pages *p, const struct pykvm_content *content);
#endif
