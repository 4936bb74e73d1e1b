/* Weighted sums of packed values with AVX-512: vpermb turns nibbles into 8-bit levels, vpdpbusd adds
 * four products of levels and 8-bit weights at a time. Coordinates of a byte go through bf16. */
#include "weights.h"

#if GONIO_X86
#include <immintrin.h>

#define INLINE512 static inline __attribute__((always_inline)) AVX512_TARGET

/* Four vectors of 16 partial sums as one: the sums of the four, side by side in each 128 bits. */
INLINE512 __m512i fold(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* Four of these as one: the sums of each, one after another. */
INLINE512 __m512i gather_sums(const __m512i *x) {
    __m512i first = _mm512_add_epi32(_mm512_shuffle_i32x4(x[0], x[1], 0x44),
                                     _mm512_shuffle_i32x4(x[0], x[1], 0xEE));
    __m512i second = _mm512_add_epi32(_mm512_shuffle_i32x4(x[2], x[3], 0x44),
                                      _mm512_shuffle_i32x4(x[2], x[3], 0xEE));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(first, second, 0x88),
                            _mm512_shuffle_i32x4(first, second, 0xDD));
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

/* 16 sums in registers hide the latency of vpdpbusd. `keys`: a line of the next head's keys to
 * fetch, NULL for none; is_apart: the quad may lie in two planes. */
INLINE512 void add_quad(const value_quad *quad, const uint8_t *planes, size_t stride,
                        const uint8_t *keys, const value_tile *tile, const weighed_rows *own,
                        float *sums, const int is_whole, const int is_apart, const int rows) {
    /* vpermb reads 6 bits, two of which belong to a neighbor: the tables repeat. */
    __m512i table[4], sum[4][GROUP];
    const uint8_t *first = planes + quad->plane[0], *second = planes + quad->plane[1];
    const uint8_t *next = to_fetch(quad->plane[0], stride, tile);
    const uint8_t *also = to_fetch(quad->plane[1], stride, tile);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        table[k] = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)quad->level[k]));
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; g++) sum[k][g] = _mm512_setzero_si512();
    }
    const int blocks = is_whole ? TILE_BLOCKS : tile->blocks; /* unrolled where it is constant */
#pragma GCC unroll 4
    for (int b = 0; b < blocks; b++, first += stride, second += stride) {
        __m512i codes = _mm512_loadu_si512(first), found[4];
        __m512i more = is_apart ? _mm512_loadu_si512(second) : codes;
        _mm_prefetch((const char *)next + b * BLOCK, FETCH_HINT);
        if (keys) _mm_prefetch((const char *)keys + (size_t)b * tile->key_stride, FETCH_HINT);
        if (is_apart) _mm_prefetch((const char *)also + b * BLOCK, FETCH_HINT);
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
    __m512i all[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) all[k] = fold(sum[k][0], sum[k][1], sum[k][2], sum[k][3]);
    store_sums(sums, gather_sums(all), own);
}

INLINE512 void add_quads(const value_quad *quad, int64_t count, const uint8_t *planes,
                         size_t stride, const value_tile *tile, const weighed_rows *own,
                         float *sums, const int rows) {
    const int is_whole = tile->blocks == TILE_BLOCKS;
    for (int64_t i = 0; i < count; i++, quad++, sums += 4 * GROUP) {
        const uint8_t *keys = tile->next_keys + (i * LINES + LINES - 1) * 64;
        if (i >= tile->key_words) keys = NULL;
        if (!is_whole)
            add_quad(quad, planes, stride, keys, tile, own, sums, 0, 1, rows);
        else if (quad->plane[0] == quad->plane[1])
            add_quad(quad, planes, stride, keys, tile, own, sums, 1, 0, rows);
        else
            add_quad(quad, planes, stride, keys, tile, own, sums, 1, 1, rows);
    }
}

AVX512_TARGET static void add_rows(const value_quad *quads, int64_t count, const uint8_t *planes,
                                   size_t stride, const value_tile *tile, const weighed_rows *own,
                                   int rows, float *sums) {
    switch (rows) {
    case 0: break;
    case 1: add_quads(quads, count, planes, stride, tile, own, sums, 1); break;
    case 2: add_quads(quads, count, planes, stride, tile, own, sums, 2); break;
    case 3: add_quads(quads, count, planes, stride, tile, own, sums, 3); break;
    default: add_quads(quads, count, planes, stride, tile, own, sums, 4);
    }
}

AVX512_TARGET static weighed_rows low_rows(const value_tile *tile) {
    float unit[GROUP];
    int32_t order[GROUP];
    find_low(tile, unit, order);
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
        const uint16_t *level = values->wide_bf16 + at * BYTE;
        add_wide(plane, stride, level, tile, sums + w * GROUP, values->wide_bits[at] > 6 ? 4 : 1);
    }
}

AVX512_TARGET void add_values_avx512(const plan *values, const head_plan *head,
                                     const value_quad *quads, int64_t count, const uint8_t *planes,
                                     size_t stride, const value_tile *tile, float *sums) {
    weighed_rows high = {tile->high, _mm512_broadcast_f32x4(_mm_loadu_ps(tile->byte_unit)),
                         _mm512_broadcast_i32x4(_mm_set_epi32(3, 2, 1, 0))};
    weighed_rows low = low_rows(tile);
    add_rows(quads, count, planes, stride, tile, &high, tile->rows, sums);
    add_rows(quads, count, planes, stride, tile, &low, tile->heavies, sums);
    if (head->wides) add_wides(values, head, planes, stride, tile, sums + count * 4 * GROUP);
}
#endif
