// What the pooling kernels share: regions in the coordinates of their feature map, grouped by the map they read, and
// the passage between a map's numbers and the cells of simd.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../checks.h"
#include "../feature_map.h"
#include "memory.h"
#include "simd.h"

namespace detlab {

// One image of one feature level.
template <typename S>
struct Map : FeatureMap<S> {
  bool is_streamed;  // where written

  // All its positions are equally far apart.
  bool is_one_row() const { return this->row_stride == this->width * this->column_stride; }
  // A cell can be read where it is: its channels lie together and whole groups of them fill cells.
  bool holds_cells() const { return this->channel_stride == 1 && this->channels % kLanes<S> == 0; }
};

template <typename S>
Map<S> map_of(const Tensor& features, int64_t image) {
  Map<S> map = {describe_map<S>(features), is_streamed(features)};
  map.data = map.plane(image, 0);
  return map;
}

// Half-open rectangle of cells.
struct Window {
  int64_t top, bottom, left, right;

  static Window nothing() {
    constexpr int64_t far = std::numeric_limits<int32_t>::max();
    return {far, 0, far, 0};
  }
  int64_t height() const { return std::max<int64_t>(bottom - top, 0); }
  int64_t width() const { return std::max<int64_t>(right - left, 0); }
  int64_t area() const { return height() * width(); }
  void cover(const Window& other) {
    if (other.area() == 0) return;
    top = std::min(top, other.top);
    bottom = std::max(bottom, other.bottom);
    left = std::min(left, other.left);
    right = std::max(right, other.right);
  }
};

// With the columns that are missing to whole rows, where those are few: a window of whole rows passes in one piece.
template <typename S>
Window in_whole_rows(Window window, const Map<S>& map) {
  if (!map.is_one_row() || window.width() * 8 < map.width * 7) return window;
  return {window.top, window.bottom, 0, map.width};
}

template <typename S>
int channels_in_cell(const Map<S>& map, int64_t first_channel) {
  return static_cast<int>(std::min<int64_t>(kLanes<typename Storage<S>::Wide>, map.channels - first_channel));
}

// Packs a window of one channel group; row y, column x of the window becomes cell y * width + x.
template <typename S, typename T>
void pack_window(const Map<S>& map, int64_t first_channel, const Window& window, T* cells) {
  const int channels = channels_in_cell(map, first_channel);
  const S* source =
      map.data + first_channel * map.channel_stride + window.top * map.row_stride + window.left * map.column_stride;
  const auto pack = Storage<S>::kernels().pack;
  if (map.is_one_row() && window.width() == map.width) {
    pack(source, map.channel_stride, map.column_stride, window.area(), channels, cells);
    return;
  }
  for (int64_t y = 0; y < window.height(); ++y) {
    pack(source + y * map.row_stride, map.channel_stride, map.column_stride, window.width(), channels,
         cells + y * window.width() * kLanes<T>);
  }
}

// The reverse; what lies outside the window becomes 0.
template <typename S, typename T>
void unpack_window(const T* cells, int64_t first_channel, const Window& window, const Map<S>& map) {
  const int channels = channels_in_cell(map, first_channel);
  S* target = map.data + first_channel * map.channel_stride;
  const auto& kernels = Storage<S>::kernels();
  const auto unpack = map.is_streamed ? kernels.unpack_streaming : kernels.unpack;
  const auto clear = [&](int64_t row, int64_t first, int64_t last) {
    if (map.column_stride == 1) {
      for (int c = 0; c < channels; ++c) {
        S* line = target + c * map.channel_stride + row * map.row_stride;
        std::fill(line + first, line + std::max(first, last), static_cast<S>(0));
      }
      return;
    }
    for (int64_t x = first; x < last; ++x) {
      S* position = target + row * map.row_stride + x * map.column_stride;
      for (int c = 0; c < channels; ++c) position[c * map.channel_stride] = static_cast<S>(0);
    }
  };
  const bool is_empty = window.area() == 0;
  const int64_t top = is_empty ? map.height : window.top, bottom = is_empty ? map.height : window.bottom;
  for (int64_t y = 0; y < top; ++y) clear(y, 0, map.width);
  for (int64_t y = bottom; y < map.height; ++y) clear(y, 0, map.width);
  if (is_empty) return;
  if (map.is_one_row() && window.width() == map.width) {
    unpack(cells, map.channel_stride, map.column_stride, window.area(), channels, target + top * map.row_stride);
    simd().finish_streaming();
    return;
  }
  for (int64_t y = top; y < bottom; ++y) {
    clear(y, 0, window.left);
    clear(y, window.right, map.width);
    unpack(cells + (y - top) * window.width() * kLanes<T>, map.channel_stride, map.column_stride, window.width(),
           channels, target + y * map.row_stride + window.left * map.column_stride);
  }
  simd().finish_streaming();
}

// The regions that read one image of one level.
struct RegionGroup {
  int64_t level, image;
  std::vector<int64_t> regions;
};

struct GroupedRegions {
  std::vector<RegionGroup> groups;
  std::vector<int64_t> nowhere;  // not finite, or of an image that does not exist: their result is NaN
  std::vector<int64_t> strays;   // of a level that does not exist: their result is 0
};

// Groups regions by level and image, in their order. `is_finite(region, level)` looks at a region on its map.
template <typename C, typename IsFinite>
GroupedRegions group_regions(const C* rois, int64_t num_rois, int64_t roi_size, const int64_t* levels,
                             int64_t num_levels, int64_t num_images, const IsFinite& is_finite) {
  GroupedRegions found;
  found.groups.resize(num_levels * num_images);
  for (int64_t g = 0; g < num_levels * num_images; ++g) {
    found.groups[g].level = g / num_images;
    found.groups[g].image = g % num_images;
  }
  for (int64_t r = 0; r < num_rois; ++r) {
    const C* roi = rois + r * roi_size;
    const int64_t image = image_index(roi[0], num_images), level = levels == nullptr ? 0 : levels[r];
    if (image < 0 || !are_finite(roi + 1, static_cast<int>(roi_size) - 1)) {
      found.nowhere.push_back(r);
    } else if (level < 0 || level >= num_levels) {
      found.strays.push_back(r);
    } else if (!is_finite(r, level)) {
      found.nowhere.push_back(r);
    } else {
      found.groups[level * num_images + image].regions.push_back(r);
    }
  }
  return found;
}

// Gives the regions that read nothing their results.
template <typename S>
void fill_others(const GroupedRegions& regions, const PooledBins<S>& output) {
  const auto fill = [&](const std::vector<int64_t>& which, float value) {
    for (int64_t r : which) std::fill_n(output.at(r, 0), output.region_stride, static_cast<S>(value));
  };
  fill(regions.nowhere, std::numeric_limits<float>::quiet_NaN());
  fill(regions.strays, 0.0f);
}

}  // namespace detlab
