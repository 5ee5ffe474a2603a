// The selective scan, forward and backward. Lanes are channels: a block of them keeps its 16 states
// in 16 registers, and B and C of a pixel are broadcast, so y needs no sum over lanes. Maps are
// channels-last and a direction is a table of pixels, so nothing is flipped or copied. A sequence
// is processed in segments. The backward pass starts each segment from the state that the forward
// pass kept, recomputes its states, then goes through it backwards.
#include "scan.h"

#include "kernels.h"
#include "vec.h"

constexpr int STATE = 16;
constexpr int SEGMENT = 64;  // steps between kept states; a segment fits the second cache
// How many steps ahead a pixel is prefetched: down a column, consecutive pixels are far apart.
constexpr int AHEAD = 6;
// Blocks that process a segment one after another, while its pixels are in the first cache.
constexpr int AT_ONCE = 4;

// Rows of a block's constants, A log2(e), then these, then those of dt_weight; and of their
// gradients, the first those of A.
constexpr int D_ROW = STATE, BIAS_ROW = STATE + 1, WEIGHT_ROWS = STATE + 2;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// log(1 + e**v), and v itself beyond 20, as published; slope: its derivative.
template <class V> static inline V softplus(V v, V& slope) {
    V magnitude = v > 0.0f ? v : -v, z = exp2_of_product(magnitude, splat<V>(-LOG2_E));
    V s = z / (z + 2.0f);
    V log1p = s * polynomial(s * s, {2.0000000079208777f, 0.6666631468540538f, 0.40024910199809216f,
                                     0.27960603195802536f, 0.2817833530517101f});
    slope = v > 20.0f ? splat<V>(1) : (v > 0.0f ? splat<V>(1) : z) / (1.0f + z);
    return v > 20.0f ? v : (v > 0.0f ? v : splat<V>(0)) + log1p;
}

// The inputs of a segment of one block of channels; pointers are to its first channel and to the
// first pixel.
namespace {
template <class V> struct Segment {
    const int64_t* visits;
    int64_t steps;
    const float *u, *rows, *constants, *sizes;  // sizes: dt of each step
    int64_t channels, rows_pixel, rank;

    V constant(int64_t row) const { return load<V>(constants + row * lanes<V>); }
    V size(int64_t t) const { return load<V>(sizes + t * lanes<V>); }
    const float* row(int64_t pixel) const { return rows + pixel * rows_pixel; }
};
}  // namespace

template <class V> static void block_constants(const Scan* a, int64_t group, int64_t first,
                                               float* constants) {
    memset(constants, 0, (WEIGHT_ROWS + a->rank) * sizeof(V));
    for (int64_t lane = 0; lane < less(lanes<V>, a->used - first); lane++, constants++) {
        int64_t channel = group * a->used + first + lane;
        for (int n = 0; n < STATE; n++)
            constants[n * lanes<V>] = a->A[channel * STATE + n] * LOG2_E;
        constants[D_ROW * lanes<V>] = a->D[channel];
        if (!a->rank) continue;
        constants[BIAS_ROW * lanes<V>] = a->dt_bias[channel];
        for (int64_t j = 0; j < a->rank; j++)
            constants[(WEIGHT_ROWS + j) * lanes<V>] = a->dt_weight[channel * a->rank + j];
    }
}

// dt of each step into sizes: softplus(W r + bias), or the given one; its derivative into slopes,
// if there are any.
template <class V> static void step_sizes(const Segment<V>& of, const float* dt, float* sizes,
                                          float* slopes) {
    for (int64_t t = 0; t < of.steps; t++) {
        int64_t pixel = of.visits[t];
        if (!of.rank) {
            store(sizes + t * lanes<V>, load<V>(dt + pixel * of.channels));
            continue;
        }
        V raw = of.constant(BIAS_ROW), slope;
        for (int64_t j = 0; j < of.rank; j++)
            raw += of.constant(WEIGHT_ROWS + j) * of.row(pixel)[j];
        store(sizes + t * lanes<V>, softplus(raw, slope));
        if (slopes) store(slopes + t * lanes<V>, slope);
    }
}

// Take the steps of a segment: h from its first to its last state, and <C, h> + D u added to y.
template <class V> static void forward_steps(const Segment<V>& of, float* h, float* y) {
    V state[STATE];
    UNROLLED(n, STATE) state[n] = load<V>(h + n * lanes<V>);
    for (int64_t t = 0; t < of.steps; t++) {
        int64_t pixel = of.visits[t], later = of.visits[less(t + AHEAD, of.steps - 1)];
        const float *row = of.row(pixel), *B = row + of.rank, *C = B + STATE;
        for (int line = 0; line < 3; line++) __builtin_prefetch(of.row(later) + 16 * line);
        __builtin_prefetch(of.u + later * of.channels);
        __builtin_prefetch(y + later * of.channels);
        V size = of.size(t), u = load<V>(of.u + pixel * of.channels), drive = size * u;
        V result[2] = {of.constant(D_ROW) * u, load<V>(y + pixel * of.channels)};
        UNROLLED(n, STATE) {
            state[n] = exp2_of_product(size, of.constant(n)) * state[n] + drive * B[n];
            result[n % 2] += C[n] * state[n];
        }
        store(y + pixel * of.channels, result[0] + result[1]);
    }
    UNROLLED(n, STATE) store(h + n * lanes<V>, state[n]);
}

// The steps of a segment again, from states[0]: each state into states[t + 1], each decay into
// decays[t].
template <class V> static void recompute_steps(const Segment<V>& of, float* states, float* decays) {
    V state[STATE];
    UNROLLED(n, STATE) state[n] = load<V>(states + n * lanes<V>);
    for (int64_t t = 0; t < of.steps; t++) {
        int64_t pixel = of.visits[t];
        const float* B = of.row(pixel) + of.rank;
        V size = of.size(t), drive = size * load<V>(of.u + pixel * of.channels);
        UNROLLED(n, STATE) {
            V decay = exp2_of_product(size, of.constant(n));
            state[n] = decay * state[n] + drive * B[n];
            store(states + ((t + 1) * STATE + n) * lanes<V>, state[n]);
            store(decays + (t * STATE + n) * lanes<V>, decay);
        }
    }
}

// Walk a segment backwards with the adjoint of h: gradients of u, B, C, A, D added to, of dt
// stored.
//
// With g = dy and l = C g + (adjoint from the step after): dC = <g, h>, dB = <l, dt u>, du = D g +
// dt <l, B>, ddt = u <l, B> + <l a h', A>, dA += l a h' dt, and l a goes to the step before; a the
// decay, h' the state before.
template <class V>
static void backward_steps(const Segment<V>& of, float* adjoint, const float* dy,
                           const float* states, const float* decays, float* du, float* dsizes,
                           float* drows, int64_t drows_pixel, float* dconstants) {
    V carried[STATE], dD = load<V>(dconstants + D_ROW * lanes<V>);
    UNROLLED(n, STATE) carried[n] = load<V>(adjoint + n * lanes<V>);
    for (int64_t t = of.steps - 1; t >= 0; t--) {
        int64_t pixel = of.visits[t], place = pixel * of.channels;
        const float *B = of.row(pixel) + of.rank, *C = B + STATE;
        const float *before = states + t * STATE * lanes<V>, *after = before + STATE * lanes<V>;
        float* drow = drows + pixel * drows_pixel + of.rank;
        V size = of.size(t), g = load<V>(dy + place), u = load<V>(of.u + place), drive = size * u;
        V along_B = {}, along_A = {};
        UNROLLED(group, STATE / lanes<V>) {
            int first = group * lanes<V>;
            V dB[lanes<V>], dC[lanes<V>];
            UNROLLED(each, lanes<V>) {
                int n = first + each, at = n * lanes<V>;
                V adjoint_of_h = carried[n] + C[n] * g;
                dC[each] = g * load<V>(after + at);
                dB[each] = adjoint_of_h * drive;
                along_B += adjoint_of_h * B[n];
                carried[n] = adjoint_of_h * load<V>(decays + t * STATE * lanes<V> + at);
                V decayed = carried[n] * load<V>(before + at);
                along_A += decayed * of.constant(n);
                add(dconstants + at, decayed * size);
            }
            add(drow + first, sums(dB));
            add(drow + STATE + first, sums(dC));
        }
        store(dsizes + t * lanes<V>, u * along_B + along_A * LN_2);
        add(du + place, size * along_B + of.constant(D_ROW) * g);
        dD += g * u;
    }
    store(dconstants + D_ROW * lanes<V>, dD);
    UNROLLED(n, STATE) store(adjoint + n * lanes<V>, carried[n]);
}

// From the gradients of dt to those of r, of the weights and of the bias, added to what is there.
template <class V>
static void step_sizes_backward(const Segment<V>& of, const float* dsizes, const float* slopes,
                                float* drows, int64_t drows_pixel, float* dconstants) {
    for (int64_t t = 0; t < of.steps; t++) {
        int64_t pixel = of.visits[t];
        V draw = load<V>(dsizes + t * lanes<V>) * load<V>(slopes + t * lanes<V>);
        add(dconstants + BIAS_ROW * lanes<V>, draw);
        for (int64_t j = 0; j < of.rank; j++) {
            add(dconstants + (WEIGHT_ROWS + j) * lanes<V>, draw * of.row(pixel)[j]);
            drows[pixel * drows_pixel + j] += sum(draw * of.constant(WEIGHT_ROWS + j));
        }
    }
}

template <class V> static Segment<V> segment_of(const Scan* a, int64_t image, int64_t group,
                                                int64_t first, int64_t t) {
    Segment<V> of;
    of.visits = a->visits + group * a->length + t;
    of.steps = less(SEGMENT, a->length - t);
    of.u = a->u + image * a->u_batch + group * a->u_group + first;
    of.rows = a->rows + image * a->rows_batch + group * a->rows_group;
    of.channels = a->channels, of.rows_pixel = a->rows_pixel, of.rank = a->rank;
    return of;
}

template <class V> static float* kept_state(const Scan* a, int64_t image, int64_t group,
                                            int64_t first, int64_t t) {
    int64_t segments = (a->length + SEGMENT - 1) / SEGMENT;
    return a->kept +
           (((image * a->groups + group) * segments + t / SEGMENT) * a->channels + first) * STATE;
}

template <class V> static void forward(int64_t first, int64_t last, const Scan* a, float* scratch) {
    int64_t blocks = a->channels / lanes<V>, rows = WEIGHT_ROWS + a->rank, apart = a->channels;
    float *sizes = scratch, *h = sizes + SEGMENT * lanes<V>,
          *constants = h + AT_ONCE * STATE * lanes<V>;
    while (first < last) {
        int64_t block = first % blocks, slab = first / blocks % a->slabs,
                image = first / blocks / a->slabs;
        int64_t several = less(AT_ONCE, less(blocks - block, last - first)),
                left = block * lanes<V>;
        float* y = a->y + (image * a->slabs + slab) * a->length * apart + left;
        for (int64_t pixel = 0; pixel < a->length; pixel++)
            memset(y + pixel * apart, 0, several * sizeof(V));
        for (int64_t group = slab; group < a->groups; group += a->slabs) {
            for (int64_t each = 0; each < several; each++)
                block_constants<V>(a, group, left + each * lanes<V>,
                                   constants + each * rows * lanes<V>);
            memset(h, 0, several * STATE * sizeof(V));
            for (int64_t t = 0; t < a->length; t += SEGMENT)
                for (int64_t each = 0; each < several; each++) {
                    int64_t begin = left + each * lanes<V>;
                    float* state = h + each * STATE * lanes<V>;
                    Segment<V> of = segment_of<V>(a, image, group, begin, t);
                    of.constants = constants + each * rows * lanes<V>, of.sizes = sizes;
                    if (a->kept)
                        memcpy(kept_state<V>(a, image, group, begin, t), state, STATE * sizeof(V));
                    step_sizes<V>(of, a->rank ? nullptr : a->dt + (of.u - a->u), sizes, nullptr);
                    forward_steps<V>(of, state, y + each * lanes<V>);
                }
        }
        first += several;
    }
}

template <class V> static void backward(int64_t first, int64_t last, const ScanGradients* a,
                                        float* scratch) {
    const Scan* scan = &a->scan;
    int64_t blocks = scan->channels / lanes<V>, rows = WEIGHT_ROWS + scan->rank;
    float *sizes = scratch, *slopes = sizes + SEGMENT * lanes<V>,
          *dsizes = slopes + SEGMENT * lanes<V>;
    float *adjoint = dsizes + SEGMENT * lanes<V>, *states = adjoint + STATE * lanes<V>;
    float *decays = states + (SEGMENT + 1) * STATE * lanes<V>,
          *constants = decays + SEGMENT * STATE * lanes<V>;
    for (int64_t unit = first; unit < last; unit++) {
        int64_t slab = unit % scan->slabs, image = unit / scan->slabs;
        for (int64_t group = slab; group < scan->groups; group += scan->slabs)
            for (int64_t block = 0; block < blocks; block++) {
                int64_t begin = block * lanes<V>;
                const float* dy = a->dy + image * a->dy_batch + group * a->dy_group + begin;
                float* du =
                    a->du + (image * scan->slabs + slab) * scan->length * scan->channels + begin;
                float* drows = a->drows + image * a->drows_batch + group * a->drows_group;
                float* dconstants =
                    a->dconstants +
                    ((image * scan->groups + group) * blocks + block) * rows * lanes<V>;
                block_constants<V>(scan, group, begin, constants);
                memset(adjoint, 0, STATE * sizeof(V));
                for (int64_t t = (scan->length - 1) / SEGMENT * SEGMENT; t >= 0; t -= SEGMENT) {
                    Segment<V> of = segment_of<V>(scan, image, group, begin, t);
                    of.constants = constants, of.sizes = sizes;
                    int64_t place = of.u - scan->u;
                    memcpy(states, kept_state<V>(scan, image, group, begin, t), STATE * sizeof(V));
                    step_sizes<V>(of, scan->rank ? nullptr : scan->dt + place, sizes, slopes);
                    recompute_steps<V>(of, states, decays);
                    backward_steps<V>(of, adjoint, dy, states, decays, du, dsizes, drows,
                                      a->drows_pixel, dconstants);
                    if (scan->rank) {
                        step_sizes_backward<V>(of, dsizes, slopes, drows, a->drows_pixel,
                                               dconstants);
                        continue;
                    }
                    float* ddt = a->ddt + place;
                    for (int64_t step = 0; step < of.steps; step++)
                        store(ddt + of.visits[step] * of.channels,
                              load<V>(dsizes + step * lanes<V>));
                }
            }
    }
}

// Units first .. last - 1 of batch * slabs * blocks; a unit is a block of channels of a slab.
// scratch: (64 + 4 (34 + rank)) lanes numbers.
KERNEL(scan_forward, Scan) {
    if (a->channels % LANES) forward<half>(first, last, a, scratch);
    else forward<vec>(first, last, a, scratch);
}

// Units first .. last - 1 of batch * slabs; a unit is a slab of an image, all channels.
// scratch: (64 * 35 + 50 + rank) lanes numbers.
KERNEL(scan_backward, ScanGradients) {
    if (a->scan.channels % LANES) backward<half>(first, last, a, scratch);
    else backward<vec>(first, last, a, scratch);
}
