// Training an LPFM (specification 2.2 to 2.6), forward and backward, in few passes over memory.
//
// A map is (batch, height, width, channels). Inputs and outputs of matrix products are float32, or
// bfloat16 under autocast. All other maps and all sums within a row are float32; sums over a map
// are float64, added in the order of the samples.
//
// Batch normalisations need sums over the whole batch, so a pass is divided into stages. The units
// of a stage are the samples, in any order and on any thread; a fold between two stages is one
// unit. Every RMB has three forward and three backward stages, each followed by its fold;
// training_cpu.py calls them one after another.
#pragma once
#include <stdint.h>

struct Training {
    int64_t batch, height, width;    // of t, even
    int64_t hidden;                  // of the ConvFFN, a multiple of 16
    int64_t stage, rmb;              // which stage, and of which RMB, 0 to 3
    int64_t frozen;                  // whether the running statistics normalise, not the batch's
    double momentum;                 // of the running statistics, where they are not frozen
    const float* const* parameters;  // of the LPFM, in the order of its parameters()
    void* const* buffers;  // running mean, running variance (float32) and count (int64) of each BN
    float* const* gradients;    // written: of all parameters
    const int64_t* visits;      // (4, height / 2 * width / 2): the scan's pixels in each direction
    const float *t, *gradient;  // (batch, height, width, 64); gradient: of the result
    float *result, *dt;         // the same
    char *kept, *passing;  // memory from the forward to the backward pass; of the backward pass
    int64_t* sizes;  // written by the first stage: bytes of both, and float32 numbers of scratch
};
