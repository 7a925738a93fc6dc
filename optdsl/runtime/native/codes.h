/* Arrays that are kept in codes: what optdsl/runtime/storage.py says, as fast as it can be had.
 *
 * A sweep that reads or writes such an array gets numbers in a buffer in its place. One at a time, they are decoded and
 * encoded by tables. Where there are the instructions for it, 64 at a time are: decoded by permuting the bytes of the
 * table, and encoded by a few straight pieces, where what is too close to call is left to the table.
 */
#if defined __AVX512VBMI__ && defined __AVX512BW__ && defined __AVX512DQ__ && !defined PLAIN_CODES
#include <immintrin.h>
#define WIDE 64 /* numbers at a time */
#endif

#define CODE_BLOCK 256 /* numbers with one scale */
#define PIECE 512      /* numbers that are worked on at a time */
#define SIMD_ _Pragma("omp simd")

/* Numbers are told apart by sign and magnitude, counted from 2^-24 in units of float32; beyond 1.25 they are not. */
#define LOWEST 0x33800000
#define BUCKETS 3104 /* of one sign */

/* `bucket`: of every 65536 neighbours, the entry nearest to the first of them in the upper 16 bits, and in the lower ones
 * what makes a carry for those that belong to the next entry.
 *
 * Straight pieces: the entry nearest to a magnitude y has the number zero + k, or zero - k for a negative one. Here
 * k = floor(u * factor + shift), at most top, where u is y, or for squares the root of y * steps - 1/4; a smaller y than
 * `least` gives what that one gives. The piece of y is that at (b + split[b >> 24 & 15]) >> 24 & 15, where b are its bits.
 * To `shift` are added MARGIN, by which k may be in error, and a base that makes k the upper bits; see encode_wide_.
 */
typedef struct {
    i64 bits, zero /* or the site where an array draws */, root, pieces, positive; /* the last three as 0 or 1 */
    float steps, least;
    int32_t split[16];
    float factor[16], shift[16], top[16];
    float value[256];
    uint8_t bytes[4][256]; /* of these, by their place */
    int32_t bucket[2 * BUCKETS];
} Code;

/* ---- one at a time ---- */

INLINE int code_of_(const Code *c, float y)
{
    int32_t b;
    y = y == y ? y : 0;
    memcpy(&b, &y, 4);
    int32_t at = (b & 0x7fffffff) - LOWEST;
    at = at < 0 ? 0 : at > (BUCKETS << 16) - 1 ? (BUCKETS << 16) - 1 : at;
    at ^= b >> 31;
    return (c->bucket[(at >> 16) + BUCKETS] + (at & 0xffff)) >> 16;
}

#define ONE_BY_ONE(real, integer, most_, suffix) \
    static void decode_some_##suffix(const uint8_t *restrict codes, real scale, const Code *restrict c, i64 n, \
                                     real *restrict out) \
    { \
        if (c->bits == 8) for (i64 i = 0; i < n; i++) out[i] = (real)c->value[codes[i]] * scale; \
        else for (i64 i = 0; i < n; i += 2) { \
            out[i] = (real)c->value[codes[i / 2] & 15] * scale; \
            if (i + 1 < n) out[i + 1] = (real)c->value[codes[i / 2] >> 4] * scale; \
        } \
    } \
    /* n is even, but for the last numbers of all */ \
    static void encode_some_##suffix(const real *restrict x, float scale, const Code *restrict c, i64 n, \
                                     uint8_t *restrict codes) \
    { \
        int found[CODE_BLOCK + 1]; \
        SIMD_ for (i64 i = 0; i < n; i++) found[i] = code_of_(c, (float)(x[i] / (real)scale)); \
        found[n] = 0; \
        if (c->bits == 8) SIMD_ for (i64 i = 0; i < n; i++) codes[i] = (uint8_t)found[i]; \
        else SIMD_ for (i64 i = 0; i < (n + 1) / 2; i++) codes[i] = (uint8_t)(found[2 * i] | found[2 * i + 1] << 4); \
    } \
    /* the largest magnitude; nan is larger than infinity */ \
    static float scale_of_##suffix(const real *restrict x, i64 n) \
    { \
        integer most = 0; \
        real found; \
        _Pragma("omp simd reduction(max:most)") for (i64 i = 0; i < n; i++) { \
            integer b; \
            memcpy(&b, x + i, sizeof b); \
            b &= most_; \
            most = b > most ? b : most; \
        } \
        memcpy(&found, &most, sizeof found); \
        return (float)found; \
    }
ONE_BY_ONE(float, int32_t, INT32_MAX, float_)
ONE_BY_ONE(double, int64_t, INT64_MAX, double_)

/* ---- WIDE at a time ---- */

#ifdef WIDE
#define EACH_(q) _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++)
typedef struct {
    __m512i bytes[4][4];
} Decoder;
INLINE Decoder decoder_(const Code *c)
{
    Decoder d;
    EACH_(p) EACH_(q) d.bytes[p][q] = _mm512_loadu_si512(c->bytes[p] + 64 * q);
    return d;
}
INLINE void decode_wide_(const uint8_t *codes, __m512 scale, const Decoder *d, int half, float *out)
{
    /* 4 neighbours have the place that they keep when bytes become numbers within 16 bytes */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i k, byte[4], pair[4];
    if (!half) k = _mm512_loadu_si512(codes);
    else {
        const __m512i two = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)codes));
        k = _mm512_and_si512(_mm512_or_si512(two, _mm512_slli_epi16(two, 4)), _mm512_set1_epi8(15));
    }
    k = _mm512_permutexvar_epi32(order, k);
    const __mmask64 upper = _mm512_movepi8_mask(k);
    EACH_(p) byte[p] = _mm512_mask_blend_epi8(
        upper,
        _mm512_permutex2var_epi8(d->bytes[p][0], k, d->bytes[p][1]),
        _mm512_permutex2var_epi8(d->bytes[p][2], k, d->bytes[p][3]));
    pair[0] = _mm512_unpacklo_epi8(byte[0], byte[1]), pair[1] = _mm512_unpacklo_epi8(byte[2], byte[3]);
    pair[2] = _mm512_unpackhi_epi8(byte[0], byte[1]), pair[3] = _mm512_unpackhi_epi8(byte[2], byte[3]);
    EACH_(q) {
        const __m512i a = pair[q & 2], b = pair[q | 1];
        const __m512i number = q & 1 ? _mm512_unpackhi_epi16(a, b) : _mm512_unpacklo_epi16(a, b);
        _mm512_storeu_ps(out + 16 * q, _mm512_mul_ps(_mm512_castsi512_ps(number), scale));
    }
}

#define MARGIN 8 /* of 65536 */
typedef struct {
    __m512 least, factor, shift, steps;
    __m512i split, top, zero;
    __m512i upper, lower; /* places of the upper 16 bits of each 32, and of the lower 8 of each 16 */
} Encoder;
INLINE Encoder encoder_(const Code *c)
{
    const __m512i i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return (Encoder){
        _mm512_set1_ps(c->least), _mm512_loadu_ps(c->factor), _mm512_loadu_ps(c->shift), _mm512_set1_ps(c->steps),
        _mm512_loadu_si512(c->split), _mm512_loadu_si512(c->top), _mm512_set1_epi8((char)c->zero),
        _mm512_add_epi32(_mm512_mullo_epi32(i, _mm512_set1_epi32(0x00040004)), _mm512_set1_epi32(0x00030001)),
        _mm512_add_epi32(_mm512_mullo_epi32(i, _mm512_set1_epi32(0x08080808)), _mm512_set1_epi32(0x06040200)),
    };
}
/* Codes of numbers x, where inverse is 1 / scale, nearly; 0 if one is too close to call. */
INLINE int encode_wide_(const float *x, __m512 inverse, const Encoder *e, int half, int pieces, int root, int positive,
                        uint8_t *codes)
{
    __m512i near = _mm512_set1_epi32(-1), found[4];
    EACH_(q) {
        const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(x + 16 * q), inverse);
        const __m512 size = positive ? _mm512_max_ps(y, e->least) : _mm512_range_ps(y, e->least, 0xb);
        __m512 factor = e->factor, shift = e->shift, u = size;
        __m512i top = e->top;
        if (pieces) {
            const __m512i b = _mm512_castps_si512(size);
            const __m512i piece = _mm512_srli_epi32(
                _mm512_add_epi32(b, _mm512_permutexvar_epi32(_mm512_srli_epi32(b, 24), e->split)), 24);
            factor = _mm512_permutexvar_ps(piece, factor);
            shift = _mm512_permutexvar_ps(piece, shift);
            top = _mm512_permutexvar_epi32(piece, top);
        }
        if (root) u = _mm512_sqrt_ps(_mm512_fmsub_ps(size, e->steps, _mm512_set1_ps(0.25f)));
        /* base + k lies between two powers of two, so that k ends in bit 16, or for `positive` in 15; the rest is behind
         * the point */
        __m512i t = _mm512_castps_si512(_mm512_fmadd_ps(u, factor, shift));
        if (positive) t = _mm512_add_epi32(t, t);
        near = _mm512_min_epu16(near, t);
        if (pieces) t = _mm512_min_epu32(t, top);
        if (!positive) /* the sign of y */
            t = _mm512_ternarylogic_epi32(t, _mm512_castps_si512(y), _mm512_set1_epi32(INT32_MAX), 0xe4);
        found[q] = t;
    }
    if (_mm512_cmplt_epu16_mask(near, _mm512_set1_epi16(2 * MARGIN))) return 0;
    const __m512i a = _mm512_permutex2var_epi16(found[0], e->upper, found[1]);
    const __m512i b = _mm512_permutex2var_epi16(found[2], e->upper, found[3]);
    __m512i k = _mm512_permutex2var_epi8(a, e->lower, b);
    if (!positive) {
        const __mmask64 negative = _mm512_kunpackd(_mm512_movepi16_mask(b), _mm512_movepi16_mask(a));
        k = _mm512_mask_subs_epu8(_mm512_add_epi8(e->zero, k), negative, e->zero, k);
    }
    if (!half) _mm512_storeu_si512(codes, k);
    else {
        k = _mm512_maddubs_epi16(k, _mm512_set1_epi16(0x1001));
        _mm256_storeu_si256((void *)codes, _mm512_cvtepi16_epi8(k));
    }
    return 1;
}
#endif

/* ---- n numbers, from the start of a block ---- */

#define BLOCKS(b, m) for (i64 b = 0, m; m = n - b < CODE_BLOCK ? n - b : CODE_BLOCK, b < n; b += CODE_BLOCK)

static void decode_double_(const uint8_t *restrict codes, const float *restrict scales, const Code *restrict c, i64 n,
                           double *restrict out)
{
    const int half = c->bits == 4;
    BLOCKS(b, m) decode_some_double_(codes + (b >> half), scales[b / CODE_BLOCK], c, m, out + b);
}
static void decode_float_(const uint8_t *restrict codes, const float *restrict scales, const Code *restrict c, i64 n,
                          float *restrict out)
{
#ifdef WIDE
    const Decoder d = decoder_(c);
#endif
    const int half = c->bits == 4;
    BLOCKS(b, m) {
        const float scale = scales[b / CODE_BLOCK];
        i64 i = 0;
#ifdef WIDE
        for (; i + WIDE <= m; i += WIDE)
            decode_wide_(codes + ((b + i) >> half), _mm512_set1_ps(scale), &d, half, out + b + i);
#endif
        decode_some_float_(codes + ((b + i) >> half), scale, c, m - i, out + b + i);
    }
}
static void encode_double_(const double *restrict x, uint8_t *restrict codes, float *restrict scales,
                           const Code *restrict c, i64 n)
{
    const int half = c->bits == 4;
    BLOCKS(b, m) {
        const float scale = scales[b / CODE_BLOCK] = scale_of_double_(x + b, m);
        encode_some_double_(x + b, scale, c, m, codes + (b >> half));
    }
}
INLINE void encode_kind_(const float *restrict x, uint8_t *restrict codes, const float *restrict scales,
                         const Code *restrict c, i64 n, int pieces, int root, int positive)
{
#ifdef WIDE
    const Encoder e = encoder_(c);
#endif
    const int half = c->bits == 4;
    BLOCKS(b, m) {
        const float scale = scales[b / CODE_BLOCK];
        i64 i = 0;
#ifdef WIDE
        const __m512 inverse = _mm512_set1_ps(scale > 0 ? 1 / scale : 0);
        if (scale == 0 || (scale > 0x1p-100f && scale < 0x1p100f))
            for (; i + WIDE <= m; i += WIDE) {
                uint8_t *const to = codes + ((b + i) >> half);
                if (!encode_wide_(x + b + i, inverse, &e, half, pieces, root, positive, to))
                    encode_some_float_(x + b + i, scale, c, WIDE, to);
            }
#endif
        encode_some_float_(x + b + i, scale, c, m - i, codes + ((b + i) >> half));
    }
}
static void encode_float_(const float *restrict x, uint8_t *restrict codes, float *restrict scales,
                          const Code *restrict c, i64 n)
{
    BLOCKS(b, m) scales[b / CODE_BLOCK] = scale_of_float_(x + b, m);
    /* a loop for each kind */
#define KIND_(pieces, root) \
    (c->positive ? encode_kind_(x, codes, scales, c, n, pieces, root, 1) : encode_kind_(x, codes, scales, c, n, pieces, root, 0))
    if (c->pieces) KIND_(1, 0);
    else if (c->root) KIND_(0, 1);
    else KIND_(0, 0);
}

/* A parameter in bfloat16, and the bits that it lacks: 16 of them, or the upper 8. */
INLINE uint32_t with_low_(uint16_t high, int32_t low)
{
    /* what the parameter that was there before had more may change the sign of 0, or make nan of an infinity */
    const int lost = ((high & 0x7fff) == 0 && low < 0) || ((high & 0x7f80) == 0x7f80 && low > 0);
    return ((uint32_t)high << 16) + (uint32_t)(lost ? 0 : low);
}
static void join_(const uint16_t *restrict high, const void *low, i64 bits, i64 n, float *restrict out)
{
    if (bits == 32) {
        const int16_t *restrict const l = low;
        SIMD_ for (i64 i = 0; i < n; i++) {
            const uint32_t b = with_low_(high[i], l[i]);
            memcpy(out + i, &b, 4);
        }
    } else {
        const int8_t *restrict const l = low;
        SIMD_ for (i64 i = 0; i < n; i++) {
            const uint32_t b = with_low_(high[i], (int32_t)l[i] * 256);
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
        const float size = __builtin_fabsf(h), most = size < 0x1p-126f ? 0x1p-126f : size;
        out[i] = l == 0 || !(__builtin_fabsf(l) * 256 <= most) ? h : sum; /* -0 stays; so does what another left */
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
    if (c->bits == AT_RANDOM) {
        const uint16_t *const at = AT(const uint16_t, x, ARRAYS + a) + first;
        if (real == 4) widen_float_(at, n, (float *)buffer);
        else widen_double_(at, n, buffer);
        return;
    }
    if (c->bits == WITH_REST) {
        const uint16_t *const rest = AT(const uint16_t, x, cells + 2 * a) + first;
        sum_(AT(const uint16_t, x, ARRAYS + a) + first, rest, n, (float *)buffer);
        return;
    }
    if (c->bits > 8) {
        const char *const low = AT(const char, x, cells + 2 * a) + first * (c->bits - 16) / 8;
        join_(AT(const uint16_t, x, ARRAYS + a) + first, low, c->bits, n, (float *)buffer);
        return;
    }
    const uint8_t *const codes = AT(const uint8_t, x, ARRAYS + a) + first * c->bits / 8;
    const float *const scales = AT(const float, x, cells + 2 * a) + first / CODE_BLOCK;
    if (real == 4) decode_float_(codes, scales, c, n, (float *)buffer);
    else decode_double_(codes, scales, c, n, buffer);
}
static void encode_(const i64 *x, int cells, int a, int real, i64 first, i64 n, const double *buffer)
{
    const Code *const c = AT(const Code, x, cells + 2 * a + 1);
    if (c->bits == AT_RANDOM) {
        uint16_t *const at = AT(uint16_t, x, ARRAYS + a) + first;
        u32 tile[WORDS];
        const u32 step = (u32)*AT(float, x, STEP) + 1;
        const u32 *const words = draw_(tile, (uint64_t)x[SEED], step, (u32)x[INDEX], (u32)c->zero, first, n);
        if (real == 4) round_float_((const float *)buffer, words, n, at);
        else round_double_(buffer, words, n, at);
        return;
    }
    if (c->bits == WITH_REST) {
        uint16_t *const rest = AT(uint16_t, x, cells + 2 * a) + first;
        rest_((const float *)buffer, AT(uint16_t, x, ARRAYS + a) + first, rest, n);
        return;
    }
    if (c->bits > 8) {
        char *const low = AT(char, x, cells + 2 * a) + first * (c->bits - 16) / 8;
        split_((const float *)buffer, AT(uint16_t, x, ARRAYS + a) + first, low, c->bits, n);
        return;
    }
    uint8_t *const codes = AT(uint8_t, x, ARRAYS + a) + first * c->bits / 8;
    float *const scales = AT(float, x, cells + 2 * a) + first / CODE_BLOCK;
    if (real == 4) encode_float_((const float *)buffer, codes, scales, c, n);
    else encode_double_(buffer, codes, scales, c, n);
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
    __attribute__((aligned(64))) double buffers[AT_MOST][PIECE];
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
