// The stages of training, see training.h: an RMB's are in training_rmb.h, the ConvFFN's in
// training_feed.h.
#include "training_feed.h"

namespace {

// Of a depthwise convolution of torch, (channels, size).
static void turn(const float* weight, int size, int64_t channels, float* taps, float* turned) {
    for (int64_t c = 0; c < channels; c++)
        for (int n = 0; n < size; n++)
            taps[n * channels + c] = turned[(size - 1 - n) * channels + c] = weight[c * size + n];
}

// The weights as the passes read them.
template <class T> NOINLINE void prepare(const Block<T>& block) {
    for (const Rmb<T>& r : block.rmbs) {
        int64_t c = r.channels;
        packed<T>(r.parameters[IN_PROJ], c, 4 * c, 1, c, 4 * c, r.in_proj);
        packed<T>(r.parameters[IN_PROJ], 4 * c, c, c, 1, c, r.in_proj_back);
        packed<T>(r.parameters[OUT_PROJ], 2 * c, c, 1, 2 * c, c, r.out_proj);
        packed<T>(r.parameters[OUT_PROJ], c, 2 * c, 2 * c, 1, 2 * c, r.out_proj_back);
        packed<float>(r.parameters[X_PROJ], c, r.rows, 1, c, r.padded, r.x_proj);
        packed<float>(r.parameters[X_PROJ], r.rows, c, c, 1, c, r.x_proj_back);
        for (int64_t n = 0; n < DIRECTIONS * c * STATE; n += LANES) {
            vec log = load(r.parameters[A_LOG] + n);
            vec z = exp2_negative((log > 0.0f ? -log : log) * 1.4426950408889634f);
            store(r.A + n, log > 0.0f ? -1.0f / z : -z);
        }
        turn(r.parameters[CONV], 9, 2 * c, r.conv.taps, r.conv.turned);
        turn(r.parameters[HIGH_CONV], 9, c, r.high_conv.taps, r.high_conv.turned);
    }
    const Feed<T>& f = block.feed;
    packed<T>(f.parameters[FC1], WIDTH, f.hidden, 1, WIDTH, f.hidden, f.fc1);
    packed<T>(f.parameters[FC1], f.hidden, WIDTH, WIDTH, 1, WIDTH, f.fc1_back);
    packed<T>(f.parameters[FC2], f.hidden, WIDTH, 1, f.hidden, WIDTH, f.fc2);
    packed<T>(f.parameters[FC2], WIDTH, f.hidden, f.hidden, 1, f.hidden, f.fc2_back);
    turn(f.parameters[DW5X5], 25, f.hidden, f.taps, f.turned);
}

// f(C) with the channels of an RMB as a constant.
template <class F> static inline void by_width(int64_t index, F f) {
    if (index == 0) f(Constant<8>{});
    if (index == 1) f(Constant<16>{});
    if (index == 2) f(Constant<32>{});
    if (index == 3) f(Constant<64>{});
}

// clang-format off
// The stages, in the order of training_cpu.STAGES. Folds and the first two are one unit.
enum Stage : int64_t {
    SIZES, PREPARE, ENTER, ENTER_FOLD, MIDDLE, MIDDLE_FOLD, LEAVE, LEAVE_FOLD, FEED, FEED_BACK,
    FEED_BACK_FOLD, LEAVE_BACK, LEAVE_BACK_FOLD, MIDDLE_BACK, MIDDLE_BACK_FOLD, ENTER_BACK, ENTER_BACK_FOLD,
};
// clang-format on

template <class T> static void run(int64_t first, int64_t last, const Training* a, float* scratch) {
    Block<T> block(a);
    const Rmb<T>& r = block.rmbs[a->rmb];
    auto samples = [&](auto stage) {
        for (int64_t b = first; b < last; b++) stage(b);
    };
    auto of_rmb = [&](auto stage) {
        by_width(a->rmb, [&](auto c) { samples([&](int64_t b) { stage(c, b); }); });
    };
    switch (a->stage) {
        case SIZES:
            a->sizes[0] = block.kept_size * sizeof(float);
            a->sizes[1] = block.passing_size * sizeof(float);
            a->sizes[2] = CHUNK * (8 * WIDTH + 2 * a->hidden) + 18 * (a->width + 4) * LANES +
                          STATE * 3 * SEGMENT * LANES;
            break;
        case PREPARE: prepare(block); break;
        case ENTER: of_rmb([&](auto c, int64_t b) { enter<T, c.value>(block, a->rmb, b); }); break;
        case ENTER_FOLD: fold_conv(r.conv, a, r.parameters + CONV, r.buffers + CONV_BN); break;
        case MIDDLE:
            of_rmb([&](auto c, int64_t b) { middle<T, c.value>(block, a->rmb, b, scratch); });
            break;
        case MIDDLE_FOLD:
            fold_conv(r.high_conv, a, r.parameters + HIGH_CONV, r.buffers + HIGH_CONV_BN);
            break;
        case LEAVE: of_rmb([&](auto c, int64_t b) { leave<T, c.value>(block, a->rmb, b); }); break;
        case LEAVE_FOLD: fold_out(r, a); break;
        case FEED: samples([&](int64_t b) { feed_forward(block, b, scratch); }); break;
        case FEED_BACK: samples([&](int64_t b) { feed_forward_back(block, b, scratch); }); break;
        case FEED_BACK_FOLD: fold_feed(block), fold_out_back(r, a); break;
        case LEAVE_BACK:
            of_rmb([&](auto c, int64_t b) { leave_back<T, c.value>(block, a->rmb, b, scratch); });
            break;
        case LEAVE_BACK_FOLD: fold_conv_back(r.high_conv, a, r.gradients + HIGH_CONV); break;
        case MIDDLE_BACK:
            of_rmb([&](auto c, int64_t b) { middle_back<T, c.value>(block, a->rmb, b, scratch); });
            break;
        case MIDDLE_BACK_FOLD: fold_conv_back(r.conv, a, r.gradients + CONV); break;
        case ENTER_BACK:
            of_rmb([&](auto c, int64_t b) { enter_back<T, c.value>(block, a->rmb, b, scratch); });
            break;
        case ENTER_BACK_FOLD:
            fold_parameters(r, block.backs[a->rmb], a);
            if (a->rmb) fold_out_back(block.rmbs[a->rmb - 1], a);
    }
}

}  // namespace

KERNEL(training_float32, Training) { run<float>(first, last, a, scratch); }
KERNEL(training_bfloat16, Training) { run<bfloat16>(first, last, a, scratch); }
