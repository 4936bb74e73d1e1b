/* Singular values of LANES products side by side. Each level's source includes this once, with the
 * numbers that a vector of its processors holds; every product's arithmetic is the same. */
#include <float.h>

#include "gonio_kernels.h"

#pragma GCC diagnostic ignored "-Wpsabi" /* of functions that are all inlined */
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" /* gcc 11 thinks so of `root` at -O1 */
#endif

#define SWEEPS 40
#define SAFE 0x1p500 /* squared lengths within 1/SAFE and SAFE stay in range */

typedef double numbers __attribute__((vector_size(8 * LANES)));
typedef int64_t mask __attribute__((vector_size(8 * LANES)));

INLINE numbers choose(mask which, numbers yes, numbers no) {
    return (numbers)((which & (mask)yes) | (~which & (mask)no));
}

INLINE numbers all_of(double value) { return value - (numbers){0}; }

INLINE numbers root(numbers x) {
    numbers found = x;
    for (int l = 0; l < LANES; l++) found[l] = sqrt(found[l]);
    return found;
}

INLINE numbers size_of(numbers x) { return (numbers)((mask)x & INT64_MAX); }

INLINE numbers larger(numbers a, numbers b) { return choose(a > b, a, b); }

INLINE int is_any(mask which) {
    int64_t found = 0;
    for (int l = 0; l < LANES; l++) found |= which[l];
    return found != 0;
}

/* One factor of each product: rows of unit length make `gram`, which becomes the lower triangle. */
typedef struct {
    numbers *gram, *inverse, *length; /* [rank][rank], [rank][rank], [rank] */
    numbers deviation;
    mask is_usable;
} side;

/* Lengths of the rows, and the Gram matrix of rows of unit length; the identity's where squares are
 * out of range. */
INLINE void scale_rows(side *s, int64_t rank) {
    s->is_usable = ~(mask){0};
    for (int64_t i = 0; i < rank; i++) {
        numbers square = s->gram[i * rank + i];
        s->is_usable &= (square > all_of(1 / SAFE)) & (square < all_of(SAFE));
        s->length[i] = root(square);
    }
    for (int64_t i = 0; i < rank; i++)
        for (int64_t j = 0; j <= i; j++) {
            numbers scaled = s->gram[i * rank + j] / s->length[i] / s->length[j];
            s->gram[i * rank + j] = choose(s->is_usable, scaled, all_of(i == j));
        }
}

/* The lower triangle L of gram = L L^T in place; where there is none, numbers that mean nothing. */
INLINE void factorize(side *s, int64_t rank) {
    for (int64_t j = 0; j < rank; j++) {
        numbers *row = s->gram + j * rank, pivot = row[j];
        for (int64_t k = 0; k < j; k++) pivot -= row[k] * row[k];
        s->is_usable &= pivot > all_of(0);
        row[j] = root(choose(s->is_usable, pivot, all_of(1)));
        for (int64_t i = j + 1; i < rank; i++) {
            numbers *other = s->gram + i * rank, sum = other[j];
            for (int64_t k = 0; k < j; k++) sum -= other[k] * row[k];
            other[j] = sum / row[j];
        }
    }
}

/* The inverse of the triangle, and from the sums of its rows what rounding the Gram matrix did. */
INLINE void bound_deviation(side *s, int64_t rank, double entry_error) {
    numbers squares = all_of(0);
    for (int64_t i = 0; i < rank; i++) {
        const numbers *row = s->gram + i * rank;
        numbers total = all_of(0);
        for (int64_t j = 0; j <= i; j++) {
            numbers sum = all_of(i == j);
            for (int64_t k = j; k < i; k++) sum -= row[k] * s->inverse[k * rank + j];
            sum /= row[i];
            s->inverse[i * rank + j] = sum;
            total += size_of(sum);
        }
        squares += total * total;
    }
    s->deviation = choose(s->is_usable, all_of(entry_error) * squares, all_of(INFINITY));
}

/* core = (weights R_b)(R_a)^T as columns, with R the transposed triangles, weights at most 1; returns
 * their unit. bound[0] is the sum of the weights. */
INLINE numbers make_core(const side *b, const side *a, int64_t rank, numbers *weight, numbers *core,
                       numbers *bound) {
    numbers unit = all_of(0), sum = all_of(0);
    for (int64_t k = 0; k < rank; k++) {
        weight[k] = b->length[k] * a->length[k];
        unit = larger(weight[k], unit);
        sum += weight[k];
    }
    *bound = sum;
    for (int64_t k = 0; k < rank; k++) weight[k] /= unit;
    for (int64_t j = 0; j < rank; j++)
        for (int64_t i = 0; i < rank; i++) {
            numbers total = all_of(0);
            for (int64_t k = i > j ? i : j; k < rank; k++)
                total += b->gram[k * rank + i] * weight[k] * a->gram[k * rank + j];
            core[j * rank + i] = total;
        }
    return unit;
}

/* Rotates two columns until they are orthogonal; says where they were not. */
INLINE mask rotate(numbers *first, numbers *second, int64_t rank) {
    numbers one = all_of(0), two = all_of(0), both = all_of(0);
    for (int64_t i = 0; i < rank; i++) {
        one += first[i] * first[i];
        two += second[i] * second[i];
        both += first[i] * second[i];
    }
    mask is_skew = size_of(both) > all_of(DBL_EPSILON) * root(one * two);
    if (!is_any(is_skew)) return is_skew;
    numbers slope = (two - one) / (2 * choose(is_skew, both, all_of(1)));
    numbers tangent = 1 / (size_of(slope) + root(1 + slope * slope));
    tangent = choose(slope < all_of(0), -tangent, tangent);
    tangent = choose(is_skew, tangent, all_of(0));
    numbers cosine = 1 / root(1 + tangent * tangent), sine = cosine * tangent;
    for (int64_t i = 0; i < rank; i++) {
        numbers x = first[i], y = second[i];
        first[i] = cosine * x - sine * y;
        second[i] = sine * x + cosine * y;
    }
    return is_skew;
}

/* Lengths of the columns once they are orthogonal; returns where they did not become so. */
INLINE mask find_values(numbers *core, int64_t rank, numbers *value) {
    mask is_skew = {0};
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        is_skew = (mask){0};
        for (int64_t p = 0; p + 1 < rank; p++)
            for (int64_t q = p + 1; q < rank; q++)
                is_skew |= rotate(core + p * rank, core + q * rank, rank);
        if (!is_any(is_skew)) break;
    }
    for (int64_t j = 0; j < rank; j++) {
        numbers sum = all_of(0);
        for (int64_t i = 0; i < rank; i++) sum += core[j * rank + i] * core[j * rank + i];
        value[j] = root(sum);
    }
    return is_skew;
}

/* The work of one call: see spectra_function. */
INLINE void find_spectra(const spectra_work *w, double *values, double *relative,
                         double *bound) {
    int64_t rank = w->rank, size = rank * rank;
    numbers *core = (numbers *)w->space, *weight = core + size, *value = weight + rank, total;
    side sides[2];
    for (int f = 0; f < 2; f++) {
        side *s = sides + f;
        s->gram = value + rank + f * (2 * size + rank);
        s->inverse = s->gram + size;
        s->length = s->inverse + size;
        const double *gram = w->gram + f * LANES * size;
        for (int64_t i = 0; i < size; i++)
            for (int l = 0; l < LANES; l++) s->gram[i][l] = gram[l * size + i];
        scale_rows(s, rank);
        factorize(s, rank);
        bound_deviation(s, rank, w->entry_error[f]);
    }
    numbers unit = make_core(sides, sides + 1, rank, weight, core, &total);
    numbers worst = larger(sides[0].deviation, sides[1].deviation);
    mask is_usable = sides[0].is_usable & sides[1].is_usable;
    for (int64_t i = 0; i < size; i++) core[i] = choose(is_usable, core[i], all_of(0));
    is_usable &= ~find_values(core, rank, value);
    worst = choose(is_usable, worst, all_of(INFINITY));
    for (int l = 0; l < LANES; l++) {
        relative[l] = worst[l];
        bound[l] = total[l];
        for (int64_t j = 0; j < rank; j++) values[l * rank + j] = value[j][l] * unit[l];
    }
}
