// Which cells the bins of an upright region read along an axis, and with what weight.
#pragma once

#include "device.cuh"

namespace detlab {
namespace cuda {

// Samples of an axis that a block prepares in shared memory; regions of more find theirs where they are needed.
constexpr int kPreparedSamples = 256;

// Calls `visit(cell, weight)` for the cells that a bin reads, with the samples [first, last) that meet in a cell added
// up, in increasing order for increasing samples.
template <typename C, typename SampleAt, typename Visit>
__device__ void merge_samples(int64_t first, int64_t last, int64_t grid, const SampleAt& sample_at,
                              const Visit& visit) {
  const C share = grid > 0 ? 1 / static_cast<C>(grid) : static_cast<C>(0);
  int32_t cell = -1;  // the pending cell, and the one after it
  C weight = 0, next_weight = 0;
  for (int64_t k = first; k < last; ++k) {
    const Sample<C> sample = sample_at(k);
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

// The taps of an axis, found anew at each visit.
template <typename C>
struct AxisTaps {
  Axis<C> axis;

  template <typename Visit>
  __device__ void visit(int bin, const Visit& visit) const {
    int64_t first, last;
    axis.possible_samples(bin, &first, &last);
    merge_samples<C>(
        first, last, axis.grid, [&](int64_t k) { return place_sample(axis.position(bin, k), axis.size); }, visit);
  }
};

// The taps of an axis of few samples, in shared memory.
template <typename C, typename T>
struct PreparedTaps {
  C shares[kPreparedSamples];
  int32_t lows[kPreparedSamples];       // -1: not on the map
  int32_t counts[kPreparedSamples];     // of each bin
  int32_t cells[2 * kPreparedSamples];  // a bin's begin at twice the samples before it
  T weights[2 * kPreparedSamples];
  int stride;

  template <typename Visit>
  __device__ void visit(int bin, const Visit& visit) const {
    const int first = bin * stride, end = first + counts[bin];
    for (int tap = first; tap < end; ++tap) visit(cells[tap], weights[tap]);
  }

  __device__ void place(const Axis<C>& axis, int i) {
    const int grid = static_cast<int>(axis.grid);
    const Sample<C> sample = place_sample(axis.position(i / grid, i % grid), axis.size);
    lows[i] = sample.is_on_map ? sample.low : -1;
    shares[i] = sample.high_share;
  }
  __device__ void merge(const Axis<C>& axis, int bin) {
    const int first = bin * static_cast<int>(axis.grid);
    int32_t tap = 2 * first;
    merge_samples<C>(
        0, axis.grid, axis.grid,
        [&](int64_t k) { return Sample<C>{lows[first + k] >= 0, lows[first + k], shares[first + k]}; },
        [&](int32_t cell, C weight) {
          cells[tap] = cell;
          weights[tap] = static_cast<T>(weight);
          ++tap;
        });
    counts[bin] = tap - 2 * first;
  }
};

template <typename C>
__device__ bool can_be_prepared(const Axis<C>& axis) {
  return axis.bins * at_least<int64_t>(axis.grid, 1) <= kPreparedSamples;
}

// All threads place samples of both axes, then each bin's meet. For whole blocks.
template <typename C, typename T>
__device__ void prepare_taps(const Axis<C>& y_axis, const Axis<C>& x_axis, PreparedTaps<C, T>& rows,
                             PreparedTaps<C, T>& columns) {
  const int bins_h = static_cast<int>(y_axis.bins), bins_w = static_cast<int>(x_axis.bins), thread = threadIdx.x;
  const int row_samples = bins_h * static_cast<int>(y_axis.grid);
  const int samples = row_samples + bins_w * static_cast<int>(x_axis.grid);
  if (thread == 0) {
    rows.stride = 2 * static_cast<int>(y_axis.grid);
    columns.stride = 2 * static_cast<int>(x_axis.grid);
  }
  for (int i = thread; i < samples; i += blockDim.x) {
    if (i < row_samples) {
      rows.place(y_axis, i);
    } else {
      columns.place(x_axis, i - row_samples);
    }
  }
  __syncthreads();
  for (int bin = thread; bin < bins_h + bins_w; bin += blockDim.x) {
    if (bin < bins_h) {
      rows.merge(y_axis, bin);
    } else {
      columns.merge(x_axis, bin - bins_h);
    }
  }
  __syncthreads();
}

}  // namespace cuda
}  // namespace detlab
