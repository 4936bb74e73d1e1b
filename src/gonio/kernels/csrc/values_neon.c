/* Weighted sums of packed values with NEON, in float32: 16 tokens at a time, two coordinates that
 * share the loading of weights. tbl looks up each of the four bytes of a level. */
#include "gonio_kernels.h"

#if GONIO_NEON
#include <arm_neon.h>

#define SIDE_BY_SIDE 16 /* tokens */
#define PAIR 2          /* coordinates */

/* One coordinate: where its codes lie, what they stand for, and where its sums go. */
typedef struct {
    const uint8_t *plane;
    int shift;
    const float *level;
    float *sums;
} coordinate;

/* Bytes of the first, of the last 8 tokens, side by side. */
INLINE uint16x8_t low_pairs(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u16_u8(vzip1q_u8(a, b));
}

INLINE uint16x8_t high_pairs(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u16_u8(vzip2q_u8(a, b));
}

/* Levels of 16 nibbles; table.val[k] holds byte k of each level. */
INLINE void nibble_levels(uint8x16x4_t table, uint8x16_t nibbles, float32x4_t found[4]) {
    uint8x16_t a = vqtbl1q_u8(table.val[0], nibbles), b = vqtbl1q_u8(table.val[1], nibbles);
    uint8x16_t c = vqtbl1q_u8(table.val[2], nibbles), d = vqtbl1q_u8(table.val[3], nibbles);
    uint16x8_t low[2] = {low_pairs(a, b), high_pairs(a, b)};
    uint16x8_t high[2] = {low_pairs(c, d), high_pairs(c, d)};
    for (int k = 0; k < 2; k++) {
        found[2 * k] = vreinterpretq_f32_u16(vzip1q_u16(low[k], high[k]));
        found[2 * k + 1] = vreinterpretq_f32_u16(vzip2q_u16(low[k], high[k]));
    }
}

/* Adds the four partial sums of each row; the rows lie side by side. */
INLINE void add_sums(const float32x4_t sum[GROUP], float *sums) {
    float32x4_t all = vpaddq_f32(vpaddq_f32(sum[0], sum[1]), vpaddq_f32(sum[2], sum[3]));
    vst1q_f32(sums, vaddq_f32(vld1q_f32(sums), all));
}

INLINE void add_nibbles(const coordinate *c, const int count, size_t stride, const value_tile *tile,
                        const int rows) {
    float32x4_t sum[PAIR][GROUP];
    uint8x16x4_t table[PAIR];
    for (int k = 0; k < count; k++) {
        table[k] = vld4q_u8((const uint8_t *)c[k].level);
        for (int g = 0; g < GROUP; g++) sum[k][g] = vdupq_n_f32(0);
    }
    for (int b = 0; b < tile->blocks; b++)
        for (int i = 0; i < BLOCK; i += SIDE_BY_SIDE) {
            float32x4_t found[PAIR][4];
            for (int k = 0; k < count; k++) {
                uint8x16_t codes = vld1q_u8(c[k].plane + (size_t)b * stride + i);
                codes = vshlq_u8(codes, vdupq_n_s8((int8_t)-c[k].shift)); /* to the right */
                nibble_levels(table[k], vandq_u8(codes, vdupq_n_u8(NIBBLE - 1)), found[k]);
            }
            for (int g = 0; g < rows; g++)
                for (int m = 0; m < 4; m++) {
                    float32x4_t weights = vld1q_f32(tile->weights[g] + b * BLOCK + i + 4 * m);
                    for (int k = 0; k < count; k++)
                        sum[k][g] = vfmaq_f32(sum[k][g], found[k][m], weights);
                }
        }
    for (int k = 0; k < count; k++) add_sums(sum[k], c[k].sums);
}

INLINE void add_wide(const coordinate *c, size_t stride, const value_tile *tile, const int rows) {
    float32x4_t sum[GROUP];
    for (int g = 0; g < GROUP; g++) sum[g] = vdupq_n_f32(0);
    for (int b = 0; b < tile->blocks; b++)
        for (int i = 0; i < BLOCK; i += 4) {
            const uint8_t *codes = c->plane + (size_t)b * stride + i;
            float found[4] = {c->level[codes[0]], c->level[codes[1]], c->level[codes[2]],
                              c->level[codes[3]]};
            for (int g = 0; g < rows; g++)
                sum[g] = vfmaq_f32(sum[g], vld1q_f32(found),
                                   vld1q_f32(tile->weights[g] + b * BLOCK + i));
        }
    add_sums(sum, c->sums);
}

INLINE void add_head(const plan *values, const head_plan *head, const uint8_t *planes,
                     size_t stride, const value_tile *tile, float *sums, const int rows) {
    coordinate pair[PAIR];
    int count = 0;
    for (int64_t i = 0; i < head->nibbles * SLOTS; i++) {
        int64_t n = i / SLOTS, at = head->first_nibble * SLOTS + i;
        if (values->dims[at] < 0) continue;
        coordinate found = {planes + n / 2 * BLOCK, (int)(n % 2 * 4), values->levels + at * NIBBLE,
                            sums + values->dims[at] * PARTS * GROUP};
        pair[count++] = found;
        if (count == PAIR) add_nibbles(pair, PAIR, stride, tile, rows), count = 0;
    }
    if (count) add_nibbles(pair, 1, stride, tile, rows);
    for (int64_t w = 0; w < head->wides; w++) {
        int64_t at = head->first_wide + w;
        coordinate found = {planes + (head->nibbles / 2 + w) * BLOCK, 0,
                            values->wide_levels + at * BYTE,
                            sums + values->wide_dims[at] * PARTS * GROUP};
        add_wide(&found, stride, tile, rows);
    }
}

void add_values_neon(const plan *values, const head_plan *head, const value_quad *quads,
                     int64_t count, const uint8_t *planes, size_t stride, const value_tile *tile,
                     float *sums) {
    (void)quads, (void)count;
    switch (tile->rows) {
    case 1: add_head(values, head, planes, stride, tile, sums, 1); break;
    case 2: add_head(values, head, planes, stride, tile, sums, 2); break;
    case 3: add_head(values, head, planes, stride, tile, sums, 3); break;
    default: add_head(values, head, planes, stride, tile, sums, 4);
    }
}
#endif
