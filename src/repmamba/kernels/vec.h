// Vectors of float32 through the compiler's own vector types: AVX-512, AVX2, SSE or NEON by its
// target.
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
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

typedef float half
    __attribute__((vector_size(2 * LANES)));  // half a register: eight channels with AVX-512

template <class V> constexpr int lanes = sizeof(V) / sizeof(float);

template <class V = vec> static inline V load(const float* at) {
    V v;
    __builtin_memcpy(&v, at, sizeof v);
    return v;
}
template <class V> static inline void store(float* at, V v) { __builtin_memcpy(at, &v, sizeof v); }
template <class V = vec> static inline V splat(float x) { return x - V{}; }

template <class V, int N> static inline V polynomial(V x, const float (&c)[N]) {
    V value = splat<V>(c[N - 1]);
    for (int n = N - 2; n >= 0; n--) value = value * x + c[n];
    return value;
}

// 2**x for x < 127, within 4e-7 relative; 0 for what is far below the normal numbers.
template <class V> static inline V exp2_negative(V x) {
    typedef decltype(x < x) Bits;
    constexpr float rounding = 1.5f * (1 << 23) + 127;
    x = x < -127.0f ? splat<V>(-127.0f) : x;
    V rounded = x + rounding, fraction = x - (rounded - rounding);
    V mantissa =
        polynomial(fraction, {1.0f, 0.6931469776146085f, 0.24022242082764403f, 0.05550733727942721f,
                              0.009671512761332228f, 0.0013264730964927358f});
    return mantissa * (V)((Bits)rounded << 23);
}

#if defined(__AVX2__)
typedef float eight __attribute__((vector_size(32)));

// The same of eight numbers, by a table of 8 powers, whose bits are less by j << 20 so that the
// exponent can be added.
static inline eight exp2_negative(eight x) {
    typedef decltype(x < x) Bits;
    constexpr float rounding = 1.5f * (1 << 23) / 8;
    alignas(32) static const int32_t powers[8] = {1065353216, 1065063874, 1064843248, 1064697559,
                                                  1064633587, 1064658730, 1064781053, 1065009351};
    x = x < -127.0f ? splat<eight>(-127.0f) : x;
    eight rounded = x + rounding, fraction = x - (rounded - rounding);
    Bits power = (Bits)_mm256_permutevar8x32_epi32(*(const __m256i*)powers, (__m256i)rounded) +
                 ((Bits)rounded << 20);
    return polynomial(fraction, {1.0f, 0.6931471805599453f, 0.2402576f, 0.0555041087f}) *
           (eight)power;
}
#endif

#if defined(__AVX512F__)
// 2**(a b), by a table of 32 powers and the instruction that scales by a power of two.
static inline vec exp2_of_product(vec a, vec b) {
    constexpr float rounding = 1.5f * (1 << 23) / 32;
    static const float powers[32] = {1.0f,
                                     1.0218971486541166f,
                                     1.0442737824274138f,
                                     1.0671404006768237f,
                                     1.0905077326652577f,
                                     1.1143867425958924f,
                                     1.1387886347566916f,
                                     1.1637248587775775f,
                                     1.189207115002721f,
                                     1.215247359980469f,
                                     1.241857812073484f,
                                     1.2690509571917332f,
                                     1.2968395546510096f,
                                     1.3252366431597413f,
                                     1.3542555469368927f,
                                     1.383909881963832f,
                                     1.4142135623730951f,
                                     1.4451808069770467f,
                                     1.4768261459394993f,
                                     1.5091644275934228f,
                                     1.5422108254079407f,
                                     1.5759808451078865f,
                                     1.6104903319492543f,
                                     1.645755478153965f,
                                     1.681792830507429f,
                                     1.718619298122478f,
                                     1.7562521603732995f,
                                     1.7947090750031072f,
                                     1.8340080864093424f,
                                     1.8741676341103f,
                                     1.9152065613971474f,
                                     1.9571441241754002f};
    vec rounded = a * b + rounding, exponent = rounded - rounding;
    vec mantissa = polynomial(a * b - exponent, {1.0f, 0.6931471805599453f, 0.2402265069591007f});
    __m512 power = _mm512_permutex2var_ps(_mm512_loadu_ps(powers), (__m512i)rounded,
                                          _mm512_loadu_ps(powers + 16));
    return (vec)_mm512_scalef_ps((__m512)mantissa * power, (__m512)exponent);
}
#endif
template <class V> static inline V exp2_of_product(V a, V b) { return exp2_negative(a * b); }

// 1 / x for x of moderate size, within 1.2e-7 relative. A division keeps its unit for 10 to 16
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

// The normal distribution below x.
template <class V> static inline V normal_below(V x) {
    V magnitude = x > 0.0f ? x : -x, t = reciprocal(1.0f + 0.28f * magnitude);
    V bell = exp2_of_product(x * x, splat<V>(-1.4426950408889634f / 2));
    V tail = bell * t *
             polynomial(t, {0.11711906506669244f, 0.0637222643650924f, 0.27837123603337927f,
                            -0.24877396869464297f, 0.397162292892567f, -0.10760095996915225f});
    return x > 0.0f ? 1.0f - tail : tail;
}

// Types with functions stand in a namespace of each file: the linker would take one level's
// functions for another's, whose names are the same.
namespace {
struct Same {
    template <class V> static V of(V x) { return x; }
};
struct Silu {
    template <class V> static V of(V x) { return x * sigmoid(x); }
};
struct Gelu {
    template <class V> static V of(V x) { return x * normal_below(x); }
};
}  // namespace

// Before a loop over registers, which has to be unrolled for them to be registers.
#define UNROLLED _Pragma("clang loop unroll(full)")

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
        UNROLLED
            for (int n = 0; n < COUNT / 2; n++)
                folded[n] =
                    fold<N>(v[2 * n], v[2 * n + 1], __make_integer_seq<PlacesOf, int, lanes<V>>{});
        return sums<2 * N>(folded);
    }
}

// The sum of the lanes, in the order of a fixed tree.
template <class V, int N = lanes<V> / 2> static inline float sum(V v) {
    if constexpr (N == 0) {
        return v[0];
    } else {
        return sum<V, N / 2>(fold<N>(v, v, __make_integer_seq<PlacesOf, int, lanes<V>>{}));
    }
}
