/* Singular values of products of two factors from their Gram matrices, several products at a time.
 *
 * Gram matrices give triangles (Cholesky), these the core that has the product's spectrum, and
 * rotations of its columns (one-sided Jacobi) its singular values. What each step means, and how
 * wrong it can be, is said in linalg/gram.py. Every level computes the same bits. */
#include <stdlib.h>
#include <string.h>

#define LANES 2
#include "spectra_lanes.h"

static void spectra_portable(const spectra_work *w, double *values, double *relative,
                             double *bound) {
    find_spectra(w, values, relative, bound);
}

static spectra_function *spectra_for(enum level level, int64_t *lanes) {
#if GONIO_X86
    *lanes = level == AVX512 ? 8 : 4;
    if (level == AVX512) return spectra_avx512;
    if (level == AVX2) return spectra_avx2;
#endif
    (void)level;
    *lanes = LANES;
    return spectra_portable;
}

static int is_smaller(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* What a call keeps in memory. */
typedef struct {
    spectra_work work;
    double *panel, *values, *error;
} places;

static places place(int64_t rank, int64_t lanes, arena *space) {
    size_t number = sizeof(double), size = (size_t)(lanes * rank * rank);
    places p = {{rank, {0, 0}, NULL, NULL}, NULL, NULL, NULL};
    p.work.gram = take(space, 2 * size * number);
    p.work.space = take(space, (size_t)(SPECTRA_SPACE(rank) * lanes) * number);
    p.panel = take(space, gram_space(rank) * number);
    p.values = take(space, (size_t)(lanes * rank) * number);
    p.error = take(space, (size_t)(2 * lanes) * number);
    return p;
}

/* Of `count` products of factors whose first elements are at b[i] and a[i], B read as B^T: singular
 * values in descending order [count][rank], the bound on their relative error (infinite where Gram
 * matrices cannot be used) and the sum of |b_k| |a_k|. Returns 0, or -1 without memory. */
EXPORT int gonio_spectra(const void *const *b, const void *const *a, int64_t count,
                         const gram_shape *shapes, const double *entry_error, int level,
                         double *sigma, double *relative, double *bound) {
    int64_t rank = shapes[0].rank, size = rank * rank, lanes;
    enum level chosen = base_level(level);
    spectra_function *find = spectra_for(chosen, &lanes);
    arena space = {NULL, 0};
    place(rank, lanes, &space);
    space.start = aligned_alloc(64, space.used);
    if (!space.start) return -1;
    space.used = 0;
    places p = place(rank, lanes, &space);
    memcpy(p.work.entry_error, entry_error, sizeof p.work.entry_error);
    memset(p.panel, 0, gram_space(rank) * sizeof(double));
    for (int64_t first = 0; first < count; first += lanes) {
        int64_t left = count - first, filled = left < lanes ? left : lanes;
        memset(p.work.gram, 0, (size_t)(2 * lanes * size) * sizeof(double)); /* lanes left over */
        for (int64_t l = 0; l < filled; l++) {
            double *gram = p.work.gram + l * size;
            gram_matrix(shapes, b[first + l], chosen, p.panel, gram);
            gram_matrix(shapes + 1, a[first + l], chosen, p.panel, gram + lanes * size);
        }
        find(&p.work, p.values, p.error, p.error + lanes);
        for (int64_t l = 0; l < filled; l++) {
            double *found = p.values + l * rank;
            qsort(found, (size_t)rank, sizeof *found, is_smaller);
            memcpy(sigma + (first + l) * rank, found, (size_t)rank * sizeof *sigma);
            relative[first + l] = p.error[l];
            bound[first + l] = p.error[lanes + l];
        }
    }
    free(space.start);
    return 0;
}
