// The passes of inference with products in pairs of bfloat16, by AVX512_BF16.
#include "pairs.h"

#include "passes.h"

PASS(front_pairs, Front, front<Pairs>)
PASS(tail_pairs, Tail, tail<Pairs>)
PASS(feed_forward_pairs, FeedForward, feed_forward<Pairs>)
PASS(convolution_pairs, Convolution, convolution<Pairs>)

// result = x weight of `count` rows, for tests: units are rows.
struct Product {
    const float *x, *weight;
    int64_t inputs, outputs;
    float* result;
};
KERNEL(product_pairs, Product) {
    (void)scratch;
    Pairs::product(last - first, a->x + first * a->inputs, a->inputs, a->weight, a->inputs,
                   a->outputs, Plain{a->result + first * a->outputs, a->outputs});
}
