/* Weighted sums of packed values: the portable kernel, in float32, the choice of a kernel, and the
 * tables of those that read bytes. */
#include <string.h>

#include "gonio_kernels.h"

/* Adds one coordinate's levels, looked up by `shift` and `mask` in a plane, for every row. */
static void add_levels(const uint8_t *plane, size_t stride, int shift, int mask, const float *level,
                       const value_tile *tile, float *sums) {
    for (int b = 0; b < tile->blocks; b++, plane += stride)
        for (int i = 0; i < BLOCK; i++) {
            float found = level[plane[i] >> shift & mask];
            for (int g = 0; g < tile->rows; g++)
                sums[i % PARTS * GROUP + g] += tile->weights[g][b * BLOCK + i] * found;
        }
}

void add_values_portable(const plan *values, const head_plan *head, const value_quad *quads,
                         int64_t count, const uint8_t *planes, size_t stride,
                         const value_tile *tile, float *sums) {
    (void)quads, (void)count;
    for (int64_t n = 0; n < head->nibbles; n++)
        for (int s = 0; s < SLOTS; s++) {
            int64_t at = (head->first_nibble + n) * SLOTS + s;
            if (values->dims[at] < 0) continue;
            add_levels(planes + n / 2 * BLOCK, stride, (int)(n % 2 * 4), NIBBLE - 1,
                       values->levels + at * NIBBLE, tile, sums + values->dims[at] * PARTS * GROUP);
        }
    for (int64_t w = 0; w < head->wides; w++) {
        int64_t at = head->first_wide + w;
        add_levels(planes + (head->nibbles / 2 + w) * BLOCK, stride, 0, BYTE - 1,
                   values->wide_levels + at * BYTE, tile,
                   sums + values->wide_dims[at] * PARTS * GROUP);
    }
}

add_values *add_values_for(enum level level, int precise) {
#if GONIO_X86
    if (level == AVX512 && !precise) return add_values_avx512;
    if (level == AVX2 && !precise) return add_values_avx2;
#if GONIO_AVXVNNI
    if (level == AVXVNNI && !precise) return add_values_avxvnni;
#endif
    if (level != PORTABLE) return add_values_avx2_precise;
#endif
#if GONIO_NEON
    if (level == NEON) return add_values_neon;
#endif
    (void)level, (void)precise;
    return add_values_portable;
}

weigh_tile *weigh_tile_for(enum level level, int precise) {
#if GONIO_X86
    if (level == AVX512 && !precise) return weigh_avx512;
    if (level == AVX2 && !precise) return weigh_avx2;
#endif
    (void)level, (void)precise;
    return NULL;
}

int64_t list_quads(const plan *values, const head_plan *head, value_quad *quads) {
    int64_t pairs = 0;
    for (int64_t n = 0; n < head->nibbles; n += 2) {
        const int32_t *dims = values->dims + (head->first_nibble + n) * SLOTS;
        const int8_t *level = values->levels_int8 + (head->first_nibble + n) * SLOTS * 64;
        for (int s = 0; s < SLOTS && (dims[s] >= 0 || dims[SLOTS + s] >= 0); s++, pairs++) {
            value_quad *quad = quads + pairs / 2;
            int64_t half = pairs % 2;
            quad->plane[half] = n / 2 * BLOCK;
            for (int k = 0; k < 2; k++) {
                int32_t dim = dims[k * SLOTS + s];
                quad->dim[2 * half + k] = dim;
                int8_t *to = quad->level[2 * half + k];
                if (dim < 0)
                    memset(to, 0, NIBBLE);
                else
                    memcpy(to, level + (k * SLOTS + s) * 4 * NIBBLE, NIBBLE);
            }
        }
    }
    if (pairs % 2) {
        value_quad *last = quads + pairs / 2;
        last->plane[1] = last->plane[0];
        last->dim[2] = last->dim[3] = -1;
        memset(last->level[2], 0, 2 * NIBBLE);
        pairs++;
    }
    return pairs / 2;
}
