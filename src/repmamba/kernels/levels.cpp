// The digest of the sources, and what the processor and its operating system support. Compiled for
// the lowest level.
#include "kernels.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if !defined(SOURCES)
#define SOURCES ""  // the build passes the digest of these files (sources.py)
#endif
EXPORTED const char sources[] = SOURCES;

enum Features : int64_t { V3 = 1, V4 = 2, PAIRS = 4, AMX = 8 };

#if defined(__x86_64__)
static bool has(uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; }

static uint64_t saved_registers() {  // which the operating system saves: XCR0
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
#endif

// The sum of Features.
EXPORTED int64_t features() {
    int64_t found = 0;
#if defined(__x86_64__)
    uint32_t a, b, c, d, b7 = 0, c7 = 0, d7 = 0, a71 = 0, ignored, extended = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, bit_OSXSAVE)) return 0;
    __get_cpuid_count(7, 0, &ignored, &b7, &c7, &d7);
    __get_cpuid_count(7, 1, &a71, &ignored, &ignored, &ignored);
    __get_cpuid(0x80000001, &ignored, &ignored, &extended, &ignored);
    uint64_t saved = saved_registers();
    constexpr uint64_t YMM = 6, ZMM = 0xe6, TILES = 3 << 17;
    bool v3 = has(c, bit_FMA | bit_MOVBE | bit_AVX | bit_F16C) &&
              has(b7, bit_AVX2 | bit_BMI | bit_BMI2) && has(extended, bit_LZCNT) &&
              (saved & YMM) == YMM;
    bool v4 = v3 &&
              has(b7, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL) &&
              (saved & ZMM) == ZMM;
    bool pairs = v4 && has(a71, 1 << 5);
    if (v3) found |= V3;
    if (v4) found |= V4;
    if (pairs) found |= PAIRS;
    if (pairs && has(d7, 1 << 22 | 1 << 24) && (saved & TILES) == TILES) found |= AMX;
#endif
    return found;
}
