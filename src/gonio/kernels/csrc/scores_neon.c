/* Scores of a block with NEON: 16 tokens at a time, which a load takes apart so that a register
 * holds the same byte of each. Bytes: tbl looks up both nibbles; the sum is multiplied by its
 * weight, two bytes are added in 16 bits. Precise: tbl looks up the low and the high byte of each
 * entry, which are summed apart. Every 64-bit ARM processor has these instructions. */
#include "gonio_kernels.h"

#if GONIO_NEON
#include <arm_neon.h>
#include <string.h>

/* Compilers would load tables of all rows first, and have too few registers for them. */
#define KEEP_ORDER __asm__ volatile("" : : : "memory")
#define WORD (4 * BLOCK)
#define SIDE_BY_SIDE 16 /* tokens */
#define WORDS_APART 16  /* whose low and high bytes are summed in 16 bits: 8 * 16 * 255 < 2^15 */

/* Per row and byte the 16 entries of its low and of its high nibble and, 16 times, its weight,
 * negated: 128 is no int8, -128 is one. Precise: 16 low bytes and 16 high bytes per nibble. */
#define LINE (3 * NIBBLE)
#define PRECISE_LINE (4 * NIBBLE)

void arrange_neon(query_tables *t) {
    uint8_t *to = t->arranged;
    for (int64_t i = 0; i < t->rows * t->nibbles / 2; i++) {
        const int16_t *entry = t->entries + i * 2 * NIBBLE;
        for (int c = 0; c < 2 * NIBBLE; c++) {
            uint8_t low = (uint8_t)entry[c], high = (uint8_t)((uint16_t)entry[c] >> 8);
            if (t->precise) {
                to[c + c / NIBBLE * NIBBLE] = low;
                to[c + c / NIBBLE * NIBBLE + NIBBLE] = high;
            } else {
                to[c] = low;
                to[2 * NIBBLE + c / 2] = (uint8_t)-t->weights[i];
            }
        }
        to += t->precise ? PRECISE_LINE : LINE;
    }
}

/* The low and the high nibbles of 16 bytes. */
INLINE void split(uint8x16_t bytes, uint8x16_t *low, uint8x16_t *high) {
    *low = vandq_u8(bytes, vdupq_n_u8(NIBBLE - 1));
    *high = vshrq_n_u8(bytes, 4);
}

INLINE int8x16_t look_up(const uint8_t *table, uint8x16_t nibbles) {
    return vreinterpretq_s8_u8(vqtbl1q_u8(vld1q_u8(table), nibbles));
}

/* Entries of a byte's two nibbles, added. */
INLINE int8x16_t look_up_both(const uint8_t *line, uint8x16_t low, uint8x16_t high) {
    return vaddq_s8(look_up(line, low), look_up(line + NIBBLE, high));
}

/* Two bytes into the sums: together at most 2 * 128 * 127 in 16 bits. */
INLINE void add_bytes(const uint8_t *line, const uint8x16_t low[2], const uint8x16_t high[2],
                      int32x4_t sum[4]) {
    int8x16_t a = look_up_both(line, low[0], high[0]);
    int8x16_t b = look_up_both(line + LINE, low[1], high[1]);
    int8x16_t weight_a = vld1q_s8((const int8_t *)line + 2 * NIBBLE);
    int8x16_t weight_b = vld1q_s8((const int8_t *)line + LINE + 2 * NIBBLE);
    int16x8_t first = vmull_s8(vget_low_s8(a), vget_low_s8(weight_a));
    int16x8_t second = vmull_high_s8(a, weight_a);
    first = vmlal_s8(first, vget_low_s8(b), vget_low_s8(weight_b));
    second = vmlal_high_s8(second, b, weight_b);
    sum[0] = vsubw_s16(sum[0], vget_low_s16(first));
    sum[1] = vsubw_high_s16(sum[1], first);
    sum[2] = vsubw_s16(sum[2], vget_low_s16(second));
    sum[3] = vsubw_high_s16(sum[3], second);
}

INLINE void score_bytes(const query_tables *t, const uint8_t *words, size_t stride, int32_t *out,
                        size_t pitch, const int rows) {
    int32x4_t sum[GROUP][4];
    for (int g = 0; g < rows; g++)
        for (int m = 0; m < 4; m++) sum[g][m] = vdupq_n_s32(0);
    for (int64_t n = 0; n < t->nibbles; n += 8, words += WORD) {
        const uint8_t *lines = (const uint8_t *)t->arranged + n / 2 * LINE;
        uint8x16x4_t bytes = vld4q_u8(words);
        __builtin_prefetch(words + stride);
        for (int j = 0; j < 4; j += 2) {
            uint8x16_t low[2], high[2];
            split(bytes.val[j], low, high);
            split(bytes.val[j + 1], low + 1, high + 1);
            for (int g = 0; g < rows; g++) {
                add_bytes(lines + (g * t->nibbles / 2 + j) * LINE, low, high, sum[g]);
                KEEP_ORDER;
            }
        }
    }
    for (int g = 0; g < rows; g++)
        for (int m = 0; m < 4; m++) vst1q_s32(out + g * pitch + 4 * m, sum[g][m]);
}

/* Sums of low bytes and of high ones, 8 tokens in each. */
typedef struct {
    uint16x8_t low[2];
    int16x8_t high[2];
} halves;

INLINE void add_entries(const uint8_t *table, uint8x16_t nibbles, halves *sum) {
    uint8x16_t low = vqtbl1q_u8(vld1q_u8(table), nibbles);
    int8x16_t high = look_up(table + NIBBLE, nibbles);
    sum->low[0] = vaddw_u8(sum->low[0], vget_low_u8(low));
    sum->low[1] = vaddw_high_u8(sum->low[1], low);
    sum->high[0] = vaddw_s8(sum->high[0], vget_low_s8(high));
    sum->high[1] = vaddw_high_s8(sum->high[1], high);
}

/* Adds 256 times the high sums and the low ones to eight scores. */
INLINE void join(uint16x8_t low, int16x8_t high, int32_t *out) {
    int32x4_t first = vaddq_s32(vld1q_s32(out), vshll_n_s16(vget_low_s16(high), 8));
    int32x4_t second = vaddq_s32(vld1q_s32(out + 4), vshll_high_n_s16(high, 8));
    int16x8_t positive = vreinterpretq_s16_u16(low);
    vst1q_s32(out, vaddw_s16(first, vget_low_s16(positive)));
    vst1q_s32(out + 4, vaddw_high_s16(second, positive));
}

INLINE void score_precise(const query_tables *t, const uint8_t *words, size_t stride, int32_t *out,
                          size_t pitch, const int rows) {
    for (int g = 0; g < rows; g++) memset(out + g * pitch, 0, SIDE_BY_SIDE * sizeof *out);
    for (int64_t first = 0; first < t->nibbles; first += 8 * WORDS_APART) {
        int64_t end = first + 8 * WORDS_APART < t->nibbles ? first + 8 * WORDS_APART : t->nibbles;
        halves sum[GROUP];
        memset(sum, 0, sizeof sum);
        for (int64_t n = first; n < end; n += 8, words += WORD) {
            const uint8_t *lines = (const uint8_t *)t->arranged + n / 2 * PRECISE_LINE;
            uint8x16x4_t bytes = vld4q_u8(words);
            __builtin_prefetch(words + stride);
            for (int j = 0; j < 4; j++) {
                uint8x16_t low, high;
                split(bytes.val[j], &low, &high);
                for (int g = 0; g < rows; g++) {
                    const uint8_t *line = lines + (g * t->nibbles / 2 + j) * PRECISE_LINE;
                    add_entries(line, low, sum + g);
                    add_entries(line + 2 * NIBBLE, high, sum + g);
                }
            }
        }
        for (int g = 0; g < rows; g++)
            for (int k = 0; k < 2; k++)
                join(sum[g].low[k], sum[g].high[k], out + g * pitch + 8 * k);
    }
}

/* Adds the coordinates of a whole byte, four to a word, to scores that are there. */
static void add_wide(const query_tables *t, const uint8_t *words, int32_t *out, size_t pitch) {
    for (int64_t w = 0; w < t->wides; w++)
        for (int g = 0; g < t->rows; g++) {
            const int16_t *entry = t->wide_entries + (g * t->wides + w) * BYTE;
            const uint8_t *codes = words + w / 4 * WORD + w % 4;
            for (int i = 0; i < BLOCK; i++) out[g * pitch + i] += entry[codes[4 * i]];
        }
}

INLINE void score_rows(const query_tables *t, const uint8_t *words, size_t stride, int32_t *out,
                       size_t pitch, const int rows, const int precise) {
    if (precise)
        score_precise(t, words, stride, out, pitch, rows);
    else
        score_bytes(t, words, stride, out, pitch, rows);
}

INLINE void score_tokens(const query_tables *t, const uint8_t *words, size_t stride, int32_t *out,
                         size_t pitch, const int precise) {
    for (int i = 0; i < BLOCK; i += SIDE_BY_SIDE) {
        const uint8_t *from = words + 4 * i;
        switch (t->rows) {
        case 1: score_rows(t, from, stride, out + i, pitch, 1, precise); break;
        case 2: score_rows(t, from, stride, out + i, pitch, 2, precise); break;
        case 3: score_rows(t, from, stride, out + i, pitch, 3, precise); break;
        default: score_rows(t, from, stride, out + i, pitch, 4, precise);
        }
    }
    add_wide(t, words + t->nibbles / 8 * WORD, out, pitch);
}

void score_block_neon(const query_tables *t, const uint8_t *words, size_t stride, int32_t *out,
                      size_t pitch) {
    score_tokens(t, words, stride, out, pitch, 0);
}

void score_block_neon_precise(const query_tables *t, const uint8_t *words, size_t stride,
                              int32_t *out, size_t pitch) {
    score_tokens(t, words, stride, out, pitch, 1);
}
#endif
