/* Weighted sums of packed values: the portable and the AVX2 kernel, in float32. */
#include "gonio_kernels.h"

/* Adds one coordinate's levels, looked up by `shift` and `mask` in a plane, for every row. */
static void add_levels(const uint8_t *plane, size_t stride, int shift, int mask, const float *level,
                       const value_tile *tile, float *sums) {
    for (int b = 0; b < tile->blocks; b++, plane += stride)
        for (int i = 0; i < BLOCK; i++) {
            float found = level[plane[i] >> shift & mask];
            for (int g = 0; g < tile->rows; g++)
                sums[i % PARTS * GROUP + g] += tile->weights[g][b * BLOCK + i] * found;
        }
}

void add_values_portable(const plan *values, const head_plan *head, const value_quad *quads,
                         int64_t count, const uint8_t *planes, size_t stride,
                         const value_tile *tile, float *sums) {
    (void)quads, (void)count;
    for (int64_t n = 0; n < head->nibbles; n++)
        for (int s = 0; s < SLOTS; s++) {
            int64_t at = (head->first_nibble + n) * SLOTS + s;
            if (values->dims[at] < 0) continue;
            add_levels(planes + n / 2 * BLOCK, stride, (int)(n % 2 * 4), NIBBLE - 1,
                       values->levels + at * NIBBLE, tile, sums + values->dims[at] * PARTS * GROUP);
        }
    for (int64_t w = 0; w < head->wides; w++) {
        int64_t at = head->first_wide + w;
        add_levels(planes + (head->nibbles / 2 + w) * BLOCK, stride, 0, BYTE - 1,
                   values->wide_levels + at * BYTE, tile,
                   sums + values->wide_dims[at] * PARTS * GROUP);
    }
}

add_values *add_values_for(enum level level, int precise) {
#if GONIO_X86
    if (level == AVX512 && !precise) return add_values_avx512;
    if (level != PORTABLE) return add_values_avx2;
#endif
#if GONIO_NEON
    if (level == NEON) return add_values_neon;
#endif
    (void)level, (void)precise;
    return add_values_portable;
}

#if GONIO_X86
#include <immintrin.h>

#define INLINE256 static inline __attribute__((always_inline)) AVX2_TARGET

/* Bytes of 8 tokens, as 32-bit numbers. */
INLINE256 __m256i eight_codes(const uint8_t *plane) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)plane));
}

/* Levels of 8 nibbles; higher bits of a number are ignored. */
INLINE256 __m256 nibble_levels(__m256i codes, __m256 first, __m256 second) {
    __m256 low = _mm256_permutevar8x32_ps(first, codes);
    __m256 high = _mm256_permutevar8x32_ps(second, codes);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

INLINE256 void add_coordinate(const uint8_t *plane, size_t stride, int shift, const float *level,
                              const value_tile *tile, float *sums, const int is_wide,
                              const int rows) {
    __m256 first = _mm256_loadu_ps(level), second = _mm256_loadu_ps(level + 8), sum[GROUP];
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; g++) sum[g] = _mm256_setzero_ps();
    for (int b = 0; b < tile->blocks; b++, plane += stride)
        for (int i = 0; i < BLOCK; i += 8) {
            __m256i codes = _mm256_srli_epi32(eight_codes(plane + i), shift);
            __m256 found = is_wide ? _mm256_i32gather_ps(level, codes, 4)
                                   : nibble_levels(codes, first, second);
#pragma GCC unroll 4
            for (int g = 0; g < rows; g++)
                sum[g] = _mm256_fmadd_ps(
                    found, _mm256_load_ps(tile->weights[g] + b * BLOCK + i), sum[g]);
        }
    /* Two partial sums of each row, the rows side by side. */
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
    _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), all));
}

INLINE256 void add_head(const plan *values, const head_plan *head, const uint8_t *planes,
                        size_t stride, const value_tile *tile, float *sums, const int rows) {
    for (int64_t n = 0; n < head->nibbles; n++)
        for (int s = 0; s < SLOTS; s++) {
            int64_t at = (head->first_nibble + n) * SLOTS + s;
            if (values->dims[at] < 0) continue;
            add_coordinate(planes + n / 2 * BLOCK, stride, (int)(n % 2 * 4),
                           values->levels + at * NIBBLE, tile,
                           sums + values->dims[at] * PARTS * GROUP, 0, rows);
        }
    for (int64_t w = 0; w < head->wides; w++) {
        int64_t at = head->first_wide + w;
        add_coordinate(planes + (head->nibbles / 2 + w) * BLOCK, stride, 0,
                       values->wide_levels + at * BYTE, tile,
                       sums + values->wide_dims[at] * PARTS * GROUP, 1, rows);
    }
}

AVX2_TARGET void add_values_avx2(const plan *values, const head_plan *head, const value_quad *quads,
                                 int64_t count, const uint8_t *planes, size_t stride,
                                 const value_tile *tile, float *sums) {
    (void)quads, (void)count;
    switch (tile->rows) {
    case 1: add_head(values, head, planes, stride, tile, sums, 1); break;
    case 2: add_head(values, head, planes, stride, tile, sums, 2); break;
    case 3: add_head(values, head, planes, stride, tile, sums, 3); break;
    default: add_head(values, head, planes, stride, tile, sums, 4);
    }
}
#endif
