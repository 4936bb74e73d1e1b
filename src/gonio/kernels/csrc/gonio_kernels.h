/* Attention on packed codes: shared types.
 *
 * Tokens are stored in blocks of 64. A block holds every key-value head in turn; head h of a block
 * begins at byte head[h].offset. Coordinates of 1 to 4 bits share nibbles (up to four in one);
 * coordinates of 5 to 8 bits take a byte each.
 *
 * Keys: 32-bit words, 64 of them (one per token) side by side. Word w of a token holds nibbles 8w to
 * 8w + 7, lowest first; after the nibble words come words of four whole bytes each.
 * Values: planes of 64 bytes, one per token. Plane p holds nibbles 2p (low) and 2p + 1 (high); after
 * the nibble planes come planes of one byte per coordinate.
 *
 * Nibbles and wide coordinates of a head are padded to whole words or planes; padding has no
 * coordinate (dimension -1), levels of zero and codes of zero. A block that would fill whole pages of
 * 4 KiB ends in 64 bytes of zero: the blocks of a head would else fall into the same few lines of the
 * nearest cache.
 */
#ifndef GONIO_KERNELS_H
#define GONIO_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#if defined(__SANITIZE_ADDRESS__)
#define GONIO_ASAN 1
#elif defined(__has_feature) /* clang's way to say so */
#define GONIO_ASAN __has_feature(address_sanitizer)
#else
#define GONIO_ASAN 0
#endif
#if GONIO_ASAN
#include <sanitizer/asan_interface.h>
#endif

#define BLOCK 64       /* tokens of a block */
#define SLOTS 4        /* coordinates that a nibble can hold */
#define NIBBLE 16      /* values of a nibble */
#define BYTE 256       /* values of a byte */
#define GROUP 4        /* query rows that share one reading of the codes */
#define PARTS 4        /* partial sums kept for each output coordinate and row */
#define LINES 4        /* lines of a cache, 64 bytes each, in a word of all tokens */
#define TILE_BLOCKS 16 /* blocks whose weights are computed before values are read */
#define TILE (TILE_BLOCKS * BLOCK)

/* Bytes of the nearest cache, if the build says so. The keys of a tile, at 128 coordinates of 2 bits,
 * are 32 KB: where it holds no more, codes are fetched into the second one. */
#ifndef GONIO_NEAREST_CACHE
#define GONIO_NEAREST_CACHE 49152
#endif
#define FETCH_HINT (GONIO_NEAREST_CACHE < 49152 ? _MM_HINT_T1 : _MM_HINT_T0)

/* GONIO_PORTABLE_ONLY builds what other processors get. */
#if defined(__x86_64__) && !defined(GONIO_PORTABLE_ONLY)
#define GONIO_X86 1
#define AVX2_TARGET __attribute__((target("avx2,fma")))
#define AVX512_TARGET                                                                             \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,"    \
                          "avx512bf16")))
#else
#define GONIO_X86 0
#endif
/* Assemblers that came with older compilers do not know the instruction. */
#if !GONIO_X86
#define GONIO_AVXVNNI 0
#elif defined(__clang__)
#define GONIO_AVXVNNI (__clang_major__ >= 14)
#else
#define GONIO_AVXVNNI (__GNUC__ >= 11)
#endif
#if defined(__aarch64__) && !defined(__AARCH64EB__) && !defined(GONIO_PORTABLE_ONLY)
#define GONIO_NEON 1
#else
#define GONIO_NEON 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum level { PORTABLE = 0, AVX2 = 1, AVXVNNI = 2, AVX512 = 3, NEON = 4, LEVEL_COUNT };

/* The level whose tables, scores and weights a level takes: AVXVNNI has values of its own. */
INLINE enum level base_level(int level) { return level == AVXVNNI ? AVX2 : (enum level)level; }

typedef struct {
    int64_t first_nibble, nibbles; /* into dims, shifts, levels; a multiple of 8 (keys), 2 (values) */
    int64_t first_wide, wides;     /* into wide_*; a multiple of 4 for keys */
    int64_t offset;                /* bytes from the start of a block */
} head_plan;

typedef struct {
    int64_t heads, dim; /* dim: coordinates of a head */
    int64_t block_bytes;
    const head_plan *head;
    const int32_t *dims;           /* [nibbles][SLOTS], coordinate in the head or -1 */
    const int32_t *shifts;         /* [nibbles][SLOTS], place of the code in its nibble */
    const float *levels;           /* [nibbles][SLOTS][NIBBLE], by the whole nibble */
    const int8_t *levels_int8;     /* [nibbles][SLOTS][4 * NIBBLE], in units, the same four times */
    const int32_t *wide_dims;      /* [wides] */
    const int32_t *wide_bits;      /* [wides], 5 to 8 */
    const float *wide_levels;      /* [wides][BYTE] */
    const uint16_t *wide_bf16;     /* [wides][BYTE] */
    const float *units;            /* [heads][dim], of int8 levels; 1 for wide coordinates */
} plan;

/* Some tokens' blocks, `blocks` of them for each sequence. */
typedef struct {
    const uint8_t *keys, *values;
    int64_t blocks, tokens;
} code_run;

/* How vectors and coordinates of a head belong together: coordinates of a query are its products with
 * the columns of key_basis, every score has its product with key_offset besides, and an output is
 * its coordinates times value_basis plus value_offset. NULL where rows are coordinates. */
typedef struct {
    const float *key_basis, *key_offset;     /* [heads][dim][dim], [heads][dim] */
    const float *value_basis, *value_offset; /* likewise */
} frame;

/* out[count][dim] = rows[count][dim] . matrix[dim][dim], at most GROUP rows; and a . b (frame.c). */
void turn_rows(const float *rows, int count, const float *matrix, int64_t dim, enum level level,
               float *out);
float row_product(const float *a, const float *b, int64_t dim);

/* Memory of a call, allocated once: pieces of their own would lie in many more pages, each of which
 * costs time in a processor that has just read much else. */
typedef struct {
    char *start; /* NULL while its size is counted */
    size_t used;
} arena;

INLINE void *take(arena *space, size_t bytes) {
    char *found = space->start ? space->start + space->used : NULL;
    size_t end = space->used + bytes;
    space->used = (end + 63) & ~(size_t)63;
#if GONIO_ASAN
    space->used += 64; /* nobody's */
    if (found) ASAN_POISON_MEMORY_REGION(found + bytes, space->used - end);
#endif
    return found;
}

/* Where the head begins that is computed next, in this tile or the one behind it: its codes are
 * fetched meanwhile, block by block, in the order in which they lie. */
INLINE const uint8_t *next_head(const plan *p, int64_t index, const uint8_t *tile) {
    if (index + 1 < p->heads) return tile + p->head[index + 1].offset;
    return tile + TILE_BLOCKS * p->block_bytes + p->head[0].offset;
}

/* Integer tables of one head and up to four query rows: a score is bias + scale * sum of
 * weight * entry. Without `precise` the two nibbles of a byte have entries whose sum fits 8 bits,
 * and a weight of their own, so that small coordinates keep their precision; with it entries have
 * 16 bits and weights are 1. */
typedef struct {
    int rows, precise;
    int64_t nibbles, wides;
    const int32_t *wide_bits;
    int16_t *entries;      /* [rows][nibbles][NIBBLE] */
    uint8_t *weights;      /* [rows][nibbles / 2], of the low and the high nibble of a byte */
    int16_t *wide_entries; /* [rows][wides][BYTE] */
    uint8_t *wide_weights; /* [rows][wides] */
    float *values;         /* [nibbles][NIBBLE], of the row that is being filled */
    float *halves;         /* [nibbles], half of their ranges */
    void *arranged;        /* the same in the order that a level's kernel reads */
    const uint8_t *next; /* a block that is read soon, to fetch it early */
    int leaves_lines;    /* the last line of each of its words is fetched beside values */
    float scale[GROUP], bias[GROUP];
} query_tables;

#define LARGEST_WEIGHT 128 /* AVX2 adds two products of a weight and an entry in 16 bits */
#define LARGEST_ENTRY 127
#define LARGEST_PAIR 126 /* of two entries together: each is rounded by up to a half */

/* The least weight with which values of at most `half` make entries of at most `limit`. */
INLINE uint8_t weight_for(float half, float step, int precise, float limit) {
    float units = step > 0 ? half / step : 0.0f;
    int weight = precise ? 1 : (int)ceilf(units / limit - 1e-3f);
    return (uint8_t)(weight < 1 ? 1 : weight > LARGEST_WEIGHT ? LARGEST_WEIGHT : weight);
}

/* Tables (tables.c): their memory, which only counts it where the arena has none, and what is in it. */
void tables_place(query_tables *tables, const head_plan *head, const plan *keys, int precise,
                  enum level level, arena *space);
void tables_fill(query_tables *tables, const head_plan *head, const plan *keys, const float *query,
                 int rows, enum level level);

/* Integer scores of one block: out[row * pitch + token]; the next block begins `stride` bytes on. */
typedef void score_block(const query_tables *tables, const uint8_t *words, size_t stride,
                         int32_t *out, size_t pitch);
score_block *score_block_for(enum level level, int precise);
score_block score_block_portable, score_block_avx2, score_block_avx2_precise, score_block_avx512,
    score_block_avx512_precise;
float wide_ranges(const query_tables *tables, const head_plan *head, const plan *keys,
                  const float *query, float *bias);
void fill_wides(query_tables *tables, const head_plan *head, const plan *keys, const float *query,
                int row);
size_t arranged_bytes(int64_t nibbles, int64_t wides, int precise, enum level level);
void arrange_avx2(query_tables *tables);
void arrange_avx512(query_tables *tables); /* of 16 bits; the other is both at once: */
void fill_avx512(query_tables *tables, const head_plan *head, const plan *keys,
                 const float *query);

/* What a tile's tokens weigh. First `found` holds whole scores, or `weights` scores as numbers;
 * then weights, as numbers or as bytes in units of `byte_unit` of their row. A row with few heavy
 * tokens takes a second byte, low, in units of `unit`, of which the first counts 256 (AVX2: 128). */
typedef struct {
    int rows, blocks, has_wides;
    int heavies, heavy[GROUP]; /* the rows to which low[0], low[1], ... belong */
    int64_t planes;            /* of the head; at least 1 */
    const uint8_t *next;       /* the head that is read next, to fetch it early */
    const uint8_t *next_keys;  /* its keys, of which the last line of each word is fetched too */
    int64_t key_words;
    size_t key_stride;
    float unit[GROUP], byte_unit[GROUP]; /* of low, of weights as bf16 or numbers; of high */
    union {
        int32_t found[GROUP][TILE];
        float weights[GROUP][TILE];
    } __attribute__((aligned(64)));
    uint8_t high[GROUP][TILE] __attribute__((aligned(64)));
    uint8_t low[GROUP][TILE] __attribute__((aligned(64)));
    uint16_t even[GROUP][TILE / 2] __attribute__((aligned(64))); /* bf16, tokens 0, 2, ... */
    uint16_t odd[GROUP][TILE / 2] __attribute__((aligned(64)));
} value_tile;

/* Four coordinates whose values are added side by side: of the low and the high nibble of a plane,
 * and of the same or another plane. Levels are zero where there is no coordinate. */
typedef struct {
    int8_t level[4][NIBBLE];
    int64_t plane[2]; /* bytes from the head's first */
    int32_t dim[4];   /* -1 where there is none */
} __attribute__((aligned(32))) value_quad;

/* The quads of a head; returns how many there are. `quads` has room for VALUE_QUADS(head). */
#define VALUE_QUADS(head) (((head)->nibbles / 2 * SLOTS + 1) / 2)
int64_t list_quads(const plan *values, const head_plan *head, value_quad *quads);

/* While a plane of TILE_BLOCKS blocks is read, as many planes of the next head are fetched, in the
 * order in which they lie: one block after another. */
INLINE const uint8_t *to_fetch(int64_t plane, size_t stride, const value_tile *tile) {
    int64_t first = plane / BLOCK * TILE_BLOCKS;
    return tile->next + (size_t)(first / tile->planes) * stride + first % tile->planes * BLOCK;
}

/* Loops over scores, for one instruction set (softmax.c): weights in place, sums times factors,
 * whole scores as numbers, and the largest. */
typedef struct {
    float (*soften)(float *, int, float, float *, float *);
    void (*multiply)(float *, int64_t, const float *);
    void (*to_float)(const int32_t *, int, float, float, float *);
    float (*largest)(const float *, int);
} loops;
const loops *loops_for(enum level level);

/* Of one row: the scores' scale and bias, the largest score and the sum of weights so far. */
typedef struct {
    float scale, bias, *max, *total;
} row_state;

/* Turns the tile's scores into bytes (is_number: scores are `weights`, else `found`); returns
 * whether factors, by which earlier sums must be multiplied, differ from 1. Where it is NULL weights
 * are numbers. */
typedef int weigh_tile(value_tile *tile, const row_state *rows, int is_number, float *factor);
weigh_tile *weigh_tile_for(enum level level, int precise);
weigh_tile weigh_avx2, weigh_avx512;

/* sums[coordinate][part][row] += the weighted levels of a tile's blocks, `stride` bytes apart.
 * Kernels of bytes leave sums in units of the plan, as finish_bytes takes them; others read
 * numbers. */
typedef void add_values(const plan *values, const head_plan *head, const value_quad *quads,
                        int64_t count, const uint8_t *planes, size_t stride,
                        const value_tile *tile, float *sums);
add_values *add_values_for(enum level level, int precise);
add_values add_values_portable, add_values_avx2, add_values_avx2_precise, add_values_avxvnni,
    add_values_avx512;

/* The same for 64-bit ARM processors. */
void arrange_neon(query_tables *tables);
score_block score_block_neon, score_block_neon_precise;
add_values add_values_neon;

/* Factors of adapters (gram.c, spectra.c): matrices of one shape, strides in elements. */
enum dtype { FLOAT64 = 0, FLOAT32 = 1, FLOAT16 = 2, BFLOAT16 = 3 };

typedef struct {
    int64_t rank, columns, row_stride, column_stride;
    enum dtype dtype;
} gram_shape;

/* out[rank][rank] = X X^T of a matrix whose first element is at `data`, in float64; `space` has room
 * for gram_space(rank) numbers and was zero before the first matrix of a rank. */
size_t gram_space(int64_t rank);
void gram_matrix(const gram_shape *shape, const void *data, enum level level, double *space,
                 double *out);

/* Products whose spectra are found side by side, as many as a level's vectors have numbers. */
typedef struct {
    int64_t rank;
    double entry_error[2]; /* of the Gram matrices of B^T and of A, rows of unit length */
    double *gram;          /* [2][lanes][rank][rank] */
    double *space;         /* [SPECTRA_SPACE(rank)][lanes] */
} spectra_work;

#define SPECTRA_SPACE(rank) (5 * (rank) * (rank) + 4 * (rank))

/* values[lane][rank] in no order; relative[lane] and bound[lane] as in gonio_spectra. */
typedef void spectra_function(const spectra_work *w, double *values, double *relative,
                              double *bound);
spectra_function spectra_avx2, spectra_avx512;

#endif
