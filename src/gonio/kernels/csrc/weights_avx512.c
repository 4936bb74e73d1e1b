/* Weights of values with AVX-512: scores become bytes, two of them where a row has few heavy
 * tokens, and bf16 for coordinates that take a byte. */
#include "weights.h"

#if GONIO_X86
#include <immintrin.h>

#define SPLIT_UNITS 65535.0f
#define INLINE512 static inline __attribute__((always_inline)) AVX512_TARGET

/* 2^x within 8e-5 of itself: far below what weights of a byte tell apart. */
INLINE512 __m512 power_of_two(__m512 x) {
    __m512 part = _mm512_reduce_ps(x, 1); /* x - floor(x) */
    __m512 found = _mm512_set1_ps(0.07802455f);
    found = _mm512_fmadd_ps(found, part, _mm512_set1_ps(0.22606718f));
    found = _mm512_fmadd_ps(found, part, _mm512_set1_ps(0.69583349f));
    found = _mm512_fmadd_ps(found, part, _mm512_set1_ps(0.99992523f));
    return _mm512_scalef_ps(found, x); /* takes floor(x) itself */
}

/* Four maxima side by side: one would wait for itself. */
INLINE512 int32_t largest_found(const int32_t *found, int count) {
    __m512i most[4];
    for (int k = 0; k < 4; k++) most[k] = _mm512_load_si512(found + 16 * k);
    for (int i = BLOCK; i < count; i += BLOCK)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            most[k] = _mm512_max_epi32(most[k], _mm512_load_si512(found + i + 16 * k));
    return _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_max_epi32(most[0], most[1]),
                                                    _mm512_max_epi32(most[2], most[3])));
}

INLINE512 float largest_number(const float *score, int count) {
    __m512 most[4];
    for (int k = 0; k < 4; k++) most[k] = _mm512_load_ps(score + 16 * k);
    for (int i = BLOCK; i < count; i += BLOCK)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            most[k] = _mm512_max_ps(most[k], _mm512_load_ps(score + i + 16 * k));
    return _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])));
}

/* Weights of 64 tokens as bf16, those of even and of odd tokens apart, as codes come out of 16-bit
 * lanes. */
INLINE512 void store_bf16(const __m512 *weight, uint16_t *even, uint16_t *odd) {
    const __m512i evens =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    __m512bh first = _mm512_cvtne2ps_pbh(_mm512_permutex2var_ps(weight[2], evens, weight[3]),
                                         _mm512_permutex2var_ps(weight[0], evens, weight[1]));
    __m512bh second = _mm512_cvtne2ps_pbh(_mm512_permutex2var_ps(weight[2], odds, weight[3]),
                                          _mm512_permutex2var_ps(weight[0], odds, weight[1]));
    _mm512_store_si512(even, (__m512i)first);
    _mm512_store_si512(odd, (__m512i)second);
}

/* Weights of one row in units of which the largest has `units`; returns their sum. */
INLINE512 float weigh_row(value_tile *tile, int row, row_shift shift, uint8_t *low,
                          const int is_number, const int is_split, const int has_wides) {
    const __m512 slope = _mm512_set1_ps(shift.scale * 1.44269504f); /* powers of two, not of e */
    const __m512 most = _mm512_set1_ps(shift.most);
    const __m512 top = _mm512_set1_ps(is_split ? 15.99997799f : 7.99435344f); /* log2 of units */
    const __m512i most_found = _mm512_set1_epi32(shift.most_found);
    __m512 sum[4];
    for (int k = 0; k < 4; k++) sum[k] = _mm512_setzero_ps();
    for (int i = 0; i < tile->blocks * BLOCK; i += BLOCK) {
        __m512 weight[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            int at = i + 16 * k;
            __m512 x;
            if (is_number)
                x = _mm512_max_ps(_mm512_sub_ps(_mm512_load_ps(tile->weights[row] + at), most),
                                  _mm512_set1_ps(-1000.0f)); /* masked ones are -infinity */
            else
                x = _mm512_cvtepi32_ps(
                    _mm512_sub_epi32(_mm512_load_si512(tile->found[row] + at), most_found));
            weight[k] = power_of_two(_mm512_fmadd_ps(x, slope, top));
            sum[k] = _mm512_add_ps(sum[k], weight[k]);
            __m512i whole = _mm512_cvtps_epi32(weight[k]);
            if (is_split) {
                _mm_store_si128((__m128i *)(low + at), _mm512_cvtepi32_epi8(whole));
                whole = _mm512_srli_epi32(whole, 8);
            }
            _mm_store_si128((__m128i *)(tile->high[row] + at), _mm512_cvtepi32_epi8(whole));
        }
        if (has_wides) store_bf16(weight, tile->even[row] + i / 2, tile->odd[row] + i / 2);
    }
    sum[0] = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
    return _mm512_reduce_add_ps(sum[0]);
}

/* The high bytes of two vectors of 16-bit numbers packed from 64, in their order. */
static const uint8_t packed_places[64] __attribute__((aligned(64))) = {
    1, 3, 5, 7, 17, 19, 21, 23, 33, 35, 37, 39, 49, 51, 53, 55,
    9, 11, 13, 15, 25, 27, 29, 31, 41, 43, 45, 47, 57, 59, 61, 63,
    65, 67, 69, 71, 81, 83, 85, 87, 97, 99, 101, 103, 113, 115, 117, 119,
    73, 75, 77, 79, 89, 91, 93, 95, 105, 107, 109, 111, 121, 123, 125, 127};

/* 65280 * 2^(-i / 64): a byte's weights lie far further apart than these. */
static const uint16_t powers[64] __attribute__((aligned(64))) = {
    65280, 64577, 63881, 63193, 62512, 61839, 61173, 60514, 59862, 59217, 58579, 57948,
    57324, 56707, 56096, 55491, 54894, 54302, 53717, 53139, 52566, 52000, 51440, 50886,
    50338, 49796, 49259, 48729, 48204, 47684, 47171, 46663, 46160, 45663, 45171, 44684,
    44203, 43727, 43256, 42790, 42329, 41873, 41422, 40976, 40534, 40098, 39666, 39238,
    38816, 38398, 37984, 37575, 37170, 36770, 36374, 35982, 35594, 35211, 34831, 34456,
    34085, 33718, 33355, 32995};

/* Bytes of 64 tokens from how far they lie below the heaviest, in 64ths of a power of two: the
 * lowest 6 bits look up a power, the others halve it. `step`: two vectors packed from four. */
INLINE512 __m512i weights_of(const __m512i *step) {
    const __m512i low = _mm512_load_si512(powers), high = _mm512_load_si512(powers + 32);
    const __m512i place = _mm512_load_si512(packed_places), half = _mm512_set1_epi16(128);
    __m512i weight[2];
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        weight[k] = _mm512_srlv_epi16(_mm512_permutex2var_epi16(low, step[k], high),
                                      _mm512_srli_epi16(step[k], 6));
        weight[k] = _mm512_add_epi16(weight[k], half); /* to round the high byte */
    }
    return _mm512_permutex2var_epi8(weight[0], place, weight[1]);
}

/* How scores become steps: `steps` for one unit, also as factor * 2^(shift - 15) such that 16 bits
 * hold the factor and shifted scores of more than 8 powers of two; no factor where there is none. */
typedef struct {
    float steps;
    int factor, shift;
} step_size;

INLINE step_size step_size_of(float scale) {
    step_size found = {scale * (64 * 1.44269504f), 0, 0};
    if (!(found.steps < 1.0f)) return found;
    uint32_t bits;
    memcpy(&bits, &found.steps, sizeof bits);
    int exponent = (int)(bits >> 23) - 126; /* steps are 0.5 to 1 times 2^exponent */
    found.shift = exponent < -33 ? 30 : exponent < -3 ? -3 - exponent : 0;
    float power;
    bits = (uint32_t)(127 + 15 + found.shift) << 23;
    memcpy(&power, &bits, sizeof power);
    found.factor = (int)(found.steps * power);
    return found;
}

enum score_kind { NUMBERS, WHOLE, SMALL }; /* SMALL: whole, with a factor of 16 bits */

/* How far 32 tokens from `at` lie below the heaviest, in steps of 16 bits, packed. */
INLINE512 __m512i steps_below(const value_tile *tile, int row, int at, row_shift shift,
                              step_size size, const enum score_kind kind) {
    __m512i below[2];
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        const int32_t *found = tile->found[row] + at + 16 * k;
        __m512i whole = _mm512_sub_epi32(_mm512_set1_epi32(shift.most_found),
                                         _mm512_load_si512(found));
        if (kind == SMALL) {
            below[k] = _mm512_sra_epi32(whole, _mm_cvtsi32_si128(size.shift));
            continue;
        }
        __m512 x = kind == NUMBERS ? _mm512_sub_ps(_mm512_set1_ps(shift.most),
                                                   _mm512_load_ps(tile->weights[row] + at + 16 * k))
                                   : _mm512_cvtepi32_ps(whole);
        below[k] = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(size.steps)));
    }
    __m512i step = _mm512_packs_epi32(below[0], below[1]);
    if (kind != SMALL) return step; /* of masked tokens negative: 512 powers of two */
    return _mm512_mulhrs_epi16(step, _mm512_set1_epi16((short)size.factor));
}

/* The same in one byte only, in 16-bit lanes. Sums the bytes, not what they were rounded from. */
INLINE512 float weigh_bytes(value_tile *tile, int row, row_shift shift, step_size size,
                            const enum score_kind kind) {
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < tile->blocks * BLOCK; i += BLOCK) {
        __m512i step[2];
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) step[k] = steps_below(tile, row, i + 32 * k, shift, size, kind);
        __m512i bytes = weights_of(step);
        _mm512_store_si512(tile->high[row] + i, bytes);
        sum = _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi8(1));
    }
    return (float)_mm512_reduce_add_epi32(sum);
}

INLINE512 float weigh_light(value_tile *tile, int row, row_shift shift, const int is_number) {
    step_size size = step_size_of(shift.scale);
    if (is_number) return weigh_bytes(tile, row, shift, size, NUMBERS);
    return size.factor ? weigh_bytes(tile, row, shift, size, SMALL)
                       : weigh_bytes(tile, row, shift, size, WHOLE);
}

INLINE512 void weigh(value_tile *tile, const row_shift *shift, float *sum, const int is_number,
                     const int has_wides) {
    start_units(tile);
    for (int r = 0; r < tile->rows; r++) {
        sum[r] = has_wides ? weigh_row(tile, r, shift[r], NULL, is_number, 0, 1)
                           : weigh_light(tile, r, shift[r], is_number);
        tile->unit[r] = tile->byte_unit[r] = 1 / BYTE_UNITS;
        if (!is_heavy(sum[r], tile->blocks * BLOCK)) continue;
        uint8_t *low = low_bytes(tile, r);
        sum[r] = has_wides ? weigh_row(tile, r, shift[r], low, is_number, 1, 1)
                           : weigh_row(tile, r, shift[r], low, is_number, 1, 0);
        tile->unit[r] = 1 / SPLIT_UNITS;
        tile->byte_unit[r] = 256 / SPLIT_UNITS;
    }
}

AVX512_TARGET int weigh_avx512(value_tile *tile, const row_state *rows, int is_number,
                               float *factor) {
    int count = tile->blocks * BLOCK;
    row_shift shift[GROUP];
    float sum[GROUP];
    for (int r = 0; r < tile->rows; r++)
        shift[r] = is_number ? shift_of_number(largest_number(tile->weights[r], count))
                             : shift_of_found(rows + r, largest_found(tile->found[r], count));
    for (int r = 0; r < tile->rows; r++)
        if (shift[r].most == -INFINITY) shift[r].most = 0.0f; /* all masked: weights of zero */
    if (is_number)
        tile->has_wides ? weigh(tile, shift, sum, 1, 1) : weigh(tile, shift, sum, 1, 0);
    else
        tile->has_wides ? weigh(tile, shift, sum, 0, 1) : weigh(tile, shift, sum, 0, 0);
    return add_totals(tile, rows, shift, sum, factor);
}
#endif
