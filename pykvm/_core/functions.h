/* Functions that take and return objects of Python's, with the GIL: cffi has no part in them. */
#ifndef PYKVM_FUNCTIONS_H
#define PYKVM_FUNCTIONS_H
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030a0000
#endif
#include <Python.h>

#include "core.h"

PyObject *hold_claim(PyObject *self, PyObject *arguments); /* hold.c */
PyObject *hold_vcpu(PyObject *self, PyObject *arguments);
PyObject *drive(PyObject *self, PyObject *arguments);   /* drive.c */
PyObject *by_hand(PyObject *self, PyObject *arguments); /* by_hand.c */
#endif
