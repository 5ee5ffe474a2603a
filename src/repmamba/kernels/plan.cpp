// A plan: stages one after the other, each divided into shares that threads take.
//
// The calling thread computes whatever the others do not take, so calls never wait for one another.
// Between two stages a thread waits only for shares that are being computed. Which thread takes
// which share changes no result.
#include "kernels.h"
#if defined(_WIN32)
extern "C" __declspec(dllimport) void __stdcall Sleep(unsigned long milliseconds);
static void sleep_briefly() { Sleep(0); }
#else
#include <time.h>
static void sleep_briefly() {
    timespec duration = {0, 50000};
    nanosleep(&duration, nullptr);
}
#endif

// One kernel over so many units, cut into shares.
struct Stage {
    void (*kernel)(int64_t first, int64_t last, const void* arguments, float* scratch);
    int64_t units, shares;
    const void* arguments;
};

// Of one stage, 0 before a run; each on its own line of the cache.
struct Counters {
    alignas(64) int64_t taken;
    alignas(64) int64_t done;
};

// Reads of a counter before a waiting thread sleeps: some tens of microseconds.
constexpr int READS = 1 << 14;

// Compute shares of all stages until all are done. scratch: as large as the largest of any stage.
EXPORTED void take_part(const Stage* stages, int64_t count, Counters* counters, float* scratch) {
    for (int64_t n = 0; n < count; n++, counters++) {
        const Stage& stage = stages[n];
        int64_t share;
        while ((share = __atomic_fetch_add(&counters->taken, 1, __ATOMIC_RELAXED)) < stage.shares) {
            stage.kernel(stage.units * share / stage.shares,
                         stage.units * (share + 1) / stage.shares, stage.arguments, scratch);
            __atomic_fetch_add(&counters->done, 1, __ATOMIC_RELEASE);
        }
        int reads = 0;
        while (__atomic_load_n(&counters->done, __ATOMIC_ACQUIRE) < stage.shares)
            if (reads++ > READS) sleep_briefly();
    }
}
