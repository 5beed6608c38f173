/*
 * drive(vcpu, reads, writes, odd, once): run the guest, and call the methods of the devices that it
 * accesses, until there is something else to do.
 *
 * An exit costs more by the jumps that follow it than by the instructions: KVM may have had all
 * branch predictions forgotten (IBPB), TLBs are cold, and each bytecode is an indirect jump.  So no
 * bytecode but the device's own lies between two KVM_RUNs.
 *
 * Python looks at its signals in the device's method, and at each tick.
 */
#include "functions.h"

struct drive {
    struct pykvm_vcpu *vcpu;
    PyObject *reads;  /* slot: method(offset, size) */
    PyObject *writes; /* slot: method(offset, size, value) */
    PyObject *odd;    /* odd(answer, slot): the number for an answer that is no int of 64 bits */
};

static int64_t enter(struct pykvm_vcpu *vcpu)
{
    PyThreadState *state = PyEval_SaveThread();
    int64_t code = pykvm_run(vcpu);

    PyEval_RestoreThread(state);
    return code;
}

/* The method of a slot.  What subclasses a dict finds by __missing__ it finds the long way only. */
static PyObject *method_of(PyObject *methods, int64_t slot)
{
    PyObject *key = PyLong_FromLongLong(slot);
    PyObject *method = key ? PyDict_GetItemWithError(methods, key) : NULL;

    if (method)
        Py_INCREF(method);
    else if (key && !PyErr_Occurred())
        method = PyObject_GetItem(methods, key);
    Py_XDECREF(key);
    return method;
}

/* method(offset, size), or (offset, size, value) */
static PyObject *call(PyObject *method, const struct pykvm_vcpu *v, int is_write)
{
    PyObject *offset = PyLong_FromUnsignedLongLong(v->offset);
    PyObject *size = PyLong_FromUnsignedLongLong(v->size);
    PyObject *value = is_write ? PyLong_FromUnsignedLongLong(v->value) : NULL;
    PyObject *answer = NULL;

    if (offset && size && (value || !is_write))
        answer = PyObject_CallFunctionObjArgs(method, offset, size, value, NULL);
    Py_XDECREF(offset);
    Py_XDECREF(size);
    Py_XDECREF(value);
    return answer;
}

/* Returns 0, or -1 with an exception. */
static int take_write(const struct drive *d, int64_t slot)
{
    PyObject *method = method_of(d->writes, slot);
    PyObject *nothing = method ? call(method, d->vcpu, 1) : NULL;

    Py_XDECREF(method);
    Py_XDECREF(nothing);
    return nothing ? 0 : -1;
}

/* Answer the read by a number, where the next KVM_RUN finds it. */
static int put(const struct drive *d, PyObject *number)
{
    uint64_t value = PyLong_AsUnsignedLongLong(number);

    if (value == UINT64_MAX && PyErr_Occurred())
        return -1;
    d->vcpu->value = value;
    return 0;
}

static int put_odd(const struct drive *d, PyObject *answer, int64_t slot)
{
    PyObject *number;
    int result;

    PyErr_Clear();
    number = PyObject_CallFunction(d->odd, "OL", answer, (long long)slot);
    result = number ? put(d, number) : -1;
    Py_XDECREF(number);
    return result;
}

static int take_read(const struct drive *d, int64_t slot)
{
    PyObject *method = method_of(d->reads, slot);
    PyObject *answer = method ? call(method, d->vcpu, 0) : NULL;
    int result = -1;

    if (answer)
        result = put(d, answer) < 0 ? put_odd(d, answer, slot) : 0;
    Py_XDECREF(method);
    Py_XDECREF(answer);
    return result;
}

PyObject *drive(PyObject *self, PyObject *arguments)
{
    PyObject *address, *once;
    struct drive d;
    int64_t code;
    int result, single;

    if (!PyArg_UnpackTuple(arguments, "drive", 5, 5, &address, &d.reads, &d.writes, &d.odd, &once))
        return NULL;
    d.vcpu = PyLong_AsVoidPtr(address);
    single = PyObject_IsTrue(once);
    if (!d.vcpu || single < 0)
        return NULL;
    do {
        code = enter(d.vcpu);
        if (code < 0 && code > PYKVM_READ)
            return PyLong_FromLongLong(code);
        result = code >= 0 ? take_write(&d, code) : take_read(&d, PYKVM_READ - code);
    } while (!result && !single);
    return result ? NULL : PyLong_FromLong(PYKVM_CALLED);
}
