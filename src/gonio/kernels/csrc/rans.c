/* Entropy-coded blocks (interleaved rANS, see quant/rans.py): codes to words, words to levels. */
#include <stdlib.h>
#include <string.h>

#include "gonio_kernels.h"

#define TOGETHER 16 /* blocks decoded side by side: their states do not wait for one another */
#define MOST_LANES 8
#define SYMBOLS 256
#define ESCAPED 128 /* the byte of a code beyond its table */
#define LOWEST_STATE (1u << 16)
#define MARK 0x7FC00DEDu /* a float no level has, where an escaped code will be */

/* What is stored. Streams are (sequence, group) with tables by group; word ranges by block. */
typedef struct {
    const uint16_t *words;
    const int64_t *starts, *ends; /* [blocks][streams] */
    int64_t blocks, batch, groups, dim, block, lanes;
} rans_blocks;

/* Static tables: of table t the frequencies of codes -radius..radius, then of the escape. */
typedef struct {
    const uint16_t *frequencies;
    const int64_t *first; /* of each table in `frequencies` */
    const uint8_t *radius;
    const int16_t *index; /* [groups][dim] */
    const float *levels;  /* [groups][dim][2 * widest + 1] */
    int64_t tables, widest, precision;
} rans_tables;

/* The tables of one group: symbol of each slot; frequency << 16 | first slot, and level, by byte. */
typedef struct {
    uint8_t *symbol;
    uint32_t *entry;
    float *level;
} group_tables;

typedef struct {
    int64_t next, end, escapes;
    uint32_t state[MOST_LANES];
    float *row; /* of coordinate 0, at the block's first token */
    float scale;
} reader;

static void fill_tables(const rans_tables *t, int64_t group, int64_t dim, group_tables *found) {
    for (int64_t j = 0; j < dim; j++) {
        int64_t table = t->index[group * dim + j], radius = t->radius[table];
        const uint16_t *frequency = t->frequencies + t->first[table];
        const float *level = t->levels + (group * dim + j) * (2 * t->widest + 1) + t->widest;
        uint8_t *symbol = found->symbol + (j << t->precision);
        uint32_t slot = 0;
        for (int64_t code = -radius; code <= radius + 1; code++, frequency++) {
            int64_t byte = code > radius ? ESCAPED : (code & 0xFF);
            memset(symbol + slot, (int)byte, *frequency);
            found->entry[j * SYMBOLS + byte] = (uint32_t)*frequency << 16 | slot;
            if (code <= radius) found->level[j * SYMBOLS + byte] = level[code];
            slot += *frequency;
        }
        memcpy(found->level + j * SYMBOLS + ESCAPED, &(uint32_t){MARK}, sizeof(float));
    }
}

/* 0, or 1 when the block is too short to hold its states. */
static int begin(const rans_blocks *b, int64_t at, reader *r) {
    r->next = b->starts[at], r->end = b->ends[at], r->escapes = 0;
    if (r->end - r->next < 2 * b->lanes) return 1;
    for (int64_t lane = 0; lane < b->lanes; lane++, r->next += 2)
        r->state[lane] = b->words[r->next] | (uint32_t)b->words[r->next + 1] << 16;
    return 0;
}

/* One coordinate of one step in every block; `stride` floats from a coordinate to the next. */
INLINE void read_step(const uint16_t *words, reader *readers, int count, int64_t width,
                      const uint8_t *symbol, const uint32_t *entry, const float *level,
                      uint32_t precision, int64_t place) {
    for (int i = 0; i < count; i++) {
        reader *r = readers + i;
        for (int64_t lane = 0; lane < width; lane++) {
            uint32_t x = r->state[lane], slot = x & ((1u << precision) - 1);
            uint8_t byte = symbol[slot];
            x = (entry[byte] >> 16) * (x >> precision) + slot - (entry[byte] & 0xFFFF);
            if (x < LOWEST_STATE) {
                x = x << 16 | (r->next < r->end ? words[r->next] : 0);
                r->next++;
            }
            r->state[lane] = x;
            r->escapes += byte == ESCAPED;
            r->row[place + lane] = byte == ESCAPED ? level[byte] : level[byte] * r->scale;
        }
    }
}

/* Puts the escaped codes in their places; 0, or 1 when the block did not end where it was begun. */
static int finish(const rans_blocks *b, reader *r, int64_t stride) {
    int damaged = r->next + r->escapes != r->end;
    for (int64_t lane = 0; lane < b->lanes; lane++) damaged |= r->state[lane] != LOWEST_STATE;
    if (damaged || !r->escapes) return damaged;
    for (int64_t token = 0; token < b->block; token++)
        for (int64_t j = 0; j < b->dim; j++) {
            float *to = r->row + j * stride + token;
            uint32_t bits;
            memcpy(&bits, to, sizeof bits);
            if (bits == MARK && r->next < r->end)
                *to = (float)(int16_t)b->words[r->next++] * r->scale;
        }
    return 0;
}

static int read_group(const rans_blocks *b, const rans_tables *t, int64_t group,
                      const group_tables *tables, const float *scale, float *rows) {
    int64_t stride = b->batch * b->blocks * b->block, all = b->batch * b->blocks;
    reader readers[TOGETHER];
    for (int64_t first = 0; first < all; first += TOGETHER) {
        int count = (int)(all - first < TOGETHER ? all - first : TOGETHER);
        for (int i = 0; i < count; i++) {
            int64_t sequence = (first + i) / b->blocks, block = (first + i) % b->blocks;
            if (begin(b, (block * b->batch + sequence) * b->groups + group, readers + i)) return 1;
            readers[i].row = rows + group * b->dim * stride + (first + i) * b->block;
            readers[i].scale = scale[first + i];
        }
        for (int64_t token = 0; token < b->block; token += b->lanes) {
            int64_t width = b->block - token < b->lanes ? b->block - token : b->lanes;
            for (int64_t j = 0; j < b->dim; j++) {
                const uint8_t *symbol = tables->symbol + (j << t->precision);
                const uint32_t *entry = tables->entry + j * SYMBOLS;
                const float *level = tables->level + j * SYMBOLS;
                uint32_t precision = (uint32_t)t->precision;
                int64_t place = j * stride + token;
                if (width == 2) /* the codec's lanes, unrolled */
                    read_step(b->words, readers, count, 2, symbol, entry, level, precision, place);
                else
                    read_step(b->words, readers, count, width, symbol, entry, level, precision,
                              place);
            }
        }
        for (int i = 0; i < count; i++)
            if (finish(b, readers + i, stride)) return 1;
    }
    return 0;
}

/* Level times scale of every code, into rows [groups * dim][batch][blocks * block]; an escaped code
 * is its own level. `scale` is [batch][blocks]. Blocks have at least as many tokens as lanes.
 * Returns 0, -1 without memory, or 1 when a block is damaged. */
EXPORT int gonio_rans_decode(const rans_blocks *b, const rans_tables *t, const float *scale,
                             float *rows) {
    size_t dim = (size_t)b->dim;
    group_tables tables = {malloc(dim << t->precision), malloc(dim * SYMBOLS * sizeof(uint32_t)),
                           malloc(dim * SYMBOLS * sizeof(float))};
    int failed = tables.symbol && tables.entry && tables.level ? 0 : -1;
    for (int64_t group = 0; !failed && group < b->groups; group++) {
        fill_tables(t, group, b->dim, &tables);
        failed = read_group(b, t, group, &tables, scale, rows);
    }
    free(tables.symbol), free(tables.entry), free(tables.level);
    return failed;
}

/* One block of codes [block][dim] into `to`, with room for all; returns its words. `entry` and
 * `radius` are by coordinate, `buffer` holds block * dim words. */
static int64_t write_block(const rans_blocks *b, const uint32_t *entry, const uint8_t *radius,
                           uint32_t precision, const int16_t *codes, uint16_t *buffer,
                           uint16_t *to) {
    uint32_t state[MOST_LANES];
    uint16_t *front = buffer + b->block * b->dim, *out = to;
    for (int64_t lane = 0; lane < b->lanes; lane++) state[lane] = LOWEST_STATE;
    for (int64_t step = (b->block - 1) / b->lanes * b->lanes; step >= 0; step -= b->lanes) {
        int64_t last = step + b->lanes < b->block ? step + b->lanes : b->block;
        for (int64_t j = b->dim - 1; j >= 0; j--)
            for (int64_t i = last - 1; i >= step; i--) {
                int16_t code = codes[i * b->dim + j];
                int is_far = code > radius[j] || code < -radius[j];
                uint32_t found = entry[j * SYMBOLS + (is_far ? ESCAPED : (code & 0xFF))];
                uint32_t frequency = found >> 16, x = state[i - step];
                if (x >= frequency << (32 - precision)) *--front = (uint16_t)x, x >>= 16;
                state[i - step] = (x / frequency << precision) + x % frequency + (found & 0xFFFF);
            }
    }
    for (int64_t lane = 0; lane < b->lanes; lane++)
        *out++ = (uint16_t)state[lane], *out++ = (uint16_t)(state[lane] >> 16);
    size_t taken = (size_t)(buffer + b->block * b->dim - front);
    memcpy(out, front, taken * sizeof *out);
    out += taken;
    for (int64_t at = 0; at < b->block * b->dim; at++) {
        int64_t limit = radius[at % b->dim];
        if (codes[at] > limit || codes[at] < -limit) *out++ = (uint16_t)codes[at];
    }
    return out - to;
}

/* Codes [batch * groups][blocks * block][dim] as words, block by block and in a block stream by
 * stream, and the words of each, `lengths` [blocks][batch][groups]; `words` has room for
 * 2 * (block * dim + lanes) of each. Returns 0, or -1 without memory. */
EXPORT int gonio_rans_encode(const rans_blocks *b, const rans_tables *t, const int16_t *codes,
                             uint16_t *words, int64_t *lengths) {
    size_t all = (size_t)(b->groups * b->dim);
    uint32_t *entry = malloc(all * SYMBOLS * sizeof *entry);
    uint8_t *radius = malloc(all);
    uint16_t *buffer = malloc((size_t)(b->block * b->dim) * sizeof *buffer);
    int failed = entry && radius && buffer ? 0 : -1;
    for (size_t j = 0; !failed && j < all; j++) {
        const uint16_t *frequency = t->frequencies + t->first[t->index[j]];
        uint32_t slot = 0;
        radius[j] = t->radius[t->index[j]];
        for (int code = -radius[j]; code <= radius[j] + 1; slot += *frequency++, code++)
            entry[j * SYMBOLS + (code > radius[j] ? ESCAPED : (size_t)(code & 0xFF))] =
                (uint32_t)*frequency << 16 | slot;
    }
    int64_t streams = b->batch * b->groups;
    for (int64_t at = 0; !failed && at < b->blocks * streams; at++) {
        int64_t stream = at % streams, group = stream % b->groups * b->dim;
        const int16_t *from = codes + (stream * b->blocks + at / streams) * b->block * b->dim;
        lengths[at] = write_block(b, entry + group * SYMBOLS, radius + group,
                                  (uint32_t)t->precision, from, buffer, words);
        words += lengths[at];
    }
    free(entry), free(radius), free(buffer);
    return failed;
}
