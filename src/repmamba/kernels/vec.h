// Vectors of float32 through the compiler's own vector types: AVX-512, AVX2, SSE or NEON,
// depending on the target. And bfloat16, in memory and in products.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float half __attribute__((vector_size(2 * LANES)));  // with AVX-512, eight channels
typedef uint16_t bfloat16;

static inline int64_t less(int64_t a, int64_t b) { return a < b ? a : b; }

template <class V> constexpr int lanes = sizeof(V) / sizeof(float);

// The vector that maps of C channels are taken in: half a register for eight with AVX-512.
template <int C> constexpr auto vector_for() {
    if constexpr (C < LANES) return half{};
    else return vec{};
}

// A vector's bits, and as many bfloat16.
template <class V> struct Bits {
    typedef uint32_t Wide __attribute__((vector_size(sizeof(V))));
    typedef bfloat16 Narrow __attribute__((vector_size(sizeof(V) / 2)));
};

template <class V = vec> static inline V splat(float x) { return x - V{}; }

template <class V = vec, class T> static inline V read(const T* at) {
    V v;
    memcpy(&v, at, sizeof v);
    return v;
}
template <class V = vec> static inline V load(const float* at) { return read<V>(at); }
template <class V = vec> static inline V load(const bfloat16* at) {
    auto narrow = read<typename Bits<V>::Narrow>(at);
    return (V)(__builtin_convertvector(narrow, typename Bits<V>::Wide) << 16);
}

template <class V> static inline void store(float* at, V v) { memcpy(at, &v, sizeof v); }
template <class V> static inline void store(bfloat16* at, V v) {  // rounded to the nearest, even
#if defined(__AVX512BF16__)
    typedef __bf16 Rounded __attribute__((vector_size(sizeof(V) / 2)));
    auto narrow = __builtin_convertvector(v, Rounded);
#else
    auto of = (typename Bits<V>::Wide)v, even = of + 0x7fff + (of >> 16 & 1), nan = of >> 16 | 64;
    auto narrow = __builtin_convertvector(v == v ? even >> 16 : nan, typename Bits<V>::Narrow);
#endif
    memcpy(at, &narrow, sizeof narrow);
}

template <class V> static inline void add(float* at, V v) { store(at, load<V>(at) + v); }
template <class V> static inline void add(double* at, V v) {
    typedef double Double __attribute__((vector_size(2 * sizeof(V))));
    Double sum = read<Double>(at) + __builtin_convertvector(v, Double);
    memcpy(at, &sum, sizeof sum);
}

template <class V, int N> static inline V polynomial(V x, const float (&c)[N]) {
    V value = splat<V>(c[N - 1]);
    for (int n = N - 2; n >= 0; n--) value = value * x + c[n];
    return value;
}

// 2**x for x < 127, within 4e-7 relative; 0 for what is far below the normal numbers.
template <class V> static inline V exp2_negative(V x) {
    constexpr float rounding = 1.5f * (1 << 23) + 127;
    x = x < -127.0f ? splat<V>(-127.0f) : x;
    V rounded = x + rounding, fraction = x - (rounded - rounding);
    V mantissa =
        polynomial(fraction, {1.0f, 0.6931469776146085f, 0.24022242082764403f, 0.05550733727942721f,
                              0.009671512761332228f, 0.0013264730964927358f});
    return mantissa * (V)((typename Bits<V>::Wide)rounded << 23);
}

#if defined(__AVX2__)
typedef float eight __attribute__((vector_size(32)));

// The same for eight numbers, by a table of 8 powers. Entry j has j << 20 subtracted from its
// bits, so that the exponent can be added.
static inline eight exp2_negative(eight x) {
    typedef decltype(x < x) Signed;
    constexpr float rounding = 1.5f * (1 << 23) / 8;
    alignas(32) static const int32_t powers[8] = {1065353216, 1065063874, 1064843248, 1064697559,
                                                  1064633587, 1064658730, 1064781053, 1065009351};
    x = x < -127.0f ? splat<eight>(-127.0f) : x;
    eight rounded = x + rounding, fraction = x - (rounded - rounding);
    auto power = (Signed)_mm256_permutevar8x32_epi32(*(const __m256i*)powers, (__m256i)rounded);
    return polynomial(fraction, {1.0f, 0.6931471805599453f, 0.2402576f, 0.0555041087f}) *
           (eight)(power + ((Signed)rounded << 20));
}
#endif

#if defined(__AVX512F__)
// 2**(a b), by a table of 32 powers and the instruction that scales by a power of two.
static inline vec exp2_of_product(vec a, vec b) {
    constexpr float rounding = 1.5f * (1 << 23) / 32;
    static const float powers[32] = {
        1.0f,        1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f,
        1.1637249f,  1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f,
        1.35425556f, 1.38390994f, 1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f,
        1.5759809f,  1.61049032f, 1.64575553f, 1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f,
        1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};
    vec rounded = a * b + rounding, exponent = rounded - rounding;
    vec mantissa = polynomial(a * b - exponent, {1.0f, 0.6931471805599453f, 0.2402265069591007f});
    __m512 power = _mm512_permutex2var_ps(_mm512_loadu_ps(powers), (__m512i)rounded,
                                          _mm512_loadu_ps(powers + 16));
    return (vec)_mm512_scalef_ps((__m512)mantissa * power, (__m512)exponent);
}
#endif
template <class V> static inline V exp2_of_product(V a, V b) { return exp2_negative(a * b); }

// 1 / x for x of moderate size, within 1.2e-7 relative. A division occupies its unit for 10 to 16
// cycles.
template <class V> static inline V reciprocal(V x) { return 1.0f / x; }
#if defined(__AVX512F__)
static inline vec reciprocal(vec x) {
    vec first = (vec)_mm512_rcp14_ps((__m512)x);
    return first + first * (1.0f - x * first);
}
#endif

template <class V> static inline V sigmoid(V x) {
    x = x < -80.0f ? splat<V>(-80.0f) : x;  // so that the power is finite
    return reciprocal(1.0f + exp2_of_product(x, splat<V>(-1.4426950408889634f)));
}

// The normal distribution below x; bell: exp(-x^2 / 2).
template <class V> static inline V normal_below(V x, V& bell) {
    V magnitude = x > 0.0f ? x : -x, t = reciprocal(1.0f + 0.28f * magnitude);
    bell = exp2_of_product(x * x, splat<V>(-1.4426950408889634f / 2));
    V tail = bell * t *
             polynomial(t, {0.11711906506669244f, 0.0637222643650924f, 0.27837123603337927f,
                            -0.24877396869464297f, 0.397162292892567f, -0.10760095996915225f});
    return x > 0.0f ? 1.0f - tail : tail;
}

// Types with functions are in an unnamed namespace of each file: otherwise the linker would merge
// functions of different levels, because their names are the same.
namespace {
struct Same {
    template <class V> static V of(V x) { return x; }
};
struct Silu {
    template <class V> static V of(V x) { return x * sigmoid(x); }
};
struct Gelu {
    template <class V> static V of(V x) {
        V bell;
        return x * normal_below(x, bell);
    }
};
}  // namespace

// A loop over registers, which has to be unrolled for them to be registers.
#define UNROLLED(n, count) _Pragma("clang loop unroll(full)") for (int n = 0; n < (count); n++)

// fold<N>: pairs of neighbouring blocks of N lanes added up, of a in the even places, of b in the
// odd ones.
template <int... I> struct Places {};
template <class T, T... I> using PlacesOf = Places<I...>;
template <int N, class V, int... I> static inline V fold(V a, V b, Places<I...>) {
    return __builtin_shufflevector(a, b, (I & N ? lanes<V> + I - N : I)...) +
           __builtin_shufflevector(a, b, (I & N ? lanes<V> + I : I + N)...);
}

// The sum of the lanes of each of `lanes` vectors, the n-th in lane n: 15 additions for 16 vectors
// of 16 lanes.
template <int N = 1, class V, int COUNT> static inline V sums(const V (&v)[COUNT]) {
    if constexpr (COUNT == 1) {
        return v[0];
    } else {
        V folded[COUNT / 2];
        UNROLLED(n, COUNT / 2)
            folded[n] =
                fold<N>(v[2 * n], v[2 * n + 1], __make_integer_seq<PlacesOf, int, lanes<V>>{});
        return sums<2 * N>(folded);
    }
}

// The sum of the lanes, in the order of a fixed tree.
template <class V, int N = lanes<V> / 2> static inline float sum(V v) {
    if constexpr (N == 0) return v[0];
    else return sum<V, N / 2>(fold<N>(v, v, __make_integer_seq<PlacesOf, int, lanes<V>>{}));
}
