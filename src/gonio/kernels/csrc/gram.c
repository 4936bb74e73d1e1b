/* Gram matrices of the factors of adapters, in float64 from any stored precision.
 *
 * Columns are brought into a panel of float64, a few at a time, and 8 by 8 products of it are summed
 * over it. Every level adds in the same order and nothing is contracted: all give the same bits. */
#include <string.h>

#include "numbers.h"

#define WIDTH 8    /* rows of a panel come in so many */
#define PIECE 768  /* columns whose sum is begun at zero: the error bound counts on it */
#define PANEL 4096 /* numbers of a panel, about: it stays in the nearest cache */

/* Vectors as they lie in memory, aligned like a number. */
typedef double two __attribute__((vector_size(16), aligned(8), may_alias));
typedef double four __attribute__((vector_size(32), aligned(8), may_alias));
typedef double eight __attribute__((vector_size(64), aligned(8), may_alias));

INLINE double element(const void *data, int64_t at, const enum dtype dtype) {
    switch (dtype) {
    case FLOAT64: return ((const double *)data)[at];
    case FLOAT32: return (double)((const float *)data)[at];
    case FLOAT16: return (double)half_number(((const uint16_t *)data)[at]);
    default: return (double)bfloat16_number(((const uint16_t *)data)[at]);
    }
}

/* panel[column][row] of `count` columns from `first`, rows in the order in which they lie. */
INLINE void fill_panel(const gram_shape *shape, const void *data, int64_t first, int64_t count,
                       int64_t width, double *panel, const enum dtype dtype) {
    if (shape->row_stride == 1) {
        for (int64_t k = 0; k < count; k++)
            for (int64_t i = 0; i < shape->rank; i++)
                panel[k * width + i] =
                    element(data, (first + k) * shape->column_stride + i, dtype);
        return;
    }
    for (int64_t i = 0; i < shape->rank; i++)
        for (int64_t k = 0; k < count; k++)
            panel[k * width + i] = element(
                data, i * shape->row_stride + (first + k) * shape->column_stride, dtype);
}

INLINE void fill(const gram_shape *shape, const void *data, int64_t first, int64_t count,
                 int64_t width, double *panel) {
    switch (shape->dtype) {
    case FLOAT64: fill_panel(shape, data, first, count, width, panel, FLOAT64); break;
    case FLOAT32: fill_panel(shape, data, first, count, width, panel, FLOAT32); break;
    case FLOAT16: fill_panel(shape, data, first, count, width, panel, FLOAT16); break;
    default: fill_panel(shape, data, first, count, width, panel, BFLOAT16);
    }
}

/* Sums of 4 rows and as many columns as two vectors hold (or 8 and one), over a panel's columns: each
 * sum is a chain of its own, hence the same whatever the width of a vector. */
#define DEFINE_ADD(name, vector, rows, vectors)                                                   \
    INLINE void name(const double *left, const double *right, int64_t count, int64_t width,       \
                     double *sum) {                                                               \
        vector total[rows][vectors];                                                              \
        for (int i = 0; i < rows; i++)                                                            \
            for (int j = 0; j < vectors; j++) total[i][j] = ((vector *)(sum + i * width))[j];     \
        for (int64_t k = 0; k < count; k++, left += width, right += width)                        \
            for (int i = 0; i < rows; i++)                                                        \
                for (int j = 0; j < vectors; j++)                                                 \
                    total[i][j] += left[i] * ((const vector *)right)[j];                          \
        for (int i = 0; i < rows; i++)                                                            \
            for (int j = 0; j < vectors; j++) ((vector *)(sum + i * width))[j] = total[i][j];     \
    }

DEFINE_ADD(add_by_two, two, 4, 2)
DEFINE_ADD(add_by_four, four, 4, 2)
DEFINE_ADD(add_by_eight, eight, 8, 1)

enum { BY_TWO = 16, BY_FOUR = 32, BY_WIDTH = 64 }; /* bytes of a vector */

/* Products of the columns of a panel added to the upper triangle. */
INLINE void add_panel(const double *panel, int64_t count, int64_t width, double *sum,
                      const int vector) {
    const int rows = vector == BY_WIDTH ? 8 : 4, columns = vector == BY_TWO ? 4 : 8;
    for (int64_t j = 0; j < width; j += columns)
        for (int64_t i = 0; i < j + columns; i += rows) {
            double *at = sum + i * width + j;
            if (vector == BY_WIDTH) add_by_eight(panel + i, panel + j, count, width, at);
            if (vector == BY_FOUR) add_by_four(panel + i, panel + j, count, width, at);
            if (vector == BY_TWO) add_by_two(panel + i, panel + j, count, width, at);
        }
}

/* One matrix. Rows of `panel` beyond the rank are zero; `part` and `total` are width by width. */
INLINE void gram_of(const gram_shape *shape, const void *data, int64_t width, double *panel,
                    double *part, double *total, double *out, const int vector) {
    int64_t rank = shape->rank, step = PANEL / width > WIDTH ? PANEL / width : WIDTH;
    memset(total, 0, (size_t)(width * width) * sizeof *total);
    for (int64_t piece = 0; piece < shape->columns; piece += PIECE) {
        int64_t end = piece + PIECE < shape->columns ? piece + PIECE : shape->columns;
        memset(part, 0, (size_t)(width * width) * sizeof *part);
        for (int64_t first = piece; first < end; first += step) {
            int64_t count = first + step < end ? step : end - first;
            fill(shape, data, first, count, width, panel);
            add_panel(panel, count, width, part, vector);
        }
        for (int64_t i = 0; i < width * width; i++) total[i] += part[i];
    }
    for (int64_t i = 0; i < rank; i++)
        for (int64_t j = 0; j < rank; j++)
            out[i * rank + j] = total[i <= j ? i * width + j : j * width + i];
}

typedef void gram_function(const gram_shape *shape, const void *data, int64_t width, double *panel,
                           double *part, double *total, double *out);

#define DEFINE_GRAM(name, vector)                                                                 \
    static void name(const gram_shape *shape, const void *data, int64_t width, double *panel,     \
                     double *part, double *total, double *out) {                                  \
        gram_of(shape, data, width, panel, part, total, out, vector);                             \
    }

DEFINE_GRAM(gram_portable, BY_TWO)
#if GONIO_X86
AVX2_TARGET DEFINE_GRAM(gram_avx2, BY_FOUR)
AVX512_TARGET DEFINE_GRAM(gram_avx512, BY_WIDTH)
#endif

static gram_function *gram_for(enum level level) {
#if GONIO_X86
    if (level == AVX512) return gram_avx512;
    if (level == AVX2) return gram_avx2;
#endif
    (void)level;
    return gram_portable;
}

size_t gram_space(int64_t rank) {
    int64_t width = (rank + WIDTH - 1) / WIDTH * WIDTH;
    int64_t panel = PANEL > WIDTH * width ? PANEL : WIDTH * width;
    return (size_t)(panel + 2 * width * width);
}

void gram_matrix(const gram_shape *shape, const void *data, enum level level, double *space,
                 double *out) {
    int64_t width = (shape->rank + WIDTH - 1) / WIDTH * WIDTH;
    double *part = space + gram_space(shape->rank) - 2 * width * width;
    gram_for(level)(shape, data, width, space, part, part + width * width, out);
}
