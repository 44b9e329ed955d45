// Where the samples of a region lie along one axis of a feature map; the same arithmetic on every device, so that the
// number of samples, a rounding up, never differs between them.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace detlab {

// `bins` bins of `bin_size` cells from `start`, `grid` samples in each, on a map of `size` cells.
template <typename C>
struct Axis {
  C start, bin_size;
  int64_t bins, grid, size;

  DETLAB_BOTH bool is_finite() const { return bin_size - bin_size == 0 && start - start == 0; }

  DETLAB_BOTH C position(int64_t bin, int64_t sample) const {
    return start + static_cast<C>(bin) * bin_size +
           (static_cast<C>(sample) + static_cast<C>(0.5)) * bin_size / static_cast<C>(grid);
  }

  // Samples of a bin that can lie on the map: a superset, cut so that a region of any size costs no more than the map.
  DETLAB_BOTH void possible_samples(int64_t bin, int64_t* first, int64_t* last) const {
    *first = 0;
    *last = grid;
    if (grid < 64) return;
    const C step = bin_size / static_cast<C>(grid);
    if (!(step > 0)) return;
    const C origin = start + static_cast<C>(bin) * bin_size;
    *first = sample_near((static_cast<C>(-1) - origin) / step, -4);
    *last = sample_near((static_cast<C>(size) - origin) / step, 4);
  }

 private:
  DETLAB_BOTH int64_t sample_near(C sample, int64_t margin) const {
    const C held = at_most(at_least(sample, static_cast<C>(0)), static_cast<C>(grid));
    return at_most(at_least(static_cast<int64_t>(held) + margin, int64_t{0}), grid);
  }
};

// Samples per bin: as many as asked for, or, for 0, about one for each cell.
template <typename C>
DETLAB_BOTH inline int64_t samples_per_bin(C bin_size, int64_t wanted) {
  if (wanted > 0) return wanted;
  const C grid = ceil(bin_size);
  return grid >= 1 ? static_cast<int64_t>(at_most(grid, static_cast<C>(1 << 30))) : 0;
}

// The axis of a region from `low` to `high`, in pixels.
template <typename C>
DETLAB_BOTH inline Axis<C> make_axis(C low, C high, C scale, int64_t bins, int64_t size, int64_t sampling_ratio,
                                     bool aligned) {
  const C offset = aligned ? static_cast<C>(0.5) : static_cast<C>(0);
  const C start = low * scale - offset, end = high * scale - offset;
  const C length = aligned ? end - start : at_least(end - start, static_cast<C>(1));
  const C bin_size = length / static_cast<C>(bins);
  return {start, bin_size, bins, samples_per_bin(bin_size, sampling_ratio), size};
}

// A sample between two cells.
template <typename C>
struct Sample {
  bool is_on_map;
  int32_t low;   // the cell at or before it
  C high_share;  // weight of cell low + 1; 0 at the map's border
};

template <typename C>
DETLAB_BOTH inline Sample<C> place_sample(C position, int64_t size) {
  if (!(position >= -1 && position <= static_cast<C>(size))) return {false, 0, 0};
  const C held = at_most(at_least(position, static_cast<C>(0)), static_cast<C>(size - 1));
  const int32_t low = static_cast<int32_t>(held);
  return {true, low, held - static_cast<C>(low)};
}

}  // namespace detlab
