/*
 * The part of CPython's stable ABI that a cffi module in API mode uses, declared from its description
 * (PEP 384 and "C API Stability" in the Python documentation).
 *
 * Python's own headers come in a package of their own (python3-dev), which this project does not ask
 * for.  setup.py puts this directory on the include path only where those headers are missing.  The
 * module that comes out is the same: every function named here is exported by each CPython from 3.10
 * on, and no struct of the interpreter is looked into.  Reference counts, for one, are changed by the
 * functions Py_IncRef and Py_DecRef, never in place.
 */
#ifndef PYKVM_ABI3_PYTHON_H
#define PYKVM_ABI3_PYTHON_H

#ifndef Py_LIMITED_API
#error "these headers serve modules of the limited API only"
#endif

#include "pyconfig.h"

/* The oldest version that the module serves. */
#define PY_MAJOR_VERSION 3
#define PY_MINOR_VERSION 10
#define PY_VERSION_HEX 0x030A0000

/* Modules may count on Python.h for these. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <wchar.h>

/* Opaque, but for their names. */
typedef struct _object PyObject;
typedef struct _typeobject PyTypeObject;
typedef struct _ts PyThreadState;

typedef ssize_t Py_ssize_t;

#ifdef __cplusplus
#define PyMODINIT_FUNC extern "C" __attribute__((visibility("default"))) PyObject *
extern "C" {
#else
#define PyMODINIT_FUNC __attribute__((visibility("default"))) PyObject *
#endif

/* References */
void Py_IncRef(PyObject *object);
void Py_DecRef(PyObject *object);
#define Py_INCREF(object) Py_IncRef((PyObject *)(object))
#define Py_DECREF(object) Py_DecRef((PyObject *)(object))
/* The functions accept NULL. */
#define Py_XINCREF(object) Py_IncRef((PyObject *)(object))
#define Py_XDECREF(object) Py_DecRef((PyObject *)(object))

extern PyObject _Py_NoneStruct;
#define Py_None (&_Py_NoneStruct)

/* Numbers */
PyObject *PyBool_FromLong(long value);
PyObject *PyFloat_FromDouble(double value);
double PyFloat_AsDouble(PyObject *number);
PyObject *PyLong_FromLong(long value);
PyObject *PyBytes_FromStringAndSize(const char *bytes, Py_ssize_t size);
PyObject *PyLong_FromUnsignedLong(unsigned long value);
PyObject *PyLong_FromLongLong(long long value);
PyObject *PyLong_FromUnsignedLongLong(unsigned long long value);
PyObject *PyLong_FromVoidPtr(void *pointer);
unsigned long long PyLong_AsUnsignedLongLong(PyObject *number);
void *PyLong_AsVoidPtr(PyObject *number);

/* Calls, imports, arguments */
PyObject *PyImport_ImportModule(const char *name);
PyObject *PyObject_CallObject(PyObject *callable, PyObject *arguments);
PyObject *PyObject_CallFunction(PyObject *callable, const char *format, ...);
PyObject *PyObject_CallFunctionObjArgs(PyObject *callable, ...);
PyObject *PyObject_CallMethod(PyObject *object, const char *name, const char *format, ...);
PyObject *PyObject_GetItem(PyObject *object, PyObject *key);
PyObject *PyDict_GetItemWithError(PyObject *dict, PyObject *key);
int PyObject_IsTrue(PyObject *object);
int PyObject_SetAttrString(PyObject *object, const char *name, PyObject *value);
int PyArg_UnpackTuple(PyObject *arguments, const char *name, Py_ssize_t min, Py_ssize_t max, ...);

/* Functions in C */
typedef PyObject *(*PyCFunction)(PyObject *self, PyObject *arguments);
#ifndef Py_PYTHON_H
struct PyMethodDef {
    const char *ml_name;
    PyCFunction ml_meth;
    int ml_flags;
    const char *ml_doc;
};
#endif
typedef struct PyMethodDef PyMethodDef;
#define METH_VARARGS 0x0001
#define METH_NOARGS 0x0004
PyObject *PyCMethod_New(PyMethodDef *definition, PyObject *self, PyObject *module,
                        PyTypeObject *type);

/* Types and objects */
typedef int (*descrsetfunc)(PyObject *descriptor, PyObject *object, PyObject *value);
#define Py_tp_descr_set 55
PyObject *PyObject_Type(PyObject *object);
void *PyType_GetSlot(PyTypeObject *type, int slot);
PyObject *PyType_GenericAlloc(PyTypeObject *type, Py_ssize_t items);
Py_ssize_t PyTuple_Size(PyObject *tuple);
PyObject *PyTuple_GetItem(PyObject *tuple, Py_ssize_t index);
typedef void (*PyCapsule_Destructor)(PyObject *capsule);
PyObject *PyCapsule_New(void *pointer, const char *name, PyCapsule_Destructor destructor);
void *PyCapsule_GetPointer(PyObject *capsule, const char *name);

/* Errors */
PyObject *PyErr_NoMemory(void);
PyObject *PyErr_Occurred(void);
void PyErr_Clear(void);
void PyErr_Fetch(PyObject **type, PyObject **value, PyObject **trace);
void PyErr_Restore(PyObject *type, PyObject *value, PyObject *trace);
int PyErr_CheckSignals(void);
void PyErr_NormalizeException(PyObject **type, PyObject **value, PyObject **trace);
void PyException_SetContext(PyObject *exception, PyObject *context);
__attribute__((noreturn)) void Py_FatalError(const char *message);

/* Memory */
void *PyObject_Malloc(size_t size);
void *PyObject_Calloc(size_t count, size_t size);
void PyObject_Free(void *pointer);

/* The interpreter lock */
#ifndef Py_PYTHON_H
typedef enum { PyGILState_LOCKED, PyGILState_UNLOCKED } PyGILState_STATE;
#endif
PyGILState_STATE PyGILState_Ensure(void);
void PyGILState_Release(PyGILState_STATE state);
PyThreadState *PyEval_SaveThread(void);
void PyEval_RestoreThread(PyThreadState *state);
#define Py_BEGIN_ALLOW_THREADS \
    {                          \
        PyThreadState *_save = PyEval_SaveThread();
#define Py_END_ALLOW_THREADS     \
        PyEval_RestoreThread(_save); \
    }

#ifdef __cplusplus
}
#endif

#endif
