/*
 * hold_claim(claim, run, refused) and hold_vcpu(vcpu, deadline, turn, run, refused): what `with` does,
 * with no instruction of Python's in between.
 *
 * Python looks at its signals between two instructions of a function, and a handler may raise there:
 * between taking something and the `try` that would give it back, or inside `__exit__`.  Here it
 * cannot: run() is called between two functions in C, and nothing of Python's runs in between.
 *
 * They are called with the GIL, unless they have to wait: a thread that gives it up for a moment may
 * wait milliseconds for it while another one is busy.
 */
#include "functions.h"

/* An exception, taken away from the interpreter for as long as `end` works. */
struct error {
    PyObject *type, *value, *trace;
};

/* Take the exception that is set; one that was taken before becomes its context. */
static void fetch(struct error *error)
{
    struct error before = *error;

    PyErr_Fetch(&error->type, &error->value, &error->trace);
    if (!before.type)
        return;
    PyErr_NormalizeException(&error->type, &error->value, &error->trace);
    PyErr_NormalizeException(&before.type, &before.value, &before.trace);
    if (error->value != before.value)
        PyException_SetContext(error->value, before.value); /* takes the reference */
    else
        Py_XDECREF(before.value);
    Py_XDECREF(before.type);
    Py_XDECREF(before.trace);
}

/* What is held: begin and end return 0, below 0 for "not yet", begin also a refusal above 0. */
struct held {
    struct pykvm_claim *claim;
    struct pykvm_vcpu *vcpu; /* or of a claim NULL */
    uint64_t deadline;
    uint64_t turn;
};

static int begin(const struct held *held, int wait)
{
    if (held->vcpu)
        return pykvm_enter(held->vcpu, held->deadline, held->turn);
    return pykvm_begin(held->claim, wait);
}

static int end(const struct held *held, int wait)
{
    if (held->vcpu)
        return pykvm_leave(held->vcpu);
    return pykvm_end(held->claim, wait);
}

/* Call it until it is done; meanwhile others may have the GIL, and Python looks at its signals. */
static int try_again(int (*function)(const struct held *, int), const struct held *held)
{
    PyThreadState *state = PyEval_SaveThread();
    int answer = function(held, 1);

    PyEval_RestoreThread(state);
    return answer;
}

static int start(const struct held *held)
{
    int answer = begin(held, 0);

    while (answer < 0 && PyErr_CheckSignals() == 0)
        answer = try_again(begin, held);
    return answer;
}

/*
 * A handler that raises meanwhile does not cut this short the first time; what it raised counts from
 * then on.  The second time it does: whatever keeps `end` waiting may do so for good.
 */
static void finish(const struct held *held, struct error *error)
{
    int raised = 0;
    int answer = end(held, 0);

    while (answer < 0) {
        if (PyErr_CheckSignals() < 0) {
            fetch(error);
            if (raised++)
                return;
        }
        answer = try_again(end, held);
    }
}

static PyObject *hold(const struct held *held, PyObject *run, PyObject *refused)
{
    struct error error = {NULL, NULL, NULL};
    PyObject *result;
    int answer = start(held);

    if (answer < 0)
        return NULL;
    if (answer > 0)
        return PyObject_CallFunction(refused, "i", answer);
    result = PyObject_CallObject(run, NULL);
    if (!result)
        fetch(&error);
    finish(held, &error);
    if (!error.type)
        return result;
    Py_XDECREF(result);
    PyErr_Restore(error.type, error.value, error.trace);
    return NULL;
}

PyObject *hold_claim(PyObject *self, PyObject *arguments)
{
    PyObject *address, *run, *refused;
    struct held held = {0};

    if (!PyArg_UnpackTuple(arguments, "hold_claim", 3, 3, &address, &run, &refused))
        return NULL;
    held.claim = PyLong_AsVoidPtr(address);
    return held.claim ? hold(&held, run, refused) : NULL;
}

PyObject *hold_vcpu(PyObject *self, PyObject *arguments)
{
    PyObject *address, *deadline, *turn, *run, *refused;
    struct held held = {0};

    if (!PyArg_UnpackTuple(arguments, "hold_vcpu", 5, 5, &address, &deadline, &turn, &run, &refused))
        return NULL;
    held.vcpu = PyLong_AsVoidPtr(address);
    held.deadline = PyLong_AsUnsignedLongLong(deadline);
    held.turn = PyLong_AsUnsignedLongLong(turn);
    return held.vcpu && !PyErr_Occurred() ? hold(&held, run, refused) : NULL;
}
