/* Cells of entropy-coded coordinates (see kvcache/entropy_codec.py): their codes and ideal bits. */
#include <math.h>

#include "gonio_kernels.h"

#define TOKENS 64 /* of a block */
#define SIDE_BY_SIDE 8
#define MOST_COMPARED 48 /* edges; where more of them are in question, each value is searched for */
#define LARGEST_CODE 32767.0f

/* Of each coordinate 2 * radius ascending edges, and what a code costs in 2^-16 bits: those of
 * -radius..radius, one beyond every table, and the place of the cheapest, counted from -radius. */
typedef struct {
    const float *edges;
    const int32_t *costs, *escaped;
    const int16_t *cheapest;
    int64_t coordinates, radius;
} cells;

/* Edges below a value: the place of its cell. */
static int64_t place_of(const float *edges, int64_t count, float value) {
    int64_t first = 0;
    while (count > 0) {
        int64_t half = count / 2;
        if (edges[first + half] < value)
            first += half + 1, count -= half + 1;
        else
            count = half;
    }
    return first;
}

static void find_range(const float *y, float *least, float *most) {
    float low[SIDE_BY_SIDE], high[SIDE_BY_SIDE];
    for (int k = 0; k < SIDE_BY_SIDE; k++) low[k] = high[k] = y[k];
    for (int t = SIDE_BY_SIDE; t < TOKENS; t += SIDE_BY_SIDE)
        for (int k = 0; k < SIDE_BY_SIDE; k++) {
            low[k] = y[t + k] < low[k] ? y[t + k] : low[k];
            high[k] = y[t + k] > high[k] ? y[t + k] : high[k];
        }
    for (int k = 1; k < SIDE_BY_SIDE; k++) {
        low[0] = low[k] < low[0] ? low[k] : low[0];
        high[0] = high[k] > high[0] ? high[k] : high[0];
    }
    *least = low[0], *most = high[0];
}

/* Cost of one coordinate of a block, and its codes where `codes` is not NULL. Only the edges
 * between the least and the largest value are compared with. */
static int64_t cost_of(const cells *c, int64_t j, const float *y, int16_t *codes) {
    const int64_t count = 2 * c->radius;
    const float *edges = c->edges + j * count, limit = (float)c->radius + 0.5f;
    const int32_t *costs = c->costs + j * (count + 1);
    float least, most;
    int32_t places[TOKENS];
    find_range(y, &least, &most);
    int64_t low = place_of(edges, count, least), high = place_of(edges, count, most);
    int64_t total = TOKENS * (int64_t)costs[low];
    int is_far = most > limit || least < -limit, needs_places = codes || is_far;
    if (high - low > MOST_COMPARED) {
        total = 0;
        for (int t = 0; t < TOKENS; t++) {
            places[t] = (int32_t)place_of(edges, count, y[t]);
            total += costs[places[t]];
        }
    } else if (needs_places) {
        for (int t = 0; t < TOKENS; t++) places[t] = (int32_t)low;
        for (int64_t e = low; e < high; e++)
            for (int t = 0; t < TOKENS; t++) places[t] += y[t] > edges[e];
        total = 0;
        for (int t = 0; t < TOKENS; t++) total += costs[places[t]];
    } else {
        for (int64_t e = low; e < high; e++) {
            int32_t above = 0;
            for (int t = 0; t < TOKENS; t++) above += y[t] > edges[e];
            total += above * ((int64_t)costs[e + 1] - costs[e]);
        }
    }
    if (!needs_places) return total;
    for (int t = 0; t < TOKENS; t++) {
        float code = (float)(places[t] - c->radius);
        if (fabsf(y[t]) > limit) {
            total += (int64_t)c->escaped[j] - costs[places[t]];
            code = rintf(y[t]);
            code = code > LARGEST_CODE ? LARGEST_CODE : code < -LARGEST_CODE ? -LARGEST_CODE : code;
        }
        if (codes) codes[t] = (int16_t)code;
    }
    return total;
}

/* Blocks `which` of rows [coordinates][blocks][64], each times its scale: their costs, and where
 * it is not NULL codes [coordinates][count][64]. A block of scale 0 is lost: its cheapest codes. */
EXPORT void gonio_cells(const cells *c, const float *rows, int64_t blocks, const int64_t *which,
                        const float *scale, int64_t count, int64_t *costs, int16_t *codes) {
    for (int64_t i = 0; i < count; i++) costs[i] = 0;
    for (int64_t j = 0; j < c->coordinates; j++)
        for (int64_t i = 0; i < count; i++) {
            int16_t *own = codes ? codes + (j * count + i) * TOKENS : 0;
            if (scale[i] == 0.0f) {
                int16_t place = c->cheapest[j];
                costs[i] += TOKENS * (int64_t)c->costs[j * (2 * c->radius + 1) + place];
                for (int t = 0; own && t < TOKENS; t++) own[t] = (int16_t)(place - c->radius);
                continue;
            }
            const float *row = rows + (j * blocks + which[i]) * TOKENS;
            float y[TOKENS];
            for (int t = 0; t < TOKENS; t++) y[t] = row[t] * scale[i];
            costs[i] += cost_of(c, j, y, own);
        }
}
