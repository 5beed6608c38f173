/* What content.c has for freeze.c: contents, and the files that they stand on; Python does not see it. */
#ifndef PYKVM_CONTENT_H
#define PYKVM_CONTENT_H
#include "pages.h"

/* So many changed pages make a base of their own, where there is none, and a fork copies at most so many. */
#define FEW_PAGES 256

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
    struct node *root; /* of what the base has otherwise; NULL: nothing */
    struct base *flat; /* all of it in one file, once a fork has needed that */
};

/* Where a base gets its pages from: the bytes of one, or NULL if it is zero. */
typedef const uint8_t *source(const void *of, uint64_t page);

/* A base of `count` pages; NULL with errno in *error. */
struct base *base_from(uint64_t count, source *bytes_of, const void *of, int32_t *error);

/* The bytes of a page; NULL if it is zero. */
const uint8_t *page_of(const struct pykvm_content *c, uint64_t page);

/* Either may be NULL, for a page of zeros. */
int is_same_page(const uint8_t *one, const uint8_t *other);
int is_zero_page(const uint8_t *page);

/* Let a new content be as another one. */
void share_content(struct pykvm_content *c, const struct pykvm_content *other);

/* Let `c` have these bytes.  Returns 0 without memory for that. */
int set_page(struct pykvm_content *c, const uint8_t *bytes, uint64_t page);

/* One file that has all of it, or all but the pages in the tree, of which there are few; NULL if none
 * has anything, or with errno in *error. */
struct base *flat_of(struct pykvm_content *c, int32_t *error);

/* Mark the pages that the tree has otherwise than the base, and those that differ between two contents. */
void mark_overrides(struct pykvm_pages *p, const struct pykvm_content *c);
void mark_between(struct pykvm_pages *p, const struct pykvm_content *one, const struct pykvm_content *other);
#endif
