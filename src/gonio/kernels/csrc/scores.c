/* Scores of packed keys: the portable block, the choice of a kernel, and the loop over blocks. */
#include <stdlib.h>
#include <string.h>

#include "gonio_kernels.h"

#define MOST_CACHED (1 << 21) /* scores that may stay in the caches */

void score_block_portable(const query_tables *t, const uint8_t *words, size_t stride,
                          int32_t *out, size_t pitch) {
    (void)stride;
    int64_t narrow = t->nibbles / 8, all = narrow + t->wides / 4;
    for (size_t r = 0; r < (size_t)t->rows; r++) memset(out + r * pitch, 0, BLOCK * sizeof *out);
    for (int64_t w = 0; w < all; w++, words += 4 * BLOCK) {
        uint32_t word[BLOCK];
        memcpy(word, words, sizeof word);
        int parts = w < narrow ? 8 : 4, bits = 32 / parts;
        for (size_t r = 0; r < (size_t)t->rows; r++)
            for (int k = 0; k < parts; k++) {
                const int16_t *entry =
                    w < narrow ? t->entries + (r * t->nibbles + w * 8 + k) * NIBBLE
                               : t->wide_entries + (r * t->wides + (w - narrow) * 4 + k) * BYTE;
                uint32_t mask = (1u << bits) - 1;
                for (int i = 0; i < BLOCK; i++)
                    out[r * pitch + i] += entry[word[i] >> (bits * k) & mask];
            }
    }
}

score_block *score_block_for(enum level level, int precise) {
#if GONIO_X86
    if (level == AVX512) return precise ? score_block_avx512_precise : score_block_avx512;
    if (level == AVX2) return precise ? score_block_avx2_precise : score_block_avx2;
#endif
#if GONIO_NEON
    if (level == NEON) return precise ? score_block_neon_precise : score_block_neon;
#endif
    (void)level, (void)precise;
    return score_block_portable;
}

INLINE void store_scores(const int32_t *found, float scale, float bias, int64_t count, float *to) {
    if (count == BLOCK) /* a constant count is turned into vectors */
        for (int k = 0; k < BLOCK; k++) to[k] = (float)found[k] * scale + bias;
    else
        for (int64_t k = 0; k < count; k++) to[k] = (float)found[k] * scale + bias;
}

#if GONIO_X86
#include <immintrin.h>

/* The same past the caches: scores that fill them would drive out the codes to come. */
AVX512_TARGET static void stream_scores(const int32_t *found, float scale, float bias, float *to) {
    for (int k = 0; k < BLOCK; k += 16) {
        __m512 x = _mm512_cvtepi32_ps(_mm512_load_si512(found + k));
        x = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(scale)), _mm512_set1_ps(bias));
        _mm512_stream_ps(to + k, x);
    }
}
#endif

/* What a call is about, and tables of every `count` groups of rows of every head. */
typedef struct {
    const plan *keys;
    int64_t tokens, rows, count;
    int is_streamed;
    score_block *score;
    query_tables *tables;
} call;

/* Scores of a tile of blocks for one group of rows, which begins at `out`. */
static void score_tile(const call *c, query_tables *t, const uint8_t *words, int64_t block,
                       int64_t blocks, float *out) {
    size_t stride = (size_t)c->keys->block_bytes;
    for (int64_t b = block; b < block + blocks; b++, words += stride, t->next += stride) {
        int32_t found[GROUP][BLOCK] __attribute__((aligned(64)));
        c->score(t, words, stride, found[0], BLOCK);
        int64_t left = c->tokens - b * BLOCK, n = left < BLOCK ? left : BLOCK;
        for (int g = 0; g < t->rows; g++) {
            float *to = out + g * c->tokens + b * BLOCK;
#if GONIO_X86
            if (c->is_streamed && n == BLOCK) {
                stream_scores(found[g], t->scale[g], t->bias[g], to);
                continue;
            }
#endif
            store_scores(found[g], t->scale[g], t->bias[g], n, to);
        }
    }
}

/* All heads of a sequence, tile by tile: memory is read in the order in which it lies. */
static void score_sequence(const call *c, const uint8_t *data, int64_t first, int64_t last,
                           float *out) {
    const plan *p = c->keys;
    for (int64_t block = first; block < last; block += TILE_BLOCKS) {
        const uint8_t *tile = data + (size_t)(block * p->block_bytes);
        int64_t blocks = last - block < TILE_BLOCKS ? last - block : TILE_BLOCKS;
        for (int64_t i = 0; i < p->heads * c->count; i++) {
            int64_t head = i / c->count, row = head * c->rows + i % c->count * GROUP;
            c->tables[i].next = next_head(p, head, tile);
            score_tile(c, c->tables + i, tile + p->head[head].offset, block, blocks,
                       out + row * c->tokens);
        }
    }
}

/* The tables of a sequence, the first at the start of the memory. */
static query_tables *place_tables(const plan *keys, int64_t count, int precise, enum level level,
                                  arena *space) {
    int64_t all = keys->heads * count;
    query_tables *tables = take(space, (size_t)all * sizeof *tables), counted;
    for (int64_t i = 0; i < all; i++)
        tables_place(tables ? tables + i : &counted, keys->head + i / count, keys, precise, level,
                     space);
    return tables;
}

static query_tables *allocate_tables(const plan *keys, int64_t count, int precise,
                                     enum level level) {
    arena space = {NULL, 0};
    place_tables(keys, count, precise, level, &space);
    space.start = aligned_alloc(64, space.used + 64);
    space.used = 0;
    return space.start ? place_tables(keys, count, precise, level, &space) : NULL;
}

/* Scores of every token for queries in the coordinates of the keys.
 *
 * query [batch][heads][rows][dim], data [batch][blocks][block_bytes],
 * out [batch][heads][rows][tokens], of which the tokens of blocks first to last are written.
 * Returns 0, or -1 without memory.
 */
EXPORT int gonio_scores(const plan *keys, const uint8_t *data, int64_t batch, int64_t blocks,
                        int64_t tokens, const float *query, int64_t rows, int64_t first,
                        int64_t last, int precise, int level, float *out) {
    enum level chosen = base_level(level);
    call c = {.keys = keys,
              .tokens = tokens,
              .rows = rows,
              .count = (rows + GROUP - 1) / GROUP,
              .is_streamed = chosen == AVX512 && tokens % 16 == 0 && (uintptr_t)out % 64 == 0 &&
                             batch * keys->heads * rows * tokens > MOST_CACHED,
              .score = score_block_for(chosen, precise)};
    c.tables = allocate_tables(keys, c.count, precise, chosen);
    if (!c.tables) return -1;
    for (int64_t b = 0; b < batch; b++) {
        for (int64_t i = 0; i < keys->heads * c.count; i++) {
            int64_t head = i / c.count, row = i % c.count * GROUP, left = rows - row;
            const float *own = query + ((b * keys->heads + head) * rows + row) * keys->dim;
            tables_fill(c.tables + i, keys->head + head, keys, own,
                        (int)(left < GROUP ? left : GROUP), chosen);
        }
        score_sequence(&c, data + (size_t)(b * blocks * keys->block_bytes), first, last,
                       out + b * keys->heads * rows * tokens);
    }
    free(c.tables);
#if GONIO_X86
    _mm_sfence();
#endif
    return 0;
}
