// Where pixels fall into a mask that is stretched over a box, along one axis.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace detlab {

// In cells, of which the first has its center at 0, for the center of a pixel and a box from `low` to `high`.
template <typename T>
DETLAB_BOTH inline T position_in_mask(int64_t pixel, T low, T high, int64_t cells) {
  const T across = (static_cast<T>(pixel) + static_cast<T>(0.5) - low) / (high - low) * 2 - 1;
  return ((across + 1) * static_cast<T>(cells) - 1) / 2;
}

}  // namespace detlab
