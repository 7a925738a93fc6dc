/* Random words: Philox4x32-10, a block of four words for four neighbouring elements. See optdsl/runtime/random.py. */
INLINE void philox_(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1, u32 *restrict out)
{
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53 * c0, p1 = (uint64_t)0xCD9E8D57 * c2;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (u32)p0;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}
/* Elements in one go of a loop that draws; the words of one more block, as the first need not start a block. */
#define TILE 1024
#define WORDS (TILE + 8)
/* The words of elements first .. first + n - 1; returns where in `words` that of `first` is. */
static __attribute__((unused)) const u32 *draw_(u32 *restrict words, uint64_t seed, u32 t, u32 tensor, u32 site, i64 first, i64 n)
{
    const i64 block = first >> 2, blocks = ((first + n + 3) >> 2) - block;
    const u32 k0 = (u32)seed, k1 = (u32)(seed >> 32), c2 = tensor + (site << 20);
    _Pragma("omp simd")
    for (i64 b = 0; b < blocks; b++) {
        const uint64_t at = (uint64_t)(block + b);
        philox_((u32)at, (u32)(at >> 32), c2, t, k0, k1, words + 4 * b);
    }
    return words + (first & 3);
}
