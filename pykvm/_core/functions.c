/* What the module pykvm._core has of functions.h. */
#include "functions.h"

static PyMethodDef definitions[] = {
    {"hold_claim", hold_claim, METH_VARARGS,
     "hold_claim(claim, run, refused)\n--\n\nCall run() as the run of a claim, given by its address."},
    {"hold_vcpu", hold_vcpu, METH_VARARGS,
     "hold_vcpu(vcpu, deadline, turn, run, refused)\n--\n\n"
     "Call run() in the thread of a vCPU, given by its address."},
    {"by_hand", by_hand, METH_VARARGS,
     "by_hand(vcpu, deadline, loop, keep, page, kinds, other)\n--\n\n"
     "What takes the steps of a loop by hand."},
    {"drive", drive, METH_VARARGS,
     "drive(vcpu, reads, writes, odd, single)\n--\n\n"
     "Run the guest, and have devices answer its accesses, until there is something else to do."},
};

int pykvm_add_functions(void)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *module = PyImport_ImportModule("pykvm._core");
    int result = module ? 0 : -1;

    for (size_t i = 0; !result && i < sizeof definitions / sizeof *definitions; i++) {
        PyObject *function = PyCMethod_New(&definitions[i], NULL, NULL, NULL);

        if (!function || PyObject_SetAttrString(module, definitions[i].ml_name, function) < 0)
            result = -1;
        Py_XDECREF(function);
    }
    PyErr_Clear();
    Py_XDECREF(module);
    PyGILState_Release(state);
    return result;
}
