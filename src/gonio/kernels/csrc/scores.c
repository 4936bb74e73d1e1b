/* Scores of packed keys: the portable block, the choice of a kernel, and the loop over blocks. */
#include <string.h>

#include "gonio_kernels.h"

#define MOST_CACHED (1 << 21) /* scores that may stay in the caches */

void score_block_portable(const query_tables *t, const uint8_t *words, size_t stride,
                          int32_t (*out)[BLOCK]) {
    (void)stride;
    int64_t narrow = t->nibbles / 8, all = narrow + t->wides / 4;
    for (int r = 0; r < t->rows; r++) memset(out[r], 0, sizeof out[r]);
    for (int64_t w = 0; w < all; w++, words += 4 * BLOCK) {
        uint32_t word[BLOCK];
        memcpy(word, words, sizeof word);
        int parts = w < narrow ? 8 : 4, bits = 32 / parts;
        for (int r = 0; r < t->rows; r++)
            for (int k = 0; k < parts; k++) {
                const int16_t *entry =
                    w < narrow ? t->entries + (r * t->nibbles + w * 8 + k) * NIBBLE
                               : t->wide_entries + (r * t->wides + (w - narrow) * 4 + k) * BYTE;
                uint32_t mask = (1u << bits) - 1;
                for (int i = 0; i < BLOCK; i++) out[r][i] += entry[word[i] >> (bits * k) & mask];
            }
    }
}

score_block *score_block_for(enum level level, int precise) {
#if GONIO_X86
    if (level == AVX512) return precise ? score_block_avx512_precise : score_block_avx512;
    if (level == AVX2) return score_block_avx2;
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

/* Scores of every token for queries in the coordinates of the keys.
 *
 * query [batch][heads][rows][dim], data [batch][blocks][block_bytes],
 * out [batch][heads][rows][tokens], of which the tokens of blocks first to last are written.
 * Returns 0, or -1 without memory.
 */
EXPORT int gonio_scores(const plan *keys, const uint8_t *data, int64_t batch, int64_t blocks,
                        int64_t tokens, const float *query, int64_t rows, int64_t first,
                        int64_t last, int precise, int level, float *out) {
    score_block *score = score_block_for((enum level)level, precise);
    size_t stride = (size_t)keys->block_bytes;
    int is_streamed = level == AVX512 && batch * keys->heads * rows * tokens > MOST_CACHED &&
                      tokens % 16 == 0 && (uintptr_t)out % 64 == 0;
    (void)is_streamed;
    for (int64_t i = 0; i < batch * keys->heads; i++) {
        const head_plan *head = keys->head + i % keys->heads;
        const uint8_t *start = data + (i / keys->heads) * blocks * keys->block_bytes + head->offset;
        query_tables tables;
        if (tables_allocate(&tables, head, keys, precise, (enum level)level)) return -1;
        tables.ahead = 3 * stride;
        for (int64_t r = 0; r < rows; r += GROUP) {
            int count = (int)(rows - r < GROUP ? rows - r : GROUP);
            tables_fill(&tables, head, keys, query + (i * rows + r) * keys->dim, count,
                        (enum level)level);
            for (int64_t b = first; b < last; b++) {
                int32_t found[GROUP][BLOCK] __attribute__((aligned(64)));
                score(&tables, start + (size_t)b * stride, stride, found);
                int64_t left = tokens - b * BLOCK, n = left < BLOCK ? left : BLOCK;
                for (int g = 0; g < count; g++) {
                    float *to = out + (i * rows + r + g) * tokens + b * BLOCK;
#if GONIO_X86
                    if (is_streamed && n == BLOCK) {
                        stream_scores(found[g], tables.scale[g], tables.bias[g], to);
                        continue;
                    }
#endif
                    store_scores(found[g], tables.scale[g], tables.bias[g], n, to);
                }
            }
        }
        tables_free(&tables);
    }
#if GONIO_X86
    _mm_sfence();
#endif
    return 0;
}
