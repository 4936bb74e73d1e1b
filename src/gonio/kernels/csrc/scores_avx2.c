/* Scores of a block with AVX2: 32 tokens at a time, their bytes transposed so that a register holds
 * the same byte of every token. Bytes: pshufb looks up both nibbles, pmaddubsw multiplies the sums
 * of two bytes by their weights. Precise: pshufb looks up the low and the high byte of each entry. */
#include "gonio_kernels.h"

#if GONIO_X86
#include <immintrin.h>

#define INLINE256 static inline __attribute__((always_inline)) AVX2_TARGET
#define WORD (4 * BLOCK)

/* Per row and nibble 16 low bytes and 16 high bytes; then wide entries as 32-bit numbers. Without
 * `precise` the low bytes are the entries. */
void arrange_avx2(query_tables *t) {
    uint8_t *to = t->arranged;
    for (int64_t i = 0; i < t->rows * t->nibbles; i++)
        for (int c = 0; c < NIBBLE; c++) {
            uint16_t entry = (uint16_t)t->entries[i * NIBBLE + c];
            to[i * 32 + c] = (uint8_t)entry;
            to[i * 32 + NIBBLE + c] = (uint8_t)(entry >> 8);
        }
    int32_t *wide = (int32_t *)(to + GROUP * t->nibbles * 32);
    for (int64_t i = 0; i < t->rows * t->wides * BYTE; i++) wide[i] = t->wide_entries[i];
}

/* bytes[j]: byte j of 32 tokens; in lane L, byte 4 m + i is token 8 m + 4 L + i. */
INLINE256 void transpose(const uint8_t *words, __m256i bytes[4]) {
    const __m256i gather = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0,
                                            4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m256i r[4], s[4];
    for (int m = 0; m < 4; m++)
        r[m] = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(words + 32 * m)), gather);
    s[0] = _mm256_unpacklo_epi32(r[0], r[1]);
    s[1] = _mm256_unpackhi_epi32(r[0], r[1]);
    s[2] = _mm256_unpacklo_epi32(r[2], r[3]);
    s[3] = _mm256_unpackhi_epi32(r[2], r[3]);
    bytes[0] = _mm256_unpacklo_epi64(s[0], s[2]);
    bytes[1] = _mm256_unpackhi_epi64(s[0], s[2]);
    bytes[2] = _mm256_unpacklo_epi64(s[1], s[3]);
    bytes[3] = _mm256_unpackhi_epi64(s[1], s[3]);
}

/* 16-bit entries of 32 nibbles: bytes 0 to 7, then 8 to 15, of each lane. */
INLINE256 void look_up(const uint8_t *table, __m256i nibbles, __m256i found[2]) {
    __m256i low = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table));
    __m256i high = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(table + NIBBLE)));
    low = _mm256_shuffle_epi8(low, nibbles);
    high = _mm256_shuffle_epi8(high, nibbles);
    found[0] = _mm256_unpacklo_epi8(low, high);
    found[1] = _mm256_unpackhi_epi8(low, high);
}

/* sum[m] gathers tokens 8 m to 8 m + 7: lane L, number i is token 8 m + 4 L + i. */
INLINE256 void add_pair(const uint8_t *table, __m256i low, __m256i high, __m256i sum[4]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i first[2], second[2];
    look_up(table, low, first);
    look_up(table + 2 * NIBBLE, high, second);
    for (int k = 0; k < 2; k++) {
        __m256i a = _mm256_unpacklo_epi16(first[k], second[k]);
        __m256i b = _mm256_unpackhi_epi16(first[k], second[k]);
        sum[2 * k] = _mm256_add_epi32(sum[2 * k], _mm256_madd_epi16(a, ones));
        sum[2 * k + 1] = _mm256_add_epi32(sum[2 * k + 1], _mm256_madd_epi16(b, ones));
    }
}

/* Entries of a byte's two nibbles, added. */
INLINE256 __m256i look_up_both(const uint8_t *table, __m256i low, __m256i high) {
    __m256i first = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table));
    __m256i second = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(table + 32)));
    return _mm256_add_epi8(_mm256_shuffle_epi8(first, low), _mm256_shuffle_epi8(second, high));
}

/* A word of four bytes into the sums: at most 2 * 128 * 127 in 16 bits. */
INLINE256 void add_word(const uint8_t *table, const uint8_t *weights, const __m256i low[4],
                        const __m256i high[4], __m256i sum[4]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i product[2][2]; /* of bytes 0 and 1, 2 and 3; tokens as in look_up */
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
        __m256i a = look_up_both(table + 128 * j, low[2 * j], high[2 * j]);
        __m256i b = look_up_both(table + 128 * j + 64, low[2 * j + 1], high[2 * j + 1]);
        __m256i pair = _mm256_set1_epi16((short)(weights[2 * j] | weights[2 * j + 1] << 8));
        product[j][0] = _mm256_maddubs_epi16(pair, _mm256_unpacklo_epi8(a, b));
        product[j][1] = _mm256_maddubs_epi16(pair, _mm256_unpackhi_epi8(a, b));
    }
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        __m256i a = _mm256_unpacklo_epi16(product[0][k], product[1][k]);
        __m256i b = _mm256_unpackhi_epi16(product[0][k], product[1][k]);
        sum[2 * k] = _mm256_add_epi32(sum[2 * k], _mm256_madd_epi16(a, ones));
        sum[2 * k + 1] = _mm256_add_epi32(sum[2 * k + 1], _mm256_madd_epi16(b, ones));
    }
}

/* Adds the coordinates of a whole byte, four to a word, to scores that are there. */
AVX2_TARGET __attribute__((noinline)) static void add_wide(const query_tables *t,
                                                           const uint8_t *words, int half,
                                                           int32_t *out, size_t pitch) {
    const __m256i byte = _mm256_set1_epi32(255);
    const int32_t *tables =
        (const int32_t *)((const uint8_t *)t->arranged + GROUP * t->nibbles * 32);
    for (int64_t w = 0; w < t->wides; w++)
        for (int m = 0; m < 4; m++) {
            const uint8_t *at = words + (w / 4) * WORD + 32 * m;
            __m256i codes = _mm256_loadu_si256((const __m256i *)at);
            codes = _mm256_and_si256(_mm256_srli_epi32(codes, (int)(8 * (w % 4))), byte);
            for (int g = 0; g < t->rows; g++) {
                const int32_t *table = tables + (g * t->wides + w) * BYTE;
                __m256i *sum = (__m256i *)(out + g * pitch + 32 * half + 8 * m);
                __m256i found = _mm256_i32gather_epi32(table, codes, 4);
                _mm256_storeu_si256(sum, _mm256_add_epi32(_mm256_loadu_si256(sum), found));
            }
        }
}

INLINE256 void score_half(const query_tables *t, const uint8_t *words, size_t stride, int half,
                          int32_t *out, size_t pitch, const int rows, const int precise) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const uint8_t *tables = t->arranged;
    __m256i sum[GROUP][4];
#pragma GCC unroll 4
    for (int g = 0; g < rows; g++)
#pragma GCC unroll 4
        for (int m = 0; m < 4; m++) sum[g][m] = _mm256_setzero_si256();
    words += 128 * half;
    for (int64_t w = 0; w < t->nibbles / 8; w++, words += WORD) {
        __m256i bytes[4];
        _mm_prefetch((const char *)words + stride, _MM_HINT_T0);
        _mm_prefetch((const char *)words + stride + 64, _MM_HINT_T0);
        transpose(words, bytes);
        __m256i low[4], high[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            low[j] = _mm256_and_si256(bytes[j], nibble);
            high[j] = _mm256_and_si256(_mm256_srli_epi16(bytes[j], 4), nibble);
        }
#pragma GCC unroll 4
        for (int g = 0; g < rows; g++) {
            const uint8_t *table = tables + (g * t->nibbles + 8 * w) * 32;
            if (precise) {
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) add_pair(table + 64 * j, low[j], high[j], sum[g]);
            } else {
                add_word(table, t->weights + (g * t->nibbles + 8 * w) / 2, low, high, sum[g]);
            }
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < rows; g++)
#pragma GCC unroll 4
        for (int m = 0; m < 4; m++)
            _mm256_storeu_si256((__m256i *)(out + g * pitch + 32 * half + 8 * m), sum[g][m]);
    if (t->wides) add_wide(t, words, half, out, pitch);
}

INLINE256 void score_rows(const query_tables *t, const uint8_t *words, size_t stride, int32_t *out,
                          size_t pitch, const int precise) {
    for (int half = 0; half < 2; half++) switch (t->rows) {
        case 1: score_half(t, words, stride, half, out, pitch, 1, precise); break;
        case 2: score_half(t, words, stride, half, out, pitch, 2, precise); break;
        case 3: score_half(t, words, stride, half, out, pitch, 3, precise); break;
        default: score_half(t, words, stride, half, out, pitch, 4, precise);
        }
}

AVX2_TARGET void score_block_avx2(const query_tables *t, const uint8_t *words, size_t stride,
                                  int32_t *out, size_t pitch) {
    score_rows(t, words, stride, out, pitch, 0);
}

AVX2_TARGET void score_block_avx2_precise(const query_tables *t, const uint8_t *words,
                                          size_t stride, int32_t *out, size_t pitch) {
    score_rows(t, words, stride, out, pitch, 1);
}
#endif
