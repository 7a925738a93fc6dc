/* Runs kernels over tables of tensors, and fills tables from tensors. Built once for all kernels.
 *
 * Nothing here depends on the order in which threads run: a reduction is a partial result per chunk, added in the
 * order of chunks, and chunks do not depend on the number of threads.
 */
#include <math.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "table.h"
#include "philox.h"
#include "codes.h"

/* ---- running kernels ---- */

INLINE double fold_(int kind, const double *partials, i64 count, i64 stride)
{
    double total = kind == SUM ? 0.0 : kind == MAX ? -INFINITY : INFINITY;
    for (i64 c = 0; c < count; c++) {
        const double v = partials[c * stride];
        if (kind == SUM) total += v;
        else if (v != v || (kind == MAX ? v > total : v < total)) total = v;
        if (kind != SUM && total != total) break;
    }
    return total;
}

static void finish_sweep_(const Kernel *k, const i64 *x, int s)
{
    const signed char *const kinds = k->folds[s];
    for (int r = 0; kinds[r] >= 0; r++)
        if (kinds[r] != NONE)
            AT(double, x, FOLDED)[r] = fold_(kinds[r], AT(double, x, PARTIALS) + r, x[CHUNKS], k->width);
    if (k->columns[s]) k->columns[s](x);
}
static void chunk_(const Kernel *k, const i64 *x, int s, i64 c)
{
    const i64 all = k->by_rows ? x[ROWS] : x[N], begin = c * x[CHUNK];
    const i64 end = begin + x[CHUNK] < all ? begin + x[CHUNK] : all;
    double *const out = AT(double, x, PARTIALS) + c * k->width;
    if (x[CODED]) coded_chunk_(k, x, s, begin, end, out);
    else k->sweep[s](x, begin, end, out);
}
static void scalars_(const Kernel *k, const i64 *x, int s)
{
    if (k->scalars[s]) k->scalars[s](x);
}
/* The step is over: host-level states and the step count. */
static void finish_(const Kernel *k, const i64 *x)
{
    const double *const slots = AT(double, x, SLOTS) + 1 + k->slots;
    for (int h = 0; h < k->host_states; h++) *AT(double, x, ARRAYS + k->arrays + h) = slots[h];
    *AT(float, x, STEP) += 1.0f;
}

/* A tensor of at most this many elements is finished by one thread, from its cache. */
#define SMALL 131072

static void whole_(const Kernel *k, const i64 *x, int from, int to)
{
    for (int s = from; s < to; s++) {
        scalars_(k, x, s);
        for (i64 c = 0; c < x[CHUNKS]; c++) chunk_(k, x, s, c);
        finish_sweep_(k, x, s);
    }
}

/* Chunks of one sweep over all tensors whose first element is among first .. last - 1 of all elements. */
static void range_(const Kernel *k, const i64 *table, i64 count, i64 width, int s, i64 first, i64 last)
{
    i64 low = 0, high = count;
    while (high - low > 1) {
        const i64 middle = (low + high) / 2;
        if (table[middle * width + BEFORE] <= first) low = middle;
        else high = middle;
    }
    for (i64 t = low; t < count; t++) {
        const i64 *const x = table + t * width;
        if (x[BEFORE] >= last) break;
        if (x[N] == 0) continue;
        const i64 step = k->by_rows ? x[CHUNK] * x[COLS] : x[CHUNK];
        i64 c = x[BEFORE] >= first ? 0 : (first - x[BEFORE] + step - 1) / step;
        for (; c < x[CHUNKS] && x[BEFORE] + c * step < last; c++) chunk_(k, x, s, c);
    }
}

/* Sweeps from .. until - 1 of all tensors, and what ends the step if `until` is beyond the last sweep. */
static void stage_(const Kernel *k, const i64 *table, i64 count, i64 width, int from, int until, int threads)
{
    const int to = until > k->sweeps ? k->sweeps : until;
    const i64 *const last = table + (count - 1) * width;
    const i64 total = last[BEFORE] + last[N];
    if (to - from == 1) {
        for (i64 t = 0; t < count; t++) {
            const i64 *const x = table + t * width;
            scalars_(k, x, from);
            if (x[N] == 0) /* rows without columns */
                for (i64 c = 0; c < x[CHUNKS]; c++) chunk_(k, x, from, c);
        }
#ifdef _OPENMP
        if (threads > 1 && total >= 32768) {
#pragma omp parallel num_threads(threads)
            {
                const i64 me = omp_get_thread_num(), all = omp_get_num_threads();
                range_(k, table, count, width, from, total / all * me, me == all - 1 ? total : total / all * (me + 1));
            }
        } else
#endif
            range_(k, table, count, width, from, 0, total);
        for (i64 t = 0; t < count; t++) finish_sweep_(k, table + t * width, from);
    } else if (to > from) {
#ifdef _OPENMP
        const i64 small = count >= 4 * threads ? SMALL : SMALL / 4;
#pragma omp parallel num_threads(threads) if (threads > 1 && total >= 32768)
        {
            const int alone = omp_get_num_threads() == 1;
#pragma omp for schedule(dynamic, 4) nowait
            for (i64 t = 0; t < count; t++)
                if (alone || table[t * width + N] <= small) whole_(k, table + t * width, from, to);
            for (i64 t = 0; t < count && !alone; t++) {
                const i64 *const x = table + t * width;
                if (x[N] <= small) continue;
                for (int s = from; s < to; s++) {
#pragma omp single
                    scalars_(k, x, s);
#pragma omp for schedule(static)
                    for (i64 c = 0; c < x[CHUNKS]; c++) chunk_(k, x, s, c);
#pragma omp single
                    finish_sweep_(k, x, s);
                }
            }
        }
#else
        for (i64 t = 0; t < count; t++) whole_(k, table + t * width, from, to);
#endif
    }
    if (until > to)
        for (i64 t = 0; t < count; t++) {
            scalars_(k, table + t * width, to);
            finish_(k, table + t * width);
        }
}

/* Whether every step count and host-level state is what the host believes. */
static int known_(const Kernel *k, const i64 *table, i64 count, i64 width)
{
    for (i64 t = 0; t < count; t++) {
        const i64 *const x = table + t * width;
        const double *const old = AT(double, x, SLOTS) + 1 + k->slots + k->host_states;
        for (int h = 0; h < k->host_states; h++) {
            const double now = *AT(double, x, ARRAYS + k->arrays + h);
            if (memcmp(&now, &old[h], 8) != 0) return 0;
        }
        if ((double)*AT(float, x, STEP) != old[k->host_states]) return 0;
    }
    return 1;
}

/* arguments: const Kernel *, table, tensors, cells in a row, first sweep, sweep to stop at, threads. */
EXPORT void optdsl_run(const i64 *a)
{
    stage_((const Kernel *)(intptr_t)a[0], (const i64 *)(intptr_t)a[1], a[2], a[3], (int)a[4], (int)a[5], (int)a[6]);
}
/* The same arguments; 1 if all step counts and host-level states are as expected, else 0. */
EXPORT int optdsl_known(const i64 *a)
{
    return known_((const Kernel *)(intptr_t)a[0], (const i64 *)(intptr_t)a[1], a[2], a[3]);
}

/* ---- filling tables, with the interpreter's lock held ----
 *
 * By Python's stable ABI and DLPack's C exchange interface. Neither needs headers: what is used is declared here.
 */

extern void *PyList_GetItem(void *, intptr_t);
extern intptr_t PyList_Size(void *);
extern void *PyObject_GetAttr(void *, void *);
extern int PyDict_Next(void *, intptr_t *, void **, void **);
extern intptr_t PyDict_Size(void *);
extern void PyErr_Clear(void);
extern void Py_DecRef(void *);
extern void *PyObject_CallMethodObjArgs(void *, void *, ...);
extern int PyObject_IsTrue(void *);

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
    i64 device; /* as DLPack has it: its kind, and from bit 32 on its number */
    const i64 *layout; /* its dimensions, sizes and strides; 0 for any, without gaps, in the order of indices */
} Entry;

/* 1 if the tensor is on this device, in this type and layout, and in its place in memory; its address goes to the cell. */
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
    return (v.device | (i64)v.device_id << 32) == e->device && numel == e->numel && (v.code << 8 | v.bits) == e->type && v.lanes == 1;
}

/* Whether the numbers of a tensor have the other sign in memory, or an error arose. Strides tell such a view from the
 * tensor that the table was made for, but those of a single number do not. */
static int flipped_(void *tensor, void *is_neg)
{
    void *const answer = PyObject_CallMethodObjArgs(tensor, is_neg, (void *)0);
    const int yes = answer ? PyObject_IsTrue(answer) : 1;
    if (answer) Py_DecRef(answer);
    else PyErr_Clear();
    return yes;
}

/* arguments: list of parameters, "grad", "is_neg", None, export, entries, number of entries, parameters (PyObject *, in their
 * order), for each the number of its entries: 0 for one that must have no gradient, -1 for one left to others.
 * 0 if the table is filled; 1 if something is not as it was, and the table must be made anew. */
EXPORT int optdsl_gather(void *params, void *grad, void *is_neg, void *none, const i64 *a)
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
        for (i64 c = 0; right && c < counts[i]; c++, e++) {
            const i64 before = *e->cell;
            void *const tensor = e->tensor ? e->tensor : g;
            right = address_(export, tensor, e);
            if (c < 2 && e->numel == 1 && right && flipped_(tensor, is_neg)) right = 0;
            if (c > 1 && before && *e->cell != before && e->numel) right = 0; /* states do not move */
        }
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
