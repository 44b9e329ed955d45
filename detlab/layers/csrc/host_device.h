// For arithmetic that every device shares.
#pragma once

#if defined(__CUDACC__)
#define DETLAB_BOTH __host__ __device__
#else
#define DETLAB_BOTH
#endif

namespace detlab {

template <typename C>
DETLAB_BOTH inline C at_least(C value, C low) {
  return value < low ? low : value;
}

template <typename C>
DETLAB_BOTH inline C at_most(C value, C high) {
  return value > high ? high : value;
}

}  // namespace detlab
