/* What kernels and their driver share: the table of tensors, and what a kernel says of itself. */
#include <stdint.h>

typedef int64_t i64;
typedef uint32_t u32;
#define INLINE static inline __attribute__((always_inline, unused))
#define EXPORT __attribute__((visibility("default")))

/* The cells of a row; a table has one row per tensor, of 64-bit cells. */

enum {
    N,            /* elements */
    ROWS,         /* first dimension */
    COLS,         /* product of the others */
    CHUNK,        /* elements, or rows for a kernel that goes by rows, in a chunk */
    CHUNKS,       /* number of chunks */
    BEFORE,       /* elements of the tensors in front */
    SLOTS,        /* double *: the sign of the gradient, the kernel's numbers, new and old host states, old step */
    VALUES,       /* double *: what is computed per tensor */
    FOLDED,       /* double *: finished reductions of the sweep, then group-level results */
    PARTIALS,     /* double *: reductions per chunk */
    SHARED,       /* double *: joint reductions and group-level states */
    KEPT_ROWS,    /* real *: row values between sweeps */
    KEPT_COLS,    /* real *: column values */
    COL_PARTIALS, /* double *: column reductions per chunk */
    INDEX,        /* position among the parameters of the optimizer */
    SEED,
    STEP,         /* float *: the step count */
    CODED,        /* bit k is set if array k is kept in codes */
    ARRAYS        /* void *: the parameter, its gradient, its states; then double * to the host states;
                     then for each array that is kept in codes, in the place of two cells for every array:
                     float * to its scales, or to what else is beside it, const Code * to its table */
};
#define AT(type, x, cell) ((type *)(intptr_t)(x)[cell])

/* How the partial results of a reduction are put together. */
enum { SUM, MAX, MIN, NONE };

typedef struct {
    int sweeps, arrays, slots, host_states;
    int width;                         /* reductions per chunk, at most */
    int by_rows;                       /* sweeps go over rows */
    int real;                          /* bytes of a number that is computed */
    const i64 *reads, *writes;         /* for each sweep the arrays that it reads and writes, as bits */
    void (*const *sweep)(const i64 *x, i64 begin, i64 end, double *out);
    void (*const *scalars)(const i64 *x); /* in front of each sweep, and behind the last; NULL for none */
    void (*const *columns)(const i64 *x); /* finish column reductions of each sweep; NULL for none */
    const signed char *const *folds;   /* for each sweep the kinds of its reductions, ended by -1 */
} Kernel;
