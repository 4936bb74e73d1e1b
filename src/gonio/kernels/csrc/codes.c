/* Codes of coordinates: quantized and packed into blocks, and back. */
#include <string.h>

#include "gonio_kernels.h"

/* Borders of the cells, [heads * dim][count], ascending, infinite after a coordinate's last. */
typedef struct {
    const float *edges;
    const int32_t *widths; /* bits of each coordinate */
    int64_t count;
} cells;

/* Borders at or below each number. Few are compared one by one, many by bisection. */
INLINE void quantize(const float *edges, int width, const float *y, int count, uint32_t *code) {
    memset(code, 0, BLOCK * sizeof *code);
    if (width <= 4) {
        for (int e = 0; e < (1 << width) - 1; e++)
            for (int i = 0; i < BLOCK; i++) code[i] += y[i] >= edges[e];
    } else {
        for (int i = 0; i < count; i++)
            for (uint32_t half = 1u << (width - 1); half; half >>= 1)
                code[i] += y[i] >= edges[code[i] + half - 1] ? half : 0;
    }
    for (int i = count; i < BLOCK; i++) code[i] = 0;
}

/* Where a code lies: its word or plane in the head, and the shift in it. */
typedef struct {
    int64_t unit;
    int shift;
} place;

INLINE place place_of(const head_plan *head, int is_keys, int64_t nibble, int64_t wide, int shift) {
    place found;
    if (is_keys) {
        found.unit = wide < 0 ? nibble / 8 : head->nibbles / 8 + wide / 4;
        found.shift = wide < 0 ? (int)(nibble % 8) * 4 + shift : (int)(wide % 4) * 8;
    } else {
        found.unit = wide < 0 ? nibble / 2 : head->nibbles / 2 + wide;
        found.shift = wide < 0 ? (int)(nibble % 2) * 4 + shift : 0;
    }
    return found;
}

INLINE void put(uint8_t *block, place at, int is_keys, const uint32_t *code, int from) {
    if (is_keys) {
        uint8_t *word = block + at.unit * 4 * BLOCK;
        uint32_t all[BLOCK];
        memcpy(all, word, sizeof all);
        for (int i = from; i < BLOCK; i++) all[i] |= code[i - from] << at.shift;
        memcpy(word, all, sizeof all);
    } else {
        uint8_t *plane = block + at.unit * BLOCK;
        for (int i = from; i < BLOCK; i++) plane[i] |= (uint8_t)(code[i - from] << at.shift);
    }
}

/* Codes of one coordinate of one sequence, from token `skip` of the blocks on. */
INLINE void encode_row(const plan *p, int is_keys, uint8_t *data, const float *y, int64_t skip,
                       int64_t tokens, place at, const float *edges, int width) {
    for (int64_t done = 0; done < tokens;) {
        int from = (int)((skip + done) % BLOCK), count = BLOCK - from;
        if (tokens - done < count) count = (int)(tokens - done);
        float part[BLOCK] = {0};
        uint32_t code[BLOCK];
        memcpy(part, y + done, (size_t)count * sizeof *part);
        quantize(edges, width, part, count, code);
        put(data + (skip + done) / BLOCK * p->block_bytes, at, is_keys, code, from);
        done += count;
    }
}

INLINE void encode(const plan *p, int is_keys, uint8_t *data, int64_t batch, int64_t blocks,
                   int64_t skip, int64_t tokens, const float *rows, cells c) {
    for (int64_t i = 0; i < batch * p->heads; i++) {
        int64_t sequence = i / p->heads, first = i % p->heads * p->dim;
        const head_plan *head = p->head + i % p->heads;
        uint8_t *to = data + sequence * blocks * p->block_bytes + head->offset;
        for (int64_t n = 0; n < head->nibbles * SLOTS + head->wides; n++) {
            int64_t wide = n - head->nibbles * SLOTS, nibble = n / SLOTS;
            int64_t slot = head->first_nibble * SLOTS + n;
            int32_t dim = wide < 0 ? p->dims[slot] : p->wide_dims[head->first_wide + wide];
            if (dim < 0) continue;
            place at = place_of(head, is_keys, nibble, wide < 0 ? -1 : wide,
                                wide < 0 ? p->shifts[slot] : 0);
            const float *y = rows + ((first + dim) * batch + sequence) * tokens;
            encode_row(p, is_keys, to, y, skip, tokens, at, c.edges + (first + dim) * c.count,
                       c.widths[first + dim]);
        }
    }
}

#define ENCODE_ARGUMENTS                                                                          \
    const plan *p, int is_keys, uint8_t *data, int64_t batch, int64_t blocks, int64_t skip,       \
        int64_t tokens, const float *rows, cells c

#if GONIO_X86
AVX2_TARGET static void encode_avx2(ENCODE_ARGUMENTS) {
    encode(p, is_keys, data, batch, blocks, skip, tokens, rows, c);
}
AVX512_TARGET static void encode_avx512(ENCODE_ARGUMENTS) {
    encode(p, is_keys, data, batch, blocks, skip, tokens, rows, c);
}
#endif

/* Adds the codes of new tokens to blocks whose codes there are zero.
 *
 * rows [heads * dim][batch][tokens]; data [batch][blocks][block_bytes], of which the tokens skip
 * to skip + tokens are written.
 */
EXPORT void gonio_encode(const plan *p, int is_keys, uint8_t *data, int64_t batch, int64_t blocks,
                         int64_t skip, int64_t tokens, const float *rows, const float *edges,
                         const int32_t *widths, int64_t count, int level) {
    cells c = {edges, widths, count};
#if GONIO_X86
    if (level == AVX512) {
        encode_avx512(p, is_keys, data, batch, blocks, skip, tokens, rows, c);
        return;
    }
    if (base_level(level) == AVX2) {
        encode_avx2(p, is_keys, data, batch, blocks, skip, tokens, rows, c);
        return;
    }
#endif
    (void)level;
    encode(p, is_keys, data, batch, blocks, skip, tokens, rows, c);
}

/* Levels of every coordinate that has bits, into rows [heads * dim][batch][tokens]. */
EXPORT void gonio_decode(const plan *p, int is_keys, const uint8_t *data, int64_t batch,
                         int64_t blocks, int64_t tokens, float *rows) {
    for (int64_t i = 0; i < batch * p->heads; i++) {
        int64_t sequence = i / p->heads, first = i % p->heads * p->dim;
        const head_plan *head = p->head + i % p->heads;
        const uint8_t *from = data + sequence * blocks * p->block_bytes + head->offset;
        for (int64_t n = 0; n < head->nibbles * SLOTS + head->wides; n++) {
            int64_t wide = n - head->nibbles * SLOTS, slot = head->first_nibble * SLOTS + n;
            int32_t dim = wide < 0 ? p->dims[slot] : p->wide_dims[head->first_wide + wide];
            if (dim < 0) continue;
            place at = place_of(head, is_keys, n / SLOTS, wide < 0 ? -1 : wide, 0);
            const float *level = wide < 0 ? p->levels + slot * NIBBLE
                                          : p->wide_levels + (head->first_wide + wide) * BYTE;
            uint32_t mask = wide < 0 ? NIBBLE - 1 : BYTE - 1;
            float *to = rows + ((first + dim) * batch + sequence) * tokens;
            for (int64_t t = 0; t < tokens; t++) {
                const uint8_t *block = from + t / BLOCK * p->block_bytes;
                uint32_t code;
                if (is_keys)
                    memcpy(&code, block + (at.unit * BLOCK + t % BLOCK) * 4, sizeof code);
                else
                    code = block[at.unit * BLOCK + t % BLOCK];
                to[t] = level[code >> at.shift & mask];
            }
        }
    }
}
