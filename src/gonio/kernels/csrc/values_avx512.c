/* Weighted sums of packed values with AVX-512: scores become 8-bit weights, vpermb turns nibbles
 * into 8-bit levels, vpdpbusd adds four products at a time. Coordinates of a byte go through bf16. */
#include <math.h>

#include "gonio_kernels.h"

#if GONIO_X86
#include <immintrin.h>

#define INLINE512 static inline __attribute__((always_inline)) AVX512_TARGET
#define MOST_OF_MEAN 32 /* a row takes two bytes when its largest weight is more times the mean */
#define BYTE_UNITS 255.0f
#define SPLIT_UNITS 65535.0f

/* 2^x within 8e-5 of itself: far below what weights of a byte tell apart. */
INLINE512 __m512 power_of_two(__m512 x) {
    __m512 part = _mm512_reduce_ps(x, 1); /* x - floor(x) */
    __m512 found = _mm512_set1_ps(0.07802455f);
    found = _mm512_fmadd_ps(found, part, _mm512_set1_ps(0.22606718f));
    found = _mm512_fmadd_ps(found, part, _mm512_set1_ps(0.69583349f));
    found = _mm512_fmadd_ps(found, part, _mm512_set1_ps(0.99992523f));
    return _mm512_scalef_ps(found, x); /* takes floor(x) itself */
}

INLINE512 int32_t largest_found(const int32_t *found, int count) {
    __m512i most = _mm512_load_si512(found);
    for (int i = 16; i < count; i += 16)
        most = _mm512_max_epi32(most, _mm512_load_si512(found + i));
    return _mm512_reduce_max_epi32(most);
}

INLINE512 float largest_number(const float *score, int count) {
    __m512 most = _mm512_load_ps(score);
    for (int i = 16; i < count; i += 16) most = _mm512_max_ps(most, _mm512_load_ps(score + i));
    return _mm512_reduce_max_ps(most);
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

/* What a row's scores are compared with: weights are units * exp(scale * (score - most)). */
typedef struct {
    float scale, most;
    int32_t most_found;
} row_shift;

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

/* 255 * 2^(i / 64): a byte's weights lie far further apart than these. */
static const uint16_t powers[64] __attribute__((aligned(64))) = {
    255, 258, 261, 263, 266, 269, 272, 275, 278, 281, 284, 287, 290, 294, 297, 300,
    303, 307, 310, 313, 317, 320, 324, 327, 331, 334, 338, 342, 345, 349, 353, 357,
    361, 365, 369, 373, 377, 381, 385, 389, 393, 398, 402, 406, 411, 415, 420, 424,
    429, 434, 438, 443, 448, 453, 458, 463, 468, 473, 478, 483, 488, 494, 499, 505};

/* The same in one byte only: powers of two from a table, in 16-bit lanes. Sums the bytes, not what
 * they were rounded from. */
INLINE512 float weigh_bytes(value_tile *tile, int row, row_shift shift, const int is_number) {
    const __m512 slope = _mm512_set1_ps(shift.scale * (64 * 1.44269504f));
    const __m512 most = _mm512_set1_ps(shift.most), top = _mm512_set1_ps(8 * 64);
    const __m512i most_found = _mm512_set1_epi32(shift.most_found);
    const __m512i low = _mm512_load_si512(powers), high = _mm512_load_si512(powers + 32);
    const __m512i place = _mm512_load_si512(packed_places);
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < tile->blocks * BLOCK; i += BLOCK) {
        __m512i steps[4], weight[2]; /* 64 steps from one power of two to the next, 0 for 2^-8 */
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            int at = i + 16 * k;
            __m512 x = is_number ? _mm512_sub_ps(_mm512_load_ps(tile->weights[row] + at), most)
                                 : _mm512_cvtepi32_ps(_mm512_sub_epi32(
                                       _mm512_load_si512(tile->found[row] + at), most_found));
            steps[k] = _mm512_cvtps_epi32(_mm512_fmadd_ps(x, slope, top));
        }
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            __m512i both = _mm512_packs_epi32(steps[2 * k], steps[2 * k + 1]);
            /* The lowest 6 bits look up a power; shifted by a negative number it becomes 0. */
            weight[k] = _mm512_sllv_epi16(_mm512_permutex2var_epi16(low, both, high),
                                          _mm512_srai_epi16(both, 6));
            weight[k] = _mm512_add_epi16(weight[k], _mm512_set1_epi16(128)); /* to round */
        }
        __m512i bytes = _mm512_permutex2var_epi8(weight[0], place, weight[1]);
        _mm512_store_si512(tile->high[row] + i, bytes);
        sum = _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi8(1));
    }
    return (float)_mm512_reduce_add_epi32(sum);
}

/* One byte errs by half of 1/255 of the heaviest weight: where that one stands out it would drown
 * the others, and that row takes two bytes. */
INLINE512 void weigh(value_tile *tile, const row_shift *shift, float *sum, const int is_number,
                     const int has_wides) {
    float count = (float)(tile->blocks * BLOCK);
    tile->heavies = 0;
    for (int r = 0; r < GROUP; r++) tile->unit[r] = tile->byte_unit[r] = 0;
    for (int r = 0; r < tile->rows; r++) {
        sum[r] = has_wides ? weigh_row(tile, r, shift[r], NULL, is_number, 0, 1)
                           : weigh_bytes(tile, r, shift[r], is_number);
        tile->unit[r] = tile->byte_unit[r] = 1 / BYTE_UNITS;
        if (sum[r] == 0 || BYTE_UNITS * count <= MOST_OF_MEAN * sum[r]) continue;
        uint8_t *low = tile->low[tile->heavies];
        tile->heavy[tile->heavies++] = r;
        sum[r] = has_wides ? weigh_row(tile, r, shift[r], low, is_number, 1, 1)
                           : weigh_row(tile, r, shift[r], low, is_number, 1, 0);
        tile->unit[r] = 1 / SPLIT_UNITS;
        tile->byte_unit[r] = 256 / SPLIT_UNITS;
    }
}

AVX512_TARGET int weigh_avx512(value_tile *tile, const row_state *rows, int is_number,
                               float *factor) {
    int count = tile->blocks * BLOCK, is_changed = 0;
    row_shift shift[GROUP];
    float sum[GROUP];
    for (int r = 0; r < tile->rows; r++) {
        shift[r].most_found = is_number ? 0 : largest_found(tile->found[r], count);
        shift[r].scale = is_number ? 1.0f : rows[r].scale;
        shift[r].most = is_number ? largest_number(tile->weights[r], count)
                                  : (float)shift[r].most_found * rows[r].scale + rows[r].bias;
    }
    for (int r = 0; r < tile->rows; r++)
        if (shift[r].most == -INFINITY) shift[r].most = 0.0f; /* all masked: weights of zero */
    if (is_number)
        tile->has_wides ? weigh(tile, shift, sum, 1, 1) : weigh(tile, shift, sum, 1, 0);
    else
        tile->has_wides ? weigh(tile, shift, sum, 0, 1) : weigh(tile, shift, sum, 0, 0);
    for (int r = 0; r < tile->rows; r++) {
        factor[r] = 1.0f;
        if (sum[r] == 0) continue;
        float before = *rows[r].max, now = shift[r].most > before ? shift[r].most : before;
        factor[r] = before == now ? 1.0f : expf(before - now);
        float share = shift[r].most == now ? 1.0f : expf(shift[r].most - now);
        tile->unit[r] *= share;
        tile->byte_unit[r] *= share;
        *rows[r].max = now;
        *rows[r].total = *rows[r].total * factor[r] + sum[r] * tile->unit[r];
        is_changed |= factor[r] != 1.0f;
    }
    return is_changed;
}

static const int8_t no_levels[64] __attribute__((aligned(64)));

int64_t list_pairs(const plan *values, const head_plan *head, value_pair *pairs) {
    int64_t count = 0;
    for (int64_t n = 0; n < head->nibbles; n += 2) {
        const int32_t *dims = values->dims + (head->first_nibble + n) * SLOTS;
        const int8_t *level = values->levels_int8 + (head->first_nibble + n) * SLOTS * 64;
        for (int s = 0; s < SLOTS && (dims[s] >= 0 || dims[SLOTS + s] >= 0); s++) {
            value_pair *pair = pairs + count++;
            pair->plane = n / 2 * BLOCK;
            for (int k = 0; k < 2; k++) {
                int32_t dim = dims[k * SLOTS + s];
                pair->level[k] = dim < 0 ? no_levels : level + (k * SLOTS + s) * 64;
                pair->dim[k] = dim < 0 ? values->dim : dim;
            }
        }
    }
    if (count % 2) {
        value_pair none = {0, {no_levels, no_levels}, {values->dim, values->dim}};
        pairs[count++] = none;
    }
    return count;
}

/* Four vectors of 16 partial sums as one: the sums of the four, side by side in each 128 bits. */
INLINE512 __m512i fold(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* Bytes that are read, of which row r of the sums owns those at `order`[r], in `units`[r]. */
typedef struct {
    const uint8_t (*weights)[TILE];
    __m512 units;
    __m512i order;
} weighed_rows;

INLINE512 void store_sums(float *sums, __m512i all, const weighed_rows *rows) {
    __m512 own = _mm512_permutevar_ps(_mm512_cvtepi32_ps(all), rows->order);
    _mm512_store_ps(sums, _mm512_fmadd_ps(own, rows->units, _mm512_load_ps(sums)));
}

/* sum + four products of unsigned weights and signed levels. In assembly, because gcc 12 copies
 * each sum twice around the intrinsic in the loops below. */
INLINE512 __m512i add_products(__m512i sum, __m512i weight, __m512i level) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(level));
    return sum;
}

/* While a plane of TILE_BLOCKS blocks is read, as many planes of the next head are fetched, in the
 * order in which they lie: one block after another. */
INLINE512 const uint8_t *to_fetch(const value_pair *pair, size_t stride, const value_tile *tile) {
    int64_t first = pair->plane / BLOCK * TILE_BLOCKS;
    return tile->next + (size_t)(first / tile->planes) * stride + first % tile->planes * BLOCK;
}

/* Two pairs side by side: 16 sums in registers hide the latency of vpdpbusd. */
INLINE512 void add_two(const value_pair *pair, const uint8_t *planes, size_t stride,
                       const value_tile *tile, const weighed_rows *own, float *sums,
                       const int is_whole, const int is_apart, const int rows) {
    /* is_apart: the pairs may lie in two planes. */
    /* vpermb reads 6 bits, two of which belong to a neighbor: the tables repeat. */
    __m512i table[4], sum[4][GROUP];
    const uint8_t *first = planes + pair[0].plane, *second = planes + pair[1].plane;
    const uint8_t *next = to_fetch(pair, stride, tile);
    const uint8_t *also = to_fetch(pair + 1, stride, tile);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        table[k] = _mm512_loadu_si512(pair[k / 2].level[k % 2]);
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; g++) sum[k][g] = _mm512_setzero_si512();
    }
    const int blocks = is_whole ? TILE_BLOCKS : tile->blocks; /* unrolled where it is constant */
#pragma GCC unroll 4
    for (int b = 0; b < blocks; b++, first += stride, second += stride) {
        __m512i codes = _mm512_loadu_si512(first), found[4];
        __m512i more = is_apart ? _mm512_loadu_si512(second) : codes;
        _mm_prefetch((const char *)next + b * BLOCK, _MM_HINT_T0);
        if (is_apart) _mm_prefetch((const char *)also + b * BLOCK, _MM_HINT_T0);
        found[0] = _mm512_permutexvar_epi8(codes, table[0]);
        found[1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table[1]);
        found[2] = _mm512_permutexvar_epi8(more, table[2]);
        found[3] = _mm512_permutexvar_epi8(_mm512_srli_epi16(more, 4), table[3]);
#pragma GCC unroll 4
        for (int g = 0; g < rows; g++) {
            __m512i weight = _mm512_load_si512(own->weights[g] + b * BLOCK);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) sum[k][g] = add_products(sum[k][g], weight, found[k]);
        }
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        store_sums(sums + pair[k / 2].dim[k % 2] * PARTS * GROUP,
                   fold(sum[k][0], sum[k][1], sum[k][2], sum[k][3]), own);
}

INLINE512 void add_pairs(const value_pair *pairs, int64_t count, const uint8_t *planes,
                         size_t stride, const value_tile *tile, const weighed_rows *own,
                         float *sums, const int rows) {
    if (tile->blocks == TILE_BLOCKS)
        for (int64_t i = 0; i < count; i += 2)
            if (pairs[i].plane == pairs[i + 1].plane)
                add_two(pairs + i, planes, stride, tile, own, sums, 1, 0, rows);
            else
                add_two(pairs + i, planes, stride, tile, own, sums, 1, 1, rows);
    else
        for (int64_t i = 0; i < count; i += 2)
            add_two(pairs + i, planes, stride, tile, own, sums, 0, 1, rows);
}

AVX512_TARGET static void add_rows(const value_pair *pairs, int64_t count, const uint8_t *planes,
                                   size_t stride, const value_tile *tile, const weighed_rows *own,
                                   int rows, float *sums) {
    switch (rows) {
    case 0: break;
    case 1: add_pairs(pairs, count, planes, stride, tile, own, sums, 1); break;
    case 2: add_pairs(pairs, count, planes, stride, tile, own, sums, 2); break;
    case 3: add_pairs(pairs, count, planes, stride, tile, own, sums, 3); break;
    default: add_pairs(pairs, count, planes, stride, tile, own, sums, 4);
    }
}

/* Low bytes lie in the order of tile->heavy; rows without them have a unit of zero. */
AVX512_TARGET static weighed_rows low_rows(const value_tile *tile) {
    float unit[GROUP] = {0};
    int32_t order[GROUP] = {0};
    for (int i = 0; i < tile->heavies; i++) {
        unit[tile->heavy[i]] = tile->unit[tile->heavy[i]];
        order[tile->heavy[i]] = i;
    }
    weighed_rows found = {tile->low, _mm512_broadcast_f32x4(_mm_loadu_ps(unit)),
                          _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)order))};
    return found;
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
        for (int g = 0; g < tile->rows; g++) {
            int at = b * BLOCK / 2;
            sum[g] = _mm512_dpbf16_ps(sum[g], (__m512bh)even,
                                      (__m512bh)_mm512_load_si512(tile->even[g] + at));
            sum[g] = _mm512_dpbf16_ps(sum[g], (__m512bh)odd,
                                      (__m512bh)_mm512_load_si512(tile->odd[g] + at));
        }
    }
    for (int g = 0; g < tile->rows; g++) sums[g] += tile->unit[g] * _mm512_reduce_add_ps(sum[g]);
}

AVX512_TARGET static void add_wides(const plan *values, const head_plan *head,
                                    const uint8_t *planes, size_t stride, const value_tile *tile,
                                    float *sums) {
    for (int64_t w = 0; w < head->wides; w++) {
        const uint8_t *plane = planes + (head->nibbles / 2 + w) * BLOCK;
        int64_t at = head->first_wide + w;
        float *sum = sums + values->wide_dims[at] * PARTS * GROUP;
        const uint16_t *level = values->wide_bf16 + at * BYTE;
        add_wide(plane, stride, level, tile, sum, values->wide_bits[at] > 6 ? 4 : 1);
    }
}

AVX512_TARGET void add_values_avx512(const plan *values, const head_plan *head,
                                     const value_pair *pairs, int64_t count, const uint8_t *planes,
                                     size_t stride, const value_tile *tile, float *sums) {
    weighed_rows high = {tile->high, _mm512_broadcast_f32x4(_mm_loadu_ps(tile->byte_unit)),
                         _mm512_broadcast_i32x4(_mm_set_epi32(3, 2, 1, 0))};
    weighed_rows low = low_rows(tile);
    add_rows(pairs, count, planes, stride, tile, &high, tile->rows, sums);
    add_rows(pairs, count, planes, stride, tile, &low, tile->heavies, sums);
    if (head->wides) add_wides(values, head, planes, stride, tile, sums);
}
#endif
