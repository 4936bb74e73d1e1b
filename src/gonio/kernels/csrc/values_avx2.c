/* Weighted sums of packed values with AVX2. With bytes vpshufb turns nibbles into 8-bit levels,
 * vpmaddubsw multiplies them with 8-bit weights and adds two products; coordinates of a byte, and all
 * of them if precise, take float32. */
#include "weights.h"

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

/* Two partial sums of each row, the rows side by side. */
INLINE256 __m256 coordinate_sums(const uint8_t *plane, size_t stride, int shift,
                                 const float *level, const value_tile *tile, const int is_wide,
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
    return _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
}

INLINE256 void add_coordinate(const uint8_t *plane, size_t stride, int shift, const float *level,
                              const value_tile *tile, float *sums, const int is_wide,
                              const int rows) {
    __m256 all = coordinate_sums(plane, stride, shift, level, tile, is_wide, rows);
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

AVX2_TARGET void add_values_avx2_precise(const plan *values, const head_plan *head,
                                         const value_quad *quads, int64_t count,
                                         const uint8_t *planes, size_t stride,
                                         const value_tile *tile, float *sums) {
    (void)quads, (void)count;
    switch (tile->rows) {
    case 1: add_head(values, head, planes, stride, tile, sums, 1); break;
    case 2: add_head(values, head, planes, stride, tile, sums, 2); break;
    case 3: add_head(values, head, planes, stride, tile, sums, 3); break;
    default: add_head(values, head, planes, stride, tile, sums, 4);
    }
}

/* Bytes that are read, of which row r of the sums owns those at `order`[r], in `units`[r]. */
typedef struct {
    const uint8_t (*weights)[TILE];
    __m256 units;
    __m256i order;
} weighed_rows;

/* Four vectors of 8 partial sums of rows as one: two sums of each row, the rows side by side. */
INLINE256 __m256i fold(const __m256i *x) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
}

INLINE256 void store_sums(float *sums, __m256i first, __m256i second, const weighed_rows *rows) {
    __m256i all = _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                                   _mm256_permute2x128_si256(first, second, 0x31));
    __m256 own = _mm256_permutevar_ps(_mm256_cvtepi32_ps(all), rows->order);
    _mm256_store_ps(sums, _mm256_fmadd_ps(own, rows->units, _mm256_load_ps(sums)));
}

/* sum + four products of unsigned weights and signed levels. Without the instruction for that (in
 * assembly, which needs no newer compiler) two and two fit 16 bits: see LARGEST_PAIR_OF_WEIGHTS. */
INLINE256 __m256i add_products(__m256i sum, __m256i weight, __m256i level, const int has_vnni) {
#if GONIO_AVXVNNI
    if (has_vnni) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weight), "x"(level));
        return sum;
    }
#endif
    (void)has_vnni;
    __m256i two = _mm256_maddubs_epi16(weight, level);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
}

/* Two coordinates, of the low and the high nibble of a plane. A line is fetched from `next` for each
 * block, `step` bytes apart. */
INLINE256 void add_pair(const int8_t (*level)[NIBBLE], const uint8_t *plane, size_t stride,
                        const uint8_t *next, size_t step, const value_tile *tile,
                        const weighed_rows *own, float *sums, const int rows, const int has_vnni) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i table[2], sum[2][GROUP];
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        table[k] = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)level[k]));
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; g++) sum[k][g] = _mm256_setzero_si256();
    }
    for (int half = 0; half < BLOCK; half += 32)
        for (int b = 0; b < tile->blocks; b++) {
            if (half == 0) _mm_prefetch((const char *)next + (size_t)b * step, FETCH_HINT);
            const uint8_t *at = plane + (size_t)b * stride + half;
            __m256i codes = _mm256_loadu_si256((const __m256i *)at), found[2];
            found[0] = _mm256_shuffle_epi8(table[0], _mm256_and_si256(codes, nibble));
            codes = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
            found[1] = _mm256_shuffle_epi8(table[1], codes);
#pragma GCC unroll 4
            for (int g = 0; g < rows; g++) {
                __m256i weight = _mm256_load_si256(
                    (const __m256i *)(own->weights[g] + b * BLOCK + half));
                sum[0][g] = add_products(sum[0][g], weight, found[0], has_vnni);
                sum[1][g] = add_products(sum[1][g], weight, found[1], has_vnni);
            }
        }
    store_sums(sums, fold(sum[0]), fold(sum[1]), own);
}

INLINE256 void add_pairs(const value_quad *quad, int64_t count, const uint8_t *planes,
                         size_t stride, const value_tile *tile, const weighed_rows *own,
                         float *sums, const int rows, const int has_vnni) {
    for (int64_t i = 0; i < 2 * count; i++, sums += 2 * GROUP) {
        const value_quad *q = quad + i / 2;
        int64_t half = i % 2, plane = q->plane[half];
        const uint8_t *next = to_fetch(plane, stride, tile);
        size_t step = BLOCK;
        if (half && plane == q->plane[0] && i / 2 < LINES * tile->key_words) { /* fetched by 0 */
            next = tile->next_keys + i / 2 * 64;
            step = tile->key_stride;
        }
        add_pair(q->level + 2 * half, planes + plane, stride, next, step, tile, own, sums, rows,
                 has_vnni);
    }
}

INLINE256 void add_rows(const value_quad *quads, int64_t count, const uint8_t *planes,
                        size_t stride, const value_tile *tile, const weighed_rows *own, int rows,
                        float *sums, const int has_vnni) {
    switch (rows) {
    case 0: break;
    case 1: add_pairs(quads, count, planes, stride, tile, own, sums, 1, has_vnni); break;
    case 2: add_pairs(quads, count, planes, stride, tile, own, sums, 2, has_vnni); break;
    case 3: add_pairs(quads, count, planes, stride, tile, own, sums, 3, has_vnni); break;
    default: add_pairs(quads, count, planes, stride, tile, own, sums, 4, has_vnni);
    }
}

INLINE256 weighed_rows rows_of(const uint8_t (*weights)[TILE], const float *unit,
                               const int32_t *order) {
    weighed_rows found = {
        weights, _mm256_broadcast_ps((const __m128 *)unit),
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)order))};
    return found;
}

AVX2_TARGET static void add_wides(const plan *values, const head_plan *head,
                                  const uint8_t *planes, size_t stride, const value_tile *tile,
                                  float *sums) {
    for (int64_t w = 0; w < head->wides; w++, sums += GROUP) {
        __m256 all = coordinate_sums(planes + (head->nibbles / 2 + w) * BLOCK, stride, 0,
                                     values->wide_levels + (head->first_wide + w) * BYTE, tile, 1,
                                     tile->rows);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
        _mm_store_ps(sums, _mm_fmadd_ps(four, _mm_loadu_ps(tile->unit), _mm_load_ps(sums)));
    }
}

INLINE256 void add_bytes(const plan *values, const head_plan *head, const value_quad *quads,
                         int64_t count, const uint8_t *planes, size_t stride,
                         const value_tile *tile, float *sums, const int has_vnni) {
    static const int32_t in_order[GROUP] = {0, 1, 2, 3};
    float unit[GROUP];
    int32_t order[GROUP];
    find_low(tile, unit, order);
    weighed_rows high = rows_of(tile->high, tile->byte_unit, in_order);
    weighed_rows low = rows_of(tile->low, unit, order);
    add_rows(quads, count, planes, stride, tile, &high, tile->rows, sums, has_vnni);
    add_rows(quads, count, planes, stride, tile, &low, tile->heavies, sums, has_vnni);
    add_wides(values, head, planes, stride, tile, sums + count * 4 * GROUP);
}

AVX2_TARGET void add_values_avx2(const plan *values, const head_plan *head, const value_quad *quads,
                                 int64_t count, const uint8_t *planes, size_t stride,
                                 const value_tile *tile, float *sums) {
    add_bytes(values, head, quads, count, planes, stride, tile, sums, 0);
}

#if GONIO_AVXVNNI
AVX2_TARGET void add_values_avxvnni(const plan *values, const head_plan *head,
                                    const value_quad *quads, int64_t count, const uint8_t *planes,
                                    size_t stride, const value_tile *tile, float *sums) {
    add_bytes(values, head, quads, count, planes, stride, tile, sums, 1);
}
#endif
#endif
