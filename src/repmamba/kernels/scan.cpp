#include "kernels.h"
#include "vec.h"

struct Probe { float* values; int64_t count; };

KERNEL(probe, Probe) { (void)scratch; for (int64_t i = first; i < last; i++) store(a->values + i * LANES, splat(2) * load(a->values + i * LANES)); }
