#include "simd.h"

#include <cstdlib>
#include <cstring>

namespace detlab {

extern const SimdKernels kDefaultKernels;
#if defined(__x86_64__)
extern const SimdKernels kAvx2Kernels;
extern const SimdKernels kAvx512Kernels;
#endif

namespace {

const SimdKernels& choose() {
#if defined(__x86_64__)
  const char* wish = std::getenv("DETLAB_CPU_CAPABILITY");
  const bool up_to_avx2 = wish == nullptr || std::strcmp(wish, "default") != 0;
  const bool up_to_avx512 = up_to_avx2 && (wish == nullptr || std::strcmp(wish, "avx2") != 0);
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (up_to_avx512 && has_avx512) return kAvx512Kernels;
  if (up_to_avx2 && has_avx2) return kAvx2Kernels;
#endif
  return kDefaultKernels;
}

}  // namespace

const SimdKernels& simd() {
  static const SimdKernels& chosen = choose();
  return chosen;
}

}  // namespace detlab
