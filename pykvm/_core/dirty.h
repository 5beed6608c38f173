/*
 * Pages of guest memory: which of them were written, what they held when they were frozen, and how
 * they get it back.  build.py hands this file to cffi, as it does core.h.
 */
#ifndef PYKVM_DIRTY_H
#define PYKVM_DIRTY_H
#include <stdint.h>

struct pykvm_content;

/*
 * The pages of one region as this process has them.  Every page that is not dirty holds what `content`
 * says.  What stores into them marks them afterwards, so that a page frozen meanwhile is dirty again.
 */
struct pykvm_pages {
    uint8_t *host;
    uint64_t count;
    uint64_t *dirty;   /* a bit a page */
    uint64_t *summary; /* a bit for each word of `dirty` that may have one set */
    uint64_t *taken;   /* as `dirty`: those that freeze or thaw is about; clear in between */
    uint64_t *taken_summary;
    struct pykvm_content *content;
    int32_t error; /* errno of the last call that failed */
};

/* Of `count` pages at `host`, all of them zero and none dirty.  NULL without memory. */
struct pykvm_pages *pykvm_pages_new(void *host, uint64_t count);
void pykvm_pages_free(struct pykvm_pages *pages);

/* `size` bytes from `offset` on were written, or may have been. */
void pykvm_mark(struct pykvm_pages *pages, uint64_t offset, uint64_t size);

/* How many pages are marked. */
uint64_t pykvm_marked(const struct pykvm_pages *pages);

/*
 * Mark the pages that this process has touched since it mapped them, by /proc/self/pagemap; the mapping is
 * anonymous.  Returns 0 or a negative errno, having marked all of them.
 */
int pykvm_mark_touched(struct pykvm_pages *pages);

/*
 * The same of a memfd that others may write to, too: what is no hole in it, and what was none.  Reading holes
 * would fill them.
 */
int pykvm_mark_data(struct pykvm_pages *pages, int fd);

/*
 * Mark what KVM's dirty log has of a slot, and clear it there: KVM_GET_DIRTY_LOG, with KVM_CLEAR_DIRTY_LOG
 * if `manual` says that the VM wants that.  Returns 0 or a negative errno.
 */
int pykvm_merge_dirty_log(struct pykvm_pages *pages, int vm, uint32_t slot, int manual);

/* Copy into the pages, or set bytes of them, and mark them.  Aligned integers are stored in one piece. */
void pykvm_store(struct pykvm_pages *pages, uint64_t offset, const void *data, uint64_t size);
void pykvm_fill(struct pykvm_pages *pages, uint64_t offset, int byte, uint64_t size);

/*
 * CMPXCHG16B with LOCK, atomic against other vCPUs.  `offset` is a multiple of 16; `expected` and
 * `desired` are two words each, low first.  Returns 1 and stores `desired` if the target was as
 * expected; otherwise returns 0 and leaves what was there in `expected`.
 */
int pykvm_cmpxchg16b(struct pykvm_pages *pages, uint64_t offset, uint64_t *expected,
                     const uint64_t *desired);

/*
 * What the pages of a region hold at one moment, for good.  It shares the pages that are equal with
 * the content that it was made from, whichever of the two is freed first.
 */

/* What is in the pages now: none is dirty then.  NULL with `error` set, and nothing changed. */
struct pykvm_content *pykvm_freeze(struct pykvm_pages *pages);

/*
 * Put the pages back to `content`, which is of as many pages.  Returns how many were copied.  With
 * `compare`, those that are equal already are not written.  This cannot fail.
 */
uint64_t pykvm_thaw(struct pykvm_pages *pages, struct pykvm_content *content, int compare);

/* Mark all pages that may not hold what `content` says, which the next freeze shares what it can with. */
void pykvm_relate(struct pykvm_pages *pages, struct pykvm_content *content);

/* Another reference, for pykvm_content_free. */
struct pykvm_content *pykvm_content_hold(struct pykvm_content *content);
void pykvm_content_free(struct pykvm_content *content);
uint64_t pykvm_content_pages(const struct pykvm_content *content);

/*
 * The first page from `page` on that is not zero, and where its bytes are; the number of pages if
 * there is none.
 */
uint64_t pykvm_content_next(const struct pykvm_content *content, uint64_t page, const uint8_t **data);

/* The first page from `page` on in which two contents may differ; the number of pages if there is none. */
uint64_t pykvm_content_differs(const struct pykvm_content *one, const struct pykvm_content *other,
                               uint64_t page);

/*
 * Map the content at `host`, private to this process; there are pages of zero there now.  `pages` is
 * theirs: it begins with that content.  Returns 0 or a negative errno.
 */
int pykvm_content_map(struct pykvm_content *content, struct pykvm_pages *pages);

/*
 * The content that `size` bytes of a file from `offset` on, both multiples of 4096, have.  They are mapped,
 * not read: the file must not change.  NULL with errno in *error.
 */
struct pykvm_content *pykvm_content_of_file(int fd, uint64_t offset, uint64_t size, int32_t *error);

/*
 * A content of `count` pages of zero, or one as another; NULL without memory.  As long as nothing else has
 * it, pages can be put into it: 0 or a negative errno.
 */
struct pykvm_content *pykvm_content_new(uint64_t count);
struct pykvm_content *pykvm_content_copy(const struct pykvm_content *other);
int pykvm_content_put(struct pykvm_content *content, uint64_t page, const uint8_t *bytes);

/* How many pages all contents of this process have outside of files. */
int64_t pykvm_frames(void);
#endif
