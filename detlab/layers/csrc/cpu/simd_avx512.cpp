#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define DETLAB_TABLE kAvx512Kernels
#define DETLAB_NAME "avx512"
#define DETLAB_VECTOR_BYTES 64

// Everything above was compiled for any processor; only what follows may use more.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")
#endif

#include "simd_kernels.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // x86
