/* Runs every kernel of every level on random plans of every length and compares the levels.
 * Built with sanitizers by test_kernel_sanitizers.py; buffers are of the exact size. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gonio_kernels.h"

int gonio_best_level(void);
int gonio_scores(const plan *, const uint8_t *, int64_t, int64_t, int64_t, const float *, int64_t,
                 int64_t, int64_t, int, int, float *);
int gonio_attention(const plan *, const plan *, const uint8_t *, const uint8_t *, int64_t, int64_t,
                    int64_t, const float *, int64_t, const float *, const float *, int64_t, float,
                    int64_t, int64_t, int, int, float *, float *);
void gonio_encode(const plan *, int, uint8_t *, int64_t, int64_t, int64_t, int64_t, const float *,
                  const float *, const int32_t *, int64_t, int);
void gonio_decode(const plan *, int, const uint8_t *, int64_t, int64_t, int64_t, float *);
uint64_t gonio_read(const void *, int64_t, int);
int gonio_bf16_scores(const uint16_t *, int64_t, int64_t, int64_t, const float *, int64_t, int,
                      float *);

#define HEADS 2
#define DIM 11 /* widths 1 to 8, one of none, two of 1 */
#define BATCH 2
#define EDGES 255

static void *exactly(size_t bytes) { return malloc(bytes ? bytes : 1); }

static float uniform(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }

static float *floats(int64_t count) {
    float *found = exactly((size_t)count * sizeof *found);
    for (int64_t i = 0; i < count; i++) found[i] = uniform();
    return found;
}

/* Nibbles: one of 4 bits, 3 + 1, 2 + 1 + 1, the rest empty; then bytes of 5 to 8 bits. */
static plan make_plan(int is_keys) {
    static head_plan keys_head[HEADS], values_head[HEADS];
    head_plan *head = is_keys ? keys_head : values_head;
    int64_t nibbles = is_keys ? 8 : 4, wides = 4;
    plan p = {HEADS, DIM, 0, head, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    int32_t *dims = exactly(HEADS * (size_t)nibbles * SLOTS * sizeof *dims);
    int32_t *shifts = exactly(HEADS * (size_t)nibbles * SLOTS * sizeof *shifts);
    int8_t *small = exactly(HEADS * (size_t)nibbles * SLOTS * 64);
    int32_t *wide_dims = exactly(HEADS * 4 * sizeof *wide_dims);
    int32_t *wide_bits = exactly(HEADS * 4 * sizeof *wide_bits);
    uint16_t *bf16 = exactly(HEADS * 4 * BYTE * sizeof *bf16);
    static const int32_t places[3][SLOTS] = {{0, -1, -1, -1}, {1, 2, -1, -1}, {3, 4, 5, -1}};
    static const int32_t lowest[3][SLOTS] = {{0, 0, 0, 0}, {0, 3, 0, 0}, {0, 2, 3, 0}};
    p.levels = floats(HEADS * nibbles * SLOTS * NIBBLE);
    for (int64_t n = 0; n < HEADS * nibbles; n++)
        for (int s = 0; s < SLOTS; s++) {
            dims[n * SLOTS + s] = n % nibbles < 3 ? places[n % nibbles][s] : -1;
            shifts[n * SLOTS + s] = n % nibbles < 3 ? lowest[n % nibbles][s] : 0;
            for (int c = 0; c < 64; c++) {
                float level = p.levels[(n * SLOTS + s) * NIBBLE + c % NIBBLE];
                small[(n * SLOTS + s) * 64 + c] = (int8_t)lrintf(level * 127);
            }
        }
    p.wide_levels = floats(HEADS * 4 * BYTE);
    for (int w = 0; w < HEADS * 4; w++) {
        wide_dims[w] = 6 + w % 4;
        wide_bits[w] = 5 + w % 4;
        for (int c = 0; c < BYTE; c++) {
            uint32_t bits;
            memcpy(&bits, p.wide_levels + w * BYTE + c, sizeof bits);
            bf16[w * BYTE + c] = (uint16_t)((bits + 0x8000u) >> 16);
        }
    }
    float *units = floats(HEADS * DIM);
    for (int j = 0; j < HEADS * DIM; j++) units[j] = j % DIM < 6 ? 1.0f / 127 : 1.0f;
    for (int h = 0; h < HEADS; h++) {
        head_plan found = {h * nibbles, nibbles, h * 4, wides, p.block_bytes};
        head[h] = found;
        p.block_bytes += BLOCK * (nibbles / 2 + wides);
    }
    p.dims = dims, p.shifts = shifts, p.levels_int8 = small, p.units = units;
    p.wide_dims = wide_dims, p.wide_bits = wide_bits, p.wide_bf16 = bf16;
    return p;
}

static void free_plan(plan p) {
    const void *parts[] = {p.dims,      p.shifts,      p.levels,    p.levels_int8, p.wide_dims,
                           p.wide_bits, p.wide_levels, p.wide_bf16, p.units};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free((void *)parts[i]);
}

static void fail(const char *what, int level, int64_t tokens) {
    fprintf(stderr, "%s: level %d differs from portable at %ld tokens\n", what, level, (long)tokens);
    exit(1);
}

static uint8_t *encoded(const plan *p, int is_keys, int64_t skip, int64_t tokens, int best) {
    static const int32_t own[DIM] = {4, 3, 1, 2, 1, 1, 5, 6, 7, 8, 0};
    int64_t blocks = (skip + tokens + BLOCK - 1) / BLOCK;
    size_t bytes = (size_t)(BATCH * blocks * p->block_bytes);
    float *rows = floats(HEADS * DIM * BATCH * tokens), *edges = floats(HEADS * DIM * EDGES);
    float *back = floats(HEADS * DIM * BATCH * (skip + tokens));
    int32_t widths[HEADS * DIM];
    for (int j = 0; j < HEADS * DIM; j++) {
        widths[j] = own[j % DIM];
        for (int e = 0; e < EDGES; e++)
            edges[j * EDGES + e] =
                e < (1 << widths[j]) - 1 ? (float)(e + 1) / (float)(1 << widths[j]) * 2 - 1 : INFINITY;
    }
    uint8_t *first = NULL;
    for (int level = 0; level <= best; level++) {
        uint8_t *data = exactly(bytes);
        memset(data, 0, bytes);
        gonio_encode(p, is_keys, data, BATCH, blocks, skip, tokens, rows, edges, widths, EDGES, level);
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
        if (!(fabsf(a[i] - b[i]) <= limit || a[i] == b[i])) fail(what, level, tokens);
}

static void run(const plan *keys, const plan *values, int64_t tokens, int64_t rows, int precise,
                int best) {
    int64_t blocks = (tokens + BLOCK - 1) / BLOCK, all = BATCH * HEADS * rows;
    uint8_t *k = encoded(keys, 1, 0, tokens, best), *v = encoded(values, 0, 0, tokens, best);
    float *query = floats(all * DIM), *mask = floats(BATCH * tokens);
    for (int64_t t = 0; t < BATCH * tokens; t++) mask[t] = t % 3 ? mask[t] : -INFINITY;
    float *first[3] = {0}, *out[3];
    for (int level = 0; level <= best; level++) {
        int64_t sizes[3] = {all * tokens, all * DIM, all};
        for (int i = 0; i < 3; i++) {
            out[i] = floats(sizes[i]);
            memset(out[i], 0, (size_t)sizes[i] * sizeof(float)); /* coordinate 10 has no bits */
        }
        if (gonio_scores(keys, k, BATCH, blocks, tokens, query, rows, 0, blocks, precise, level,
                         out[0]) ||
            gonio_attention(keys, values, k, v, BATCH, blocks, tokens, query, rows,
                            rows > 3 ? query : NULL, rows % 2 ? mask : NULL, rows % 2, rows == 2 ? 3.0f : 0.0f, 0, blocks,
                            precise, level, out[1], out[2]))
            fail("memory", level, tokens);
        for (int i = 0; i < 3; i++) {
            float limit = i == 0 ? 0.0f : 0.02f * (float)(tokens + 1);
            if (level) compare(first[i], out[i], sizes[i], limit, "result", level, tokens);
            if (level)
                free(out[i]);
            else
                first[i] = out[i];
        }
    }
    for (int i = 0; i < 3; i++) free(first[i]);
    free(k), free(v), free(query), free(mask);
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
    enum { STREAMS = BATCH * HEADS, CODES = 3, PLACES = HEADS * CODES };
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

int main(void) {
    static const int64_t lengths[] = {0, 1, 63, 64, 65, 1032};
    int best = gonio_best_level();
    plan keys = make_plan(1), values = make_plan(0);
    srand(1);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        for (int64_t rows = 1; rows <= 6; rows += lengths[i] > 1000 ? 2 : 1)
            for (int precise = 0; precise < 2; precise++)
                run(&keys, &values, lengths[i], rows, precise, best);
        free(encoded(&keys, 1, 37, lengths[i], best));
        free(encoded(&values, 0, 37, lengths[i], best));
    }
    for (int64_t blocks = 0; blocks < 40; blocks += 13)
        for (int64_t lanes = 1; lanes <= 8; lanes++)
            for (int spread = 1; spread < 2000; spread *= 9) run_rans(blocks, 8 + lanes % 3, lanes, spread);
    for (int64_t radius = 0; radius < 40; radius += 1 + 5 * (radius > 2))
        for (float spread = 0.1f; spread < 1e39f; spread *= 60) run_cells(3, radius, 4, spread);
    uint16_t *bf16 = exactly(3 * 64 * sizeof *bf16);
    memset(bf16, 0, 3 * 64 * sizeof *bf16);
    float *query = floats(64), *out = floats(3);
    gonio_bf16_scores(bf16, 1, 3, 64, query, 1, best, out);
    gonio_read(bf16, 3 * 64 * sizeof *bf16, best);
    free(bf16), free(query), free(out);
    free_plan(keys), free_plan(values);
    printf("clean: levels 0 to %d\n", best);
    return 0;
}
