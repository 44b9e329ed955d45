#include "roi_taps.h"

#include <algorithm>

namespace detlab {
namespace {

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
    int64_t first, last;
    axis.possible_samples(bin, &first, &last);
    for (int64_t k = first; k < last; ++k) {
      const Sample<C> sample = place_sample(axis.position(bin, k), axis.size);
      if (!sample.is_on_map) continue;
      const C low_share = 1 - sample.high_share;
      add_tap(cells, weights, starts.back(), sample.low, static_cast<T>(low_share * share_of_sample));
      if (sample.high_share > 0) {
        add_tap(cells, weights, starts.back(), sample.low + 1, static_cast<T>(sample.high_share * share_of_sample));
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
void find_taps(const Axis<C>& y_axis, const Axis<C>& x_axis, OwnedTaps<T>& taps) {
  taps.window = Window::nothing();
  find_axis_taps(y_axis, taps.row_starts, taps.rows, taps.row_weights);
  std::vector<int32_t> cells;
  find_axis_taps(x_axis, taps.column_starts, cells, taps.column_weights);
  cover_cells(taps.rows, &taps.window.top, &taps.window.bottom);
  cover_cells(cells, &taps.window.left, &taps.window.right);
  find_columns(cells, taps.window, taps.columns, taps.column_slots);
}

template void find_taps(const Axis<float>&, const Axis<float>&, OwnedTaps<float>&);
template void find_taps(const Axis<float>&, const Axis<float>&, OwnedTaps<double>&);
template void find_taps(const Axis<double>&, const Axis<double>&, OwnedTaps<float>&);
template void find_taps(const Axis<double>&, const Axis<double>&, OwnedTaps<double>&);

}  // namespace detlab
