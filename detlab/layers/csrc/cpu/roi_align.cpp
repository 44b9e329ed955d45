// ROIAlign (He et al., Mask R-CNN, 2017) on feature levels.
//
// A group is the regions of one image and level. Where they together read more than their part of the map holds, that
// part is packed into cells once for each channel group and read from cache; where they read little, each region is
// packed alone, or read in place if its cells lie in memory as they are. Backward gathers the gradient of a group in
// packed cells, regions in their order, so that the sums do not depend on the number of threads.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>

#include "../kernels.h"
#include "parallel.h"
#include "regions.h"
#include "roi_taps.h"

namespace detlab {
namespace cpu {
namespace {

constexpr int64_t kRegionsPerUnit = 8;
// What it costs to pack a cell for one region alone, in short pieces, relative to packing it in passing over the map.
constexpr int64_t kPackingAlone = 6;

template <typename T>
struct Plan {
  GroupedRegions regions;
  std::vector<OwnedTaps<T>> taps;  // of each region that reads
  int64_t bins = 0;
  int64_t most_columns = 1;

  // What the group's regions read together, and some more where that makes it easier to pass on.
  template <typename S>
  Window window_of(const RegionGroup& group, const Map<S>& map) const {
    Window window = Window::nothing();
    for (int64_t r : group.regions) window.cover(taps[r].window);
    return in_whole_rows(window, map);
  }
  int64_t cells_read_by(const RegionGroup& group) const {
    int64_t cells = 0;
    for (int64_t r : group.regions) cells += taps[r].window.area();
    return cells;
  }
};

template <typename C, typename T>
Plan<T> make_plan(const std::vector<Tensor>& features, const Tensor& rois, const int64_t* levels, const Scales& scales,
                  const PoolSettings& settings) {
  const C* numbers = static_cast<const C*>(rois.data_ptr());
  const int64_t num_rois = rois.size(0), num_levels = static_cast<int64_t>(features.size());
  Plan<T> plan;
  plan.bins = settings.bins_h * settings.bins_w;
  const auto axis_of = [&](int64_t r, int64_t level, bool is_y) {
    const C* roi = numbers + r * 5 + (is_y ? 2 : 1);
    return make_axis(roi[0], roi[2], static_cast<C>(scales[level]), is_y ? settings.bins_h : settings.bins_w,
                     features[level].size(is_y ? 2 : 3), settings.sampling_ratio, settings.aligned);
  };
  const auto is_finite = [&](int64_t r, int64_t level) {
    return axis_of(r, level, true).is_finite() && axis_of(r, level, false).is_finite();
  };
  plan.regions = group_regions(numbers, num_rois, 5, levels, num_levels, features[0].size(0), is_finite);
  plan.taps.resize(num_rois);
  std::vector<std::array<int64_t, 2>> reading;  // regions and their levels
  for (const RegionGroup& group : plan.regions.groups) {
    for (int64_t r : group.regions) reading.push_back({r, group.level});
  }
  const int64_t count = static_cast<int64_t>(reading.size());
  for_each_unit((count + kRegionsPerUnit - 1) / kRegionsPerUnit, [&](int64_t unit) {
    for (int64_t i = unit * kRegionsPerUnit; i < std::min(count, (unit + 1) * kRegionsPerUnit); ++i) {
      const auto [r, level] = reading[i];
      find_taps(axis_of(r, level, true), axis_of(r, level, false), plan.taps[r]);
    }
  });
  for (const auto& taps : plan.taps) {
    plan.most_columns = std::max<int64_t>(plan.most_columns, static_cast<int64_t>(taps.columns.size()));
  }
  return plan;
}

template <typename T>
Plan<T> make_plan(const std::vector<Tensor>& features, const Tensor& rois, const std::optional<Tensor>& levels,
                  const Scales& scales, const PoolSettings& settings) {
  const Tensor exact = as_type(rois, wide_type(rois.scalar_type()));
  std::optional<Tensor> dense_levels;
  if (levels.has_value()) dense_levels = as_type(*levels, ScalarType::Long);
  const int64_t* level_numbers = levels.has_value() ? static_cast<const int64_t*>(dense_levels->data_ptr()) : nullptr;
  if (exact.scalar_type() == ScalarType::Double) {
    return make_plan<double, T>(features, exact, level_numbers, scales, settings);
  }
  return make_plan<float, T>(features, exact, level_numbers, scales, settings);
}

// The memory that a thread works in.
template <typename T>
struct Workspace {
  Buffer<T> cells, scratch, tile, lines;

  explicit Workspace(const Plan<T>& plan)
      : scratch(plan.most_columns * kLanes<T>), tile(plan.bins * kLanes<T>), lines(plan.bins * kLanes<T>) {}
};

template <typename S, typename T>
class Forward {
 public:
  Forward(const Plan<T>& plan, const std::vector<Tensor>& features, const Tensor& output)
      : plan_(plan),
        features_(features),
        output_(describe_pooled<S>(output)),
        is_streamed_(is_streamed(output)),
        channels_(features[0].size(1)) {
    for (size_t g = 0; g < plan.regions.groups.size(); ++g) add_units(static_cast<int64_t>(g));
    std::stable_sort(units_.begin(), units_.end(), [](const Unit& a, const Unit& b) { return a.cost > b.cost; });
  }

  void run() {
    for_each_unit(
        static_cast<int64_t>(units_.size()), [&] { return Workspace<T>(plan_); },
        [&](Workspace<T>& workspace, int64_t u) {
          const Unit& unit = units_[u];
          if (unit.is_shared) {
            pool_shared(unit, workspace);
          } else {
            pool_alone(unit, workspace);
          }
          simd().finish_streaming();
        });
  }

 private:
  struct Unit {
    int64_t group, first, last;  // channels where cells are shared, else positions in the group's list
    bool is_shared;
    int64_t cost;
  };

  void add_units(int64_t g) {
    const RegionGroup& group = plan_.regions.groups[g];
    const int64_t cells_read = plan_.cells_read_by(group), num_regions = static_cast<int64_t>(group.regions.size());
    if (num_regions == 0) return;
    const int64_t packed = plan_.window_of(group, map_of<S>(features_[group.level], group.image)).area();
    if (kPackingAlone * cells_read > packed) {
      for (int64_t first = 0; first < channels_; first += kLanes<T>) {
        units_.push_back({g, first, first + kLanes<T>, true, packed + cells_read});
      }
      return;
    }
    const int64_t cell_groups = (channels_ + kLanes<T> - 1) / kLanes<T>;
    for (int64_t first = 0; first < num_regions; first += kRegionsPerUnit) {
      const int64_t last = std::min(num_regions, first + kRegionsPerUnit);
      units_.push_back({g, first, last, false, 2 * cell_groups * cells_read * (last - first) / num_regions});
    }
  }

  bool reads_in_place(const RegionGroup& group) const {
    return std::is_same<S, T>::value && map_of<S>(features_[group.level], group.image).holds_cells();
  }

  void pool_shared(const Unit& unit, Workspace<T>& workspace) const {
    const RegionGroup& group = plan_.regions.groups[unit.group];
    const Map<S> map = map_of<S>(features_[group.level], group.image);
    const Window window = plan_.window_of(group, map);
    T* cells = workspace.cells.reserve(window.area() * kLanes<T>);
    pack_window(map, unit.first, window, cells);
    for (int64_t r : group.regions) pool(r, grid_of(cells, window), unit.first, workspace);
  }

  void pool_alone(const Unit& unit, Workspace<T>& workspace) const {
    const RegionGroup& group = plan_.regions.groups[unit.group];
    const Map<S> map = map_of<S>(features_[group.level], group.image);
    const bool in_place = reads_in_place(group);
    for (int64_t position = unit.first; position < unit.last; ++position) {
      const int64_t r = group.regions[position];
      const Window& window = plan_.taps[r].window;
      T* cells = in_place ? nullptr : workspace.cells.reserve(window.area() * kLanes<T>);
      for (int64_t channel = 0; channel < channels_; channel += kLanes<T>) {
        if (in_place) {
          const T* numbers = reinterpret_cast<const T*>(map.data + channel);
          pool(r, {numbers, map.row_stride, map.column_stride}, channel, workspace);
        } else {
          pack_window(map, channel, window, cells);
          pool(r, grid_of(cells, window), channel, workspace);
        }
      }
    }
  }

  // Taps count from the map's first cell.
  static CellGrid<const T> grid_of(const T* cells, const Window& window) {
    const int64_t row_stride = window.width() * kLanes<T>;
    return {cells - window.top * row_stride - window.left * kLanes<T>, row_stride, kLanes<T>};
  }

  void pool(int64_t r, CellGrid<const T> cells, int64_t channel, Workspace<T>& workspace) const {
    const int channels = static_cast<int>(std::min<int64_t>(kLanes<T>, channels_ - channel));
    S* target = output_.at(r, channel);
    T* tile = workspace.tile.get();
    pool_kernels<T>().forward(plan_.taps[r].view(), cells, workspace.scratch.get(), tile);
    if (!is_streamed_ || output_.is_channels_last()) {
      const auto& kernels = Storage<S>::kernels();
      const auto unpack = is_streamed_ ? kernels.unpack_streaming : kernels.unpack;
      unpack(tile, output_.channel_stride, output_.bin_stride, plan_.bins, channels, target);
      return;
    }
    // The rows of a result seldom fill lines, all of them together do.
    S* lines = reinterpret_cast<S*>(workspace.lines.get());
    Storage<S>::kernels().unpack(tile, plan_.bins, 1, plan_.bins, channels, lines);
    simd().stream(lines, target, channels * plan_.bins * static_cast<int64_t>(sizeof(S)));
  }

  const Plan<T>& plan_;
  const std::vector<Tensor>& features_;
  const PooledBins<S> output_;
  const bool is_streamed_;
  const int64_t channels_;
  std::vector<Unit> units_;
};

template <typename S, typename T>
void add_gradients(const Plan<T>& plan, const RegionGroup& group, const PooledBins<S>& grad, const Map<S>& map,
                   int64_t channel, Workspace<T>& workspace) {
  const Window window = plan.window_of(group, map);
  const int64_t row_stride = window.width() * kLanes<T>;
  T* cells = workspace.cells.reserve(window.area() * kLanes<T>);
  std::fill(cells, cells + window.area() * kLanes<T>, static_cast<T>(0));
  const CellGrid<T> grid = {cells - window.top * row_stride - window.left * kLanes<T>, row_stride, kLanes<T>};
  const int channels = channels_in_cell(map, channel);
  for (size_t i = 0; i < group.regions.size(); ++i) {
    const int64_t r = group.regions[i];
    if (i + 1 < group.regions.size() && !grad.is_channels_last()) {
      prefetch(grad.at(group.regions[i + 1], channel), channels * plan.bins);
    }
    Storage<S>::kernels().pack(grad.at(r, channel), grad.channel_stride, grad.bin_stride, plan.bins, channels,
                               workspace.tile.get());
    pool_kernels<T>().backward(plan.taps[r].view(), workspace.tile.get(), workspace.scratch.get(), grid);
  }
  unpack_window(cells, channel, window, map);
}

template <typename S, typename T>
void backward(const Plan<T>& plan, const PooledBins<S>& grad, const std::vector<Tensor>& grads) {
  const int64_t channels = grads[0].size(1), cell_groups = (channels + kLanes<T> - 1) / kLanes<T>;
  const int64_t num_groups = static_cast<int64_t>(plan.regions.groups.size());
  for_each_unit(
      num_groups * cell_groups, [&] { return Workspace<T>(plan); },
      [&](Workspace<T>& workspace, int64_t unit) {
        const RegionGroup& group = plan.regions.groups[unit / cell_groups];
        const Map<S> map = map_of<S>(grads[group.level], group.image);
        add_gradients(plan, group, grad, map, unit % cell_groups * kLanes<T>, workspace);
      });
}

template <typename S>
Tensor forward_of(const std::vector<Tensor>& features, const Tensor& rois, const std::optional<Tensor>& levels,
                  const Scales& scales, const PoolSettings& settings) {
  using T = typename Storage<S>::Wide;
  const Plan<T> plan = make_plan<T>(features, rois, levels, scales, settings);
  // In the usual order, whatever the map's: most heads flatten regions, which would copy what is channels-last.
  const Sizes shape = {rois.size(0), features[0].size(1), settings.bins_h, settings.bins_w};
  const Tensor output = new_result(features[0], shape, features[0].scalar_type());
  Forward<S, T>(plan, features, output).run();
  fill_others(plan.regions, describe_pooled<S>(output));
  return output;
}

template <typename S>
std::vector<Tensor> backward_of(const Tensor& grad, const std::vector<Tensor>& features, const Tensor& rois,
                                const std::optional<Tensor>& levels, const Scales& scales,
                                const PoolSettings& settings) {
  using T = typename Storage<S>::Wide;
  const Plan<T> plan = make_plan<T>(features, rois, levels, scales, settings);
  const Tensor dense = dense_pooled(grad, features[0].scalar_type());
  std::vector<Tensor> grads;
  for (const Tensor& level : features) grads.push_back(new_result_like(level));
  backward<S, T>(plan, describe_pooled<S>(dense), grads);
  return grads;
}

}  // namespace

Tensor roi_align_levels(std::vector<Tensor> features, Tensor rois, std::optional<Tensor> levels, Sizes output_size,
                        Scales scales, int64_t sampling_ratio, bool aligned) {
  check_pooling(features, rois, levels, output_size, scales);
  const PoolSettings settings = {output_size[0], output_size[1], sampling_ratio, aligned};
  switch (features[0].scalar_type()) {
    case ScalarType::Double:
      return forward_of<double>(features, rois, levels, scales, settings);
    case ScalarType::Half:
      return forward_of<Half>(features, rois, levels, scales, settings);
    case ScalarType::BFloat16:
      return forward_of<BFloat16>(features, rois, levels, scales, settings);
    default:
      return forward_of<float>(features, rois, levels, scales, settings);
  }
}

std::vector<Tensor> roi_align_levels_backward(Tensor grad, std::vector<Tensor> features, Tensor rois,
                                              std::optional<Tensor> levels, Sizes output_size, Scales scales,
                                              int64_t sampling_ratio, bool aligned, bool /*deterministic: always*/) {
  check_pooling(features, rois, levels, output_size, scales);
  check_shape("grad", grad, {rois.size(0), features[0].size(1), output_size[0], output_size[1]});
  check_floating("grad", grad, features[0]);
  const PoolSettings settings = {output_size[0], output_size[1], sampling_ratio, aligned};
  switch (features[0].scalar_type()) {
    case ScalarType::Double:
      return backward_of<double>(grad, features, rois, levels, scales, settings);
    case ScalarType::Half:
      return backward_of<Half>(grad, features, rois, levels, scales, settings);
    case ScalarType::BFloat16:
      return backward_of<BFloat16>(grad, features, rois, levels, scales, settings);
    default:
      return backward_of<float>(grad, features, rois, levels, scales, settings);
  }
}

}  // namespace cpu
}  // namespace detlab
