/* Attention over keys and values as they are, a cache's sinks and last tokens, in float32; and
 * attention over parts of the tokens joined to that over all of them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "weights.h"

#define LANES 16 /* partial sums of a product; rows of a tile are padded to whole ones */

typedef struct {
    const void *keys, *values; /* [heads of all sequences][tokens][dim] */
    enum dtype dtype;          /* of 32 or 16 bits */
    int64_t tokens, key_dim, value_dim, rows;
    const float *mask; /* of the sequence: [mask_rows][mask_pitch]; NULL for none */
    int64_t mask_rows, mask_pitch;
    float softcap; /* 0 for none */
    const loops *loops;
} raw_call;

/* Memory of a call, for one head at a time. */
typedef struct {
    float *tile;    /* [BLOCK][pitch], of keys, then of values */
    float *query;   /* [rows][key_pitch], zeros behind their coordinates */
    float *weights; /* [rows][BLOCK], scores first */
    float *sums;    /* [rows][value_pitch] */
    float *max, *total;
    int64_t key_pitch, value_pitch;
} raw_space;

INLINE int64_t padded(int64_t dim) { return (dim + LANES - 1) / LANES * LANES; }

INLINE void read_rows(const void *data, int64_t first, int count, int64_t dim, int64_t pitch,
                      float *tile, const enum dtype dtype) {
    const uint16_t *half = (const uint16_t *)data + first * dim;
    for (int t = 0; t < count; t++, half += dim, tile += pitch) {
        if (dtype == FLOAT32)
            memcpy(tile, (const float *)data + (first + t) * dim, (size_t)dim * sizeof *tile);
        else if (dtype == FLOAT16)
            for (int64_t j = 0; j < dim; j++) tile[j] = half_number(half[j]);
        else
            for (int64_t j = 0; j < dim; j++) tile[j] = bfloat16_number(half[j]);
        for (int64_t j = dim; j < pitch; j++) tile[j] = 0.0f;
    }
}

INLINE void read_tile(const raw_call *c, const void *data, int64_t first, int count, int64_t dim,
                      int64_t pitch, float *tile) {
    switch (c->dtype) {
    case FLOAT32: read_rows(data, first, count, dim, pitch, tile, FLOAT32); break;
    case FLOAT16: read_rows(data, first, count, dim, pitch, tile, FLOAT16); break;
    default: read_rows(data, first, count, dim, pitch, tile, BFLOAT16);
    }
}

/* Products are added in the same order at every level. */
INLINE float product(const float *a, const float *b, int64_t count) {
    float sum[LANES] = {0};
    for (int64_t j = 0; j < count; j += LANES)
        for (int k = 0; k < LANES; k++) sum[k] += a[j + k] * b[j + k];
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int k = 0; k < width; k++) sum[k] += sum[k + width];
    return sum[0];
}

/* Scores of a row, capped and masked; -infinity behind them. */
INLINE void score_row(const raw_call *c, const raw_space *s, int64_t row, int64_t first, int count,
                      float *score) {
    const float *query = s->query + row * s->key_pitch;
    for (int t = 0; t < count; t++) score[t] = product(query, s->tile + t * s->key_pitch, s->key_pitch);
    if (c->softcap > 0)
        for (int t = 0; t < count; t++) score[t] = c->softcap * tanhf(score[t] / c->softcap);
    if (c->mask) {
        const float *mask = c->mask + row % c->mask_rows * c->mask_pitch + first;
        for (int t = 0; t < count; t++) score[t] += mask[t];
    }
    for (int t = count; t < BLOCK; t++) score[t] = -INFINITY;
}

/* 0, or NaN where a number is: no comparison finds it. */
INLINE float not_a_number(const float *score, int count) {
    for (int t = 0; t < count; t++)
        if (score[t] != score[t]) return score[t];
    return 0.0f;
}

/* sum = factor * sum + weighted values. */
INLINE void add_row(const float *tile, int64_t pitch, int count, const float *weight, float factor,
                    float *sum) {
    for (int64_t j = 0; j < pitch; j += LANES) {
        float part[LANES];
        for (int k = 0; k < LANES; k++) part[k] = factor * sum[j + k];
        for (int t = 0; t < count; t++)
            for (int k = 0; k < LANES; k++) part[k] += weight[t] * tile[t * pitch + j + k];
        for (int k = 0; k < LANES; k++) sum[j + k] = part[k];
    }
}

/* One head's tokens, `start` being the first of them in keys and values. */
INLINE void attend_head(const raw_call *c, const raw_space *s, int64_t start) {
    for (int64_t first = 0; first < c->tokens; first += BLOCK) {
        int64_t left = c->tokens - first;
        int count = (int)(left < BLOCK ? left : BLOCK);
        read_tile(c, c->keys, start + first, count, c->key_dim, s->key_pitch, s->tile);
        for (int64_t r = 0; r < c->rows; r++)
            score_row(c, s, r, first, count, s->weights + r * BLOCK);
        read_tile(c, c->values, start + first, count, c->value_dim, s->value_pitch, s->tile);
        for (int64_t r = 0; r < c->rows; r++) {
            float *weight = s->weights + r * BLOCK, most = c->loops->largest(weight, BLOCK);
            if (most == -INFINITY) s->total[r] += not_a_number(weight, count);
            float factor = c->loops->soften(weight, BLOCK, most, s->max + r, s->total + r);
            add_row(s->tile, s->value_pitch, count, weight, factor, s->sums + r * s->value_pitch);
        }
    }
}

typedef void attend_function(const raw_call *c, const raw_space *s, int64_t start);

static void attend_portable(const raw_call *c, const raw_space *s, int64_t start) {
    attend_head(c, s, start);
}

#if GONIO_X86
AVX2_TARGET static void attend_avx2(const raw_call *c, const raw_space *s, int64_t start) {
    attend_head(c, s, start);
}

AVX512_TARGET static void attend_avx512(const raw_call *c, const raw_space *s, int64_t start) {
    attend_head(c, s, start);
}
#endif

static attend_function *attend_for(enum level level) {
#if GONIO_X86
    if (level == AVX512) return attend_avx512;
    if (level == AVX2) return attend_avx2;
#endif
    (void)level;
    return attend_portable;
}

static void start_head(const raw_call *c, const raw_space *s, const float *query) {
    for (int64_t r = 0; r < c->rows; r++) {
        float *to = s->query + r * s->key_pitch;
        memcpy(to, query + r * c->key_dim, (size_t)c->key_dim * sizeof *to);
        for (int64_t j = c->key_dim; j < s->key_pitch; j++) to[j] = 0.0f;
        s->max[r] = -INFINITY;
        s->total[r] = 0.0f;
    }
    memset(s->sums, 0, (size_t)(c->rows * s->value_pitch) * sizeof *s->sums);
}

/* A row whose tokens are all masked has an output of zero and a log-sum-exp of -infinity. */
static void finish_head(const raw_call *c, const raw_space *s, float *out, float *lse) {
    for (int64_t r = 0; r < c->rows; r++, out += c->value_dim) {
        float share = s->total[r] == 0.0f ? 0.0f : 1.0f / s->total[r];
        lse[r] = s->max[r] + logf(s->total[r]);
        for (int64_t j = 0; j < c->value_dim; j++) out[j] = s->sums[r * s->value_pitch + j] * share;
    }
}

static void place(const raw_call *c, raw_space *s, arena *space) {
    size_t rows = (size_t)c->rows, one = sizeof(float);
    size_t keys = (size_t)padded(c->key_dim), values = (size_t)padded(c->value_dim);
    s->key_pitch = (int64_t)keys;
    s->value_pitch = (int64_t)values;
    s->tile = take(space, BLOCK * (keys > values ? keys : values) * one);
    s->query = take(space, rows * keys * one);
    s->weights = take(space, rows * BLOCK * one);
    s->sums = take(space, rows * values * one);
    s->max = take(space, rows * one);
    s->total = take(space, rows * one);
}

/* Attention over tokens that are stored as they are.
 *
 * keys [batch][heads][tokens][key dim] and values [batch][heads][tokens][value dim], of one dtype of
 * 32 or 16 bits; query [batch][heads][rows][key dim], already scaled; mask [batch][mask_rows]
 * [mask_pitch], whose first `tokens` entries are added to scores after the soft cap (0 for none), row
 * r % mask_rows for row r; NULL for none. out and lse as of gonio_attention. Returns 0, or -1 without
 * memory.
 */
EXPORT int gonio_raw_attention(const void *keys, const void *values, int dtype, int64_t batch,
                               int64_t heads, int64_t tokens, int64_t key_dim, int64_t value_dim,
                               const float *query, int64_t rows, const float *mask,
                               int64_t mask_rows, int64_t mask_pitch, float softcap, int level,
                               float *out, float *lse) {
    enum level chosen = base_level(level);
    raw_call c = {keys, values, (enum dtype)dtype, tokens, key_dim, value_dim, rows, mask,
                  mask_rows, mask_pitch, softcap, loops_for(chosen)};
    raw_space s;
    arena space = {NULL, 0};
    place(&c, &s, &space);
    char *memory = space.start = aligned_alloc(64, space.used + 64);
    space.used = 0;
    if (!memory) return -1;
    place(&c, &s, &space);
    attend_function *attend = attend_for(chosen);
    for (int64_t i = 0; i < batch * heads; i++) {
        if (mask) c.mask = mask + i / heads * mask_rows * mask_pitch;
        start_head(&c, &s, query + i * rows * key_dim);
        attend(&c, &s, i * tokens);
        finish_head(&c, &s, out + i * rows * value_dim, lse + i * rows);
    }
    free(memory);
    return 0;
}

/* Attention over all tokens from that over `count` parts of them, outs[part][rows][dim] and
 * lses[part][rows]: means of the outputs weighted by exp(lse). */
EXPORT void gonio_merge(const float *const *outs, const float *const *lses, int64_t count,
                        int64_t rows, int64_t dim, float *out, float *lse) {
    for (int64_t r = 0; r < rows; r++) {
        float most = -INFINITY, total = 0.0f, *to = out + r * dim;
        for (int64_t p = 0; p < count; p++)
            if (!(lses[p][r] <= most)) most = lses[p][r];
        memset(to, 0, (size_t)dim * sizeof *to);
        lse[r] = most;
        if (most == -INFINITY) continue;
        for (int64_t p = 0; p < count; p++) total += expf(lses[p][r] - most);
        for (int64_t p = 0; p < count; p++) {
            float share = expf(lses[p][r] - most) / total;
            for (int64_t j = 0; j < dim; j++) to[j] += share * outs[p][r * dim + j];
        }
        lse[r] += logf(total);
    }
}
