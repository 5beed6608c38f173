/*
 * by_hand(vcpu, deadline, loop, keep, page, kinds, other): a function that takes the steps of a loop by
 * hand.  It returns the next exit as a value.
 *
 * The four exits that come by the million are made here, as pykvm.exits.decode would make them; drive.c
 * says what that saves.  For the rest it calls other(code), which returns an exit, or None to go on.
 */
#include "functions.h"

#define NAME "pykvm by_hand"
#define FIELDS 3

/* A class of exits.  Its slots are set by their descriptors, past __init__ and __setattr__. */
struct kind {
    PyTypeObject *type;
    PyObject *fields[FIELDS];
};

struct by_hand {
    struct pykvm_vcpu *vcpu;
    uint64_t deadline;
    uint64_t loop;
    PyObject *arguments; /* what holds the rest */
    PyObject *page;      /* the RunPage */
    PyObject *other;
    PyObject *page_of; /* the descriptor of an exit's page */
    PyObject *current; /* of a page's exit */
    descrsetfunc set;
    struct kind kinds[PYKVM_KINDS];
};

/* Takes the reference to the value, which is NULL if it could not be made. */
static int set(const struct by_hand *h, PyObject *descriptor, PyObject *object, PyObject *value)
{
    int result = value ? h->set(descriptor, object, value) : -1;

    Py_XDECREF(value);
    return result;
}

/* The fields of IoOut, IoIn, MmioWrite and MmioRead, in their order. */
static int fill(const struct by_hand *h, PyObject *exit, const struct pykvm_access *access)
{
    PyObject *const *field = h->kinds[access->kind].fields;

    if (set(h, *field++, exit, PyLong_FromUnsignedLongLong(access->address)) < 0)
        return -1;
    if (access->kind != PYKVM_STORE && set(h, *field++, exit, PyLong_FromLong(access->size)) < 0)
        return -1;
    if (access->kind == PYKVM_LOAD)
        return 0;
    if (access->kind == PYKVM_IN)
        return set(h, *field, exit, PyLong_FromLong(1));
    return set(h, *field, exit, PyBytes_FromStringAndSize((char *)access->data, access->size));
}

static PyObject *make_exit(const struct by_hand *h, const struct pykvm_access *access)
{
    PyObject *exit = PyType_GenericAlloc(h->kinds[access->kind].type, 0);

    if (exit && (fill(h, exit, access) < 0 || h->set(h->page_of, exit, h->page) < 0 ||
                 h->set(h->current, h->page, exit) < 0)) {
        Py_DECREF(exit);
        return NULL;
    }
    return exit;
}

static PyObject *step(PyObject *self, PyObject *none)
{
    const struct by_hand *h = PyCapsule_GetPointer(self, NAME);
    struct pykvm_access access;
    PyObject *exit = NULL;

    while (h) {
        PyThreadState *state = PyEval_SaveThread();
        int64_t code = pykvm_step(h->vcpu, h->deadline, h->loop, &access);

        PyEval_RestoreThread(state);
        if (access.kind != PYKVM_NO_ACCESS)
            return make_exit(h, &access);
        exit = PyObject_CallFunction(h->other, "L", (long long)code);
        if (exit != Py_None)
            break;
        Py_DECREF(exit);
    }
    return exit;
}

static void forget(PyObject *capsule)
{
    struct by_hand *h = PyCapsule_GetPointer(capsule, NAME);

    Py_DECREF(h->arguments);
    PyObject_Free(h);
}

/*
 * `kinds` has the descriptors of an exit's page and of a page's exit, then a class and those of its
 * fields, in the order of enum pykvm_access_kind.
 */
static int take_kinds(struct by_hand *h, PyObject *kinds)
{
    PyObject *type;

    h->page_of = PyTuple_GetItem(kinds, 0);
    h->current = PyTuple_GetItem(kinds, 1);
    type = h->current ? PyObject_Type(h->current) : NULL;
    if (!type)
        return -1;
    h->set = (descrsetfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_descr_set);
    Py_DECREF(type);
    for (int i = PYKVM_NO_ACCESS + 1; i < PYKVM_KINDS; i++) {
        PyObject *kind = PyTuple_GetItem(kinds, i + 1);

        if (!kind)
            return -1;
        h->kinds[i].type = (PyTypeObject *)PyTuple_GetItem(kind, 0);
        for (Py_ssize_t n = 1; n < PyTuple_Size(kind) && n <= FIELDS; n++)
            h->kinds[i].fields[n - 1] = PyTuple_GetItem(kind, n);
    }
    return PyErr_Occurred() ? -1 : 0;
}

static PyMethodDef step_definition = {"step", step, METH_NOARGS, NULL};

PyObject *by_hand(PyObject *self, PyObject *arguments)
{
    struct by_hand *h = PyObject_Calloc(1, sizeof *h);
    PyObject *vcpu, *deadline, *loop, *keep, *kinds, *capsule, *function;

    if (!h)
        return PyErr_NoMemory();
    if (!PyArg_UnpackTuple(arguments, "by_hand", 7, 7, &vcpu, &deadline, &loop, &keep, &h->page, &kinds,
                           &h->other) ||
        take_kinds(h, kinds) < 0) {
        PyObject_Free(h);
        return NULL;
    }
    h->vcpu = PyLong_AsVoidPtr(vcpu);
    h->deadline = PyLong_AsUnsignedLongLong(deadline);
    h->loop = PyLong_AsUnsignedLongLong(loop);
    capsule = PyErr_Occurred() ? NULL : PyCapsule_New(h, NAME, forget);
    if (!capsule) {
        PyObject_Free(h);
        return NULL;
    }
    Py_INCREF(arguments);
    h->arguments = arguments;
    function = PyCMethod_New(&step_definition, capsule, NULL, NULL);
    Py_DECREF(capsule);
    return function;
}
