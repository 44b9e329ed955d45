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
  const C extent = end - start;
  // What is not finite stays so: an infinite one is not to become a cell.
  const C length = aligned || !(extent - extent == 0) ? extent : at_least(extent, static_cast<C>(1));
  const C bin_size = length / static_cast<C>(bins);
  return {start, bin_size, bins, samples_per_bin(bin_size, sampling_ratio), size};
}

// Narrows [first, last) to the samples `k` for which low <= origin + k * step <= high: a superset by a few.
template <typename C>
DETLAB_BOTH inline void narrow_to(C origin, C step, C low, C high, int64_t* first, int64_t* last) {
  if (step < static_cast<C>(1e-12) && step > static_cast<C>(-1e-12)) return;
  const C one = (low - origin) / step, other = (high - origin) / step, most = static_cast<C>(*last);
  const C from = at_most(at_least(one < other ? one : other, static_cast<C>(0)), most);
  const C to = at_most(at_least(one < other ? other : one, static_cast<C>(0)), most);
  *first = at_least(static_cast<int64_t>(from) - 4, *first);
  *last = at_most(static_cast<int64_t>(to) + 4, *last);
}

// The samples of a bin of a rotated region that can lie on the map, for a region of any size to cost no more than the
// map. Bins of few samples are not looked at.
template <typename C>
struct TurnedBin {
  C center_x, center_y, cos, sin;  // of the region
  C left, top;                     // the bin's corner, in the region's own directions, from its center
  C bin_w, bin_h;
  int64_t grid_h, grid_w, height, width;

  static constexpr int64_t kMany = 64;

  DETLAB_BOTH C across(int64_t i) const {
    return top + (static_cast<C>(i) + static_cast<C>(0.5)) * bin_h / static_cast<C>(grid_h);
  }
  DETLAB_BOTH C along(int64_t j) const {
    return left + (static_cast<C>(j) + static_cast<C>(0.5)) * bin_w / static_cast<C>(grid_w);
  }

  DETLAB_BOTH void possible_rows(int64_t* first, int64_t* last) const {
    *first = 0;
    *last = grid_h;
    if (grid_h < kMany) return;
    const C x0 = (-1 - center_x) * sin, x1 = (static_cast<C>(width) - center_x) * sin;
    const C y0 = (-1 - center_y) * cos, y1 = (static_cast<C>(height) - center_y) * cos;
    const C step = bin_h / static_cast<C>(grid_h);
    narrow_to(across(0), step, at_most(x0, x1) + at_most(y0, y1), at_least(x0, x1) + at_least(y0, y1), first, last);
  }
  DETLAB_BOTH void possible_columns(int64_t i, int64_t* first, int64_t* last) const {
    *first = 0;
    *last = grid_w;
    if (grid_w < kMany) return;
    const C step = bin_w / static_cast<C>(grid_w);
    const C x = center_x + across(i) * sin + along(0) * cos, y = center_y + across(i) * cos - along(0) * sin;
    narrow_to(x, step * cos, static_cast<C>(-1), static_cast<C>(width), first, last);
    narrow_to(y, -step * sin, static_cast<C>(-1), static_cast<C>(height), first, last);
  }
};

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
