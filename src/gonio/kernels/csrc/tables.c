/* Integer tables of a query: what each value of each nibble adds to its scores. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gonio_kernels.h"

#define LARGEST_WEIGHT 255
#define LARGEST_ENTRY 127
#define LARGEST_PRECISE 32767

static void *allocate(size_t bytes) { return aligned_alloc(64, (bytes + 127) & ~(size_t)63); }

int tables_allocate(query_tables *t, const head_plan *head, const plan *keys, int precise,
                    enum level level) {
    size_t nibbles = (size_t)head->nibbles, wides = (size_t)head->wides;
    memset(t, 0, sizeof *t);
    t->precise = precise;
    t->nibbles = head->nibbles;
    t->wides = head->wides;
    t->wide_bits = keys->wide_bits + head->first_wide;
    t->entries = allocate(GROUP * nibbles * NIBBLE * sizeof(int16_t));
    t->weights = allocate(GROUP * nibbles);
    t->wide_entries = allocate(GROUP * wides * BYTE * sizeof(int16_t));
    t->wide_weights = allocate(GROUP * wides);
    t->arranged = allocate(arranged_bytes(head->nibbles, head->wides, precise, level));
    if (t->entries && t->weights && t->wide_entries && t->wide_weights && t->arranged) return 0;
    tables_free(t);
    return -1;
}

void tables_free(query_tables *t) {
    free(t->entries);
    free(t->weights);
    free(t->wide_entries);
    free(t->wide_weights);
    free(t->arranged);
}

/* Subtracts the middle of the range, which is the same for every token, and returns half of it. */
INLINE float center(float *value, int count, float *bias) {
    float low = value[0], high = value[0];
    for (int c = 1; c < count; c++) {
        low = value[c] < low ? value[c] : low;
        high = value[c] > high ? value[c] : high;
    }
    float middle = 0.5f * (low + high);
    for (int c = 0; c < count; c++) value[c] -= middle;
    *bias += middle;
    return high - middle;
}

INLINE void nibble_values(const plan *keys, int64_t nibble, const float *query, float *value) {
    memset(value, 0, NIBBLE * sizeof *value);
    for (int s = 0; s < SLOTS; s++) {
        int32_t dim = keys->dims[nibble * SLOTS + s];
        if (dim < 0) continue;
        const float *level = keys->levels + (nibble * SLOTS + s) * NIBBLE;
        for (int c = 0; c < NIBBLE; c++) value[c] += query[dim] * level[c];
    }
}

INLINE int wide_values(const plan *keys, int64_t wide, const float *query, float *value) {
    int count = 1 << keys->wide_bits[wide];
    int32_t dim = keys->wide_dims[wide];
    for (int c = 0; c < count; c++)
        value[c] = dim < 0 ? 0.0f : query[dim] * keys->wide_levels[wide * BYTE + c];
    return count;
}

/* Rounds to entries of at most `largest` in units of `step` times a weight, which is returned. */
INLINE uint8_t quantize(const float *value, int count, float half, float step, int precise,
                        int16_t *entry) {
    float units = step > 0 ? half / step : 0.0f; /* half the range in units of the step */
    int weight = precise ? 1 : (int)ceilf(units / LARGEST_ENTRY - 1e-3f);
    weight = weight < 1 ? 1 : weight > LARGEST_WEIGHT ? LARGEST_WEIGHT : weight;
    float limit = precise ? LARGEST_PRECISE : LARGEST_ENTRY;
    float scale = step > 0 ? 1.0f / (step * (float)weight) : 0.0f;
    for (int c = 0; c < count; c++) {
        float x = value[c] * scale;
        x = x > limit ? limit : x < -limit ? -limit : x;
        entry[c] = (int16_t)(x + (x < 0 ? -0.5f : 0.5f));
    }
    return (uint8_t)weight;
}

INLINE void fill_row(query_tables *t, const head_plan *head, const plan *keys, const float *query,
                     int row) {
    float value[BYTE], bias = 0, largest = 0, ignored;
    for (int64_t n = 0; n < t->nibbles; n++) {
        nibble_values(keys, head->first_nibble + n, query, value);
        float half = center(value, NIBBLE, &bias);
        largest = half > largest ? half : largest;
    }
    for (int64_t w = 0; w < t->wides; w++) {
        int count = wide_values(keys, head->first_wide + w, query, value);
        float half = center(value, count, &bias);
        largest = half > largest ? half : largest;
    }
    float step = largest / (t->precise ? LARGEST_PRECISE : LARGEST_ENTRY * LARGEST_WEIGHT);
    t->bias[row] = bias;
    t->scale[row] = step;
    for (int64_t n = 0; n < t->nibbles; n++) {
        nibble_values(keys, head->first_nibble + n, query, value);
        float half = center(value, NIBBLE, &ignored);
        int64_t at = row * t->nibbles + n;
        t->weights[at] = quantize(value, NIBBLE, half, step, t->precise, t->entries + at * NIBBLE);
    }
    for (int64_t w = 0; w < t->wides; w++) {
        int count = wide_values(keys, head->first_wide + w, query, value);
        float half = center(value, count, &ignored);
        int64_t at = row * t->wides + w;
        int16_t *entry = t->wide_entries + at * BYTE;
        memset(entry, 0, BYTE * sizeof *entry);
        t->wide_weights[at] = quantize(value, count, half, step, t->precise, entry);
    }
}

/* Multiplies weights into entries: at most 255 * 127, which an int16 holds. */
static void fold_weights(query_tables *t) {
    for (int64_t n = 0; n < t->rows * t->nibbles; n++)
        for (int c = 0; c < NIBBLE; c++) t->entries[n * NIBBLE + c] *= t->weights[n];
    for (int64_t w = 0; w < t->rows * t->wides; w++)
        for (int c = 0; c < BYTE; c++) t->wide_entries[w * BYTE + c] *= t->wide_weights[w];
}

#if GONIO_X86
AVX512_TARGET static void fill_row_avx512(query_tables *t, const head_plan *head, const plan *keys,
                                          const float *query, int row) {
    fill_row(t, head, keys, query, row);
}

AVX2_TARGET static void fill_row_avx2(query_tables *t, const head_plan *head, const plan *keys,
                                      const float *query, int row) {
    fill_row(t, head, keys, query, row);
}
#endif

void tables_fill(query_tables *t, const head_plan *head, const plan *keys, const float *query,
                 int rows, enum level level) {
    t->rows = rows;
    for (int r = 0; r < rows; r++) {
        const float *own = query + r * keys->dim;
#if GONIO_X86
        if (level == AVX512) {
            fill_row_avx512(t, head, keys, own, r);
            continue;
        }
        if (level == AVX2) {
            fill_row_avx2(t, head, keys, own, r);
            continue;
        }
#endif
        fill_row(t, head, keys, own, r);
    }
    if (level != AVX512) fold_weights(t);
#if GONIO_X86
    if (level == AVX2) arrange_avx2(t);
    if (level == AVX512) arrange_avx512(t);
#endif
}

size_t arranged_bytes(int64_t nibbles, int64_t wides, int precise, enum level level) {
    size_t n = (size_t)nibbles, w = (size_t)wides;
    if (level == PORTABLE) return 0;
    /* AVX2: low and high bytes of the entries; wide entries as 32-bit numbers, to gather. */
    if (level == AVX2 || precise) return GROUP * (n * 2 * NIBBLE + w * BYTE * sizeof(int32_t));
    return GROUP * (n * NIBBLE + w * BYTE); /* bytes */
}
