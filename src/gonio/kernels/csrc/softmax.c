/* From scores to weights as float32: the loops of a running softmax, which compilers vectorize. */
#include <math.h>
#include <string.h>

#include "weights.h"

#if GONIO_X86
#include <immintrin.h>
#endif
#if GONIO_NEON
#include <arm_neon.h>
#endif

#define LANES 16 /* partial sums of weights */

/* Turns scores into weights exp(score - max) in place, max being the largest so far, `most` that of
 * the tile; returns what earlier weights must be multiplied by. */
INLINE float soften(float *score, int count, float most, float *max, float *total,
                    const int fused) {
    float now = most > *max ? most : *max, sum[LANES] = {0};
    if (now == -INFINITY) { /* everything so far is masked */
        memset(score, 0, (size_t)count * sizeof *score);
        return 1.0f;
    }
    for (int i = 0; i < count; i += LANES)
        for (int k = 0; k < LANES; k++) {
            score[i + k] = exp_negative(score[i + k] - now, fused);
            sum[k] += score[i + k];
        }
    float factor = *max == -INFINITY ? 0.0f : exp_negative(*max - now, fused);
    *total *= factor;
    for (int k = 0; k < LANES; k++) *total += sum[k];
    *max = now;
    return factor;
}

INLINE void multiply(float *sums, int64_t count, const float *factor) {
    for (int64_t i = 0; i < count; i += GROUP)
        for (int g = 0; g < GROUP; g++) sums[i + g] *= factor[g];
}

/* In place where `score` is `found`. */
INLINE void to_float(const int32_t *found, int count, float scale, float bias, float *score) {
    for (int i = 0; i < count; i += LANES) {
        int32_t part[LANES];
        memcpy(part, found + i, sizeof part);
        for (int k = 0; k < LANES; k++) score[i + k] = (float)part[k] * scale + bias;
    }
}

static float largest_portable(const float *x, int count) {
    float most = -INFINITY;
    for (int i = 0; i < count; i++) most = x[i] > most ? x[i] : most;
    return most;
}

#if GONIO_X86 /* compilers turn sums into vectors, but not strict maxima */
AVX2_TARGET static float largest_avx2(const float *x, int count) {
    __m256 most = _mm256_set1_ps(-INFINITY);
    for (int i = 0; i < count; i += 8) most = _mm256_max_ps(most, _mm256_loadu_ps(x + i));
    float each[8];
    _mm256_storeu_ps(each, most);
    return largest_portable(each, 8);
}

AVX512_TARGET static float largest_avx512(const float *x, int count) {
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (int i = 0; i < count; i += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(x + i));
    return _mm512_reduce_max_ps(most);
}
#endif

#if GONIO_NEON
static float largest_neon(const float *x, int count) {
    float32x4_t most = vdupq_n_f32(-INFINITY);
    for (int i = 0; i < count; i += 4) most = vmaxq_f32(most, vld1q_f32(x + i));
    return vmaxvq_f32(most);
}
#endif

/* The loops above for one instruction set. */
#define MAKE_LOOPS(name, target, fused)                                                           \
    target static float soften_##name(float *s, int n, float o, float *m, float *t) {             \
        return soften(s, n, o, m, t, fused);                                                      \
    }                                                                                             \
    target static void multiply_##name(float *s, int64_t n, const float *f) { multiply(s, n, f); } \
    target static void to_float_##name(const int32_t *f, int n, float s, float b, float *o) {     \
        to_float(f, n, s, b, o);                                                                  \
    }                                                                                             \
    static const loops loops_##name = {soften_##name, multiply_##name, to_float_##name,           \
                                       largest_##name};

MAKE_LOOPS(portable, , 0)
#if GONIO_X86
MAKE_LOOPS(avx2, AVX2_TARGET, 1)
MAKE_LOOPS(avx512, AVX512_TARGET, 1)
#endif
#if GONIO_NEON
MAKE_LOOPS(neon, , 1)
#endif

const loops *loops_for(enum level level) {
#if GONIO_X86
    if (level == AVX512) return &loops_avx512;
    if (level == AVX2) return &loops_avx2;
#endif
#if GONIO_NEON
    if (level == NEON) return &loops_neon;
#endif
    (void)level;
    return &loops_portable;
}
