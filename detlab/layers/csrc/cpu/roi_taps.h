// Which rows and columns of a feature map an axis-aligned region reads, and with what weight.
#pragma once

#include <cstdint>
#include <vector>

#include "../roi_axis.h"
#include "regions.h"
#include "simd.h"

namespace detlab {

struct PoolSettings {
  int64_t bins_h, bins_w, sampling_ratio;
  bool aligned;
};

// The taps of one region, with the memory that they point into.
template <typename T>
struct OwnedTaps {
  std::vector<int32_t> row_starts, rows, column_starts, column_slots, columns;
  std::vector<T> row_weights, column_weights;
  Window window = Window::nothing();  // what is read

  RegionTaps<T> view() const {
    return {static_cast<int>(row_starts.size()) - 1,
            static_cast<int>(column_starts.size()) - 1,
            static_cast<int>(columns.size()),
            row_starts.data(),
            rows.data(),
            row_weights.data(),
            column_starts.data(),
            column_slots.data(),
            column_weights.data(),
            columns.data()};
  }
};

// Along the axes of a region that is finite on its map.
template <typename C, typename T>
void find_taps(const Axis<C>& y_axis, const Axis<C>& x_axis, OwnedTaps<T>& taps);

}  // namespace detlab
