"""Measurements of pykvm against a C loop, memcpy and QEMU, taken in turns in the same run."""
