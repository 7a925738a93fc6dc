/* What every generated kernel includes: number types, elementary operations, values of random words.
 *
 * Compiled with: REAL (float or double, what is computed in) and T0, T1, ... (how each array is stored: f32, f64,
 * bf16 or f16).
 */
#include <math.h>
#include <string.h>

#include "table.h"
#include "philox.h"

/* Values of a spec are called by their names and a number: `M_PI` becomes M_PI_0, M_PI_1, M_PI_2. */
#undef M_PI_2
#undef M_PI_4
#undef M_SQRT1_2

typedef REAL real;

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define C(x) ((real)(x))
#define SIMD _Pragma("omp simd")

/* ---- stored numbers: loaded as `real`, rounded to nearest even when stored ---- */

typedef float f32;
typedef double f64;
typedef uint16_t bf16;
typedef uint16_t f16;

INLINE u32 bits_of(float x) { u32 b; memcpy(&b, &x, 4); return b; }
INLINE float float_of(u32 b) { float x; memcpy(&x, &b, 4); return x; }

INLINE real load_f32(f32 x) { return (real)x; }
INLINE real load_f64(f64 x) { return (real)x; }
INLINE real load_bf16(bf16 x) { return (real)float_of((u32)x << 16); }
INLINE real load_f16(f16 x)
{
    /* the exponent is moved by a product, which also makes numbers of the denormal ones */
    const u32 magnitude = ((u32)x & 0x7fff) << 13;
    const float finite = float_of(magnitude) * 0x1p112f;
    const u32 bits = (magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : bits_of(finite)) | ((u32)x & 0x8000) << 16;
    return (real)float_of(bits);
}
INLINE f32 store_f32(real x) { return (f32)x; }
INLINE f64 store_f64(real x) { return (f64)x; }
INLINE bf16 store_bf16(real x)
{
    const u32 b = bits_of((float)x);
    const u32 rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    return (bf16)((b & 0x7fffffff) > 0x7f800000 ? (b >> 16) | 0x40 : rounded);
}
INLINE f16 store_f16(real x)
{
    const u32 b = bits_of((float)x), magnitude = b & 0x7fffffff;
    /* denormal results: adding a number whose last place is theirs rounds as they do */
    const u32 small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    const u32 large = (magnitude + 0xc8000fff + ((b >> 13) & 1)) >> 13;
    const u32 beyond = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const u32 kept = magnitude < 0x38800000 ? small : magnitude >= 0x477ff000 ? beyond : large;
    return (f16)(kept | (b >> 16 & 0x8000));
}
/* Every access to a number of an array with one for each element; a test has others that count. */
#ifndef LOAD
#define LOAD(type, x) CAT(load_, type)(x)
#define STORE(type, x) CAT(store_, type)(x)
#endif

/* ---- operations ---- */

#define real_is_float (sizeof(real) == 4)
#define FN1(name) INLINE real name##_(real x) { return real_is_float ? (real)name##f((float)x) : (real)name((double)x); }

/* Functions that the C library has for vectors (libmvec of glibc, 4 units in the last place at most). */
#ifdef VECTOR_MATH
#define VECTOR(name) \
    extern __attribute__((simd("notinbranch"), const)) double name(double); \
    extern __attribute__((simd("notinbranch"), const)) float name##f(float);
#define VECTOR2(name) \
    extern __attribute__((simd("notinbranch"), const)) double name(double, double); \
    extern __attribute__((simd("notinbranch"), const)) float name##f(float, float);
VECTOR(exp) VECTOR(expm1) VECTOR(log) VECTOR(log1p) VECTOR(sin) VECTOR(cos) VECTOR(tan) VECTOR(asin) VECTOR(acos)
VECTOR(atan) VECTOR(tanh) VECTOR(erf) VECTOR2(pow) VECTOR2(atan2)
#endif

FN1(sqrt) FN1(exp) FN1(expm1) FN1(log) FN1(log1p) FN1(sin) FN1(cos) FN1(tan) FN1(asin) FN1(acos) FN1(atan) FN1(tanh)
FN1(erf) FN1(floor) FN1(ceil) FN1(rint) FN1(fabs)
INLINE real pow_(real x, real y) { return real_is_float ? (real)powf((float)x, (float)y) : (real)pow((double)x, (double)y); }
INLINE real atan2_(real y, real x)
{
    return real_is_float ? (real)atan2f((float)y, (float)x) : (real)atan2((double)y, (double)x);
}
INLINE real square_(real x) { return x * x; }
INLINE real cube_(real x) { return x * x * x; }
/* nan wins */
INLINE real min_(real x, real y) { return x < y || x != x ? x : y; }
INLINE real max_(real x, real y) { return x > y || x != x ? x : y; }
INLINE real sign_(real x) { return x > 0 ? C(1) : x < 0 ? C(-1) : C(0); }
#define LARGEST (real_is_float ? C(0x1.fffffep127) : C(0x1.fffffffffffffp1023))
INLINE int finite_(real x) { return fabs_(x) <= LARGEST; }
INLINE real nan_to_num_(real x)
{
    return x != x ? C(0) : x > LARGEST ? LARGEST : x < -LARGEST ? -LARGEST : x;
}
/* the remainder has the sign of y */
INLINE real mod_(real x, real y)
{
    const real r = real_is_float ? (real)fmodf((float)x, (float)y) : (real)fmod((double)x, (double)y);
    if (r != r) return r;
    if (r == 0) return (real)copysign(0.0, (double)y);
    return (r < 0) != (y < 0) ? r + y : r;
}

/* ---- values of random words ---- */

INLINE float uniform_f(u32 w) { return (float)(int32_t)(w >> 8) * 0x1p-24f; }
INLINE real uniform_(u32 w) { return (real)uniform_f(w); }
INLINE real rademacher_(u32 w) { return w >= 0x80000000u ? C(1) : C(-1); }
INLINE real bernoulli_(u32 w, real q) { return uniform_f(w) < (float)q ? C(1) : C(0); }
INLINE real normal_(u32 w)
{
    const u32 a = w >= 0x80000000u ? ~w : w;
    const float x = ((float)(int32_t)(0x7fffffff - a) + 0.5f) * 0x1p-31f;
    const float s = (((float)(int32_t)a + 0.5f) * 0x1p-31f) * (1.0f + x);
    const int32_t i = (int32_t)bits_of(s), k = (i - 0x3F3504F3) >> 23;
    const float f = float_of((u32)i - ((u32)k << 23)) - 1.0f;
    float l = -0x1.2a6292p-3f;
    l = l * f + 0x1.e50b3ap-3f;
    l = l * f + -0x1.001186p-2f;
    l = l * f + 0x1.259920p-2f;
    l = l * f + -0x1.70bafap-2f;
    l = l * f + 0x1.ec7b3ep-2f;
    l = l * f + -0x1.7155b8p-1f;
    l = l * f + 0x1.715472p+0f;
    const float y = (float)-k - f * l;
    float p = 0x1.3a82a2p-18f;
    p = p * y + 0x1.e35c68p-13f;
    p = p * y + 0x1.03086ep-8f;
    p = p * y + 0x1.616be6p-5f;
    p = p * y + 0x1.41069ep-2f;
    p = p * y + 0x1.40d934p+0f;
    float q = 0x1.5aa072p-23f;
    q = q * y + 0x1.48a8aep-15f;
    q = q * y + 0x1.8d9136p-11f;
    q = q * y + 0x1.0121fep-6f;
    q = q * y + 0x1.194a84p-4f;
    q = q * y + 0x1.000000p+0f;
    const float z = x * (p / q);
    return (real)(w >= 0x80000000u ? z : -z);
}
