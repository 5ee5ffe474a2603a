// The C interface of the kernels: what Python calls through ctypes (library.py), and nothing else.
//
// Each source file is compiled once for each level of the processor (x86-64-v2, v3, v4; aarch64),
// and every function carries the level in its name: scan_forward_v3. A kernel computes the units
// first .. last - 1 of its work. Which thread takes which units changes no result. Arguments are
// one struct of 8-byte fields (pointers, int64_t, double); scratch is memory of the calling thread.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C" __attribute__((visibility("default")))
#endif

#define JOINED_(name, level) name##_##level
#define JOINED(name, level) JOINED_(name, level)

// KERNEL(scan_forward, ScanForward) { ... first, last, a, scratch ... }
#define KERNEL(name, Arguments)                                                        \
    EXPORTED void JOINED(name, LEVEL)(int64_t first, int64_t last, const Arguments* a, \
                                      float* scratch)
