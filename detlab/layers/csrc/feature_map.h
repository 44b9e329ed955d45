// Feature maps, and what is pooled from them, as their tensors lie in memory; the same on every device.
//
// Shapes: N images, C channels, H x W cells, R regions, h x w bins of a region.
#pragma once

#include <cstdint>
#include <vector>

#include "checks.h"
#include "host_device.h"

namespace detlab {

// (N, C, H, W).
template <typename S>
struct FeatureMap {
  S* data;
  int64_t images, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;

  DETLAB_BOTH S* plane(int64_t image, int64_t channel) const {
    return data + image * image_stride + channel * channel_stride;
  }
};

template <typename S>
FeatureMap<S> describe_map(const Tensor& map) {
  return {static_cast<S*>(map.data_ptr()),
          map.size(0),
          map.size(1),
          map.size(2),
          map.size(3),
          map.stride(0),
          map.stride(1),
          map.stride(2),
          map.stride(3)};
}

// (R, C, bins).
template <typename S>
struct PooledBins {
  S* data;
  int64_t region_stride, channel_stride, bin_stride;

  DETLAB_BOTH bool is_channels_last() const { return bin_stride != 1; }
  DETLAB_BOTH S* at(int64_t region, int64_t channel) const {
    return data + region * region_stride + channel * channel_stride;
  }
};

// Of a tensor that fills its memory, in either of the usual orders.
template <typename S>
PooledBins<S> describe_pooled(const Tensor& pooled) {
  S* data = static_cast<S*>(pooled.data_ptr());
  const int64_t channels = pooled.size(1), bins = pooled.size(2) * pooled.size(3);
  if (pooled.is_contiguous()) return {data, channels * bins, bins, 1};
  return {data, channels * bins, 1, channels};
}

// The index of a region's image, or -1 where the batch has none of that number.
template <typename C>
DETLAB_BOTH inline int64_t image_index(C image, int64_t num_images) {
  return image >= 0 && image < static_cast<C>(num_images) ? static_cast<int64_t>(image) : -1;
}

// Whether all of a region's coordinates are numbers, and finite ones.
template <typename C>
DETLAB_BOTH inline bool are_finite(const C* numbers, int count) {
  for (int k = 0; k < count; ++k) {
    if (!(numbers[k] - numbers[k] == 0)) return false;
  }
  return true;
}

// Whether the channels of a position lie together.
inline bool is_channels_last(const Tensor& map) { return map.stride(1) == 1 && map.stride(3) != 1; }

// (N, C, h, w) in the order of the map's memory; `make(shape)` allocates.
template <typename Make>
Tensor new_in_order_of(const Tensor& map, int64_t count, int64_t height, int64_t width, const Make& make) {
  const int64_t channels = map.size(1);
  if (!is_channels_last(map)) return make(std::vector<int64_t>{count, channels, height, width});
  const Tensor last = make(std::vector<int64_t>{count, height, width, channels});
  return torch::stable::transpose(torch::stable::transpose(last, 2, 3), 1, 2);
}

// The gradient of what was pooled, as it is where it fills its memory in either of the usual orders.
inline Tensor dense_pooled(const Tensor& grad, ScalarType type) {
  const int64_t channels = grad.size(1), height = grad.size(2), width = grad.size(3);
  const bool is_dense = grad.scalar_type() == type && grad.stride(1) == 1 && grad.stride(3) == channels &&
                        grad.stride(2) == channels * width && grad.stride(0) == channels * width * height;
  return is_dense ? grad : as_type(grad, type);
}

}  // namespace detlab
