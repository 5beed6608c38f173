/*
 * Descriptors that belong to an object from the moment that they exist: see core.h.
 */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Store what a system call returned: a descriptor, or -1 with an errno. */
static int keep(struct pykvm_descriptor *descriptor, int fd)
{
    if (fd < 0)
        return -errno;
    pykvm_close(descriptor);
    __atomic_store_n(&descriptor->fd, fd, __ATOMIC_RELEASE);
    return 0;
}

int pykvm_open(struct pykvm_descriptor *descriptor, const char *path, int flags, unsigned mode)
{
    return keep(descriptor, open(path, flags | O_CLOEXEC, mode));
}

int pykvm_open_memfd(struct pykvm_descriptor *descriptor, const char *name, unsigned flags)
{
    return keep(descriptor, memfd_create(name, flags | MFD_CLOEXEC));
}

int pykvm_open_ioctl(struct pykvm_descriptor *descriptor, int fd, uint64_t number, uint64_t argument)
{
    return keep(descriptor, ioctl(fd, number, argument));
}

int pykvm_open_device(struct pykvm_descriptor *descriptor, int vm, uint32_t type)
{
    struct kvm_create_device device = {.type = type};

    return keep(descriptor, ioctl(vm, KVM_CREATE_DEVICE, &device) < 0 ? -1 : (int)device.fd);
}

void pykvm_close(struct pykvm_descriptor *descriptor)
{
    int fd = __atomic_exchange_n(&descriptor->fd, -1, __ATOMIC_ACQ_REL);

    if (fd >= 0)
        close(fd);
}

int pykvm_put_mapping(void *at, uint64_t size, int fd)
{
    int flags = MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);

    return mmap(at, size, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED ? -errno : 0;
}
