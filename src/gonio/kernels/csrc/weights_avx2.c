/* Weights of values with AVX2: scores become float32 weights in place, then bytes, two of them where
 * a row has few heavy tokens. */
#include "weights.h"

#if GONIO_X86
#include <immintrin.h>

/* The kernel of values adds products of two neighbors' weights with levels of up to 127 in 16 bits,
 * which hold 258 * 127. What is below 258 stays so when both are rounded. */
#define LARGEST_PAIR_OF_WEIGHTS 257.999f
#define LOW_UNITS 128 /* of a second byte: two of 127 fit as well */
#define INLINE256 static inline __attribute__((always_inline)) AVX2_TARGET

/* 2^x within 8e-5 of itself, for x of at most 126; next to zero below -126. */
INLINE256 __m256 power_of_two(__m256 x) {
    const __m256 shift = _mm256_set1_ps(12582912.0f); /* adding it rounds to whole numbers */
    x = _mm256_max_ps(x, _mm256_set1_ps(-126.0f));
    __m256 moved = _mm256_add_ps(x, shift), part = _mm256_sub_ps(x, _mm256_sub_ps(moved, shift));
    __m256 found = _mm256_set1_ps(0.05517167f);
    found = _mm256_fmadd_ps(found, part, _mm256_set1_ps(0.24261113f));
    found = _mm256_fmadd_ps(found, part, _mm256_set1_ps(0.69326099f));
    found = _mm256_fmadd_ps(found, part, _mm256_set1_ps(0.99992807f));
    __m256i whole = _mm256_slli_epi32(_mm256_castps_si256(moved), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(found), whole));
}

INLINE256 float sum_of(__m256 x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* Four maxima side by side: one would wait for itself. */
INLINE256 int32_t largest_found(const int32_t *found, int count) {
    __m256i most[4];
    for (int k = 0; k < 4; k++) most[k] = _mm256_load_si256((const __m256i *)(found + 8 * k));
    for (int i = 32; i < count; i += 32)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            most[k] = _mm256_max_epi32(
                most[k], _mm256_load_si256((const __m256i *)(found + i + 8 * k)));
    int32_t each[8], largest;
    most[0] = _mm256_max_epi32(_mm256_max_epi32(most[0], most[1]),
                               _mm256_max_epi32(most[2], most[3]));
    _mm256_storeu_si256((__m256i *)each, most[0]);
    largest = each[0];
    for (int k = 1; k < 8; k++) largest = each[k] > largest ? each[k] : largest;
    return largest;
}

/* A row's scores as weights of which the largest has BYTE_UNITS; returns their sum, and the largest
 * sum of two neighbors. */
INLINE256 float soften_row(value_tile *tile, int row, row_shift shift, float *pair,
                           const int is_number) {
    const __m256 slope = _mm256_set1_ps(shift.scale * 1.44269504f); /* powers of two, not of e */
    const __m256 most = _mm256_set1_ps(shift.most);
    const __m256 top = _mm256_set1_ps(7.99435344f); /* log2 of BYTE_UNITS */
    const __m256i most_found = _mm256_set1_epi32(shift.most_found);
    __m256 sum = _mm256_setzero_ps(), largest = sum;
    const int count = tile->blocks * BLOCK;
    for (int i = 0; i < count; i += 16) {
        __m256 weight[2];
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            float *weights = tile->weights[row] + i + 8 * k;
            const __m256i *found = (const __m256i *)(tile->found[row] + i + 8 * k);
            __m256 x = is_number ? _mm256_sub_ps(_mm256_load_ps(weights), most)
                                 : _mm256_cvtepi32_ps(
                                       _mm256_sub_epi32(_mm256_load_si256(found), most_found));
            weight[k] = power_of_two(_mm256_fmadd_ps(x, slope, top));
            _mm256_store_ps(weights, weight[k]);
        }
        __m256 pairs = _mm256_hadd_ps(weight[0], weight[1]);
        sum = _mm256_add_ps(sum, pairs);
        largest = _mm256_max_ps(largest, pairs);
    }
    float each[8];
    _mm256_storeu_ps(each, largest);
    *pair = loops_for(AVX2)->largest(each, 8);
    return sum_of(sum);
}

/* The next 32 weights of a row times `scale`, rounded; stored as well where coordinates of a byte
 * read them. */
INLINE256 void whole_weights(float *weights, float scale, int is_stored, __m256i *whole) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m256 scaled = _mm256_mul_ps(_mm256_load_ps(weights + 8 * k), _mm256_set1_ps(scale));
        if (is_stored) _mm256_store_ps(weights + 8 * k, scaled);
        whole[k] = _mm256_cvtps_epi32(scaled);
    }
}

/* Bytes of two vectors of 16-bit numbers, each made of two by packing, in order. */
INLINE256 __m256i pack(__m256i a, __m256i b) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order);
}

/* A row's weights as bytes, or as two of them, of 8 and 7 bits; returns the sum of what they were
 * rounded to. */
INLINE256 float store_bytes(value_tile *tile, int row, float scale, uint8_t *low,
                            const int is_split) {
    const __m256i rest = _mm256_set1_epi16(LOW_UNITS - 1), ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256(), whole[4];
    for (int i = 0; i < tile->blocks * BLOCK; i += 32) {
        whole_weights(tile->weights[row] + i, scale, tile->has_wides, whole);
        __m256i a = _mm256_packs_epi32(whole[0], whole[1]);
        __m256i b = _mm256_packs_epi32(whole[2], whole[3]);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, ones));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(b, ones));
        if (is_split) {
            _mm256_store_si256((__m256i *)(low + i),
                               pack(_mm256_and_si256(a, rest), _mm256_and_si256(b, rest)));
            a = _mm256_srli_epi16(a, 7);
            b = _mm256_srli_epi16(b, 7);
        }
        _mm256_store_si256((__m256i *)(tile->high[row] + i), pack(a, b));
    }
    int32_t each[8], all = 0;
    _mm256_storeu_si256((__m256i *)each, sum);
    for (int k = 0; k < 8; k++) all += each[k];
    return (float)all;
}

/* Bytes of one row; returns the sum of its weights in units. */
INLINE256 float weigh_row(value_tile *tile, int row, row_shift shift, int is_number) {
    int count = tile->blocks * BLOCK;
    if (shift.most == -INFINITY) { /* all masked */
        memset(tile->high[row], 0, (size_t)count);
        memset(tile->weights[row], 0, (size_t)count * sizeof(float));
        return 0;
    }
    float pair, sum = is_number ? soften_row(tile, row, shift, &pair, 1)
                                : soften_row(tile, row, shift, &pair, 0);
    float scale = pair > LARGEST_PAIR_OF_WEIGHTS ? LARGEST_PAIR_OF_WEIGHTS / pair : 1.0f;
    tile->unit[row] = tile->byte_unit[row] = 1 / (scale * BYTE_UNITS);
    float rounded;
    if (is_heavy(sum * scale, count)) {
        tile->unit[row] /= LOW_UNITS;
        scale *= LOW_UNITS;
        rounded = store_bytes(tile, row, scale, low_bytes(tile, row), 1);
    } else {
        rounded = store_bytes(tile, row, scale, NULL, 0);
    }
    return tile->has_wides ? sum * scale : rounded;
}

AVX2_TARGET int weigh_avx2(value_tile *tile, const row_state *rows, int is_number, float *factor) {
    int count = tile->blocks * BLOCK;
    const loops *own = loops_for(AVX2);
    row_shift shift[GROUP];
    float sum[GROUP];
    start_units(tile);
    for (int r = 0; r < tile->rows; r++) {
        shift[r] = is_number ? shift_of_number(own->largest(tile->weights[r], count))
                             : shift_of_found(rows + r, largest_found(tile->found[r], count));
        sum[r] = weigh_row(tile, r, shift[r], is_number);
    }
    return add_totals(tile, rows, shift, sum, factor);
}
#endif
