/* From vectors to coordinates and back, a few rows at a time. Every level adds in the same order and
 * nothing is contracted: all give the same coordinates, hence the same scores, to the bit. */
#include "gonio_kernels.h"

/* Vectors as they lie in memory, aligned like a number. */
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef float sixteen __attribute__((vector_size(64), aligned(4), may_alias));

/* out = rows . matrix, of one or two vectors of columns from `at` on. */
#define DEFINE_COLUMNS(name, vector)                                                              \
    INLINE void name(const float *rows, const int count, const float *matrix, int64_t dim,        \
                     int64_t at, const int vectors, float *out) {                                 \
        vector sum[GROUP][2] = {{{0}}};                                                           \
        for (int64_t j = 0; j < dim; j++)                                                         \
            for (int r = 0; r < count; r++)                                                       \
                for (int v = 0; v < vectors; v++)                                                 \
                    sum[r][v] +=                                                                  \
                        rows[r * dim + j] * ((const vector *)(matrix + j * dim + at))[v];         \
        for (int r = 0; r < count; r++)                                                           \
            for (int v = 0; v < vectors; v++) ((vector *)(out + r * dim + at))[v] = sum[r][v];    \
    }

DEFINE_COLUMNS(columns_of_four, four)
#if GONIO_X86
DEFINE_COLUMNS(columns_of_eight, eight)
DEFINE_COLUMNS(columns_of_sixteen, sixteen)
#endif

typedef void turn_columns(const float *rows, const int count, const float *matrix, int64_t dim,
                          int64_t at, const int vectors, float *out);

INLINE void turn_constant(const float *rows, const int count, const float *matrix, int64_t dim,
                          float *out, turn_columns *columns, const int64_t lanes) {
    int64_t at = 0;
    for (; at + 2 * lanes <= dim; at += 2 * lanes) columns(rows, count, matrix, dim, at, 2, out);
    if (at + lanes <= dim) {
        columns(rows, count, matrix, dim, at, 1, out);
        at += lanes;
    }
    for (; at < dim; at++)
        for (int r = 0; r < count; r++) {
            float sum = 0;
            for (int64_t j = 0; j < dim; j++) sum += rows[r * dim + j] * matrix[j * dim + at];
            out[r * dim + at] = sum;
        }
}

INLINE void turn(const float *rows, int count, const float *matrix, int64_t dim, float *out,
                 turn_columns *columns, const int64_t lanes) {
    switch (count) { /* sums stay in registers where their number is constant */
    case 1: turn_constant(rows, 1, matrix, dim, out, columns, lanes); break;
    case 2: turn_constant(rows, 2, matrix, dim, out, columns, lanes); break;
    case 3: turn_constant(rows, 3, matrix, dim, out, columns, lanes); break;
    default: turn_constant(rows, 4, matrix, dim, out, columns, lanes);
    }
}

#if GONIO_X86
AVX2_TARGET static void turn_avx2(const float *rows, int count, const float *matrix, int64_t dim,
                                  float *out) {
    turn(rows, count, matrix, dim, out, columns_of_eight, 8);
}

AVX512_TARGET static void turn_avx512(const float *rows, int count, const float *matrix,
                                      int64_t dim, float *out) {
    turn(rows, count, matrix, dim, out, columns_of_sixteen, 16);
}
#endif

void turn_rows(const float *rows, int count, const float *matrix, int64_t dim, enum level level,
               float *out) {
#if GONIO_X86
    if (level == AVX512) {
        turn_avx512(rows, count, matrix, dim, out);
        return;
    }
    if (level == AVX2) {
        turn_avx2(rows, count, matrix, dim, out);
        return;
    }
#endif
    (void)level;
    turn(rows, count, matrix, dim, out, columns_of_four, 4);
}

#define LANES 16 /* partial sums */

float row_product(const float *a, const float *b, int64_t dim) {
    float sum[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= dim; j += LANES)
        for (int k = 0; k < LANES; k++) sum[k] += a[j + k] * b[j + k];
    for (int k = 1; k < LANES; k++) sum[0] += sum[k];
    for (; j < dim; j++) sum[0] += a[j] * b[j];
    return sum[0];
}
