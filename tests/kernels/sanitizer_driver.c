/* Runs every kernel of every level on random plans of every length and compares the levels.
 * Built with sanitizers by test_kernel_sanitizers.py; buffers are of the exact size. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gonio_kernels.h"

int gonio_has_level(int);
int gonio_scores(const plan *, const uint8_t *, int64_t, int64_t, int64_t, const float *, int64_t,
                 int64_t, int64_t, int, int, float *);
int gonio_attention(const plan *, const plan *, const frame *, const code_run *, int64_t, int64_t,
                    const float *, int64_t, const float *, const float *, int64_t, int64_t, float,
                    int64_t, int64_t, int, int, float *, float *);
int gonio_raw_attention(const void *, const void *, int, int64_t, int64_t, int64_t, int64_t, int64_t,
                        const float *, int64_t, const float *, int64_t, int64_t, float, int, float *,
                        float *);
void gonio_merge(const float *const *, const float *const *, int64_t, int64_t, int64_t, float *,
                 float *);
void gonio_encode(const plan *, int, uint8_t *, int64_t, int64_t, int64_t, int64_t, const float *,
                  const float *, const int32_t *, int64_t, int);
void gonio_decode(const plan *, int, const uint8_t *, int64_t, int64_t, int64_t, float *);
uint64_t gonio_read(const void *, int64_t, int);
int gonio_spectra(const void *const *, const void *const *, int64_t, const gram_shape *,
                  const double *, int, double *, double *, double *);
int gonio_bf16_scores(const uint16_t *, int64_t, int64_t, int64_t, const float *, int64_t, int,
                      float *);

#define BATCH 2
#define EDGES 255
#define MOST_HEADS 3
#define MOST_DIM 160 /* at 4 bits more words than NEON sums in 16 bits at a time */

/* A plan with the bits of its coordinates, [heads][dim]; `mix` chooses from which they are drawn. */
typedef struct {
    plan plan;
    int32_t widths[MOST_HEADS * MOST_DIM];
} sample;

static const char *mixes[] = {"0", "1", "2", "3", "4", "01234", "5678", "012345678", "421100"};
#define MIXES (int64_t)(sizeof mixes / sizeof *mixes)

static void *exactly(size_t bytes) { return malloc(bytes ? bytes : 1); }

static float uniform(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }

static float *floats(int64_t count) {
    float *found = exactly((size_t)count * sizeof *found);
    for (int64_t i = 0; i < count; i++) found[i] = uniform();
    return found;
}

/* Puts the narrow coordinates of a head into nibbles, each into the first with room, at the end that
 * is free; returns the number of nibbles. `dims` NULL: only counts. */
static int64_t fill_nibbles(const int32_t *widths, int64_t dim, int32_t *dims, int32_t *shifts) {
    int used[MOST_DIM] = {0}, count[MOST_DIM] = {0};
    int64_t nibbles = 0;
    for (int32_t j = 0; j < dim; j++) {
        if (widths[j] < 1 || widths[j] > 4) continue;
        int64_t n = 0;
        while (used[n] + widths[j] > 4) n++;
        if (n >= nibbles) nibbles = n + 1;
        if (dims) {
            dims[n * SLOTS + count[n]] = j;
            shifts[n * SLOTS + count[n]] = used[n];
        }
        used[n] += widths[j], count[n]++;
    }
    return nibbles;
}

/* The heads of a plan: where their coordinates and bytes begin. `is_sparse` adds an empty word. */
static void place_heads(sample *s, head_plan *head, int is_keys, int is_sparse) {
    plan *p = &s->plan;
    int64_t first_nibble = 0, first_wide = 0, step = is_keys ? 8 : 2;
    for (int64_t h = 0; h < p->heads; h++) {
        const int32_t *widths = s->widths + h * p->dim;
        int64_t nibbles = (fill_nibbles(widths, p->dim, NULL, NULL) + step - 1) / step * step, wides = 0;
        for (int64_t j = 0; j < p->dim; j++) wides += widths[j] > 4;
        if (is_keys) wides = (wides + 3) / 4 * 4;
        if (is_sparse) nibbles += step;
        head_plan found = {first_nibble, nibbles, first_wide, wides, p->block_bytes};
        head[h] = found;
        first_nibble += nibbles, first_wide += wides;
        p->block_bytes += BLOCK * (nibbles / 2 + wides);
    }
    if (p->block_bytes == 0) p->block_bytes = BLOCK;
    p->head = head;
}

static void make_plan(sample *s, int is_keys, int64_t heads, int64_t dim, const char *mix,
                      int is_sparse) {
    head_plan *head = exactly((size_t)heads * sizeof *head);
    memset(s, 0, sizeof *s);
    s->plan.heads = heads, s->plan.dim = dim;
    for (int64_t j = 0; j < heads * dim; j++) s->widths[j] = mix[(size_t)rand() % strlen(mix)] - '0';
    place_heads(s, head, is_keys, is_sparse);
    int64_t nibbles = head[heads - 1].first_nibble + head[heads - 1].nibbles;
    int64_t wides = head[heads - 1].first_wide + head[heads - 1].wides;
    int32_t *dims = exactly((size_t)nibbles * SLOTS * sizeof *dims);
    int32_t *shifts = exactly((size_t)nibbles * SLOTS * sizeof *shifts);
    int8_t *small = exactly((size_t)nibbles * SLOTS * 4 * NIBBLE);
    int32_t *wide_dims = exactly((size_t)wides * sizeof *wide_dims);
    int32_t *wide_bits = exactly((size_t)wides * sizeof *wide_bits);
    uint16_t *bf16 = exactly((size_t)wides * BYTE * sizeof *bf16);
    float *levels = floats(nibbles * SLOTS * NIBBLE), *wide_levels = floats(wides * BYTE);
    float *units = floats(heads * dim);
    memset(dims, -1, (size_t)nibbles * SLOTS * sizeof *dims);
    memset(shifts, 0, (size_t)nibbles * SLOTS * sizeof *shifts);
    for (int64_t w = 0; w < wides; w++) wide_dims[w] = -1, wide_bits[w] = 5;
    for (int64_t h = 0; h < heads; h++) {
        const int32_t *own = s->widths + h * dim;
        int64_t at = head[h].first_wide;
        fill_nibbles(own, dim, dims + head[h].first_nibble * SLOTS, shifts + head[h].first_nibble * SLOTS);
        for (int32_t j = 0; j < dim; j++) {
            units[h * dim + j] = own[j] > 4 ? 1.0f : 1.0f / 127;
            if (own[j] > 4) wide_dims[at] = j, wide_bits[at++] = own[j];
        }
    }
    for (int64_t i = 0; i < nibbles * SLOTS; i++)
        for (int c = 0; c < 4 * NIBBLE; c++) {
            float *level = levels + i * NIBBLE + c % NIBBLE;
            if (dims[i] < 0) *level = 0;
            small[i * 4 * NIBBLE + c] = (int8_t)lrintf(*level * 127);
        }
    for (int64_t i = 0; i < wides * BYTE; i++) {
        uint32_t bits;
        if (wide_dims[i / BYTE] < 0) wide_levels[i] = 0;
        memcpy(&bits, wide_levels + i, sizeof bits);
        bf16[i] = (uint16_t)((bits + 0x8000u) >> 16);
    }
    s->plan.dims = dims, s->plan.shifts = shifts, s->plan.levels = levels;
    s->plan.levels_int8 = small, s->plan.units = units, s->plan.wide_dims = wide_dims;
    s->plan.wide_bits = wide_bits, s->plan.wide_levels = wide_levels, s->plan.wide_bf16 = bf16;
}

static void free_plan(plan p) {
    const void *parts[] = {p.head,      p.dims,      p.shifts,      p.levels,    p.levels_int8,
                           p.wide_dims, p.wide_bits, p.wide_levels, p.wide_bf16, p.units};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free((void *)parts[i]);
}

static void fail(const char *what, int level, int64_t tokens) {
    fprintf(stderr, "%s: level %d differs from portable at %ld tokens\n", what, level, (long)tokens);
    exit(1);
}

static uint8_t *encoded(const sample *s, int is_keys, int64_t skip, int64_t tokens) {
    const plan *p = &s->plan;
    int64_t blocks = (skip + tokens + BLOCK - 1) / BLOCK, all = p->heads * p->dim;
    size_t bytes = (size_t)(BATCH * blocks * p->block_bytes);
    float *rows = floats(all * BATCH * tokens), *edges = floats(all * EDGES);
    float *back = floats(all * BATCH * (skip + tokens));
    for (int64_t j = 0; j < all; j++)
        for (int e = 0; e < EDGES; e++)
            edges[j * EDGES + e] = e < (1 << s->widths[j]) - 1
                                       ? (float)(e + 1) / (float)(1 << s->widths[j]) * 2 - 1
                                       : INFINITY;
    uint8_t *first = NULL;
    for (int level = 0; level < LEVEL_COUNT; level++) {
        if (!gonio_has_level(level)) continue;
        uint8_t *data = exactly(bytes);
        memset(data, 0, bytes);
        gonio_encode(p, is_keys, data, BATCH, blocks, skip, tokens, rows, edges, s->widths, EDGES, level);
        if (first && memcmp(first, data, bytes)) fail("encode", level, tokens);
        if (first)
            free(data);
        else
            first = data;
    }
    gonio_decode(p, is_keys, first, BATCH, blocks, skip + tokens, back);
    free(rows), free(edges), free(back);
    return first;
}

static void compare(const float *a, const float *b, int64_t count, float limit, const char *what,
                    int level, int64_t tokens) {
    for (int64_t i = 0; i < count; i++)
        if (!(fabsf(a[i] - b[i]) <= limit * (1 + fabsf(a[i])) || a[i] == b[i]))
            fail(what, level, tokens);
}

/* Queries of a run: up to 1, up to 100, or 1 and -1. */
enum queries { ORDINARY, SHARP, SIGNS };

static uint32_t digest = 2166136261u; /* of the bits of all scores, the same on every processor */

static void add_to_digest(const float *scores, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, scores + i, sizeof bits);
        digest = (digest ^ bits) * 16777619u;
    }
}

/* [heads][dim][dim], such that turned coordinates stay below 1. */
static float *basis(const plan *p) {
    float *found = floats(p->heads * p->dim * p->dim);
    for (int64_t i = 0; i < p->heads * p->dim * p->dim; i++) found[i] /= (float)p->dim;
    return found;
}

/* Scores, which must be equal to the bit, and attention, whose levels are at most 1: weights of bytes
 * differ by up to 5 %, sums of numbers by rounding. */
static void run(const sample *key_sample, const sample *value_sample, int64_t tokens, int64_t rows,
                int precise, enum queries kind) {
    const plan *keys = &key_sample->plan, *values = &value_sample->plan;
    int64_t blocks = (tokens + BLOCK - 1) / BLOCK, all = BATCH * keys->heads * rows;
    uint8_t *k = encoded(key_sample, 1, 0, tokens), *v = encoded(value_sample, 0, 0, tokens);
    float *query = floats(all * keys->dim), *mask = floats(BATCH * tokens);
    for (int64_t i = 0; i < all * keys->dim; i++) {
        if (kind == SHARP) query[i] *= 100;
        if (kind == SIGNS) query[i] = i / keys->dim % 2 ? -1 : 1;
    }
    for (int64_t t = 0; t < BATCH * tokens; t++) mask[t] = t % 3 ? mask[t] : -INFINITY;
    /* In one piece or two; in coordinates or, of every third number of rows, in vectors. */
    int64_t cut = blocks / 3;
    code_run runs[2] = {{k, v, blocks, cut * BLOCK},
                        {k + cut * keys->block_bytes, v + cut * values->block_bytes, blocks,
                         tokens - cut * BLOCK}};
    frame around = {basis(keys), floats(keys->heads * keys->dim), basis(values),
                    floats(values->heads * values->dim)};
    float *first[3] = {0}, *out[3];
    for (int level = 0; level < LEVEL_COUNT; level++) {
        if (!gonio_has_level(level)) continue;
        int64_t sizes[3] = {all * tokens, all * values->dim, all};
        for (int i = 0; i < 3; i++) {
            out[i] = exactly((size_t)sizes[i] * sizeof(float));
            memset(out[i], 0, (size_t)sizes[i] * sizeof(float)); /* of coordinates without bits */
        }
        if (gonio_scores(keys, k, BATCH, blocks, tokens, query, rows, 0, blocks, precise, level,
                         out[0]) ||
            gonio_attention(keys, values, rows % 3 == 2 ? &around : NULL, runs, 2, BATCH, query,
                            rows, rows > 3 ? query : NULL, rows % 2 ? mask : NULL, rows % 2, tokens,
                            rows == 2 ? 3.0f : 0.0f, 0, blocks, precise, level, out[1], out[2]))
            fail("memory", level, tokens);
        int has_bytes = base_level(level) == AVX2 || level == AVX512;
        float limit = has_bytes && !precise ? 0.05f : 2e-5f;
        static const char *what[3] = {"scores", "outputs", "log-sum-exp"};
        for (int i = 0; i < 3; i++) {
            if (level) compare(first[i], out[i], sizes[i], i ? limit : 0, what[i], level, tokens);
            if (level)
                free(out[i]);
            else
                first[i] = out[i];
        }
    }
    add_to_digest(first[0], all * tokens);
    for (int i = 0; i < 3; i++) free(first[i]);
    free(k), free(v), free(query), free(mask);
    free((void *)around.key_basis), free((void *)around.key_offset);
    free((void *)around.value_basis), free((void *)around.value_offset);
}

/* Every mix of bits in turn, with random shapes and both kinds of tables. */
static void run_shape(int64_t trial, int64_t tokens) {
    int64_t heads = 1 + rand() % MOST_HEADS, dim = 1 + rand() % 40, rows = 1 + rand() % 9;
    int64_t value_dim = 1 + rand() % 40, mix = rand() % MIXES;
    int is_sparse = rand() % 4;
    sample keys, values;
    make_plan(&keys, 1, heads, dim, mixes[trial % MIXES], is_sparse % 2);
    make_plan(&values, 0, heads, value_dim, mixes[mix], is_sparse / 2);
    run(&keys, &values, tokens, rows, (int)(trial / MIXES % 2), trial % 4 ? ORDINARY : SHARP);
    int64_t skip = rand() % (2 * BLOCK);
    free(encoded(&keys, 1, skip, tokens));
    free(encoded(&values, 0, skip, tokens));
    free_plan(keys.plan), free_plan(values.plan);
}

/* Every length and number of rows, all widths in one plan. */
static void run_lengths(void) {
    static const int64_t lengths[] = {0, 1, 63, 64, 65, 127, 1032};
    sample keys, values;
    make_plan(&keys, 1, 2, 11, "012345678", 0);
    make_plan(&values, 0, 2, 11, "012345678", 0);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (int64_t rows = 1; rows <= 6; rows += lengths[i] > 1000 ? 2 : 1)
            for (int precise = 0; precise < 2; precise++)
                run(&keys, &values, lengths[i], rows, precise, ORDINARY);
    free_plan(keys.plan), free_plan(values.plan);
}

/* Entries as large as they get, most of them of one sign: levels and queries of 1 and -1. */
static void run_extremes(void) {
    static const int64_t dims[] = {8, 128, MOST_DIM};
    for (int i = 0; i < 6; i++) {
        sample keys, values;
        make_plan(&keys, 1, 1, dims[i / 2], "4", 0);
        make_plan(&values, 0, 1, 3, "4", 0);
        float *levels = (float *)keys.plan.levels;
        for (int64_t j = 0; j < keys.plan.head->nibbles * SLOTS * NIBBLE; j++)
            levels[j] = keys.plan.dims[j / NIBBLE] < 0 ? 0 : j % NIBBLE ? 1.0f : -1.0f;
        run(&keys, &values, 130, 4, i % 2, SIGNS);
        free_plan(keys.plan), free_plan(values.plan);
    }
}

/* csrc/rans.c: the structures it takes. */
typedef struct {
    const uint16_t *words;
    const int64_t *starts, *ends;
    int64_t blocks, batch, groups, dim, block, lanes;
} rans_blocks;
typedef struct {
    const uint16_t *frequencies;
    const int64_t *first;
    const uint8_t *radius;
    const int16_t *index;
    const float *levels;
    int64_t tables, widest, precision;
} rans_tables;
int gonio_rans_decode(const rans_blocks *, const rans_tables *, const float *, float *);
int gonio_rans_encode(const rans_blocks *, const rans_tables *, const int16_t *, uint16_t *, int64_t *);

/* Codes there and back, then words of noise: errors, and nothing read or written outside. */
static void run_rans(int64_t blocks, int64_t block, int64_t lanes, int spread) {
    enum { HEADS = 2, STREAMS = BATCH * HEADS, CODES = 3, PLACES = HEADS * CODES };
    static const uint16_t frequencies[] = {40, 80, 90, 46, 255, 1}; /* radius 1, radius 0 */
    static const int64_t firsts[] = {0, 4};
    static const uint8_t radius[] = {1, 0};
    static const int16_t index[PLACES] = {0, 1, 0, 1, 1, 0};
    int64_t tokens = blocks * block, room = 2 * (block * CODES + lanes), lengths[STREAMS * 40];
    float *levels = exactly(PLACES * 3 * sizeof *levels), *scale = exactly((size_t)(BATCH * blocks) * sizeof *scale);
    float *rows = exactly((size_t)(PLACES * BATCH * tokens) * sizeof *rows);
    int16_t *codes = exactly((size_t)(STREAMS * tokens * CODES) * sizeof *codes);
    uint16_t *words = exactly((size_t)(blocks * STREAMS * room) * sizeof *words);
    int64_t starts[STREAMS * 40], ends[STREAMS * 40], end = 0;
    for (int i = 0; i < PLACES * 3; i++) levels[i] = (float)(i % 3 - 1);
    for (int64_t i = 0; i < BATCH * blocks; i++) scale[i] = 1;
    for (int64_t i = 0; i < STREAMS * tokens * CODES; i++) codes[i] = (int16_t)(rand() % (2 * spread + 1) - spread);
    rans_blocks b = {NULL, NULL, NULL, blocks, BATCH, HEADS, CODES, block, lanes};
    rans_tables t = {frequencies, firsts, radius, index, levels, 2, 1, 8};
    if (gonio_rans_encode(&b, &t, codes, words, lengths)) fail("rans memory", 0, tokens);
    for (int64_t i = 0; i < blocks * STREAMS; i++) starts[i] = end, end += lengths[i], ends[i] = end;
    uint16_t *exact = exactly((size_t)end * sizeof *exact);
    memcpy(exact, words, (size_t)end * sizeof *exact);
    b.words = exact, b.starts = starts, b.ends = ends;
    if (gonio_rans_decode(&b, &t, scale, rows)) fail("rans", 0, tokens);
    for (int64_t h = 0; h < HEADS; h++)
        for (int64_t s = 0; s < BATCH; s++)
            for (int64_t i = 0; i < tokens; i++)
                for (int64_t j = 0; j < CODES; j++)
                    if (rows[((h * CODES + j) * BATCH + s) * tokens + i] !=
                        (float)codes[((s * HEADS + h) * tokens + i) * CODES + j])
                        fail("rans codes", 0, tokens);
    for (int trial = 0; trial < 200 && end; trial++) {
        exact[rand() % end] ^= (uint16_t)(1 << rand() % 16);
        gonio_rans_decode(&b, &t, scale, rows);
    }
    free(levels), free(scale), free(rows), free(codes), free(words), free(exact);
}

/* csrc/cells.c: the structure it takes. */
typedef struct {
    const float *edges;
    const int32_t *costs, *escaped;
    const int16_t *cheapest;
    int64_t coordinates, radius;
} cells;
void gonio_cells(const cells *, const float *, int64_t, const int64_t *, const float *, int64_t, int64_t *, int16_t *);

/* Values from far inside to far outside the cells, all blocks but the first, one of them lost. */
static void run_cells(int64_t coordinates, int64_t radius, int64_t blocks, float spread) {
    int64_t count = blocks - 1, places = 2 * radius + 1;
    float *edges = exactly((size_t)(coordinates * (places - 1)) * sizeof *edges);
    float *rows = exactly((size_t)(coordinates * blocks * 64) * sizeof *rows);
    float *scale = exactly((size_t)count * sizeof *scale);
    int32_t *costs = exactly((size_t)(coordinates * places) * sizeof *costs);
    int32_t *escaped = exactly((size_t)coordinates * sizeof *escaped);
    int16_t *cheapest = exactly((size_t)coordinates * sizeof *cheapest);
    int16_t *codes = exactly((size_t)(coordinates * count * 64) * sizeof *codes);
    int64_t *which = exactly((size_t)count * sizeof *which), *found = exactly((size_t)count * sizeof *found);
    for (int64_t j = 0; j < coordinates; j++) {
        for (int64_t e = 0; e < places - 1; e++) edges[j * (places - 1) + e] = (float)(e - radius) + 0.5f;
        for (int64_t e = 0; e < places; e++) costs[j * places + e] = 1 + rand() % 9;
        escaped[j] = INT32_MAX, cheapest[j] = (int16_t)(places - 1);
    }
    for (int64_t i = 0; i < coordinates * blocks * 64; i++) rows[i] = spread * (float)(rand() % 2001 - 1000) / 1000;
    for (int64_t i = 0; i < count; i++) which[i] = blocks - 1 - i, scale[i] = i == 1 ? 0 : 1.5f;
    cells c = {edges, costs, escaped, cheapest, coordinates, radius};
    gonio_cells(&c, rows, blocks, which, scale, count, found, codes);
    for (int64_t i = 0; i < count; i++) {
        int64_t costly = found[i];
        gonio_cells(&c, rows, blocks, which + i, scale + i, 1, found + i, NULL);
        if (found[i] != costly) fail("cells", 0, radius);
    }
    free(edges), free(rows), free(scale), free(costs), free(escaped), free(cheapest), free(codes), free(which), free(found);
}

/* Attention over raw tokens in every precision, and its parts joined again. */
static void run_raw(int64_t tokens, int64_t rows, int64_t key_dim, int64_t value_dim) {
    static const size_t widths[] = {8, 4, 2, 2};
    const int64_t heads = 2, all = BATCH * heads;
    float *query = floats(all * rows * key_dim), *mask = floats(BATCH * rows * (tokens + 2));
    for (int64_t t = 0; t < BATCH * rows * (tokens + 2); t++) mask[t] = t % 3 ? mask[t] : -INFINITY;
    for (int dtype = FLOAT32; dtype <= BFLOAT16; dtype++) {
        size_t width = widths[dtype];
        uint8_t *keys = exactly((size_t)(all * tokens * key_dim) * width);
        uint8_t *values = exactly((size_t)(all * tokens * value_dim) * width);
        for (int64_t i = 0; i < all * tokens * (key_dim + value_dim); i++) {
            float number = uniform();
            uint32_t bits;
            memcpy(&bits, &number, sizeof bits);
            /* As float16 these are small numbers, some of which are below the least normal one. */
            uint16_t upper = dtype == BFLOAT16 ? (uint16_t)(bits >> 16) : (uint16_t)(rand() & 0xb7ff);
            const void *from = dtype == FLOAT32 ? (const void *)&number : &upper;
            int64_t place = i - all * tokens * key_dim;
            memcpy(place < 0 ? keys + (size_t)i * width : values + (size_t)place * width, from, width);
        }
        float *first[2] = {0}, *out[2];
        for (int level = 0; level < LEVEL_COUNT; level++) {
            if (!gonio_has_level(level)) continue;
            int64_t sizes[2] = {all * rows * value_dim, all * rows};
            for (int i = 0; i < 2; i++) out[i] = exactly((size_t)sizes[i] * sizeof(float));
            if (gonio_raw_attention(keys, values, dtype, BATCH, heads, tokens, key_dim, value_dim, query,
                                    rows, rows % 2 ? mask + 2 : NULL, rows, tokens + 2,
                                    rows == 2 ? 3.0f : 0.0f, level, out[0], out[1]))
                fail("memory of raw tokens", level, tokens);
            static const char *what[2] = {"raw outputs", "raw log-sum-exp"};
            for (int i = 0; i < 2; i++) {
                if (level) compare(first[i], out[i], sizes[i], 2e-5f, what[i], level, tokens);
                if (level) free(out[i]); else first[i] = out[i];
            }
        }
        const float *outs[2] = {first[0], first[0]}, *lses[2] = {first[1], first[1]};
        float *merged = exactly((size_t)(all * rows * value_dim) * sizeof *merged);
        float *lse = exactly((size_t)(all * rows) * sizeof *lse);
        gonio_merge(outs, lses, 2, all * rows, value_dim, merged, lse); /* twice the same: no change */
        compare(first[0], merged, all * rows * value_dim, 2e-6f, "merged", 0, tokens);
        free(keys), free(values), free(first[0]), free(first[1]), free(merged), free(lse);
    }
    free(query), free(mask);
}

/* Spectra of factors in every layout and precision; every level gives the same bits. */
static void run_spectra(int64_t count, int64_t rank, int64_t rows, int64_t columns) {
    static const size_t widths[] = {8, 4, 2, 2};
    for (int dtype = FLOAT64; dtype <= BFLOAT16; dtype++) {
        size_t width = widths[dtype];
        void **b = exactly((size_t)count * sizeof *b), **a = exactly((size_t)count * sizeof *a);
        for (int64_t i = 0; i < count; i++) {
            b[i] = exactly((size_t)(rows * rank) * width), a[i] = exactly((size_t)(rank * columns) * width);
            for (size_t k = 0; k < (size_t)(rows * rank) * width; k++) ((uint8_t *)b[i])[k] = (uint8_t)rand();
            for (size_t k = 0; k < (size_t)(rank * columns) * width; k++) ((uint8_t *)a[i])[k] = (uint8_t)rand();
        }
        gram_shape shapes[2] = {{rank, rows, 1, rank, (enum dtype)dtype},
                                {rank, columns, columns, 1, (enum dtype)dtype}};
        double entry_error[2] = {1e-13, 1e-13}, *first = NULL;
        size_t bytes = (size_t)(count * (rank + 2)) * sizeof(double);
        for (int level = 0; level < LEVEL_COUNT; level++) {
            if (!gonio_has_level(level)) continue;
            double *sigma = exactly(bytes);
            if (gonio_spectra((const void *const *)b, (const void *const *)a, count, shapes, entry_error,
                              level, sigma, sigma + count * rank, sigma + count * (rank + 1)))
                fail("memory of spectra", level, rank);
            /* Random bytes are not all numbers: what is none differs in its bits. */
            for (int64_t i = 0; first && i < count * (rank + 2); i++)
                if (first[i] != sigma[i] && (first[i] == first[i] || sigma[i] == sigma[i]))
                    fail("spectra", level, rank);
            if (first) free(sigma); else first = sigma;
        }
        for (int64_t i = 0; i < count; i++) free(b[i]), free(a[i]);
        free(b), free(a), free(first);
    }
}

/* One call for four rows of one head of 128 coordinates, whose instructions can be counted. */
static int run_once(const char *what, int level, const char *bits, int64_t tokens) {
    int64_t blocks = (tokens + BLOCK - 1) / BLOCK;
    sample keys, values;
    make_plan(&keys, 1, 1, 128, bits, 0);
    make_plan(&values, 0, 1, 128, bits, 0);
    uint8_t *k = calloc((size_t)blocks + 1, (size_t)keys.plan.block_bytes);
    uint8_t *v = calloc((size_t)blocks + 1, (size_t)values.plan.block_bytes);
    float *query = floats(4 * 128), *out = exactly(4 * (size_t)tokens * sizeof *out);
    float sums[4 * 128], lse[4];
    code_run run = {k, v, blocks, tokens};
    int code = strcmp(what, "scores")
                   ? gonio_attention(&keys.plan, &values.plan, NULL, &run, 1, 1, query, 4, NULL,
                                     NULL, 0, 0, 0, 0, blocks, 0, level, sums, lse)
                   : gonio_scores(&keys.plan, k, 1, blocks, tokens, query, 4, 0, blocks, 0, level, out);
    free(k), free(v), free(query), free(out);
    free_plan(keys.plan), free_plan(values.plan);
    return code;
}

/* Arguments: how many shapes to try, and a seed; or those of one call. */
int main(int count, char **arguments) {
    static const int64_t lengths[] = {0, 1, 63, 64, 65, 130, 200, 1090};
    if (count > 4) return run_once(arguments[1], atoi(arguments[2]), arguments[3], atol(arguments[4]));
    int64_t shapes = count > 1 ? atol(arguments[1]) : 72;
    srand(count > 2 ? (unsigned)atol(arguments[2]) : 1);
    run_lengths();
    run_extremes();
    for (int64_t trial = 0; trial < shapes; trial++)
        run_shape(trial, lengths[rand() % (trial % 8 ? 7 : 8)]);
    for (int64_t blocks = 0; blocks < 40; blocks += 13)
        for (int64_t lanes = 1; lanes <= 8; lanes++)
            for (int spread = 1; spread < 2000; spread *= 9) run_rans(blocks, 8 + lanes % 3, lanes, spread);
    for (int64_t radius = 0; radius < 40; radius += 1 + 5 * (radius > 2))
        for (float spread = 0.1f; spread < INFINITY; spread *= 60) run_cells(3, radius, 4, spread);
    for (int64_t rows = 1; rows < 7; rows++)
        for (int i = 0; i < 8; i++) run_raw(lengths[i], rows, 1 + rand() % 70, 1 + rand() % 70);
    for (int64_t rank = 1; rank < 36; rank += 1 + rank / 4)
        run_spectra(rank % 11, rank, rank + rand() % 900, rank + rand() % 70);
    uint16_t *bf16 = exactly(3 * 64 * sizeof *bf16);
    memset(bf16, 0, 3 * 64 * sizeof *bf16);
    float *query = floats(64), *out = floats(3);
    printf("clean: levels");
    for (int level = 0; level < LEVEL_COUNT; level++) {
        if (!gonio_has_level(level)) continue;
        gonio_bf16_scores(bf16, 1, 3, 64, query, 1, level, out);
        gonio_read(bf16, 3 * 64 * sizeof *bf16, level);
        printf(" %d", level);
    }
    printf("; scores %08x\n", digest);
    free(bf16), free(query), free(out);
    return 0;
}
