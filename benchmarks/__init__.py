"""Measurements of pykvm beside a C loop, memcpy, the kernel and QEMU, taken in the same run."""
