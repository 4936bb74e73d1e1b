/* Singular values of four products side by side. */
#define LANES 4
#include "spectra_lanes.h"

#if GONIO_X86
AVX2_TARGET void spectra_avx2(const spectra_work *w, double *values, double *relative,
                              double *bound) {
    find_spectra(w, values, relative, bound);
}
#endif
