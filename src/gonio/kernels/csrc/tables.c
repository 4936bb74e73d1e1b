/* Integer tables of a query: what each value of each nibble adds to its scores. */
#include <math.h>
#include <string.h>

#include "gonio_kernels.h"

#define LARGEST_PRECISE 32767

void tables_place(query_tables *t, const head_plan *head, const plan *keys, int precise,
                  enum level level, arena *space) {
    size_t nibbles = (size_t)head->nibbles, wides = (size_t)head->wides;
    int is_direct = level == AVX512 && !precise; /* entries are written where they are read */
    memset(t, 0, sizeof *t);
    t->precise = precise;
    t->nibbles = head->nibbles;
    t->wides = head->wides;
    t->wide_bits = keys->wide_bits + head->first_wide;
    t->arranged = take(space, arranged_bytes(head->nibbles, head->wides, precise, level));
    t->weights = take(space, GROUP * nibbles / 2);
    t->halves = take(space, nibbles * sizeof(float));
    t->values = take(space, (is_direct ? 1 : NIBBLE) * nibbles * sizeof(float));
    t->entries = take(space, is_direct ? 0 : GROUP * nibbles * NIBBLE * sizeof(int16_t));
    t->wide_entries = take(space, GROUP * wides * BYTE * sizeof(int16_t));
    t->wide_weights = take(space, GROUP * wides);
}

/* Subtracts the middle of the range, which is the same for every token; returns it. */
INLINE float center(float *value, int count, float *half) {
    float low = value[0], high = value[0];
    for (int c = 1; c < count; c++) {
        low = value[c] < low ? value[c] : low;
        high = value[c] > high ? value[c] : high;
    }
    float middle = 0.5f * (low + high);
    for (int c = 0; c < count; c++) value[c] -= middle;
    *half = high - middle;
    return middle;
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

/* Rounds to entries in units of `step` times the weight. */
INLINE void quantize(const float *value, int count, float step, int weight, int precise,
                     int16_t *entry) {
    float limit = precise ? LARGEST_PRECISE : LARGEST_ENTRY;
    float scale = step > 0 ? 1.0f / (step * (float)weight) : 0.0f;
    for (int c = 0; c < count; c++) {
        float x = value[c] * scale;
        x = x > limit ? limit : x < -limit ? -limit : x;
        entry[c] = (int16_t)(x + (x < 0 ? -0.5f : 0.5f));
    }
}

/* The values of a row's nibbles and their half ranges, two and two; returns the largest of what
 * must fit an entry: of a byte's two nibbles together, of one alone if precise. */
INLINE float nibble_ranges(query_tables *t, const head_plan *head, const plan *keys,
                           const float *query, float *bias) {
    float largest = 0;
    for (int64_t n = 0; n < t->nibbles; n += 2) {
        float *half = t->halves + n;
        for (int k = 0; k < 2; k++) {
            float *value = t->values + (n + k) * NIBBLE;
            nibble_values(keys, head->first_nibble + n + k, query, value);
            *bias += center(value, NIBBLE, half + k);
        }
        float most = half[0] > half[1] ? half[0] : half[1];
        if (!t->precise) most = half[0] + half[1];
        largest = most > largest ? most : largest;
    }
    return largest;
}

/* The same of coordinates of a byte; what they add to the bias is added in place. */
float wide_ranges(const query_tables *t, const head_plan *head, const plan *keys,
                  const float *query, float *bias) {
    float value[BYTE], half, largest = 0;
    for (int64_t w = 0; w < t->wides; w++) {
        int count = wide_values(keys, head->first_wide + w, query, value);
        *bias += center(value, count, &half);
        largest = half > largest ? half : largest;
    }
    return largest;
}

void fill_wides(query_tables *t, const head_plan *head, const plan *keys, const float *query,
                int row) {
    float value[BYTE], half, step = t->scale[row];
    for (int64_t w = 0; w < t->wides; w++) {
        int count = wide_values(keys, head->first_wide + w, query, value);
        center(value, count, &half);
        int64_t at = row * t->wides + w;
        int16_t *entry = t->wide_entries + at * BYTE;
        memset(entry, 0, BYTE * sizeof *entry);
        int weight = weight_for(half, step, t->precise, LARGEST_ENTRY);
        t->wide_weights[at] = (uint8_t)weight;
        quantize(value, count, step, weight, t->precise, entry);
    }
}

INLINE void fill_row(query_tables *t, const head_plan *head, const plan *keys, const float *query,
                     int row) {
    float bias = 0;
    float largest = nibble_ranges(t, head, keys, query, &bias);
    float wide = wide_ranges(t, head, keys, query, &bias);
    largest = wide > largest ? wide : largest;
    float step = largest / (t->precise ? LARGEST_PRECISE : LARGEST_PAIR * LARGEST_WEIGHT);
    t->bias[row] = bias;
    t->scale[row] = step;
    for (int64_t n = 0; n < t->nibbles; n += 2) {
        int64_t at = row * t->nibbles + n;
        int weight = weight_for(t->halves[n] + t->halves[n + 1], step, t->precise, LARGEST_PAIR);
        t->weights[at / 2] = (uint8_t)weight;
        quantize(t->values + n * NIBBLE, 2 * NIBBLE, step, weight, t->precise,
                 t->entries + at * NIBBLE);
    }
    fill_wides(t, head, keys, query, row);
}

/* Multiplies weights into entries: at most 128 * 127, which an int16 holds. */
static void fold_weights(query_tables *t) {
    for (int64_t n = 0; n < t->rows * t->nibbles; n++)
        for (int c = 0; c < NIBBLE; c++) t->entries[n * NIBBLE + c] *= t->weights[n / 2];
}

static void fold_wide_weights(query_tables *t) {
    for (int64_t w = 0; w < t->rows * t->wides; w++)
        for (int c = 0; c < BYTE; c++) t->wide_entries[w * BYTE + c] *= t->wide_weights[w];
}

#if GONIO_X86
AVX2_TARGET static void fill_row_avx2(query_tables *t, const head_plan *head, const plan *keys,
                                      const float *query, int row) {
    fill_row(t, head, keys, query, row);
}
#endif

void tables_fill(query_tables *t, const head_plan *head, const plan *keys, const float *query,
                 int rows, enum level level) {
    t->rows = rows;
#if GONIO_X86
    if (level == AVX512 && !t->precise) {
        fill_avx512(t, head, keys, query);
        return;
    }
#endif
    for (int r = 0; r < rows; r++) {
        const float *own = query + r * keys->dim;
#if GONIO_X86
        if (level != PORTABLE) {
            fill_row_avx2(t, head, keys, own, r);
            continue;
        }
#endif
        fill_row(t, head, keys, own, r);
    }
    if (level == PORTABLE) fold_weights(t);
    if (level != AVX512) fold_wide_weights(t);
#if GONIO_X86
    if (level == AVX2) arrange_avx2(t);
    if (level == AVX512) arrange_avx512(t);
#endif
#if GONIO_NEON
    if (level == NEON) arrange_neon(t);
#endif
}

size_t arranged_bytes(int64_t nibbles, int64_t wides, int precise, enum level level) {
    size_t n = (size_t)nibbles, w = (size_t)wides;
    if (level == PORTABLE) return 0;
    /* NEON: low and high bytes, or bytes and for two nibbles a weight, 16 times. */
    if (level == NEON) return GROUP * (n / 2) * (precise ? 4 * NIBBLE : 3 * NIBBLE);
    /* AVX2: low and high bytes of the entries; wide entries as 32-bit numbers, to gather. */
    if (level == AVX2 || precise) return GROUP * (n * 2 * NIBBLE + w * BYTE * sizeof(int32_t));
    return GROUP * (n * NIBBLE + w * BYTE); /* bytes */
}
