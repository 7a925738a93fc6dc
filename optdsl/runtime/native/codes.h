/* Arrays that are kept in codes: what optdsl/runtime/storage.py says, as fast as it can be had.
 *
 * A sweep that reads or writes such an array gets numbers in a buffer in its place. Decoding looks up a table. Encoding
 * computes which entry is nearest, by a few straight pieces; where that is too close to call, the table decides.
 */

#define CODE_BLOCK 256 /* numbers with one scale */
#define PIECE 1024     /* numbers that are worked on at a time */
#define SIMD_ _Pragma("omp simd")

/* Entry k of magnitude y (of its root, if so): k = floor(y * factor[q] + shift[q]), at most top[q], in the last piece q
 * with y > from[q]. A number has the code zero + k, or zero - k if it is negative. */
typedef struct {
    i64 bits, pieces, zero /* or the site where an array draws */, root;
    float steps, from[8], factor[8], shift[8], top[8];
    float value[256], bound[256];
} Code;

/* Numbers from codes: first .. first + n - 1, where first is a multiple of CODE_BLOCK. */
#define DECODE(real, name) \
    static void name(const uint8_t *restrict codes, const float *restrict scales, const Code *restrict c, i64 first, \
                     i64 n, real *restrict out) \
    { \
        for (i64 b = 0; b < n; b += CODE_BLOCK) { \
            const i64 m = n - b < CODE_BLOCK ? n - b : CODE_BLOCK; \
            const real scale = (real)scales[(first + b) / CODE_BLOCK]; \
            if (c->bits == 8) { \
                const uint8_t *restrict const at = codes + first + b; \
                SIMD_ for (i64 i = 0; i < m; i++) out[b + i] = (real)c->value[at[i]] * scale; \
            } else { \
                const uint8_t *restrict const at = codes + (first + b) / 2; \
                SIMD_ for (i64 i = 0; i < m; i++) \
                    out[b + i] = (real)c->value[at[i / 2] >> (i & 1) * 4 & 15] * scale; \
            } \
        } \
    }
DECODE(float, decode_float_)
DECODE(double, decode_double_)

/* The code of a number by the table alone, given one that is near. */
static int by_table_(const Code *c, float y, int near)
{
    const int last = (1 << c->bits) - 1;
    if (y != y) y = 0;
    int j = near < 0 ? 0 : near > last ? last : near;
    while (j < last && y > c->bound[j]) j++;
    while (j > 0 && y <= c->bound[j - 1]) j--;
    return j;
}

/* Codes of numbers y in [-1, 1]; 1 if one of them is too close to call. `pieces` is 1 or 8; written out, so that
 * compilers see a loop without branches. */
#define PIECE_(q) const float from##q = c->from[q], factor##q = c->factor[q], shift##q = c->shift[q], top##q = c->top[q];
#define BEYOND_(q) \
    factor = size > from##q ? factor##q : factor; \
    shift = size > from##q ? shift##q : shift; \
    top = size > from##q ? top##q : top;
INLINE int nearest_(const Code *restrict c, const float *restrict y, int *restrict found, i64 n, int pieces, int root)
{
    float doubt = 0;
    const int zero = (int)c->zero;
    const float steps = c->steps;
    PIECE_(0) PIECE_(1) PIECE_(2) PIECE_(3) PIECE_(4) PIECE_(5) PIECE_(6) PIECE_(7)
    _Pragma("omp simd reduction(max:doubt)")
    for (i64 i = 0; i < n; i++) {
        const float size = __builtin_fabsf(y[i]);
        float u = size;
        if (root) {
            const float square = size * steps - 0.25f;
            u = __builtin_sqrtf(square < 0 ? 0 : square);
        }
        float factor = factor0, shift = shift0, top = top0;
        if (pieces > 1) {
            BEYOND_(1) BEYOND_(2) BEYOND_(3) BEYOND_(4) BEYOND_(5) BEYOND_(6) BEYOND_(7)
        }
        float t = u * factor + shift;
        t = t < 0 ? 0.5f : t; /* the first entry, without doubt */
        const int whole = (int)t;
        const float off = __builtin_fabsf(t - (float)whole - 0.5f);
        doubt = off > doubt ? off : doubt;
        const int most = (int)top, k = whole < most ? whole : most;
        found[i] = y[i] < 0 ? zero - k : zero + k;
    }
    return doubt > 0.4999f;
}

#define ENCODE(real, name) \
    static void name(const real *restrict x, uint8_t *restrict codes, float *restrict scales, const Code *restrict c, \
                     i64 first, i64 n) \
    { \
        for (i64 b = 0; b < n; b += CODE_BLOCK) { \
            const i64 m = n - b < CODE_BLOCK ? n - b : CODE_BLOCK; \
            const real *restrict const at = x + b; \
            real most = 0, none = 0; \
            _Pragma("omp simd reduction(max:most) reduction(+:none)") for (i64 i = 0; i < m; i++) { \
                const real size = __builtin_fabs(at[i]); \
                most = size > most ? size : most; \
                none += at[i] * 0; /* nan for an infinity, too */ \
            } \
            if (none != 0 || none != none) \
                for (i64 i = 0; i < m; i++) most = at[i] != at[i] ? at[i] : most; \
            const float scale = (float)most; \
            float y[CODE_BLOCK]; \
            int found[CODE_BLOCK]; \
            scales[(first + b) / CODE_BLOCK] = scale; \
            SIMD_ for (i64 i = 0; i < m; i++) y[i] = (float)(at[i] / (real)scale); \
            int doubt = !(scale > 0 && scale < __builtin_inff()); \
            if (doubt) SIMD_ for (i64 i = 0; i < m; i++) found[i] = 0; \
            else if (c->root) doubt = nearest_(c, y, found, m, 1, 1); \
            else if (c->pieces == 1) doubt = nearest_(c, y, found, m, 1, 0); \
            else doubt = nearest_(c, y, found, m, 8, 0); \
            if (doubt) for (i64 i = 0; i < m; i++) found[i] = by_table_(c, y[i], found[i]); \
            if (c->bits == 8) { \
                uint8_t *restrict const to = codes + first + b; \
                SIMD_ for (i64 i = 0; i < m; i++) to[i] = (uint8_t)(found[i] < 0 ? 0 : found[i]); \
            } else { \
                uint8_t *restrict const to = codes + (first + b) / 2; \
                if (m & 1) found[m] = 0; \
                for (i64 i = 0; i < (m + 1) / 2; i++) \
                    to[i] = (uint8_t)((found[2 * i] < 0 ? 0 : found[2 * i]) | \
                                      (found[2 * i + 1] < 0 ? 0 : found[2 * i + 1]) << 4); \
            } \
        } \
    }
ENCODE(float, encode_float_)
ENCODE(double, encode_double_)

/* A parameter in bfloat16, and the bits that it lacks: 16 of them, or the upper 8. */
static void join_(const uint16_t *restrict high, const void *low, i64 bits, i64 n, float *restrict out)
{
    if (bits == 32) {
        const int16_t *restrict const l = low;
        SIMD_ for (i64 i = 0; i < n; i++) {
            const uint32_t b = ((uint32_t)high[i] << 16) + (uint32_t)(int32_t)l[i];
            memcpy(out + i, &b, 4);
        }
    } else {
        const int8_t *restrict const l = low;
        SIMD_ for (i64 i = 0; i < n; i++) {
            const uint32_t b = ((uint32_t)high[i] << 16) + (uint32_t)((int32_t)l[i] * 256);
            memcpy(out + i, &b, 4);
        }
    }
}
INLINE uint32_t rounded_(float x, int32_t *below)
{
    uint32_t b;
    memcpy(&b, &x, 4);
    b = (b & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : b;
    const uint32_t h = (b + 0x8000u) >> 16;
    *below = (int32_t)(b - (h << 16));
    return h;
}
static void split_(const float *restrict x, uint16_t *restrict high, void *low, i64 bits, i64 n)
{
    if (bits == 32) {
        int16_t *restrict const l = low;
        SIMD_ for (i64 i = 0; i < n; i++) {
            int32_t below;
            high[i] = (uint16_t)rounded_(x[i], &below);
            l[i] = (int16_t)below;
        }
    } else {
        int8_t *restrict const l = low;
        SIMD_ for (i64 i = 0; i < n; i++) {
            int32_t below;
            high[i] = (uint16_t)rounded_(x[i], &below);
            below = (below + 128) >> 8;
            l[i] = (int8_t)(below > 127 ? 127 : below);
        }
    }
}

/* What `bits` says of an array in bfloat16: that it is rounded at random, or what is beside it. */
enum { AT_RANDOM = 16, WITH_8 = 24, WITH_16 = 32, WITH_REST = 33 };

INLINE float wide_(uint16_t x)
{
    const uint32_t b = (uint32_t)x << 16;
    float f;
    memcpy(&f, &b, 4);
    return f;
}
/* Rounded at random: the upper half of a word is added to the bits that are then cut off. */
#define ROUNDED(real, widen, round) \
    static void widen(const uint16_t *restrict x, i64 n, real *restrict out) \
    { \
        SIMD_ for (i64 i = 0; i < n; i++) out[i] = (real)wide_(x[i]); \
    } \
    static void round(const real *restrict x, const u32 *restrict words, i64 n, uint16_t *restrict out) \
    { \
        SIMD_ for (i64 i = 0; i < n; i++) { \
            const float y = (float)x[i]; \
            uint32_t b; \
            memcpy(&b, &y, 4); \
            const uint32_t sum = (b + (words[i] >> 16)) >> 16; \
            out[i] = (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : sum); \
        } \
    }
ROUNDED(float, widen_float_, round_float_)
ROUNDED(double, widen_double_, round_double_)

/* With what is left beside it, in bfloat16 too. */
static void sum_(const uint16_t *restrict high, const uint16_t *restrict low, i64 n, float *restrict out)
{
    SIMD_ for (i64 i = 0; i < n; i++) {
        const float h = wide_(high[i]), l = wide_(low[i]), sum = h + l;
        out[i] = l == 0 ? h : sum; /* -0 stays */
    }
}
INLINE uint16_t nearest_half_(float x)
{
    uint32_t b;
    memcpy(&b, &x, 4);
    const uint32_t near = (b + 0x7fffu + (b >> 16 & 1)) >> 16;
    return (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : near);
}
static void rest_(const float *restrict x, uint16_t *restrict high, uint16_t *restrict low, i64 n)
{
    SIMD_ for (i64 i = 0; i < n; i++) {
        const uint16_t h = nearest_half_(x[i]);
        const float left = x[i] - wide_(h);
        high[i] = h;
        low[i] = (h & 0x7f80) == 0x7f80 ? 0 : nearest_half_(left);
    }
}
static void decode_(const i64 *x, int cells, int a, int real, i64 first, i64 n, double *buffer)
{
    const Code *const c = AT(const Code, x, cells + 2 * a + 1);
    const float *const scales = AT(const float, x, cells + 2 * a);
    if (c->bits == AT_RANDOM) {
        const uint16_t *const at = AT(const uint16_t, x, ARRAYS + a) + first;
        if (real == 4) widen_float_(at, n, (float *)buffer);
        else widen_double_(at, n, buffer);
    } else if (c->bits == WITH_REST)
        sum_(AT(const uint16_t, x, ARRAYS + a) + first, (const uint16_t *)scales + first, n, (float *)buffer);
    else if (c->bits > 8)
        join_(AT(const uint16_t, x, ARRAYS + a) + first, (const char *)scales + first * (c->bits - 16) / 8, c->bits, n,
              (float *)buffer);
    else if (real == 4) decode_float_(AT(const uint8_t, x, ARRAYS + a), scales, c, first, n, (float *)buffer);
    else decode_double_(AT(const uint8_t, x, ARRAYS + a), scales, c, first, n, buffer);
}
static void encode_(const i64 *x, int cells, int a, int real, i64 first, i64 n, const double *buffer)
{
    const Code *const c = AT(const Code, x, cells + 2 * a + 1);
    float *const scales = AT(float, x, cells + 2 * a);
    if (c->bits == AT_RANDOM) {
        uint16_t *const at = AT(uint16_t, x, ARRAYS + a) + first;
        u32 tile[WORDS];
        const u32 step = (u32)*AT(float, x, STEP) + 1;
        const u32 *const words = draw_(tile, (uint64_t)x[SEED], step, (u32)x[INDEX], (u32)c->zero, first, n);
        if (real == 4) round_float_((const float *)buffer, words, n, at);
        else round_double_(buffer, words, n, at);
    } else if (c->bits == WITH_REST)
        rest_((const float *)buffer, AT(uint16_t, x, ARRAYS + a) + first, (uint16_t *)scales + first, n);
    else if (c->bits > 8)
        split_((const float *)buffer, AT(uint16_t, x, ARRAYS + a) + first, (char *)scales + first * (c->bits - 16) / 8,
               c->bits, n);
    else if (real == 4) encode_float_((const float *)buffer, AT(uint8_t, x, ARRAYS + a), scales, c, first, n);
    else encode_double_(buffer, AT(uint8_t, x, ARRAYS + a), scales, c, first, n);
}

/* How the partial results of parts of a chunk become one. */
static void joined_(int kind, double *total, double part)
{
    if (kind == SUM) *total += part;
    else if (part != part || (*total == *total && (kind == MAX ? part > *total : part < *total))) *total = part;
}

#define AT_MOST 16 /* arrays in codes that a kernel may have */
#define CELLS 512  /* cells that a row may have */

/* Runs a sweep over the elements begin .. end - 1, or these rows. */
static void coded_chunk_(const Kernel *k, const i64 *x, int s, i64 begin, i64 end, double *out)
{
    const int cells = ARRAYS + k->arrays + k->host_states;
    const i64 used = x[CODED] & (k->reads[s] | k->writes[s]);
    if (!used) {
        k->sweep[s](x, begin, end, out);
        return;
    }
    i64 row[CELLS];
    double buffers[AT_MOST][PIECE];
    memcpy(row, x, (size_t)cells * sizeof *row);
    for (i64 first = begin; first < end || first == begin; first += PIECE) {
        const i64 n = end - first < PIECE ? end - first : PIECE;
        double part[64];
        for (int a = 0, b = 0; a < k->arrays; a++) {
            if (!(used >> a & 1)) continue;
            double *const buffer = buffers[b++];
            if (k->reads[s] >> a & 1) decode_(x, cells, a, k->real, first, n, buffer);
            row[ARRAYS + a] = (i64)(intptr_t)buffer - first * k->real;
        }
        k->sweep[s](row, first, first + n, k->width ? part : out);
        for (int r = 0; r < k->width && k->folds[s][r] >= 0; r++) {
            if (first == begin) out[r] = part[r];
            else joined_(k->folds[s][r], &out[r], part[r]);
        }
        for (int a = 0, b = 0; a < k->arrays; a++) {
            if (!(used >> a & 1)) continue;
            const double *const buffer = buffers[b++];
            if (k->writes[s] >> a & 1) encode_(x, cells, a, k->real, first, n, buffer);
        }
    }
}
