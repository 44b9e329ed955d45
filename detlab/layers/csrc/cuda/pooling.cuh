// What the pooling kernels share: how threads divide the work, and where gradients are summed up.
#pragma once

#include "../feature_map.h"
#include "device.cuh"

namespace detlab {
namespace cuda {

constexpr int kPoolThreads = 256;
constexpr int kChannelsPerBlock = 64;
constexpr int kTile = 16;  // side of the square of cells that a block of a deterministic backward owns
constexpr int kChannelsPerTile = 8;

// The channels of one region that a block works on, bin by bin. Neighbouring threads take neighbouring bins of a
// channel, or, where channels lie together, neighbouring channels of a bin.
struct BlockOfChannels {
  int first, count, num_bins;
  bool channels_last;

  __device__ BlockOfChannels(int64_t channels, int num_bins, bool channels_last)
      : first(blockIdx.y * kChannelsPerBlock), num_bins(num_bins), channels_last(channels_last) {
    count = at_most<int>(kChannelsPerBlock, static_cast<int>(channels) - first);
  }

  // Calls `visit(channel, bin)` for the thread's part.
  template <typename Visit>
  __device__ void visit_items(const Visit& visit) const {
    for (int i = threadIdx.x; i < count * num_bins; i += blockDim.x) {
      if (channels_last) {
        visit(first + i % count, i / count);
      } else {
        visit(first + i / num_bins, i % num_bins);
      }
    }
  }
  template <typename S>
  __device__ void fill(const PooledBins<S>& output, int64_t region, float value) const {
    visit_items(
        [&](int channel, int bin) { output.at(region, channel)[bin * output.bin_stride] = static_cast<S>(value); });
  }
};

// Grid of kernels that work region by region.
inline dim3 blocks_of_regions(int64_t num_rois, int64_t channels) {
  return dim3(static_cast<unsigned>(num_rois), static_cast<unsigned>(divide_up(channels, kChannelsPerBlock)));
}

// The cell that a thread owns, in some channels of an image.
struct OwnCell {
  int64_t image, first_y, first_x, y, x;
  int first_channel, num_channels;

  template <typename S>
  __device__ explicit OwnCell(const FeatureMap<S>& map) {
    const int64_t tiles_x = (map.width + kTile - 1) / kTile, tiles_y = (map.height + kTile - 1) / kTile;
    const int64_t tile = blockIdx.x % (tiles_x * tiles_y);
    image = blockIdx.x / (tiles_x * tiles_y);
    first_y = tile / tiles_x * kTile;
    first_x = tile % tiles_x * kTile;
    y = first_y + threadIdx.x / kTile;
    x = first_x + threadIdx.x % kTile;
    first_channel = blockIdx.y * kChannelsPerTile;
    num_channels = at_most<int>(kChannelsPerTile, static_cast<int>(map.channels) - first_channel);
  }
  template <typename S, typename T>
  __device__ void store(const FeatureMap<S>& map, const T* sums) const {
    if (y >= map.height || x >= map.width) return;
    S* target = map.plane(image, first_channel) + y * map.row_stride + x * map.column_stride;
    for (int c = 0; c < num_channels; ++c) target[c * map.channel_stride] = static_cast<S>(sums[c]);
  }
};

// Grid of kernels whose threads own a cell; their blocks are kTile x kTile.
inline dim3 blocks_of_tiles(const Tensor& map) {
  const int64_t tiles = divide_up(map.size(2), kTile) * divide_up(map.size(3), kTile) * map.size(0);
  return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(divide_up(map.size(1), kChannelsPerTile)));
}

// The gradient of a map that kernels add to in any order. Half precision would lose small addends: they add to a map of
// single precision, which is rounded once.
class MapSums {
 public:
  explicit MapSums(const Tensor& map) : result_(torch::stable::empty_like(map)), sums_(result_) {
    const ScalarType wide = wide_type(map.scalar_type());
    if (wide == map.scalar_type()) {
      torch::stable::zero_(result_);
      return;
    }
    sums_ = new_in_order_of(map, map.size(0), map.size(2), map.size(3),
                            [&](const std::vector<int64_t>& shape) { return new_zero_tensor(map, shape, wide); });
  }
  const Tensor& sums() const { return sums_; }
  Tensor finish() {
    if (sums_.scalar_type() != result_.scalar_type()) torch::stable::copy_(result_, sums_);
    return result_;
  }

 private:
  Tensor result_, sums_;
};

// Calls `run(zero of the maps' type, zero of the regions' type)`.
template <typename Run>
void with_types(const Tensor& map, const Tensor& rois, const Run& run) {
  with_type(map.scalar_type(), [&](auto number) {
    with_wide_type(rois.scalar_type(), [&](auto coordinate) { run(number, coordinate); });
  });
}

// More shared memory than any kernel gets unasked, which output sizes of hundreds of bins need.
template <typename Kernel>
void grant_shared(Kernel kernel, int64_t bytes) {
  constexpr int64_t kGrantedToAll = 48 * 1024;
  if (bytes <= kGrantedToAll) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace cuda
}  // namespace detlab
