/* Weights as bytes: what the levels that have them share. */
#ifndef GONIO_WEIGHTS_H
#define GONIO_WEIGHTS_H

#include <math.h>
#include <string.h>

#include "gonio_kernels.h"

#define MOST_OF_MEAN 32 /* a row takes two bytes when its largest weight is more times the mean */
#define BYTE_UNITS 255.0f

/* a * b + c, in one instruction where the target has it. */
INLINE float multiply_add(float a, float b, float c, const int fused) {
    return fused ? __builtin_fmaf(a, b, c) : a * b + c;
}

/* exp of x <= 0 within 2e-7 of itself; 0 below -87. Plain arithmetic, which compilers vectorize. */
INLINE float exp_negative(float x, const int fused) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to whole numbers */
    float y = x < -87.0f ? -87.0f : x;
    float power = multiply_add(y, 1.44269504f, shift, fused), whole = power - shift;
    float r = multiply_add(whole, -0.693359375f, y, fused);
    r = multiply_add(whole, 2.12194440e-4f, r, fused);
    float p = 1.9875691500e-4f;
    p = multiply_add(p, r, 1.3981999507e-3f, fused);
    p = multiply_add(p, r, 8.3334519073e-3f, fused);
    p = multiply_add(p, r, 4.1665795894e-2f, fused);
    p = multiply_add(p, r, 1.6666665459e-1f, fused);
    p = multiply_add(p, r, 5.0000001201e-1f, fused);
    p = multiply_add(p, r * r, r + 1.0f, fused);
    int32_t bits;
    memcpy(&bits, &power, sizeof bits);
    bits = (int32_t)(((uint32_t)bits - 0x4B400000u + 127u) << 23);
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < -87.0f ? 0.0f : p * scale;
}

/* What a row's scores are compared with: weights are units * exp(scale * (score - most)). */
typedef struct {
    float scale, most;
    int32_t most_found;
} row_shift;

/* Of a row whose largest score is this number, or this whole score. */
INLINE row_shift shift_of_number(float most) {
    row_shift found = {1.0f, most, 0};
    return found;
}

INLINE row_shift shift_of_found(const row_state *row, int32_t most) {
    row_shift found = {row->scale, (float)most * row->scale + row->bias, most};
    return found;
}

/* No row takes two bytes, to begin with; units of rows that are not there are zero. */
INLINE void start_units(value_tile *tile) {
    tile->heavies = 0;
    for (int r = 0; r < GROUP; r++) tile->unit[r] = tile->byte_unit[r] = 0;
}

/* One byte errs by up to half a unit: where a token stands out, of which there are at most
 * BYTE_UNITS, it would drown the others, and that row takes two bytes. `sum`: of weights in units. */
INLINE int is_heavy(float sum, int count) {
    return sum > 0 && BYTE_UNITS * (float)count > MOST_OF_MEAN * sum;
}

/* The place of the second bytes of a row that takes two. */
INLINE uint8_t *low_bytes(value_tile *tile, int row) {
    tile->heavy[tile->heavies] = row;
    return tile->low[tile->heavies++];
}

/* Adds a tile's sums of weights, which are in units, to the rows' totals; what weigh_tile returns. */
INLINE int add_totals(value_tile *tile, const row_state *rows, const row_shift *shift,
                      const float *sum, float *factor) {
    float now[GROUP] = {0}, below[GROUP] = {0};
    int is_changed = 0;
    for (int r = 0; r < tile->rows; r++) {
        float before = *rows[r].max;
        now[r] = sum[r] > 0 && shift[r].most > before ? shift[r].most : before;
        if (sum[r] > 0) below[r] = shift[r].most - now[r];
    }
#pragma GCC unroll 1 /* a loop is turned into vectors, copies of its body are not */
    for (int r = 0; r < GROUP; r++) below[r] = exp_negative(below[r], 1);
    for (int r = 0; r < tile->rows; r++) {
        factor[r] = 1.0f;
        if (sum[r] == 0) continue;
        if (now[r] != *rows[r].max) factor[r] = expf(*rows[r].max - now[r]);
        tile->unit[r] *= below[r];
        tile->byte_unit[r] *= below[r];
        *rows[r].max = now[r];
        *rows[r].total = *rows[r].total * factor[r] + sum[r] * tile->unit[r];
        is_changed |= factor[r] != 1.0f;
    }
    return is_changed;
}

/* Of the low bytes, which lie in the order of tile->heavy: each row's unit, zero without them, and
 * where its bytes are. */
INLINE void find_low(const value_tile *tile, float *unit, int32_t *order) {
    for (int r = 0; r < GROUP; r++) unit[r] = 0, order[r] = 0;
    for (int i = 0; i < tile->heavies; i++) {
        unit[tile->heavy[i]] = tile->unit[tile->heavy[i]];
        order[tile->heavy[i]] = i;
    }
}

#endif
