/* Attention on packed keys and values in one pass: scores of a tile, running softmax, values. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gonio_kernels.h"

/* What a call is about; the same for every head. */
typedef struct {
    const plan *keys, *values;
    const frame *frame;
    code_run run; /* the one that is read */
    int64_t rows;
    const float *mask; /* [batch][mask_rows][mask_pitch] of its tokens, added; NULL for none */
    int64_t mask_rows, mask_pitch;
    float softcap; /* 0 for none */
    int precise;
    enum level level;
    const loops *loops;
    score_block *score;
    weigh_tile *weigh; /* to bytes; NULL where weights are numbers */
    add_values *add;
} call;

/* Up to four query rows of one head. */
typedef struct {
    query_tables tables;
    float *sums; /* [value dim][PARTS][GROUP]; with bytes [quads][4][GROUP], then [wides][GROUP] */
    int64_t sum_count;
    float max[GROUP], total[GROUP];
    float fault[GROUP]; /* NaN where a query is not finite, which tables do not show; else 0 */
    int64_t row; /* of the first */
    value_quad *quads;
    int64_t quad_count;
    float *turned; /* [GROUP][dim]: queries in coordinates, then outputs */
} group;

static const float *mask_row(const call *c, int64_t batch, int64_t row) {
    return c->mask + (batch * c->mask_rows + row % c->mask_rows) * c->mask_pitch;
}

static int is_masked(const call *c, const group *g, int64_t batch, int64_t from, int64_t to) {
    if (!c->mask) return 0;
    for (int r = 0; r < g->tables.rows; r++) {
        const float *mask = mask_row(c, batch, g->row + r);
        for (int64_t t = from; t < to; t++)
            if (mask[t] > -INFINITY) return 0;
    }
    return 1;
}

/* Whole scores of a tile. */
static void find_scores(const call *c, group *g, int64_t index, const uint8_t *start,
                        value_tile *tile) {
    size_t stride = (size_t)c->keys->block_bytes;
    const uint8_t *words = start + c->keys->head[index].offset;
    g->tables.next = next_head(c->keys, index, start);
    for (int b = 0; b < tile->blocks; b++, words += stride, g->tables.next += stride)
        c->score(&g->tables, words, stride, tile->found[0] + b * BLOCK, TILE);
}

/* Turns them into numbers, capped and masked; tokens that do not exist get -infinity. */
static void read_scores(const call *c, const group *g, int64_t batch, int64_t block,
                        value_tile *tile) {
    int64_t from = block * BLOCK, left = c->run.tokens - from;
    int count = tile->blocks * BLOCK, exist = left < count ? (int)left : count;
    for (int r = 0; r < tile->rows; r++) {
        float *score = tile->weights[r];
        c->loops->to_float(tile->found[r], count, g->tables.scale[r], g->tables.bias[r], score);
        if (c->softcap > 0)
            for (int i = 0; i < exist; i++) score[i] = c->softcap * tanhf(score[i] / c->softcap);
        if (c->mask) {
            const float *mask = mask_row(c, batch, g->row + r) + from;
            for (int i = 0; i < exist; i++) score[i] += mask[i];
        }
        for (int i = exist; i < count; i++) score[i] = -INFINITY;
    }
}

/* Scores to weights in place; returns whether earlier sums must be multiplied by the factors. */
static int weigh_numbers(const call *c, group *g, value_tile *tile, float *factor) {
    int count = tile->blocks * BLOCK, is_changed = 0;
    for (int r = 0; r < tile->rows; r++) {
        float most = c->loops->largest(tile->weights[r], count);
        factor[r] = c->loops->soften(tile->weights[r], count, most, g->max + r, g->total + r);
        is_changed |= factor[r] != 1.0f;
    }
    return is_changed;
}

static int weigh_bytes(const call *c, group *g, value_tile *tile, int is_number, float *factor) {
    row_state rows[GROUP];
    for (int r = 0; r < tile->rows; r++) {
        row_state row = {g->tables.scale[r], g->tables.bias[r], g->max + r, g->total + r};
        rows[r] = row;
    }
    return c->weigh(tile, rows, is_number, factor);
}

static void attend_tile(const call *c, group *g, int64_t batch, int64_t index, int64_t block,
                        int blocks) {
    value_tile tile;
    const head_plan *head = c->values->head + index;
    tile.rows = g->tables.rows;
    tile.blocks = blocks;
    tile.has_wides = head->wides > 0;
    tile.planes = head->nibbles / 2 + head->wides;
    if (tile.planes == 0) tile.planes = 1;
    int64_t to = (block + blocks) * BLOCK;
    if (is_masked(c, g, batch, block * BLOCK, to < c->run.tokens ? to : c->run.tokens)) return;
    size_t first = (size_t)(batch * c->run.blocks + block), key_stride = (size_t)c->keys->block_bytes;
    const uint8_t *key_start = c->run.keys + first * key_stride;
    find_scores(c, g, index, key_start, &tile);
    int is_number = !c->weigh || c->mask || c->softcap > 0 || to > c->run.tokens;
    if (is_number) read_scores(c, g, batch, block, &tile);
    float factor[GROUP] = {1.0f, 1.0f, 1.0f, 1.0f};
    int is_changed = c->weigh ? weigh_bytes(c, g, &tile, is_number, factor)
                              : weigh_numbers(c, g, &tile, factor);
    if (is_changed) c->loops->multiply(g->sums, g->sum_count, factor);
    size_t stride = (size_t)c->values->block_bytes;
    const uint8_t *start = c->run.values + first * stride;
    tile.next = next_head(c->values, index, start);
    tile.key_stride = key_stride;
    tile.next_keys = next_head(c->keys, index, key_start);
    tile.key_words = c->keys->head[index].nibbles / 8;
    c->add(c->values, head, g->quads, g->quad_count, start + head->offset, stride, &tile, g->sums);
}

/* All heads of a sequence, tile by tile: memory is read in the order in which it lies. */
static void attend_run(const call *c, group *groups, int64_t count, int64_t batch, int64_t first,
                       int64_t last) {
    for (int64_t block = first; block < last; block += TILE_BLOCKS) {
        int64_t left = last - block;
        for (int64_t i = 0; i < c->keys->heads * count; i++)
            attend_tile(c, groups + i, batch, i / count, block,
                        (int)(left < TILE_BLOCKS ? left : TILE_BLOCKS));
    }
}

/* Blocks `first` to `last` of a sequence, counted over all runs. */
static void attend_sequence(call *c, group *groups, int64_t count, int64_t batch,
                            const code_run *runs, int64_t run_count, int64_t first, int64_t last) {
    const float *mask = c->mask;
    for (int64_t i = 0; i < run_count; i++) {
        int64_t blocks = (runs[i].tokens + BLOCK - 1) / BLOCK;
        c->run = runs[i];
        attend_run(c, groups, count, batch, first > 0 ? first : 0, last < blocks ? last : blocks);
        first -= blocks, last -= blocks;
        if (mask) c->mask += runs[i].tokens;
    }
    c->mask = mask;
}

/* The groups of all heads of a sequence, `count` for each head, the first at the start of the
 * memory. */
static group *place_groups(const call *c, int64_t count, arena *space) {
    int64_t all = c->keys->heads * count;
    group *groups = take(space, (size_t)all * sizeof *groups), counted;
    int64_t dim = c->keys->dim > c->values->dim ? c->keys->dim : c->values->dim;
    float *turned = take(space, c->frame ? GROUP * (size_t)dim * sizeof(float) : 0);
    for (int64_t i = 0; i < all; i++) {
        group *g = groups ? groups + i : &counted;
        const head_plan *own = c->values->head + i / count;
        size_t quads = c->weigh ? (size_t)VALUE_QUADS(own) : 0;
        memset(g, 0, sizeof *g);
        g->row = i % count * GROUP;
        g->sum_count = c->values->dim * PARTS * GROUP;
        if (c->weigh) g->sum_count = ((int64_t)quads * 4 + own->wides) * GROUP;
        g->quads = take(space, quads * sizeof *g->quads);
        g->sums = take(space, (size_t)g->sum_count * sizeof *g->sums);
        g->turned = turned;
        tables_place(&g->tables, c->keys->head + i / count, c->keys, c->precise, c->level, space);
    }
    return groups;
}

/* One group of rows of a head, its query rows beginning at `query` and their biases at `bias`. */
static void start_group(const call *c, group *g, int64_t index, const float *query,
                        const float *bias) {
    int64_t left = c->rows - g->row, dim = c->keys->dim;
    int rows = (int)(left < GROUP ? left : GROUP);
    const float *own = query + g->row * dim, *coordinates = own;
    if (c->weigh) {
        const head_plan *own = c->values->head + index;
        g->quad_count = list_quads(c->values, own, g->quads);
        g->sum_count = (g->quad_count * 4 + own->wides) * GROUP;
    }
    if (c->frame) {
        turn_rows(own, rows, c->frame->key_basis + index * dim * dim, dim, c->level, g->turned);
        coordinates = g->turned;
    }
    tables_fill(&g->tables, c->keys->head + index, c->keys, coordinates, rows, c->level);
    g->tables.leaves_lines = c->weigh != NULL;
    for (int r = 0; c->frame && r < rows; r++)
        g->tables.bias[r] += row_product(own + r * dim, c->frame->key_offset + index * dim, dim);
    for (int r = 0; r < rows; r++)
        for (int64_t j = 0; j < dim; j++) g->fault[r] += 0.0f * own[r * dim + j];
    for (int r = 0; bias && r < rows; r++) g->tables.bias[r] += bias[g->row + r];
    memset(g->sums, 0, (size_t)g->sum_count * sizeof *g->sums);
    for (int r = 0; r < GROUP; r++) g->max[r] = -INFINITY;
}

static group *start_groups(const call *c, int64_t count, const float *query, const float *bias) {
    arena space = {NULL, 0};
    place_groups(c, count, &space);
    space.start = aligned_alloc(64, space.used + 64);
    space.used = 0;
    if (!space.start) return NULL;
    group *groups = place_groups(c, count, &space);
    for (int64_t i = 0; i < c->keys->heads * count; i++) {
        int64_t index = i / count, rows = index * c->rows;
        start_group(c, groups + i, index, query + rows * c->keys->dim, bias ? bias + rows : NULL);
    }
    return groups;
}

/* A row's output from the sums of bytes, which lie in the order of quads and wide coordinates. */
static void finish_bytes(const call *c, const group *g, int64_t index, int row, float share,
                         float *out) {
    const plan *values = c->values;
    const head_plan *head = values->head + index;
    const float *sum = g->sums + row, *units = values->units + index * values->dim;
    memset(out, 0, (size_t)values->dim * sizeof *out);
    for (int64_t i = 0; i < g->quad_count * 4; i++, sum += GROUP) {
        int32_t dim = g->quads[i / 4].dim[i % 4];
        if (dim >= 0) out[dim] = *sum * units[dim] * share;
    }
    for (int64_t w = 0; w < head->wides; w++, sum += GROUP) {
        int32_t dim = values->wide_dims[head->first_wide + w];
        out[dim] = *sum * units[dim] * share;
    }
}

/* Rows of coordinates as vectors. */
static void finish_vectors(const call *c, const group *g, int64_t index, float *out) {
    int64_t dim = c->values->dim;
    const float *offset = c->frame->value_offset + index * dim;
    turn_rows(g->turned, g->tables.rows, c->frame->value_basis + index * dim * dim, dim, c->level,
              out);
    for (int r = 0; r < g->tables.rows; r++)
        if (g->total[r] > 0)
            for (int64_t j = 0; j < dim; j++) out[r * dim + j] += offset[j];
}

/* A row whose tokens are all masked has an output of zero and a log-sum-exp of -infinity. */
static void finish(const call *c, const group *g, int64_t index, float *out, float *lse) {
    int64_t dim = c->values->dim;
    float *to = c->frame ? g->turned : out;
    for (int r = 0; r < g->tables.rows; r++, to += dim) {
        float share = (g->total[r] > 0 ? 1.0f / g->total[r] : 0.0f) + g->fault[r];
        lse[r] = g->max[r] + logf(g->total[r]) + g->fault[r];
        if (c->weigh) {
            finish_bytes(c, g, index, r, share, to);
            continue;
        }
        for (int64_t j = 0; j < dim; j++) {
            float sum = 0;
            for (int k = 0; k < PARTS; k++) sum += g->sums[(j * PARTS + k) * GROUP + r];
            to[j] = sum * share;
        }
    }
    if (c->frame) finish_vectors(c, g, index, out);
}

/* Attention over the tokens of blocks first to last, counted over all runs.
 *
 * query [batch][heads][rows][key dim], already scaled, in the coordinates of the keys, or with
 * `around` a vector; bias [batch][heads][rows] is added to the scores of every token, NULL for none;
 * mask [batch][mask_rows][mask_pitch], which begins with the first token of the first run, is added
 * after the soft cap, NULL for none. out [batch][heads][rows][value dim] is the mean of the values
 * weighted by exp(score), in their coordinates, or with `around` a vector; lse [batch][heads][rows]
 * the logarithm of the sum of exp(score). Where no token is visible they are 0 and -infinity.
 * Returns 0, or -1 without memory.
 */
EXPORT int gonio_attention(const plan *keys, const plan *values, const frame *around,
                           const code_run *runs, int64_t run_count, int64_t batch,
                           const float *query, int64_t rows, const float *bias, const float *mask,
                           int64_t mask_rows, int64_t mask_pitch, float softcap, int64_t first,
                           int64_t last, int precise, int level, float *out, float *lse) {
    enum level chosen = base_level(level);
    call c = {.keys = keys,
              .values = values,
              .frame = around,
              .rows = rows,
              .mask = mask,
              .mask_rows = mask_rows,
              .mask_pitch = mask_pitch,
              .softcap = softcap,
              .precise = precise,
              .level = chosen,
              .loops = loops_for(chosen),
              .score = score_block_for(chosen, precise),
              .weigh = weigh_tile_for(chosen, precise),
              .add = add_values_for((enum level)level, precise)};
    int64_t count = (rows + GROUP - 1) / GROUP, all = keys->heads * count;
    for (int64_t b = 0; b < batch; b++) {
        int64_t start = b * keys->heads * rows; /* first row of the sequence */
        group *groups =
            start_groups(&c, count, query + start * keys->dim, bias ? bias + start : NULL);
        if (!groups) return -1;
        attend_sequence(&c, groups, count, b, runs, run_count, first, last);
        for (int64_t i = 0; i < all; i++) {
            int64_t index = i / count, row = start + index * rows + groups[i].row;
            finish(&c, groups + i, index, out + row * values->dim, lse + row);
        }
        free(groups);
    }
    return 0;
}
