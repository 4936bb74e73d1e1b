/* Singular values of eight products side by side. */
#define LANES 8
#include "spectra_lanes.h"

#if GONIO_X86
AVX512_TARGET void spectra_avx512(const spectra_work *w, double *values, double *relative,
                                  double *bound) {
    find_spectra(w, values, relative, bound);
}
#endif
