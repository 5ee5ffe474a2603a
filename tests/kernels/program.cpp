// The kernels' own test, without Python: elementary functions against the C library, the scan
// against its definition in double. Compiled and run for each level and platform by
// test_program.py. Says what failed; returns how much did.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
#include "scan.h"
#include "vec.h"

KERNEL(scan_forward, Scan);
KERNEL(scan_backward, ScanGradients);

static int failures = 0;

static void check(bool holds, const char* what, double found) {
    if (holds) return;
    failures++;
    printf("%s: %g\n", what, found);
}

static double uniform() {  // in [-1, 1), the same numbers everywhere
    static uint64_t state = 88172645463325252u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)(state >> 11) / (1ull << 52) - 1;
}

// Memory that ends where it says it does: on a page that nobody may touch where a sanitizer looks
// after it.
struct Numbers {
    int64_t count;
    float* at;
    explicit Numbers(int64_t count, double scale = 0, double offset = 0)
        : count(count), at((float*)malloc(count * sizeof(float))) {
        for (int64_t i = 0; i < count; i++)
            at[i] = (float)(scale ? scale * uniform() + offset : offset);
    }
    ~Numbers() { free(at); }
    Numbers(const Numbers&) = delete;
};

static double furthest(const float* found, const double* exact,
                       int64_t count) {  // relative to the largest
    double difference = 0, largest = 1e-30;
    for (int64_t i = 0; i < count; i++) {
        if (!(fabs(found[i] - exact[i]) <= difference)) difference = fabs(found[i] - exact[i]);
        if (fabs(exact[i]) > largest) largest = fabs(exact[i]);
    }
    return difference / largest;
}

template <class V> static float lane(float x, V (*function)(V)) {
    return function(V{} + x)[lanes<V> - 1];
}

template <class V> static void elementary_functions() {
    auto power = [](V x) { return exp2_of_product(x, V{} + 1.0f); };
    double relative = 0, absolute = 0;
    for (int i = 0; i < 40000; i++) {
        float x = -125.0f * i / 40000;
        relative = fmax(relative, fabs(lane<V>(x, power) / exp2(x) - 1));
        float slow = -1e-3f * i / 40000;
        absolute = fmax(absolute, fabs(lane<V>(slow, power) - exp2(slow)));
    }
    check(relative < 4e-7, "2**x, relative error", relative);
    check(absolute < 6.1e-8, "2**x of a slow decay, error", absolute);
    for (float x = -151; x > -1e30f; x *= 7)
        check(lane<V>(x, power) == 0, "2**x far below all numbers", x);
    auto sigmoid_ = [](V x) { return sigmoid(x); };
    auto below = [](V x) {
        V bell;
        return normal_below(x, bell);
    };
    for (int i = -4000; i <= 4000; i++) {
        float x = i / 200.0f;
        double s = 1 / (1 + exp(-(double)x)), n = erfc(-x / sqrt(2.0)) / 2;
        check(fabs(lane<V>(x, sigmoid_) - s) < 2e-7, "sigmoid", x);
        check(fabs(lane<V>(x, below) - n) < 2e-7, "the normal distribution", x);
    }
    V numbers[lanes<V>], total = {};
    for (int n = 0; n < lanes<V>; n++)
        for (int i = 0; i < lanes<V>; i++) numbers[n][i] = (float)(n * lanes<V> + i);
    V each = sums(numbers);
    for (int n = 0; n < lanes<V>; n++) {
        float expected = lanes<V> * (n * lanes<V> + (lanes<V> - 1) / 2.0f);
        check(each[n] == expected && sum(numbers[n]) == expected, "the sum of lanes", each[n]);
        total += numbers[n];
    }
}

// Both passes over groups of sequences whose pixels are visited in some order, against loops in
// double.
static void scan(int64_t slabs, int64_t groups, int64_t length, int64_t used, int64_t rank) {
    constexpr int STATE = 16;
    int64_t width = used > LANES / 2 ? LANES : LANES / 2,
            channels = (used + width - 1) / width * width;
    int64_t segments = (length + 63) / 64, lines = rank + 2 * STATE, constants = 18 + rank;
    Numbers u(groups * length * channels, 1), dt(groups * length * channels, 0.5, 0.5),
        rows(groups * length * lines, 1);
    Numbers weight(groups * used * rank + 1, 1), bias(groups * used, 1, -1),
        A(groups * used * STATE, 2, -2.1);
    Numbers D(groups * used, 1), dy(groups * length * channels, 1);
    Numbers kept(groups * segments * channels * STATE), y(slabs * length * channels);
    Numbers du(slabs * length * channels), ddt(groups * length * channels),
        drows(groups * length * lines);
    Numbers dconstants(groups * channels * constants),
        scratch((3 * 64 + (2 * 65 + 1) * STATE + 4 * (34 + rank)) * width);
    int64_t* visits = (int64_t*)malloc(groups * length * sizeof(int64_t));
    for (int64_t k = 0; k < groups; k++)
        for (int64_t t = 0; t < length; t++) visits[k * length + t] = k % 2 ? length - 1 - t : t;
    for (int64_t i = 0; i < u.count; i++)
        if (i % channels >= used) u.at[i] = dt.at[i] = dy.at[i] = 0;
    Scan a = {slabs,
              groups,
              length,
              channels,
              used,
              rank,
              visits,
              u.at,
              dt.at,
              groups * length * channels,
              length * channels,
              rows.at,
              groups * length * lines,
              length * lines,
              lines,
              weight.at,
              bias.at,
              A.at,
              D.at,
              kept.at,
              y.at};
    ScanGradients b = {a,           dy.at,         a.u_batch, a.u_group,    du.at,
                       drows.at,    dconstants.at, ddt.at,    a.rows_batch, a.rows_group,
                       a.rows_pixel};
    JOINED(scan_forward, LEVEL)(0, slabs * (channels / width), &a, scratch.at);
    JOINED(scan_backward, LEVEL)(0, slabs, &b, scratch.at);

    double* exact = (double*)calloc(y.count + du.count + drows.count, sizeof(double));
    double *ey = exact, *edu = ey + y.count, *edrows = edu + du.count,
           (*h)[STATE] = (double (*)[STATE])malloc((length + 1) * sizeof *h);
    for (int64_t k = 0; k < groups; k++)
        for (int64_t c = 0; c < used; c++) {
            double adjoint[STATE] = {};
            const float* rates = A.at + (k * used + c) * STATE;
            auto size = [&](int64_t pixel, double* slope) {
                if (!rank) return (double)dt.at[(k * length + pixel) * channels + c];
                double raw = bias.at[k * used + c];
                for (int64_t j = 0; j < rank; j++)
                    raw += (double)weight.at[(k * used + c) * rank + j] *
                           rows.at[(k * length + pixel) * lines + j];
                *slope = 1 / (1 + exp(-raw));
                return log1p(exp(raw));
            };
            for (int n = 0; n < STATE; n++) h[0][n] = 0;
            for (int64_t t = 0; t < length; t++) {
                int64_t pixel = visits[k * length + t], at = (k * length + pixel) * channels + c;
                const float* B = rows.at + (k * length + pixel) * lines + rank;
                double slope, d = size(pixel, &slope),
                              *result = ey + ((k % slabs) * length + pixel) * channels + c;
                *result += (double)D.at[k * used + c] * u.at[at];
                for (int n = 0; n < STATE; n++) {
                    h[t + 1][n] = exp(d * rates[n]) * h[t][n] + d * u.at[at] * B[n];
                    *result += B[STATE + n] * h[t + 1][n];
                }
            }
            for (int64_t t = length - 1; t >= 0; t--) {
                int64_t pixel = visits[k * length + t], at = (k * length + pixel) * channels + c;
                const float* B = rows.at + (k * length + pixel) * lines + rank;
                double slope = 0, d = size(pixel, &slope), g = dy.at[at], x = u.at[at], along_B = 0,
                       along_A = 0;
                double* drow = edrows + (k * length + pixel) * lines;
                for (int n = 0; n < STATE; n++) {
                    double l = B[STATE + n] * g + adjoint[n];
                    adjoint[n] = exp(d * rates[n]) * l;
                    along_B += l * B[n], along_A += adjoint[n] * h[t][n] * rates[n];
                    drow[rank + n] += l * d * x, drow[rank + STATE + n] += g * h[t + 1][n];
                }
                edu[((k % slabs) * length + pixel) * channels + c] +=
                    D.at[k * used + c] * g + d * along_B;
                for (int64_t j = 0; j < rank; j++)
                    drow[j] +=
                        (x * along_B + along_A) * slope * weight.at[(k * used + c) * rank + j];
            }
        }
    double far = furthest(y.at, ey, y.count);
    check(far < 3e-6, "the scan, error", far);
    far = furthest(du.at, edu, du.count);
    check(far < 1e-5, "the scan's gradient of u, error", far);
    far = furthest(drows.at, edrows, drows.count);
    check(far < 1e-5, "the scan's gradient of r, B and C, error", far);
    free(exact), free(h), free(visits);
}

int main() {
    elementary_functions<vec>();
    if constexpr (LANES > 2) elementary_functions<half>();
    const int64_t channels[] = {1, LANES / 2, LANES - 1, LANES, 3 * LANES, 5 * LANES + 1},
                  lengths[] = {1, 63, 64, 65, 200};
    for (int64_t used : channels)
        for (int64_t length : lengths) {
            scan(2, 4, length, used, 1);
            scan(2, 4, length, used, 3);
            scan(3, 3, length, used, 0);
        }
    printf(failures ? "%d failed\n" : "all hold\n", failures);
    return failures != 0;
}
