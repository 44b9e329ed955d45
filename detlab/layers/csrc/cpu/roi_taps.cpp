#include "roi_taps.h"

#include <algorithm>
#include <cmath>

namespace detlab {
namespace {

// One axis of a region: bins of `bin_size` cells from `start`, `grid` samples in each.
template <typename C>
struct Axis {
  C start, bin_size;
  int64_t bins, grid, size;

  C position(int64_t bin, int64_t sample) const {
    return start + static_cast<C>(bin) * bin_size +
           (static_cast<C>(sample) + static_cast<C>(0.5)) * bin_size / static_cast<C>(grid);
  }
};

template <typename C>
Axis<C> make_axis(C low, C high, C scale, int64_t bins, int64_t size, const PoolSettings& settings) {
  const C offset = settings.aligned ? static_cast<C>(0.5) : static_cast<C>(0);
  const C start = low * scale - offset, end = high * scale - offset;
  C length = end - start;
  if (!settings.aligned) length = std::max(length, static_cast<C>(1));
  const C bin_size = length / static_cast<C>(bins);
  if (settings.sampling_ratio > 0) return {start, bin_size, bins, settings.sampling_ratio, size};
  const C wanted = std::ceil(bin_size);
  const C most = static_cast<C>(int64_t{1} << 30);
  return {start, bin_size, bins, wanted >= 1 ? static_cast<int64_t>(std::min(wanted, most)) : 0, size};
}

// Samples of a bin that can lie on the map: a superset, cut so that a region of any size costs no more than the map.
template <typename C>
void possible_samples(const Axis<C>& axis, int64_t bin, int64_t* first, int64_t* last) {
  *first = 0;
  *last = axis.grid;
  const C step = axis.bin_size / static_cast<C>(axis.grid);
  if (!(step > 0) || axis.grid < 64) return;
  const C origin = axis.start + static_cast<C>(bin) * axis.bin_size;
  const auto sample_at = [&](C position, int64_t margin) {
    const C sample = (position - origin) / step;
    const C held = std::min(std::max(sample, static_cast<C>(0)), static_cast<C>(axis.grid));
    return std::min(std::max<int64_t>(static_cast<int64_t>(held) + margin, 0), axis.grid);
  };
  *first = sample_at(static_cast<C>(-1), -4);
  *last = sample_at(static_cast<C>(axis.size), 4);
}

template <typename T>
void add_tap(std::vector<int32_t>& cells, std::vector<T>& weights, int32_t bin_start, int32_t cell, T weight) {
  const int32_t end = static_cast<int32_t>(cells.size());
  for (int32_t tap = end - 1; tap >= std::max(bin_start, end - 2); --tap) {
    if (cells[tap] == cell) {
      weights[tap] += weight;
      return;
    }
  }
  cells.push_back(cell);
  weights.push_back(weight);
}

template <typename C, typename T>
void find_axis_taps(const Axis<C>& axis, std::vector<int32_t>& starts, std::vector<int32_t>& cells,
                    std::vector<T>& weights) {
  starts.assign(1, 0);
  cells.clear();
  weights.clear();
  const C share_of_sample = axis.grid > 0 ? 1 / static_cast<C>(axis.grid) : 0;
  for (int64_t bin = 0; bin < axis.bins; ++bin) {
    int64_t first = 0, last = 0;
    if (axis.grid > 0) possible_samples(axis, bin, &first, &last);
    for (int64_t sample = first; sample < last; ++sample) {
      C position = axis.position(bin, sample);
      if (!(position >= -1 && position <= static_cast<C>(axis.size))) continue;
      position = std::min(std::max(position, static_cast<C>(0)), static_cast<C>(axis.size - 1));
      const int32_t low = static_cast<int32_t>(position);
      const C high_share = position - static_cast<C>(low);
      add_tap(cells, weights, starts.back(), low, static_cast<T>((1 - high_share) * share_of_sample));
      if (high_share > 0) {
        add_tap(cells, weights, starts.back(), low + 1, static_cast<T>(high_share * share_of_sample));
      }
    }
    starts.push_back(static_cast<int32_t>(cells.size()));
  }
}

void cover_cells(const std::vector<int32_t>& cells, int64_t* low, int64_t* high) {
  if (cells.empty()) return;
  const auto ends = std::minmax_element(cells.begin(), cells.end());
  *low = *ends.first;
  *high = *ends.second + 1;
}

// The distinct columns; where they are most of their range, the whole range, which needs no search.
void find_columns(const std::vector<int32_t>& cells, const Window& window, std::vector<int32_t>& columns,
                  std::vector<int32_t>& slots) {
  columns.clear();
  slots = cells;
  if (cells.empty()) return;
  const int32_t left = static_cast<int32_t>(window.left);
  if (window.width() <= static_cast<int64_t>(cells.size())) {
    for (int32_t column = left; column < window.right; ++column) columns.push_back(column);
    for (int32_t& slot : slots) slot -= left;
    return;
  }
  columns = cells;
  std::sort(columns.begin(), columns.end());
  columns.erase(std::unique(columns.begin(), columns.end()), columns.end());
  for (int32_t& slot : slots) {
    slot = static_cast<int32_t>(std::lower_bound(columns.begin(), columns.end(), slot) - columns.begin());
  }
}

}  // namespace

template <typename C, typename T>
void find_taps(const C* roi, C scale, int64_t height, int64_t width, const PoolSettings& settings, OwnedTaps<T>& taps) {
  const Axis<C> x_axis = make_axis(roi[1], roi[3], scale, settings.bins_w, width, settings);
  const Axis<C> y_axis = make_axis(roi[2], roi[4], scale, settings.bins_h, height, settings);
  taps.is_finite = std::isfinite(x_axis.start) && std::isfinite(y_axis.start) && std::isfinite(x_axis.bin_size) &&
                   std::isfinite(y_axis.bin_size);
  taps.window = Window::nothing();
  if (!taps.is_finite) return;
  find_axis_taps(y_axis, taps.row_starts, taps.rows, taps.row_weights);
  std::vector<int32_t> cells;
  find_axis_taps(x_axis, taps.column_starts, cells, taps.column_weights);
  cover_cells(taps.rows, &taps.window.top, &taps.window.bottom);
  cover_cells(cells, &taps.window.left, &taps.window.right);
  find_columns(cells, taps.window, taps.columns, taps.column_slots);
}

template void find_taps(const float*, float, int64_t, int64_t, const PoolSettings&, OwnedTaps<float>&);
template void find_taps(const float*, float, int64_t, int64_t, const PoolSettings&, OwnedTaps<double>&);
template void find_taps(const double*, double, int64_t, int64_t, const PoolSettings&, OwnedTaps<float>&);
template void find_taps(const double*, double, int64_t, int64_t, const PoolSettings&, OwnedTaps<double>&);

}  // namespace detlab
