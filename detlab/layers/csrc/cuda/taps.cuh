// Which cells of a feature map the bins of a region read.
#pragma once

#include "device.cuh"

namespace detlab {
namespace cuda {

// Calls `visit(cell, weight)` for the cells that a bin reads along an axis, with samples that meet in a cell added up,
// in increasing order for increasing samples.
template <typename C, typename Visit>
__device__ void visit_taps(const Axis<C>& axis, int bin, const Visit& visit) {
  int64_t first, last;
  axis.possible_samples(bin, &first, &last);
  const C share = axis.grid > 0 ? 1 / static_cast<C>(axis.grid) : static_cast<C>(0);
  int32_t cell = -1;  // the pending cell, and the one after it
  C weight = 0, next_weight = 0;
  for (int64_t k = first; k < last; ++k) {
    const Sample<C> sample = place_sample(axis.position(bin, k), axis.size);
    if (!sample.is_on_map) continue;
    if (sample.low != cell) {
      if (weight != 0) visit(cell, weight);
      const bool is_next = cell >= 0 && sample.low == cell + 1;
      if (!is_next && next_weight != 0) visit(cell + 1, next_weight);
      weight = is_next ? next_weight : static_cast<C>(0);
      next_weight = 0;
      cell = sample.low;
    }
    weight += (1 - sample.high_share) * share;
    next_weight += sample.high_share * share;
  }
  if (weight != 0) visit(cell, weight);
  if (next_weight != 0) visit(cell + 1, next_weight);
}

}  // namespace cuda
}  // namespace detlab
