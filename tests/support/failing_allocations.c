/*
 * Preloaded: lets one allocation of pykvm's C core fail, or all from one on.  Those of others, Python's first
 * of all, are left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

/* How many more succeed; none fails while it is negative. */
long fail_after = -1;
/* Whether those after it fail, too. */
int fail_on;
/* How many have failed. */
long failed;

static int fails(const void *caller)
{
    Dl_info info;

    if (fail_after < 0 || !dladdr(caller, &info) || !info.dli_fname || !strstr(info.dli_fname, "_native."))
        return 0;
    if (fail_after > 0) {
        fail_after--;
        return 0;
    }
    if (!fail_on)
        fail_after = -1;
    failed++;
    errno = ENOMEM;
    return 1;
}

#define FAILS fails(__builtin_return_address(0))

void *malloc(size_t size)
{
    return FAILS ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return FAILS ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return FAILS ? NULL : __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return FAILS ? NULL : __libc_memalign(alignment, size);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    return FAILS ? MAP_FAILED : (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}

int memfd_create(const char *name, unsigned flags)
{
    return FAILS ? -1 : (int)syscall(SYS_memfd_create, name, flags);
}
