/* Scores of a block with AVX-512-VBMI and VNNI: vpermb looks up 64 nibbles at once; the entries of
 * a byte's two nibbles are added as bytes, vpdpbusd adds four of these sums times their weights. */
#include <string.h>

#include "gonio_kernels.h"

#if GONIO_X86
#include <immintrin.h>

#define INLINE512 static inline __attribute__((always_inline)) AVX512_TARGET
#define WORD (4 * BLOCK) /* bytes of one word of all tokens */

/* Bytes: per row and word two vectors, for the low and the high nibbles of the word's four bytes,
 * each four tables of 16; then per row and wide word 4 pages of 4 vectors of 64 entries.
 * Precise: per row and word four vectors of two tables of 16 int16; wide entries as int32. */

/* A nibble's values before they are centered; products are rounded before they are added, as at
 * every level. */
INLINE512 __m512 nibble_values(const plan *keys, int64_t nibble, const float *query) {
    __m512 all = _mm512_setzero_ps();
    for (int s = 0; s < SLOTS; s++) {
        int32_t dim = keys->dims[nibble * SLOTS + s];
        if (dim < 0) continue;
        __m512 level = _mm512_loadu_ps(keys->levels + (nibble * SLOTS + s) * NIBBLE);
        all = _mm512_add_ps(all, _mm512_mul_ps(_mm512_set1_ps(query[dim]), level));
    }
    return all;
}

/* Halves of the ranges of a row's nibbles, and their middles as `values`; returns the largest half
 * of a byte's two nibbles together. */
INLINE512 float find_ranges(query_tables *t, const head_plan *head, const plan *keys,
                            const float *query) {
    float largest = 0;
    for (int64_t n = 0; n < t->nibbles; n++) {
        __m512 all = nibble_values(keys, head->first_nibble + n, query);
        float high = _mm512_reduce_max_ps(all);
        float middle = 0.5f * (_mm512_reduce_min_ps(all) + high);
        t->values[n] = middle;
        t->halves[n] = high - middle;
        if (n % 2 == 0) continue;
        float pair = t->halves[n - 1] + t->halves[n];
        largest = pair > largest ? pair : largest;
    }
    return largest;
}

/* Values in units of 1 / scale as bytes, halves rounded away from zero. */
INLINE512 __m128i entries_of(__m512 value, float scale) {
    const __m512 limit = _mm512_set1_ps(LARGEST_ENTRY);
    const __m512i sign = _mm512_set1_epi32(INT32_MIN), half = _mm512_set1_epi32(0x3F000000);
    __m512 x = _mm512_mul_ps(value, _mm512_set1_ps(scale));
    x = _mm512_max_ps(_mm512_min_ps(x, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
    __m512i away = _mm512_ternarylogic_epi32(_mm512_castps_si512(x), sign, half, 0xEA);
    return _mm512_cvtepi32_epi8(
        _mm512_cvttps_epi32(_mm512_add_ps(x, _mm512_castsi512_ps(away))));
}

INLINE512 void fill_row(query_tables *t, const head_plan *head, const plan *keys,
                        const float *query, int row) {
    float bias = 0, largest = find_ranges(t, head, keys, query);
    for (int64_t n = 0; n < t->nibbles; n++) bias += t->values[n];
    float wide = wide_ranges(t, head, keys, query, &bias);
    float step = (wide > largest ? wide : largest) / (LARGEST_PAIR * LARGEST_WEIGHT);
    t->bias[row] = bias;
    t->scale[row] = step;
    int8_t *to = (int8_t *)t->arranged + row * t->nibbles * NIBBLE;
    for (int64_t n = 0; n < t->nibbles; n += 2) {
        int weight = weight_for(t->halves[n] + t->halves[n + 1], step, 0, LARGEST_PAIR);
        t->weights[(row * t->nibbles + n) / 2] = (uint8_t)weight;
        float scale = step > 0 ? 1.0f / (step * (float)weight) : 0.0f;
        int8_t *table = to + n / 8 * 128 + n % 8 / 2 * NIBBLE;
        for (int k = 0; k < 2; k++) {
            __m512 value = nibble_values(keys, head->first_nibble + n + k, query);
            value = _mm512_sub_ps(value, _mm512_set1_ps(t->values[n + k]));
            _mm_store_si128((__m128i *)(table + 64 * k), entries_of(value, scale));
        }
    }
    fill_wides(t, head, keys, query, row);
}

AVX512_TARGET void fill_avx512(query_tables *t, const head_plan *head, const plan *keys,
                               const float *query) {
    for (int r = 0; r < t->rows; r++) fill_row(t, head, keys, query + r * keys->dim, r);
    int8_t *to = (int8_t *)t->arranged + GROUP * t->nibbles * NIBBLE;
    for (int r = 0; r < t->rows; r++)
        for (int64_t w = 0; w < t->wides; w++) {
            int8_t *word = to + (r * t->wides + w / 4 * 4) * BYTE;
            for (int c = 0; c < BYTE; c++)
                word[((c / 64) * 4 + w % 4) * 64 + c % 64] =
                    (int8_t)t->wide_entries[(r * t->wides + w) * BYTE + c];
        }
}

void arrange_avx512(query_tables *t) {
    int16_t *to = t->arranged;
    for (int r = 0; r < t->rows; r++)
        for (int64_t n = 0; n < t->nibbles; n++) {
            int64_t word = n / 8, half = n % 8 / 4, k = n % 4;
            memcpy(to + ((r * (t->nibbles / 8) + word) * 4 + k) * 32 + half * NIBBLE,
                   t->entries + (r * t->nibbles + n) * NIBBLE, NIBBLE * sizeof *to);
        }
    int32_t *wide = (int32_t *)(to + GROUP * t->nibbles * NIBBLE);
    for (int64_t i = 0; i < t->rows * t->wides * BYTE; i++) wide[i] = t->wide_entries[i];
}

/* Line `b` of a word of the next block, and of the block that is read after this head. */
INLINE512 void prefetch_next(const query_tables *t, const uint8_t *words, size_t stride, int64_t w,
                             int b) {
    _mm_prefetch((const char *)words + 64 * b + stride, FETCH_HINT);
    if (b < LINES - 1 || !t->leaves_lines)
        _mm_prefetch((const char *)t->next + w * WORD + 64 * b, FETCH_HINT);
}

INLINE512 __m512i four_weights(const uint8_t *weights) {
    int32_t found;
    memcpy(&found, weights, sizeof found);
    return _mm512_set1_epi32(found);
}

/* Adds the coordinates of a whole byte, four to a word, to scores that are there. A function of its
 * own, so that the sums of the common case stay in registers. */
AVX512_TARGET __attribute__((noinline)) static void add_wide_bytes(const query_tables *t,
                                                                   const uint8_t *words,
                                                                   int32_t *out, size_t pitch) {
    const int8_t *tables = (const int8_t *)t->arranged + GROUP * t->nibbles * NIBBLE;
    const __m512i top = _mm512_set1_epi8((char)0xC0);
    for (int64_t w = 0; w < t->wides; w += 4, words += WORD) {
        int pages = 1; /* of 64 entries */
        for (int k = 0; k < 4; k++) pages = t->wide_bits[w + k] > 6 ? 4 : pages;
        for (int b = 0; b < 4; b++) {
            __m512i codes = _mm512_loadu_si512(words + 64 * b);
            for (int g = 0; g < t->rows; g++) {
                const int8_t *table = tables + (g * t->wides + w) * BYTE;
                __m512i found = _mm512_setzero_si512();
                for (int page = 0; page < pages; page++) {
                    __mmask64 here = _mm512_cmpeq_epi8_mask(_mm512_and_si512(codes, top),
                                                            _mm512_set1_epi8((char)(page << 6)));
#pragma GCC unroll 4
                    for (int k = 0; k < 4; k++)
                        found = _mm512_mask_permutexvar_epi8(
                            found, here & (0x1111111111111111ULL << k), codes,
                            _mm512_load_si512(table + (page * 4 + k) * 64));
                }
                __m512i weight = four_weights(t->wide_weights + g * t->wides + w);
                int32_t *to = out + g * pitch + 16 * b;
                __m512i sum = _mm512_load_si512(to);
                _mm512_store_si512(to, _mm512_dpbusd_epi32(sum, weight, found));
            }
        }
    }
}

INLINE512 void score_bytes(const query_tables *t, const uint8_t *words, size_t stride,
                           int32_t *out, size_t pitch, const int rows) {
    const __m512i nibble = _mm512_set1_epi8(0x0f), place = _mm512_set1_epi32(0x30201000);
    const int64_t narrow = t->nibbles / 8;
    const int8_t *tables = t->arranged;
    __m512i sum[GROUP][4];
#pragma GCC unroll 4
    for (int g = 0; g < rows; g++)
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) sum[g][b] = _mm512_setzero_si512();
    for (int64_t w = 0; w < narrow; w++, words += WORD) {
        __m512i low[4], high[4];
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
            prefetch_next(t, words, stride, w, b);
            __m512i codes = _mm512_loadu_si512(words + 64 * b);
            /* Byte j looks into table j: (codes & nibble) | 16 j. */
            low[b] = _mm512_ternarylogic_epi32(codes, nibble, place, 0xEA);
            high[b] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(codes, 4), nibble, place, 0xEA);
        }
#pragma GCC unroll 4
        for (int g = 0; g < rows; g++) {
            const int8_t *table = tables + (g * narrow + w) * 128;
            __m512i low_table = _mm512_load_si512(table);
            __m512i high_table = _mm512_load_si512(table + 64);
            __m512i weight = four_weights(t->weights + g * t->nibbles / 2 + 4 * w);
#pragma GCC unroll 4
            for (int b = 0; b < 4; b++) {
                __m512i both = _mm512_add_epi8(_mm512_permutexvar_epi8(low[b], low_table),
                                               _mm512_permutexvar_epi8(high[b], high_table));
                sum[g][b] = _mm512_dpbusd_epi32(sum[g][b], weight, both);
            }
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < rows; g++)
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) _mm512_store_si512(out + g * pitch + 16 * b, sum[g][b]);
    if (t->wides) add_wide_bytes(t, words, out, pitch);
}

AVX512_TARGET void score_block_avx512(const query_tables *t, const uint8_t *words, size_t stride,
                                      int32_t *out, size_t pitch) {
    switch (t->rows) {
    case 1: score_bytes(t, words, stride, out, pitch, 1); break;
    case 2: score_bytes(t, words, stride, out, pitch, 2); break;
    case 3: score_bytes(t, words, stride, out, pitch, 3); break;
    default: score_bytes(t, words, stride, out, pitch, 4);
    }
}

AVX512_TARGET __attribute__((noinline)) static void add_wide_words(const query_tables *t,
                                                                   const uint8_t *words,
                                                                   int32_t *out, size_t pitch) {
    const __m512i byte = _mm512_set1_epi32(0xff);
    const int32_t *tables =
        (const int32_t *)((const int16_t *)t->arranged + GROUP * t->nibbles * NIBBLE);
    for (int64_t w = 0; w < t->wides; w++) /* four of them share a word */
        for (int b = 0; b < 4; b++) {
            __m512i codes = _mm512_loadu_si512(words + (w / 4) * WORD + 64 * b);
            codes = _mm512_and_si512(_mm512_srli_epi32(codes, (unsigned)(8 * (w % 4))), byte);
            for (int g = 0; g < t->rows; g++) {
                const int32_t *table = tables + (g * t->wides + w) * BYTE;
                __m512i found = _mm512_i32gather_epi32(codes, table, 4);
                __m512i sum = _mm512_load_si512(out + g * pitch + 16 * b);
                _mm512_store_si512(out + g * pitch + 16 * b, _mm512_add_epi32(sum, found));
            }
        }
}

INLINE512 void score_words(const query_tables *t, const uint8_t *words, size_t stride,
                           int32_t *out, size_t pitch, const int rows) {
    const __m512i nibble = _mm512_set1_epi16(0x0f), place = _mm512_set1_epi32(0x00100000);
    const __m512i ones = _mm512_set1_epi16(1);
    const int64_t narrow = t->nibbles / 8;
    const int16_t *tables = t->arranged;
    __m512i sum[GROUP][4];
#pragma GCC unroll 4
    for (int g = 0; g < rows; g++)
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) sum[g][b] = _mm512_setzero_si512();
    for (int64_t w = 0; w < narrow; w++, words += WORD)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            __m512i index[4];
#pragma GCC unroll 4
            for (int b = 0; b < 4; b++) {
                if (k == 0) prefetch_next(t, words, stride, w, b);
                __m512i codes = _mm512_srli_epi32(_mm512_loadu_si512(words + 64 * b), 4 * k);
                index[b] = _mm512_ternarylogic_epi32(codes, nibble, place, 0xEA);
            }
#pragma GCC unroll 4
            for (int g = 0; g < rows; g++) {
                __m512i table = _mm512_load_si512(tables + ((g * narrow + w) * 4 + k) * 32);
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++)
                    sum[g][b] = _mm512_dpwssd_epi32(
                        sum[g][b], _mm512_permutexvar_epi16(index[b], table), ones);
            }
        }
#pragma GCC unroll 4
    for (int g = 0; g < rows; g++)
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) _mm512_store_si512(out + g * pitch + 16 * b, sum[g][b]);
    if (t->wides) add_wide_words(t, words, out, pitch);
}

AVX512_TARGET void score_block_avx512_precise(const query_tables *t, const uint8_t *words,
                                              size_t stride, int32_t *out, size_t pitch) {
    switch (t->rows) {
    case 1: score_words(t, words, stride, out, pitch, 1); break;
    case 2: score_words(t, words, stride, out, pitch, 2); break;
    case 3: score_words(t, words, stride, out, pitch, 3); break;
    default: score_words(t, words, stride, out, pitch, 4);
    }
}
#endif
