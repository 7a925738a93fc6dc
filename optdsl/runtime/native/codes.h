/* Arrays that are kept in codes: what optdsl/runtime/storage.py says, as fast as it can be had.
 *
 * A sweep that reads or writes such an array gets numbers in a buffer in its place. One at a time, they are decoded and
 * encoded by tables. Where there are the instructions for it, a whole block is: decoded by permuting the table, and encoded by
 * a few straight pieces or carries, where what is too close to call is left to the table.
 */
#if defined __AVX512VBMI__ && defined __AVX512BW__ && defined __AVX512DQ__ && !defined PLAIN_CODES
#include <immintrin.h>
#define WIDE 64 /* codes in a register, if a byte each */
#endif

#define CODE_BLOCK 256 /* numbers with one scale */
#define PIECE 512      /* numbers that are worked on at a time, if none are in codes */
#define SIMD_ _Pragma("omp simd")

/* Numbers are told apart by sign and magnitude, counted from 2^-24 in units of float32; beyond 1.25 they are not. */
#define LOWEST 0x33800000
#define BUCKETS 3104 /* of one sign */

/* `bucket`: of every 65536 neighbours, the entry nearest to the first of them in the upper 16 bits, and in the lower ones
 * what makes a carry for those that belong to the next entry.
 *
 * Straight pieces: the entry nearest to a magnitude y has the number zero + k, or zero - k for a negative one. A smaller y
 * than `least` gives what that one gives. `shape` says how k is found:
 *
 * EVEN    k = floor(y * factor + shift)
 * SQUARES k = floor(sqrt(y * steps - 1/4) + shift)
 * PIECES  as EVEN, at most top, with the piece at (b + split[b >> 24 & 15]) >> 24 & 15, where b are the bits of y, to which
 *         `least` has been added if there is a sign
 * FEW     k = (b + split[b >> 20 & 31]) >> 24 & 15, where b are the bits of y * steps + least
 *
 * MARGIN, by which k may be in error, is part of shift or split, and so is for the first three a base that makes k the
 * upper bits; see step_.
 */
enum { EVEN, SQUARES, PIECES, FEW };
typedef struct {
    i64 bits, zero /* or the site where an array draws */, shape, positive;
    float steps, least;
    char unused[24]; /* all that follows lies within lines of the cache */
    int32_t split[32];
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

/* ---- a whole block ---- */

#ifdef WIDE
#define EACH_(q) _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++)
/* WIDE codes of 8 bits. */
INLINE void decode_wide_(const uint8_t *codes, __m512 scale, const Code *c, float *out)
{
    /* 4 neighbours have the place that they keep when bytes become numbers within 16 bytes */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i k = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes));
    __m512i byte[4], pair[4];
    const __mmask64 upper = _mm512_movepi8_mask(k);
    EACH_(p) {
        __m512i part[4];
        EACH_(q) part[q] = _mm512_loadu_si512(c->bytes[p] + 64 * q);
        byte[p] = _mm512_mask_blend_epi8(
            upper, _mm512_permutex2var_epi8(part[0], k, part[1]), _mm512_permutex2var_epi8(part[2], k, part[3]));
    }
    pair[0] = _mm512_unpacklo_epi8(byte[0], byte[1]), pair[1] = _mm512_unpacklo_epi8(byte[2], byte[3]);
    pair[2] = _mm512_unpackhi_epi8(byte[0], byte[1]), pair[3] = _mm512_unpackhi_epi8(byte[2], byte[3]);
    EACH_(q) {
        const __m512i a = pair[q & 2], b = pair[q | 1];
        const __m512i number = q & 1 ? _mm512_unpackhi_epi16(a, b) : _mm512_unpacklo_epi16(a, b);
        _mm512_storeu_ps(out + 16 * q, _mm512_mul_ps(_mm512_castsi512_ps(number), scale));
    }
}
/* 16 codes of 4 bits. */
INLINE void decode_half_(const uint8_t *codes, __m512 scale, const Code *c, float *out)
{
    const __m512i low = _mm512_broadcastd_epi32(_mm_loadu_si32(codes));
    const __m512i both = _mm512_mask_broadcastd_epi32(low, 0xff00, _mm_loadu_si32(codes + 4));
    const __m512i place = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i k = _mm512_srlv_epi32(both, place); /* of which the lower 4 bits count */
    _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_permutexvar_ps(k, _mm512_loadu_ps(c->value)), scale));
}

#define MARGIN 8 /* of 65536 */
typedef struct {
    __m512 inverse, least, factor, shift, steps;
    __m512i split[2], top, zero;
    __m512i upper, lower; /* places of the upper 16 bits of each 32, and of the byte in each 16 that is k */
} Encoder;
/* For codes with a scale; inverse is 1 / scale, nearly. */
INLINE Encoder encoder_(const Code *c, float inverse, int shape)
{
    const __m512i i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return (Encoder){
        _mm512_set1_ps(shape == FEW ? inverse * c->steps : inverse), _mm512_set1_ps(c->least),
        _mm512_loadu_ps(c->factor), _mm512_loadu_ps(c->shift), _mm512_set1_ps(c->steps),
        {_mm512_loadu_si512(c->split), _mm512_loadu_si512(c->split + 16)},
        _mm512_loadu_si512(c->top), _mm512_set1_epi8((char)c->zero),
        _mm512_add_epi32(_mm512_mullo_epi32(i, _mm512_set1_epi32(0x00040004)), _mm512_set1_epi32(0x00030001)),
        _mm512_add_epi32(
            _mm512_mullo_epi32(i, _mm512_set1_epi32(0x08080808)), _mm512_set1_epi32(shape == FEW ? 0x07050301 : 0x06040200)),
    };
}
/* The numbers of a block, in 16 registers, on their way to codes. */
typedef struct {
    __m512 size[16], factor[16], shift[16], root[16], half[16];
    __m512i piece[16], t[16], pair[16], near[4], k[4];
    __mmask64 negative[4];
} Way;
#define STEPS 16
/* A step of register q. What becomes the code of a number is t: k lies in bits 16 to 23 of it (24 to 31 for FEW), and the
 * rest below tells how far it is from the next. For the mask near, see encode_wide_. */
INLINE void step_(int step, int q, Way *w, const float *x, const Encoder *e, int half, int shape, int positive,
                  uint8_t *codes, __mmask32 *near)
{
    const __m512i magnitude = _mm512_set1_epi32(INT32_MAX), y = _mm512_loadu_si512(x + 16 * q);
    const __m512 a_half = _mm512_set1_ps(0.5f);
    const int g = q / 4, last = (q & 3) == 3, pieces = shape == PIECES, added = !positive && (pieces || shape == FEW);
    /* the unit for roots is slow, so that it gets two of four; meanwhile those of the others are estimated, to 14 bits, and
     * improved by a step of Newton's: they are wrong in the last place or two */
    const int root = shape == SQUARES, estimated = root && q & 2;
    __m512 *const size = &w->size[q], *const r = &w->root[q];
    __m512i *const piece = &w->piece[q], *const t = &w->t[q], *const k = &w->k[g];
    switch (step) {
    case 0:
        if (added) *size = _mm512_castsi512_ps(_mm512_and_si512(y, magnitude));
        else if (shape == FEW) *size = _mm512_fmadd_ps(_mm512_castsi512_ps(y), e->inverse, e->least);
        else *size = _mm512_mul_ps(_mm512_castsi512_ps(y), e->inverse);
        break;
    case 1:
        if (added) *size = _mm512_fmadd_ps(*size, e->inverse, e->least);
        else *size = positive ? _mm512_max_ps(*size, e->least) : _mm512_range_ps(*size, e->least, 0xb);
        break;
    case 2:
        w->factor[q] = e->factor, w->shift[q] = e->shift;
        if (pieces || shape == FEW) *piece = _mm512_srli_epi32(_mm512_castps_si512(*size), pieces ? 24 : 20);
        if (root) *size = _mm512_fmsub_ps(*size, e->steps, _mm512_set1_ps(0.25f));
        break;
    case 3:
        if (pieces) *piece = _mm512_permutexvar_epi32(*piece, e->split[0]);
        if (shape == FEW) *piece = _mm512_permutex2var_epi32(e->split[0], *piece, e->split[1]);
        if (root) *r = estimated ? _mm512_rsqrt14_ps(*size) : _mm512_sqrt_ps(*size);
        break;
    case 4:
        if (pieces || shape == FEW) *piece = _mm512_add_epi32(_mm512_castps_si512(*size), *piece);
        if (estimated) *size = _mm512_mul_ps(*size, *r);
        break;
    case 5:
        if (pieces) *piece = _mm512_srli_epi32(*piece, 24);
        if (estimated) w->half[q] = _mm512_mul_ps(*size, a_half);
        break;
    case 6:
        if (pieces) w->factor[q] = _mm512_permutexvar_ps(*piece, e->factor);
        if (estimated) *r = _mm512_fnmadd_ps(w->half[q], *r, a_half);
        break;
    case 7:
        if (pieces) w->shift[q] = _mm512_permutexvar_ps(*piece, e->shift);
        if (estimated) w->shift[q] = _mm512_add_ps(*size, e->shift);
        break;
    case 8:
        if (shape == FEW) *t = *piece;
        else if (root && !estimated) *t = _mm512_castps_si512(_mm512_add_ps(*r, w->shift[q]));
        else *t = _mm512_castps_si512(_mm512_fmadd_ps(*size, root ? *r : w->factor[q], w->shift[q]));
        break;
    case 9:
        /* base + k lies between two powers of two, so that k ends in bit 16, or for `positive` in 15 */
        if (positive && shape != FEW) *t = _mm512_add_epi32(*t, *t);
        w->near[g] = q % 4 ? _mm512_min_epu16(w->near[g], *t) : *t;
        break;
    case 10:
        if (pieces) *t = _mm512_min_epu32(*t, _mm512_permutexvar_epi32(*piece, e->top));
        break;
    case 11:
        if (!positive) *t = _mm512_ternarylogic_epi32(*t, y, magnitude, 0xe4); /* the sign of y */
        break;
    case 12:
        if (q & 1) w->pair[q] = _mm512_permutex2var_epi16(w->t[q - 1], e->upper, *t);
        if (last) near[g] = _mm512_cmplt_epu16_mask(w->near[g], _mm512_set1_epi16(2 * MARGIN));
        break;
    case 13:
        if (!last) break;
        *k = _mm512_permutex2var_epi8(w->pair[q - 2], e->lower, w->pair[q]);
        if (!positive)
            w->negative[g] =
                _mm512_kunpackd(_mm512_movepi16_mask(w->pair[q]), _mm512_movepi16_mask(w->pair[q - 2]));
        break;
    case 14:
        if (last && shape == FEW) *k = _mm512_and_si512(*k, _mm512_set1_epi8(15));
        if (last && !positive)
            *k = _mm512_mask_subs_epu8(_mm512_add_epi8(e->zero, *k), w->negative[g], e->zero, *k);
        break;
    case 15:
        if (!last) break;
        if (!half) _mm512_storeu_si512(codes + WIDE * g, *k);
        else {
            const __m512i two = _mm512_maddubs_epi16(*k, _mm512_set1_epi16(0x1001));
            _mm256_storeu_si256((void *)(codes + WIDE / 2 * g), _mm512_cvtepi16_epi8(two));
        }
    }
}
/* Codes of a block of numbers x. The masks say which may be wrong, being too close to call: bit 2 * i of mask g stands for
 * the numbers i, i + 16, i + 32 and i + 48 of the WIDE numbers from g * WIDE on.
 *
 * At every time t, each register is at another step: operations that follow each other are of different kinds, for which the
 * processor has different units, and none waits for the one before. That is a tenth faster than to take every step with all
 * registers, or four, before the next. */
INLINE void encode_wide_(const float *x, const Encoder *e, int half, int shape, int positive, uint8_t *codes,
                         __mmask32 *near)
{
    Way w;
#define STEP_(t, q) if (t - q >= 0 && t - q < STEPS) step_(t - q, q, &w, x, e, half, shape, positive, codes, near);
#define FOUR_(f, n) f(n) f(n + 1) f(n + 2) f(n + 3)
#define TIME_(t) \
    STEP_(t, 15) STEP_(t, 14) STEP_(t, 13) STEP_(t, 12) STEP_(t, 11) STEP_(t, 10) STEP_(t, 9) STEP_(t, 8) \
    STEP_(t, 7) STEP_(t, 6) STEP_(t, 5) STEP_(t, 4) STEP_(t, 3) STEP_(t, 2) STEP_(t, 1) STEP_(t, 0)
    FOUR_(TIME_, 0) FOUR_(TIME_, 4) FOUR_(TIME_, 8) FOUR_(TIME_, 12)
    FOUR_(TIME_, 16) FOUR_(TIME_, 20) FOUR_(TIME_, 24) FOUR_(TIME_, 28)
}
/* What scale_of_float_ says of a whole block. */
INLINE float scale_of_wide_(const float *x)
{
    const __m512i size = _mm512_set1_epi32(INT32_MAX);
    __m512i most[4];
    EACH_(q) most[q] = _mm512_and_si512(size, _mm512_loadu_si512(x + 16 * q));
    _Pragma("GCC unroll 3") for (int i = WIDE; i < CODE_BLOCK; i += WIDE)
        EACH_(q) most[q] = _mm512_max_epi32(most[q], _mm512_and_si512(size, _mm512_loadu_si512(x + i + 16 * q)));
    const int32_t b = _mm512_reduce_max_epi32(
        _mm512_max_epi32(_mm512_max_epi32(most[0], most[1]), _mm512_max_epi32(most[2], most[3])));
    float found;
    memcpy(&found, &b, 4);
    return found;
}
/* Has the table decide on what was too close to call. */
static __attribute__((noinline)) void settle_(const float *x, float scale, const Code *c, const __mmask32 *near,
                                              uint8_t *codes)
{
    const int half = c->bits == 4;
    for (i64 b = 0; b < CODE_BLOCK; b += WIDE)
        for (__mmask32 left = near[b / WIDE]; left; left &= left - 1)
            for (i64 i = b + __builtin_ctz(left) / 2; i < b + WIDE; i += 16) {
                const int k = code_of_(c, x[i] / scale);
                uint8_t *const to = codes + (i >> half);
                *to = (uint8_t)(!half ? k : i & 1 ? (*to & 15) | k << 4 : (*to & 240) | k);
            }
}
#endif

/* ---- n numbers of a block, from its start ---- */

static void decode_float_(const uint8_t *restrict codes, float scale, const Code *restrict c, i64 n, float *restrict out)
{
    i64 i = 0;
    const int half = c->bits == 4;
#ifdef WIDE
    const __m512 size = _mm512_set1_ps(scale);
    if (half) for (; i + 16 <= n; i += 16) decode_half_(codes + (i >> 1), size, c, out + i);
    else for (; i + WIDE <= n; i += WIDE) decode_wide_(codes + i, size, c, out + i);
#endif
    if (i < n) decode_some_float_(codes + (i >> half), scale, c, n - i, out + i);
}
#ifdef WIDE
INLINE void encode_block_(const float *restrict x, float scale, const Code *restrict c, int shape, int positive,
                          uint8_t *restrict codes)
{
    const Encoder e = encoder_(c, scale > 0 ? 1 / scale : 0, shape);
    __mmask32 near[CODE_BLOCK / WIDE];
    encode_wide_(x, &e, shape == EVEN ? c->bits == 4 : shape == FEW, shape, positive, codes, near);
    if (__builtin_expect((near[0] | near[1] | near[2] | near[3]) != 0, 0)) settle_(x, scale, c, near, codes);
}
static void encode_whole_(const float *restrict x, float scale, const Code *restrict c, uint8_t *restrict codes)
{
    /* a function for each kind */
#define SHAPE_(shape) \
    case shape: \
        if (c->positive) encode_block_(x, scale, c, shape, 1, codes); \
        else encode_block_(x, scale, c, shape, 0, codes); \
        break;
    switch (c->shape) { SHAPE_(EVEN) SHAPE_(SQUARES) SHAPE_(PIECES) SHAPE_(FEW) }
}
#endif
static void encode_float_(const float *restrict x, float scale, const Code *restrict c, i64 n, uint8_t *restrict codes)
{
#ifdef WIDE
    if (scale == 0 || (scale > 0x1p-100f && scale < 0x1p100f)) {
        if (n == CODE_BLOCK) encode_whole_(x, scale, c, codes);
        else {
            float whole[CODE_BLOCK] = {0};
            uint8_t found[CODE_BLOCK];
            memcpy(whole, x, (size_t)n * sizeof *x);
            encode_whole_(whole, scale, c, found);
            if (c->bits == 4 && n % 2) found[n / 2] &= 15;
            memcpy(codes, found, (size_t)(c->bits == 4 ? (n + 1) / 2 : n));
        }
        return;
    }
#endif
    encode_some_float_(x, scale, c, n, codes);
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
/* An array that a sweep reads or writes and that has numbers in a buffer only. */
typedef struct {
    int array, read, written;
    const Code *code;
    char *stored, *beside; /* of its first element: codes or a number in bfloat16, scales or what is beside it */
    double *buffer;
} Held;

static void decode_(const Held *h, int real, i64 first, i64 n)
{
    const i64 bits = h->code->bits;
    const uint16_t *const at = (const uint16_t *)h->stored + first;
    if (bits <= 8) {
        const uint8_t *const codes = (const uint8_t *)h->stored + first * bits / 8;
        const float scale = ((const float *)h->beside)[first / CODE_BLOCK];
        if (real == 4) decode_float_(codes, scale, h->code, n, (float *)h->buffer);
        else decode_some_double_(codes, scale, h->code, n, h->buffer);
    } else if (bits == AT_RANDOM) {
        if (real == 4) widen_float_(at, n, (float *)h->buffer);
        else widen_double_(at, n, h->buffer);
    } else if (bits == WITH_REST) sum_(at, (const uint16_t *)h->beside + first, n, (float *)h->buffer);
    else join_(at, h->beside + first * (bits - 16) / 8, bits, n, (float *)h->buffer);
}
/* The scale of a block, which its codes need. */
static void measure_(const Held *h, int real, i64 first, i64 n)
{
    float *const scale = (float *)h->beside + first / CODE_BLOCK;
    if (h->code->bits > 8) return;
    if (real == 8) *scale = scale_of_double_(h->buffer, n);
#ifdef WIDE
    else if (n == CODE_BLOCK) *scale = scale_of_wide_((const float *)h->buffer);
#endif
    else *scale = scale_of_float_((const float *)h->buffer, n);
}
static void encode_(const Held *h, int real, i64 first, i64 n, const i64 *x)
{
    const i64 bits = h->code->bits;
    uint16_t *const at = (uint16_t *)h->stored + first;
    if (bits <= 8) {
        uint8_t *const codes = (uint8_t *)h->stored + first * bits / 8;
        const float scale = ((const float *)h->beside)[first / CODE_BLOCK];
        if (real == 4) encode_float_((const float *)h->buffer, scale, h->code, n, codes);
        else encode_some_double_(h->buffer, scale, h->code, n, codes);
    } else if (bits == AT_RANDOM) {
        u32 tile[WORDS];
        const u32 step = (u32)*AT(float, x, STEP) + 1;
        const u32 *const words = draw_(tile, (uint64_t)x[SEED], step, (u32)x[INDEX], (u32)h->code->zero, first, n);
        if (real == 4) round_float_((const float *)h->buffer, words, n, at);
        else round_double_(h->buffer, words, n, at);
    } else if (bits == WITH_REST) rest_((const float *)h->buffer, at, (uint16_t *)h->beside + first, n);
    else split_((const float *)h->buffer, at, h->beside + first * (bits - 16) / 8, bits, n);
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
    Held held[AT_MOST];
    __attribute__((aligned(64))) double buffers[AT_MOST * PIECE];
    int count = 0;
    /* A block at a time. The processor fetches only a little of what follows in the other arrays, and does so while a block
     * is decoded and encoded: with larger pieces it would wait for memory, with nothing to do. */
    i64 piece = PIECE;
    memcpy(row, x, (size_t)cells * sizeof *row);
    for (int a = 0; a < k->arrays; a++)
        if (used >> a & 1) {
            const Code *const code = AT(const Code, x, cells + 2 * a + 1);
            held[count++] = (Held){
                a, k->reads[s] >> a & 1, k->writes[s] >> a & 1, code,
                AT(char, x, ARRAYS + a), AT(char, x, cells + 2 * a), 0,
            };
            if (code->bits <= 8) piece = CODE_BLOCK;
        }
    for (int h = 0; h < count; h++) held[h].buffer = buffers + h * piece;
    for (i64 first = begin; first < end || first == begin; first += piece) {
        const i64 n = end - first < piece ? end - first : piece;
        double part[64];
        for (int h = 0; h < count; h++) {
            if (held[h].read) decode_(&held[h], k->real, first, n);
            row[ARRAYS + held[h].array] = (i64)(intptr_t)held[h].buffer - first * k->real;
        }
        k->sweep[s](row, first, first + n, k->width ? part : out);
        for (int r = 0; r < k->width && k->folds[s][r] >= 0; r++) {
            if (first == begin) out[r] = part[r];
            else joined_(k->folds[s][r], &out[r], part[r]);
        }
        /* all scales first, as each takes a while to be known */
        for (int h = 0; h < count; h++)
            if (held[h].written) measure_(&held[h], k->real, first, n);
        for (int h = 0; h < count; h++)
            if (held[h].written) encode_(&held[h], k->real, first, n, x);
    }
}
