// The passes of the fused network, from its first convolution to the enlarged image (specification
// 2 and 7).
//
// A map is (pixels, channels): the pixels of all images of a batch, row by row. A pass goes down an
// image and keeps the rows it needs in rings, so it reads and writes each map once. Its units are
// pairs of rows, batch * height / 2 of them; height and width are even. Channels are a multiple of
// 8. Matrices are (inputs, outputs) in panels (products.h). Strides are in numbers, from one pixel
// to the next.
#pragma once
#include <stdint.h>

// A 3x3 convolution of the image, and the layer normalisation of its result.
struct FirstConvolution {
    int64_t height, width, inputs, outputs;
    const float *x, *edge;       // (pixels, inputs); (inputs): the values of the frame around x
    const float *weight, *bias;  // three matrices (3 inputs, outputs), one for each row; (outputs)
    const float *scale, *shift;  // (outputs)
    float *result, *normalised;  // (pixels, outputs); normalised may be null: not wanted
};

// The first half of an RMB: n = LN(v), x = SiLU(3x3(in_x n)); its low half is pooled and projected
// for the scan.
struct Front {
    int64_t height, width, channels;  // channels: C
    const float* v;                   // (pixels, C)
    int64_t v_stride;
    const float *in_x, *in_x_bias;       // (C, 2C), (2C)
    const float *conv, *conv_bias;       // (9, 2C), (2C): depthwise
    const float *high_conv, *high_bias;  // (9, C), (C): depthwise, of the high half
    const float* x_proj;                 // (C, projections)
    int64_t projections;
    void* halves;  // (pixels, 2C): low less its pooled means, high; float32 or bfloat16
    float *pooled, *projected;  // (pixels / 4, C), (pixels / 4, projections)
};

// Its second half: y = LN(low + bilinear(scanned), high);
// result = out_proj(y SiLU(in_z n)) + gain v.
struct Tail {
    int64_t height, width, channels;
    const float* v;
    int64_t v_stride;
    const float *in_z, *in_z_bias;       // (C, 2C), (2C)
    const float* scanned;                // (batch, 2, pixels / 4, C), to be added
    const void* halves;                  // of Front
    const float *out_scale, *out_shift;  // (2C)
    const float *out_proj, *out_bias;    // (2C, C), (C)
    const float* gain;                   // (C)
    const float* beside;                 // (pixels, n), copied behind the result's channels
    int64_t beside_stride, beside_channels;
    float* result;  // (pixels, C + n); may be v
    int64_t result_stride;
};

// a + fc2(h + GELU(5x5(h))), h = GELU(fc1 LN(a)), a = t + c.
struct FeedForward {
    int64_t height, width, channels, hidden;
    const float *t, *c;             // (pixels, C)
    const float *fc1, *fc1_bias;    // (C, hidden), (hidden)
    const float *conv, *conv_bias;  // (25, hidden), (hidden)
    const float *fc2, *fc2_bias;    // (hidden, C), (C)
    float* result;                  // (pixels, C)
};

// A 3x3 convolution + skip, times the slope below zero: Winograd's, or the plain one with AMX.
struct Convolution {
    int64_t height, width, inputs, outputs;
    const float* x;                               // (pixels, inputs)
    int64_t norm;                                 // whether x is normalised first, with this affine
    const float *norm_scale, *norm_shift, *edge;  // (inputs); edge: the frame of x, normalised
    const float* weight;                          // 16 matrices (inputs, outputs), or with AMX nine
    const float* bias;                            // (outputs)
    const float* skip;                            // (pixels, outputs), or null
    double slope;
    float* result;    // (pixels, outputs), or null:
    float* shuffled;  // (batch, bands, scale height, scale width) of bands scale^2 channels
    int64_t bands, scale;
};
