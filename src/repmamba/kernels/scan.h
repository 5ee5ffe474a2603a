// The selective scan of Gu and Dao 2023: h <- exp(dt A) h + dt B u;  y = <C, h> + D u;  h is zero
// at first.
//
// A group of `channels` channels is scanned along one sequence of pixels; a map has four groups,
// one for each direction. Group k adds to slab k mod slabs of the result. Strides are in numbers;
// the channel stride is 1.
#pragma once
#include <stdint.h>

struct Scan {
    int64_t slabs, groups, length;
    int64_t channels;          // a multiple of the lanes, or half as many as lanes
    int64_t used;              // the parameters' channels; the others are 0
    int64_t rank;              // dt = softplus(dt_weight r + dt_bias); with rank 0, dt is given
    const int64_t* visits;     // (groups, length): the pixel of each step
    const float *u, *dt;       // (batch, groups, length, channels)
    int64_t u_batch, u_group;  // strides of both
    const float* rows;         // (batch, groups, length, rank + 32): r, B, C
    int64_t rows_batch, rows_group, rows_pixel;
    const float *dt_weight, *dt_bias;  // (groups, used, rank), (groups, used)
    const float *A, *D;                // (groups, used, 16), (groups, used)
    float* kept;  // (batch, groups, segments, channels, 16), by blocks: states before each; or null
    float* y;     // (batch, slabs, length, channels)
};

struct ScanGradients {
    Scan scan;        // y is not used
    const float* dy;  // (batch, groups, length, channels)
    int64_t dy_batch, dy_group;
    float* du;          // (batch, slabs, length, channels); zero, added to, as the next two
    float* drows;       // (batch, groups, length, rank + 32), strides as those of rows
    float* dconstants;  // (batch, groups, blocks, 18 + rank, lanes): A, D, dt_bias, dt_weight
    float* ddt;         // as dt; written when rank is 0
    int64_t drows_batch, drows_group, drows_pixel;
};
