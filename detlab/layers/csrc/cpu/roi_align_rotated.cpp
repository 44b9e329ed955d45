// ROIAlign for rotated regions. A bin reads cells in no simple order, so each region gets the list of the cells that
// each of its bins reads, with samples that meet in a cell added up. Lists are made for some regions at a time.

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "../kernels.h"
#include "../roi_axis.h"
#include "parallel.h"
#include "regions.h"

namespace detlab {
namespace cpu {
namespace {

// Taps held in memory at a time, over all regions of a chunk.
constexpr int64_t kTapsPerChunk = 1 << 22;

struct RotatedSettings {
  int64_t bins_h, bins_w, sampling_ratio;
  double scale;
  int64_t bins() const { return bins_h * bins_w; }
};

template <typename T>
struct OwnedBins {
  std::vector<int64_t> starts;
  std::vector<int32_t> cells;
  std::vector<T> weights;
  Window window = Window::nothing();

  BinTaps<T> view() const { return {static_cast<int>(starts.size()) - 1, starts.data(), cells.data(), weights.data()}; }
};

// roi: image, center x y, width, height, angle in degrees.
template <typename C>
struct TurnedGrid {
  C center_x, center_y, width, height, cos, sin;
  int64_t grid_h, grid_w;

  TurnedGrid(const C* roi, const RotatedSettings& settings) {
    const C scale = static_cast<C>(settings.scale), half = static_cast<C>(0.5);
    center_x = roi[1] * scale - half;
    center_y = roi[2] * scale - half;
    width = roi[3] * scale;
    height = roi[4] * scale;
    const C angle = roi[5] * static_cast<C>(3.14159265358979323846 / 180);
    cos = std::cos(angle);
    sin = std::sin(angle);
    grid_h = samples_per_bin(height / static_cast<C>(settings.bins_h), settings.sampling_ratio);
    grid_w = samples_per_bin(width / static_cast<C>(settings.bins_w), settings.sampling_ratio);
  }
  bool is_finite() const {
    return std::isfinite(center_x) && std::isfinite(center_y) && std::isfinite(width) && std::isfinite(height) &&
           std::isfinite(cos);
  }
  // Cells that the region can touch, roughly.
  int64_t expected_taps() const {
    const double cells = (std::abs(static_cast<double>(width)) + 2) * (std::abs(static_cast<double>(height)) + 2) * 2;
    return static_cast<int64_t>(std::min(cells, 1e9));
  }
};

// Adds up weights of cells; remembers which were touched.
template <typename T>
class CellSums {
 public:
  explicit CellSums(int64_t size) : sums_(size, 0), is_touched_(size, 0) {}

  void add(int32_t cell, T weight) {
    if (!is_touched_[cell]) {
      is_touched_[cell] = 1;
      touched_.push_back(cell);
    }
    sums_[cell] += weight;
  }
  void move_to(OwnedBins<T>& taps) {
    std::sort(touched_.begin(), touched_.end());
    for (int32_t cell : touched_) {
      taps.cells.push_back(cell);
      taps.weights.push_back(sums_[cell]);
      sums_[cell] = 0;
      is_touched_[cell] = 0;
    }
    touched_.clear();
    taps.starts.push_back(static_cast<int64_t>(taps.cells.size()));
  }

 private:
  std::vector<T> sums_;
  std::vector<uint8_t> is_touched_;
  std::vector<int32_t> touched_;
};

template <typename C, typename T>
void add_sample(C x, C y, int64_t height, int64_t width, C weight, CellSums<T>& sums) {
  const Sample<C> row = place_sample(y, height), column = place_sample(x, width);
  if (!row.is_on_map || !column.is_on_map) return;
  const C down = row.high_share, right = column.high_share;
  const int32_t cell = row.low * static_cast<int32_t>(width) + column.low;
  sums.add(cell, static_cast<T>((1 - down) * (1 - right) * weight));
  if (right > 0) sums.add(cell + 1, static_cast<T>((1 - down) * right * weight));
  if (down > 0) sums.add(cell + static_cast<int32_t>(width), static_cast<T>(down * (1 - right) * weight));
  if (right > 0 && down > 0) sums.add(cell + static_cast<int32_t>(width) + 1, static_cast<T>(down * right * weight));
}

template <typename C, typename T>
void find_bins(const C* roi, int64_t height, int64_t width, const RotatedSettings& settings, CellSums<T>& sums,
               OwnedBins<T>& taps) {
  const TurnedGrid<C> grid(roi, settings);
  taps.starts.assign(1, 0);
  const C bin_h = grid.height / static_cast<C>(settings.bins_h), bin_w = grid.width / static_cast<C>(settings.bins_w);
  const C half = static_cast<C>(0.5);
  for (int64_t bin = 0; bin < settings.bins(); ++bin) {
    const C weight = grid.grid_h > 0 && grid.grid_w > 0
                         ? 1 / (static_cast<C>(grid.grid_h) * static_cast<C>(grid.grid_w))
                         : static_cast<C>(0);
    const TurnedBin<C> samples = {grid.center_x,
                                  grid.center_y,
                                  grid.cos,
                                  grid.sin,
                                  -grid.width * half + static_cast<C>(bin % settings.bins_w) * bin_w,
                                  -grid.height * half + static_cast<C>(bin / settings.bins_w) * bin_h,
                                  bin_w,
                                  bin_h,
                                  grid.grid_h,
                                  grid.grid_w,
                                  height,
                                  width};
    int64_t first_row, last_row, first, last;
    samples.possible_rows(&first_row, &last_row);
    for (int64_t i = first_row; i < last_row && grid.grid_w > 0; ++i) {
      const C row_x = samples.across(i) * grid.sin + grid.center_x,
              row_y = samples.across(i) * grid.cos + grid.center_y;
      samples.possible_columns(i, &first, &last);
      for (int64_t j = first; j < last; ++j) {
        const C along = samples.along(j);
        add_sample(row_x + along * grid.cos, row_y - along * grid.sin, height, width, weight, sums);
      }
    }
    sums.move_to(taps);
  }
  for (int32_t cell : taps.cells) {
    const int64_t y = cell / width, x = cell % width;
    taps.window.cover({y, y + 1, x, x + 1});
  }
}

// Cells of the map become cells of the window.
template <typename T>
void shift_to_window(const Window& window, int64_t map_width, OwnedBins<T>& taps) {
  for (int32_t& cell : taps.cells) {
    const int64_t y = cell / map_width - window.top, x = cell % map_width - window.left;
    cell = static_cast<int32_t>(y * window.width() + x);
  }
}

template <typename C>
GroupedRegions group_turned(const C* rois, int64_t num_rois, const RotatedSettings& settings, int64_t num_images) {
  const auto is_finite = [&](int64_t r, int64_t) { return TurnedGrid<C>(rois + r * 6, settings).is_finite(); };
  return group_regions(rois, num_rois, 6, static_cast<const int64_t*>(nullptr), 1, num_images, is_finite);
}

// The regions of one image, in chunks whose taps fit in memory.
template <typename C>
std::vector<RegionGroup> chunked(const std::vector<RegionGroup>& groups, const C* rois,
                                 const RotatedSettings& settings) {
  std::vector<RegionGroup> chunks;
  for (const RegionGroup& group : groups) {
    int64_t taps = 0;
    chunks.push_back({0, group.image, {}});
    for (int64_t r : group.regions) {
      const TurnedGrid<C> grid(rois + r * 6, settings);
      const int64_t more = grid.expected_taps();
      if (taps + more > kTapsPerChunk && !chunks.back().regions.empty()) {
        chunks.push_back({0, group.image, {}});
        taps = 0;
      }
      chunks.back().regions.push_back(r);
      taps += more;
    }
  }
  return chunks;
}

template <typename C, typename T>
std::vector<OwnedBins<T>> find_chunk(const RegionGroup& chunk, const C* rois, int64_t height, int64_t width,
                                     const RotatedSettings& settings, Window* window) {
  std::vector<OwnedBins<T>> taps(chunk.regions.size());
  for_each_unit(
      static_cast<int64_t>(taps.size()), [&] { return CellSums<T>(height * width); },
      [&](CellSums<T>& sums, int64_t i) {
        find_bins(rois + chunk.regions[i] * 6, height, width, settings, sums, taps[i]);
      });
  *window = Window::nothing();
  for (const auto& entry : taps) window->cover(entry.window);
  if (window->area() == 0) return taps;
  for_each_unit(static_cast<int64_t>(taps.size()), [&](int64_t i) { shift_to_window(*window, width, taps[i]); });
  return taps;
}

template <typename T>
struct Workspace {
  Buffer<T> cells, tile;
};

template <typename S, typename C>
void forward(const Tensor& input, const C* rois, int64_t num_rois, const RotatedSettings& settings,
             const PooledBins<S>& output) {
  using T = typename Storage<S>::Wide;
  const int64_t channels = input.size(1), cell_groups = (channels + kLanes<T> - 1) / kLanes<T>;
  const GroupedRegions regions = group_turned(rois, num_rois, settings, input.size(0));
  fill_others(regions, output);
  for (const RegionGroup& chunk : chunked(regions.groups, rois, settings)) {
    const Map<S> map = map_of<S>(input, chunk.image);
    Window window;
    const auto taps = find_chunk<C, T>(chunk, rois, map.height, map.width, settings, &window);
    for_each_unit(
        chunk.regions.empty() ? 0 : cell_groups, [] { return Workspace<T>(); },
        [&](Workspace<T>& work, int64_t unit) {
          const int64_t channel = unit * kLanes<T>;
          T* cells = work.cells.reserve(std::max<int64_t>(window.area(), 1) * kLanes<T>);
          T* tile = work.tile.reserve(settings.bins() * kLanes<T>);
          if (window.area() > 0) pack_window(map, channel, window, cells);
          for (size_t i = 0; i < taps.size(); ++i) {
            pool_kernels<T>().gather(taps[i].view(), cells, tile);
            Storage<S>::kernels().unpack(tile, output.channel_stride, output.bin_stride, settings.bins(),
                                         channels_in_cell(map, channel), output.at(chunk.regions[i], channel));
          }
        });
  }
}

// All channel groups of an image are held packed while the image's chunks add to them, in their order.
template <typename S, typename C>
void backward(const PooledBins<S>& grad, const C* rois, int64_t num_rois, const RotatedSettings& settings,
              const Tensor& result) {
  using T = typename Storage<S>::Wide;
  const int64_t channels = result.size(1), cell_groups = (channels + kLanes<T> - 1) / kLanes<T>;
  const GroupedRegions regions = group_turned(rois, num_rois, settings, result.size(0));
  for (const RegionGroup& group : regions.groups) {
    const Map<S> map = map_of<S>(result, group.image);
    const Window everything = {0, map.height, 0, map.width};
    const int64_t size = everything.area() * kLanes<T>;
    const auto chunks = chunked(std::vector<RegionGroup>{group}, rois, settings);
    Buffer<T> cells;
    if (chunks.size() > 1) cells.reserve(size * cell_groups);
    for (size_t c = 0; c < chunks.size(); ++c) {
      const RegionGroup& chunk = chunks[c];
      std::vector<OwnedBins<T>> taps(chunk.regions.size());
      for_each_unit(
          static_cast<int64_t>(taps.size()), [&] { return CellSums<T>(map.height * map.width); },
          [&](CellSums<T>& sums, int64_t i) {
            find_bins(rois + chunk.regions[i] * 6, map.height, map.width, settings, sums, taps[i]);
          });
      for_each_unit(
          cell_groups, [] { return Workspace<T>(); },
          [&](Workspace<T>& work, int64_t unit) {
            const int64_t channel = unit * kLanes<T>;
            T* target = chunks.size() > 1 ? cells.get() + unit * size : work.cells.reserve(size);
            T* tile = work.tile.reserve(settings.bins() * kLanes<T>);
            if (c == 0) std::fill(target, target + size, static_cast<T>(0));
            for (size_t i = 0; i < taps.size(); ++i) {
              Storage<S>::kernels().pack(grad.at(chunk.regions[i], channel), grad.channel_stride, grad.bin_stride,
                                         settings.bins(), channels_in_cell(map, channel), tile);
              pool_kernels<T>().scatter(taps[i].view(), tile, target);
            }
            if (c + 1 == chunks.size()) unpack_window(target, channel, everything, map);
          });
    }
  }
}

// Calls `run(zero of the input's type, zero of the regions' type)`.
template <typename Run>
void with_types(const Tensor& input, const Tensor& rois, const Run& run) {
  const bool exact_rois = rois.scalar_type() == ScalarType::Double;
  const auto with_rois = [&](auto zero) {
    if (exact_rois) {
      run(zero, 0.0);
    } else {
      run(zero, 0.0f);
    }
  };
  switch (input.scalar_type()) {
    case ScalarType::Double:
      return with_rois(0.0);
    case ScalarType::Half:
      return with_rois(Half(0.0f));
    case ScalarType::BFloat16:
      return with_rois(BFloat16(0.0f));
    default:
      return with_rois(0.0f);
  }
}

}  // namespace

Tensor roi_align_rotated(Tensor input, Tensor rois, Sizes output_size, double spatial_scale, int64_t sampling_ratio) {
  check_rotated_pooling(input, rois, output_size);
  const Tensor exact = as_type(rois, wide_type(rois.scalar_type()));
  const RotatedSettings settings = {output_size[0], output_size[1], sampling_ratio, spatial_scale};
  const Sizes shape = {rois.size(0), input.size(1), output_size[0], output_size[1]};
  const Tensor output = new_result(input, shape, input.scalar_type());
  with_types(input, exact, [&](auto number, auto coordinate) {
    using S = decltype(number);
    using C = decltype(coordinate);
    forward<S, C>(input, static_cast<const C*>(exact.data_ptr()), rois.size(0), settings, describe_pooled<S>(output));
  });
  return output;
}

Tensor roi_align_rotated_backward(Tensor grad, Tensor input, Tensor rois, Sizes output_size, double spatial_scale,
                                  int64_t sampling_ratio, bool /*deterministic: always*/) {
  check_rotated_pooling(input, rois, output_size);
  check_shape("grad", grad, {rois.size(0), input.size(1), output_size[0], output_size[1]});
  check_floating("grad", grad, input);
  const Tensor exact = as_type(rois, wide_type(rois.scalar_type()));
  const Tensor dense = dense_pooled(grad, input.scalar_type());
  const RotatedSettings settings = {output_size[0], output_size[1], sampling_ratio, spatial_scale};
  const Tensor result = new_result_like(input);
  with_types(input, exact, [&](auto number, auto coordinate) {
    using S = decltype(number);
    using C = decltype(coordinate);
    backward<S, C>(describe_pooled<S>(dense), static_cast<const C*>(exact.data_ptr()), rois.size(0), settings, result);
  });
  return result;
}

}  // namespace cpu
}  // namespace detlab
