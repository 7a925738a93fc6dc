/* Fills the addresses of a table from tensors, by Python's stable ABI and DLPack's C exchange interface.
 *
 * Called with the interpreter's lock held. Neither interface needs headers: what is used of them is declared here.
 */
extern void *PyList_GetItem(void *, intptr_t);
extern intptr_t PyList_Size(void *);
extern void *PyObject_GetAttr(void *, void *);
extern int PyDict_Next(void *, intptr_t *, void **, void **);
extern intptr_t PyDict_Size(void *);
extern void PyErr_Clear(void);
extern void Py_DecRef(void *);

/* DLTensor of dlpack.h, version 1. */
typedef struct {
    void *data;
    int32_t device, device_id, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    i64 *shape, *strides;
    uint64_t offset;
} View;
typedef int (*Export)(void *tensor, View *out);

/* One tensor that the table refers to: its cell, how many elements it must have, in which type (code << 8 | bits).
 * `tensor` is a PyObject *, or 0 for the gradient of the parameter that the entry before it names. */
typedef struct {
    void *tensor;
    i64 *cell;
    i64 numel, type;
    const i64 *layout; /* its dimensions, sizes and strides; 0 for any, without gaps, in the order of indices */
} Entry;

/* 1 if the tensor is on the CPU, in this type and layout, and in its place in memory; its address goes to the cell. */
static int address_(Export export, void *tensor, const Entry *e)
{
    View v;
    if (export(tensor, &v)) {
        PyErr_Clear();
        return 0;
    }
    i64 numel = 1;
    if (e->layout && e->layout[0] != v.ndim) return 0;
    for (int d = v.ndim - 1; d >= 0; d--) {
        const i64 stride = e->layout ? e->layout[1 + v.ndim + d] : numel;
        if (e->layout && v.shape[d] != e->layout[1 + d]) return 0;
        if (v.shape[d] != 1 && v.strides && v.strides[d] != stride && e->numel) return 0;
        numel *= v.shape[d];
    }
    const i64 address = *e->cell = (i64)(intptr_t)((char *)v.data + v.offset);
    if (e->numel && (!v.data || address % (v.bits / 8))) return 0;
    return v.device == 1 && numel == e->numel && (v.code << 8 | v.bits) == e->type && v.lanes == 1;
}

/* arguments: list of parameters, "grad", None, export, entries, number of entries, parameters (PyObject *, in their
 * order), for each the number of its entries: 0 for one that must have no gradient, -1 for one left to others.
 * 0 if the table is filled; 1 if something is not as it was, and the table must be made anew. */
EXPORT int optdsl_gather(void *params, void *grad, void *none, const i64 *a)
{
    const Export export = (Export)(intptr_t)a[0];
    const Entry *e = (const Entry *)(intptr_t)a[1];
    void *const *const known = (void *const *)(intptr_t)a[2];
    const i64 *const counts = (const i64 *)(intptr_t)a[3];
    const i64 n = a[4];
    if (PyList_Size(params) != n) return 1;
    for (i64 i = 0; i < n; i++) {
        void *const p = PyList_GetItem(params, i);
        if (p != known[i]) return 1;
        void *const g = PyObject_GetAttr(p, grad);
        if (!g) {
            PyErr_Clear();
            return 1;
        }
        int right = counts[i] < 0 || (g == none) == (counts[i] == 0);
        for (i64 c = 0; right && c < counts[i]; c++, e++) right = address_(export, e->tensor ? e->tensor : g, e);
        Py_DecRef(g);
        if (!right) return 1;
    }
    return 0;
}

/* 0 if a dictionary of dictionaries holds these very objects: for each entry its key and its value, then how many
 * objects the value holds, and these. */
EXPORT int optdsl_same(void *states, void *const *known, i64 n)
{
    if (PyDict_Size(states) != n) {
        PyErr_Clear();
        return 1;
    }
    intptr_t at = 0;
    void *key, *value, *inner_key, *inner;
    while (PyDict_Next(states, &at, &key, &value)) {
        if (key != *known++ || value != *known++) return 1;
        const intptr_t size = (intptr_t)*known++;
        if (PyDict_Size(value) != size) {
            PyErr_Clear(); /* it may be no dictionary */
            return 1;
        }
        intptr_t place = 0;
        while (PyDict_Next(value, &place, &inner_key, &inner))
            if (inner != *known++) return 1;
    }
    return 0;
}
