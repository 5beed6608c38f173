/* What dirty.c and content.c share; Python does not see it. */
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

void mark_word(struct pykvm_pages *p, uint64_t word, uint64_t bits);
void mark_range(struct pykvm_pages *p, uint64_t first, uint64_t last);

/* Mark the pages that are not zero in `content`. */
void mark_content(struct pykvm_pages *p, const struct pykvm_content *content);
#endif
