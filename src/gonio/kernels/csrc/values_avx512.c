/* Weighted sums of packed values with AVX-512: vpermb turns nibbles into 8-bit levels, vpdpbusd adds
 * four products with 8-bit weights at a time. Coordinates of a whole byte go through bf16. */
#include "gonio_kernels.h"

#if GONIO_X86
#include <immintrin.h>

#define INLINE512 static inline __attribute__((always_inline)) AVX512_TARGET
#define MOST_OF_TILE 16 /* a row is split when one token has more than 1/16 of its weight */

/* Largest and summed weight of a row. */
INLINE512 float weigh(const float *weights, int count, float *sum) {
    __m512 most = _mm512_setzero_ps(), all = _mm512_setzero_ps();
    for (int i = 0; i < count; i += 16) {
        most = _mm512_max_ps(most, _mm512_load_ps(weights + i));
        all = _mm512_add_ps(all, _mm512_load_ps(weights + i));
    }
    *sum = _mm512_reduce_add_ps(all);
    return _mm512_reduce_max_ps(most);
}

/* Weights as bytes. One byte errs by half of 1/255 of the heaviest: where that one stands out it
 * would drown the others, and two bytes are taken. */
INLINE512 void round_weights(value_tile *tile) {
    float most[GROUP], sum;
    int count = tile->blocks * BLOCK;
    tile->is_split = 0;
    for (int g = 0; g < GROUP; g++) tile->unit[g] = 0;
    for (int g = 0; g < tile->rows; g++) {
        most[g] = weigh(tile->weights[g], count, &sum);
        tile->is_split |= most[g] * MOST_OF_TILE > sum;
    }
    float largest = tile->is_split ? 65535.0f : 255.0f;
    for (int g = 0; g < tile->rows; g++) {
        tile->unit[g] = most[g] / largest;
        __m512 scale = _mm512_set1_ps(most[g] > 0 ? largest / most[g] : 0.0f);
        for (int i = 0; i < count; i += 16) {
            __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(tile->weights[g] + i), scale));
            if (tile->is_split) {
                _mm_store_si128((__m128i *)(tile->low[g] + i), _mm512_cvtepi32_epi8(x));
                x = _mm512_srli_epi32(x, 8);
            }
            _mm_store_si128((__m128i *)(tile->high[g] + i), _mm512_cvtepi32_epi8(x));
        }
    }
}

/* Weights as bf16, those of even and of odd tokens apart, as codes come out of 16-bit lanes. */
INLINE512 void split_weights(value_tile *tile) {
    const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    for (int g = 0; g < GROUP; g++)
        for (int i = 0; i < tile->blocks * BLOCK; i += BLOCK) {
            if (g >= tile->rows) {
                _mm512_store_si512(tile->even[g] + i / 2, _mm512_setzero_si512());
                _mm512_store_si512(tile->odd[g] + i / 2, _mm512_setzero_si512());
                continue;
            }
            const float *from = tile->weights[g] + i;
            __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16);
            __m512 c = _mm512_loadu_ps(from + 32), d = _mm512_loadu_ps(from + 48);
            __m512bh even = _mm512_cvtne2ps_pbh(_mm512_permutex2var_ps(c, evens, d),
                                                _mm512_permutex2var_ps(a, evens, b));
            __m512bh odd = _mm512_cvtne2ps_pbh(_mm512_permutex2var_ps(c, odds, d),
                                               _mm512_permutex2var_ps(a, odds, b));
            _mm512_store_si512(tile->even[g] + i / 2, (__m512i)even);
            _mm512_store_si512(tile->odd[g] + i / 2, (__m512i)odd);
        }
}

/* Level of each code below 64 (of its low 6 bits), 16-bit lanes. */
INLINE512 __m512i page_of(const uint16_t *level, __m512i codes) {
    return _mm512_permutex2var_epi16(_mm512_loadu_si512(level), codes,
                                     _mm512_loadu_si512(level + 32));
}

INLINE512 __m512i wide_level(const uint16_t *level, __m512i codes, const int pages) {
    __m512i found = page_of(level, codes);
    const __m512i top = _mm512_set1_epi16(0xC0);
    for (int page = 1; page < pages; page++) {
        __mmask32 here = _mm512_cmpeq_epi16_mask(_mm512_and_si512(codes, top),
                                                 _mm512_set1_epi16((short)(page << 6)));
        found = _mm512_mask_mov_epi16(found, here, page_of(level + 64 * page, codes));
    }
    return found;
}

/* Four vectors of 16 partial sums as one: in each 128-bit lane the sums of the four, side by side. */
INLINE512 __m512i fold(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* A coordinate in the low and one in the high nibble of a plane: their tables, and their sums. */
typedef struct {
    const uint8_t *plane;
    const int8_t *level[2];
    float *sums[2];
} coordinate_pair;

INLINE512 void store_sums(float *sums, const __m512i *high, const __m512i *low, __m512 units,
                          const int is_split) {
    __m512i all = fold(high[0], high[1], high[2], high[3]);
    if (is_split)
        all = _mm512_add_epi32(_mm512_slli_epi32(all, 8), fold(low[0], low[1], low[2], low[3]));
    _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), units, _mm512_load_ps(sums)));
}

/* sum + four products of unsigned weights and signed levels. In assembly, because gcc 12 copies each
 * sum twice around the intrinsic in the loops below. */
INLINE512 __m512i add_products(__m512i sum, __m512i weight, __m512i level) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(level));
    return sum;
}

/* Two pairs side by side: 16 sums in registers hide the latency of vpdpbusd. */
INLINE512 void add_two(const coordinate_pair *pair, size_t stride, const value_tile *tile,
                       __m512 units, const int is_whole, const int rows) {
    /* vpermb reads 6 bits, two of which belong to a neighbor: the tables repeat. */
    __m512i table[4], sum[4][GROUP];
    const uint8_t *first = pair[0].plane, *second = pair[1].plane;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        table[k] = _mm512_loadu_si512(pair[k / 2].level[k % 2]);
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; g++) sum[k][g] = _mm512_setzero_si512();
    }
    const int blocks = is_whole ? TILE_BLOCKS : tile->blocks; /* unrolled where it is constant */
#pragma GCC unroll 8
    for (int b = 0; b < blocks; b++, first += stride, second += stride) {
        __m512i codes = _mm512_loadu_si512(first), more = _mm512_loadu_si512(second), found[4];
        found[0] = _mm512_permutexvar_epi8(codes, table[0]);
        found[1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table[1]);
        found[2] = _mm512_permutexvar_epi8(more, table[2]);
        found[3] = _mm512_permutexvar_epi8(_mm512_srli_epi16(more, 4), table[3]);
#pragma GCC unroll 4
        for (int g = 0; g < rows; g++) {
            __m512i weight = _mm512_load_si512(tile->high[g] + b * BLOCK);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++)
                sum[k][g] = add_products(sum[k][g], weight, found[k]);
        }
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) store_sums(pair[k / 2].sums[k % 2], sum[k], sum[k], units, 0);
}

/* One pair, with weights of two bytes. */
INLINE512 void add_split(const coordinate_pair *pair, size_t stride, const value_tile *tile,
                         __m512 units, const int rows) {
    __m512i first = _mm512_loadu_si512(pair->level[0]), second = _mm512_loadu_si512(pair->level[1]);
    __m512i high[2][GROUP], low[2][GROUP];
    const uint8_t *plane = pair->plane;
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; g++)
        high[0][g] = high[1][g] = low[0][g] = low[1][g] = _mm512_setzero_si512();
    for (int b = 0; b < tile->blocks; b++, plane += stride) {
        __m512i codes = _mm512_loadu_si512(plane);
        __m512i a = _mm512_permutexvar_epi8(codes, first);
        __m512i c = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), second);
#pragma GCC unroll 4
        for (int g = 0; g < rows; g++) {
            __m512i weight = _mm512_load_si512(tile->high[g] + b * BLOCK);
            high[0][g] = add_products(high[0][g], weight, a);
            high[1][g] = add_products(high[1][g], weight, c);
            weight = _mm512_load_si512(tile->low[g] + b * BLOCK);
            low[0][g] = add_products(low[0][g], weight, a);
            low[1][g] = add_products(low[1][g], weight, c);
        }
    }
    store_sums(pair->sums[0], high[0], low[0], units, 1);
    store_sums(pair->sums[1], high[1], low[1], units, 1);
}

/* One coordinate that takes a byte: of at most 6 bits (one page of levels) or more (four). */
INLINE512 void add_wide(const uint8_t *plane, size_t stride, const uint16_t *level,
                        const value_tile *tile, float *sums, const int pages) {
    __m512 sum[GROUP];
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; g++) sum[g] = _mm512_setzero_ps();
    for (int b = 0; b < tile->blocks; b++, plane += stride) {
        __m512i codes = _mm512_loadu_si512(plane);
        __m512i even = wide_level(level, codes, pages);
        __m512i odd = wide_level(level, _mm512_srli_epi16(codes, 8), pages);
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; g++) { /* rows that do not exist have weights of zero */
            int at = b * BLOCK / 2;
            sum[g] = _mm512_dpbf16_ps(sum[g], (__m512bh)even,
                                      (__m512bh)_mm512_load_si512(tile->even[g] + at));
            sum[g] = _mm512_dpbf16_ps(sum[g], (__m512bh)odd,
                                      (__m512bh)_mm512_load_si512(tile->odd[g] + at));
        }
    }
    for (int g = 0; g < tile->rows; g++) sums[g] += _mm512_reduce_add_ps(sum[g]);
}

static const int8_t no_levels[64] __attribute__((aligned(64)));

/* The next pair of a head from nibble *n and slot *s on; past the end one without coordinates. */
INLINE512 void next_pair(const plan *values, const head_plan *head, const uint8_t *planes,
                         size_t stride, size_t ahead, float *sums, float *unused, int64_t *n,
                         int *s, coordinate_pair *pair) {
    const int32_t *dims = values->dims + (head->first_nibble + *n) * SLOTS;
    while (*n < head->nibbles && (*s == SLOTS || (dims[*s] < 0 && dims[SLOTS + *s] < 0))) {
        *n += 2, *s = 0, dims += 2 * SLOTS;
        if (*n < head->nibbles)
            for (int b = 0; b < TILE_BLOCKS; b++)
                _mm_prefetch((const char *)planes + *n / 2 * BLOCK + b * stride + ahead,
                             _MM_HINT_T1);
    }
    int is_there = *n < head->nibbles;
    const int8_t *level = values->levels_int8 + (head->first_nibble + *n) * SLOTS * 64;
    pair->plane = is_there ? planes + *n / 2 * BLOCK : planes;
    for (int k = 0; k < 2; k++) {
        int32_t dim = is_there ? dims[k * SLOTS + *s] : -1;
        pair->level[k] = dim < 0 ? no_levels : level + (k * SLOTS + *s) * 64;
        pair->sums[k] = dim < 0 ? unused : sums + dim * PARTS * GROUP;
    }
    ++*s;
}

INLINE512 void add_head(const plan *values, const head_plan *head, const uint8_t *planes,
                        size_t stride, const value_tile *tile, float *sums, const int is_split,
                        const int rows) {
    __m512 units = _mm512_broadcast_f32x4(_mm_loadu_ps(tile->unit));
    float unused[PARTS * GROUP] __attribute__((aligned(64))) = {0};
    int64_t n = 0;
    int s = 0;
    for (;;) {
        coordinate_pair pair[2];
        next_pair(values, head, planes, stride, tile->ahead, sums, unused, &n, &s, pair);
        if (n >= head->nibbles) return; /* the pair before was the last */
        if (is_split) {
            add_split(pair, stride, tile, units, rows);
            continue;
        }
        next_pair(values, head, planes, stride, tile->ahead, sums, unused, &n, &s, pair + 1);
        if (tile->blocks == TILE_BLOCKS)
            add_two(pair, stride, tile, units, 1, rows);
        else
            add_two(pair, stride, tile, units, 0, rows);
    }
}

AVX512_TARGET static void add_wides(const plan *values, const head_plan *head,
                                    const uint8_t *planes, size_t stride, value_tile *tile,
                                    float *sums) {
    split_weights(tile);
    for (int64_t w = 0; w < head->wides; w++) {
        const uint8_t *plane = planes + (head->nibbles / 2 + w) * BLOCK;
        int64_t at = head->first_wide + w;
        float *sum = sums + values->wide_dims[at] * PARTS * GROUP;
        const uint16_t *level = values->wide_bf16 + at * BYTE;
        add_wide(plane, stride, level, tile, sum, values->wide_bits[at] > 6 ? 4 : 1);
    }
}

#define ADD_HEAD(rows)                                                                            \
    if (tile->is_split)                                                                           \
        add_head(values, head, planes, stride, tile, sums, 1, rows);                              \
    else                                                                                          \
        add_head(values, head, planes, stride, tile, sums, 0, rows);

AVX512_TARGET void add_values_avx512(const plan *values, const head_plan *head,
                                     const uint8_t *planes, size_t stride, value_tile *tile,
                                     float *sums) {
    round_weights(tile);
    switch (tile->rows) {
    case 1: ADD_HEAD(1); break;
    case 2: ADD_HEAD(2); break;
    case 3: ADD_HEAD(3); break;
    default: ADD_HEAD(4);
    }
    if (head->wides) add_wides(values, head, planes, stride, tile, sums);
}
#endif
