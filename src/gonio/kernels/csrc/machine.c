/* What this processor can run, and two yardsticks for benchmarks: scores of bf16 keys, and reading. */
#include <string.h>

#include "gonio_kernels.h"

#if GONIO_X86
#include <cpuid.h>
#endif

/* Whether a level (see `enum level`) is compiled in and runs on this processor. */
EXPORT int gonio_has_level(int level) {
#if GONIO_X86
    __builtin_cpu_init();
    if (level == AVX512)
        return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
               __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    int has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (level == AVX2) return has_avx2;
    unsigned a = 0, b, c, d; /* compilers differ in the names they know */
    if (level == AVXVNNI)
        return GONIO_AVXVNNI && has_avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
#endif
    if (level == NEON) return GONIO_NEON; /* part of every 64-bit ARM processor */
    return level == PORTABLE;
}

INLINE uint64_t read_words(const uint64_t *data, int64_t count) {
    uint64_t mixed[8] = {0};
    for (int64_t i = 0; i + 8 <= count; i += 8)
        for (int k = 0; k < 8; k++) mixed[k] ^= data[i + k];
    uint64_t all = 0;
    for (int k = 0; k < 8; k++) all ^= mixed[k];
    return all;
}

#if GONIO_X86
#include <immintrin.h>

#define INLINE512 static inline __attribute__((always_inline)) AVX512_TARGET

AVX512_TARGET static uint64_t read_avx512(const char *data, int64_t count) {
    __m512i mixed[4];
    for (int k = 0; k < 4; k++) mixed[k] = _mm512_setzero_si512();
    for (int64_t i = 0; i + 256 <= count; i += 256)
        for (int k = 0; k < 4; k++) {
            _mm_prefetch(data + i + 64 * k + 4096, _MM_HINT_T0);
            mixed[k] = _mm512_xor_si512(mixed[k], _mm512_loadu_si512(data + i + 64 * k));
        }
    for (int k = 1; k < 4; k++) mixed[0] = _mm512_xor_si512(mixed[0], mixed[k]);
    return (uint64_t)_mm512_reduce_add_epi64(mixed[0]);
}

INLINE512 void bf16_head(const uint16_t *keys, int64_t tokens, const int parts, const float *query,
                         const int rows, float *out) {
    __m512bh q[GROUP][8];
    for (int g = 0; g < rows; g++)
        for (int k = 0; k < parts; k++) {
            const float *at = query + (g * parts + k) * 32;
            q[g][k] = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(at + 16), _mm512_loadu_ps(at));
        }
    for (int64_t t = 0; t < tokens; t++, keys += 32 * parts) {
        __m512 sum[GROUP];
        for (int g = 0; g < rows; g++) sum[g] = _mm512_setzero_ps();
        for (int k = 0; k < parts; k++) {
            _mm_prefetch((const char *)(keys + 32 * k) + 2048, _MM_HINT_T0);
            __m512bh part = (__m512bh)_mm512_loadu_si512(keys + 32 * k);
            for (int g = 0; g < rows; g++) sum[g] = _mm512_dpbf16_ps(sum[g], part, q[g][k]);
        }
        for (int g = 0; g < rows; g++) out[g * tokens + t] = _mm512_reduce_add_ps(sum[g]);
    }
}

#define BF16_CASE(rows)                                                                           \
    case rows:                                                                                    \
        if (parts == 4)                                                                           \
            bf16_head(keys, tokens, 4, query, rows, out);                                         \
        else                                                                                      \
            bf16_head(keys, tokens, 2, query, rows, out);                                         \
        break;

AVX512_TARGET static void bf16_avx512(const uint16_t *keys, int64_t tokens, int parts,
                                      const float *query, int rows, float *out) {
    switch (rows) {
        BF16_CASE(1)
        BF16_CASE(2)
        BF16_CASE(3)
        BF16_CASE(4)
    }
}
#endif

/* Reads `bytes` bytes as fast as one core can; what it returns depends on all of them. */
EXPORT uint64_t gonio_read(const void *data, int64_t bytes, int level) {
#if GONIO_X86
    if (level == AVX512) return read_avx512(data, bytes);
#endif
    (void)level;
    return read_words(data, bytes / 8);
}

/* Scores of uncompressed bf16 keys [heads][tokens][dim] for queries [heads][rows][dim]: a yardstick.
 * Returns 0, or -1 when dim is not 64 or 128, rows are more than 4, or the processor lacks bf16. */
EXPORT int gonio_bf16_scores(const uint16_t *keys, int64_t heads, int64_t tokens, int64_t dim,
                             const float *query, int64_t rows, int level, float *out) {
#if GONIO_X86
    if (level == AVX512 && (dim == 64 || dim == 128) && rows >= 1 && rows <= GROUP) {
        for (int64_t h = 0; h < heads; h++)
            bf16_avx512(keys + h * tokens * dim, tokens, (int)dim / 32, query + h * rows * dim,
                        (int)rows, out + h * rows * tokens);
        return 0;
    }
#endif
    (void)keys, (void)heads, (void)tokens, (void)dim, (void)query, (void)rows, (void)level, (void)out;
    return -1;
}
