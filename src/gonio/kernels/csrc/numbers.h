/* Numbers of 16 bits as float32. */
#ifndef GONIO_NUMBERS_H
#define GONIO_NUMBERS_H

#include <string.h>

#include "gonio_kernels.h"

INLINE float number_of(uint32_t bits) {
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

/* A number with a fraction of 10 bits: its exponent is moved by a product, except infinity's. */
INLINE float half_number(uint16_t half) {
    uint32_t size = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    float found = number_of(size) * 0x1p112f;
    if (size >= 0x7c00u << 13) found = number_of(size | 0x7f800000u);
    return sign ? -found : found;
}

INLINE float bfloat16_number(uint16_t upper) { return number_of((uint32_t)upper << 16); }

#endif
