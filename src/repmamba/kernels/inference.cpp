// The passes of inference in float32.
#include "passes.h"

PASS(first_convolution, FirstConvolution, first_convolution)
PASS(front, Front, front<Exact>)
PASS(tail, Tail, tail<Exact>)
PASS(feed_forward, FeedForward, feed_forward<Exact>)
PASS(convolution, Convolution, convolution<Exact>)

EXPORTED int64_t JOINED(panel, LEVEL)() {
    return PANEL;
}  // columns of a panel of weights, see products.h
