/*
 * cffi's generated C includes <pyconfig.h> first, to see whether it may define Py_LIMITED_API (it may
 * not in a debug build) and whether wchar_t is there.  Nothing else of a Python build shows through
 * the stable ABI.
 */
#ifndef PYKVM_ABI3_PYCONFIG_H
#define PYKVM_ABI3_PYCONFIG_H

#define HAVE_WCHAR_H 1

#endif
