// ROIAlign on feature levels. A block serves one region and some channels. First it finds which rows and columns each
// bin reads, with what weight (a bin's average of bilinear samples is separable), so that a cell is read once for a bin
// instead of up to four times for each sample.

#include "device.cuh"
#include "taps.cuh"

namespace detlab {
namespace cuda {
namespace {

constexpr int kMaxLevels = 16;
constexpr int kThreads = 256;
constexpr int kChannelsPerBlock = 64;
constexpr int kTile = 16;  // side of the square of cells that a block of the deterministic backward owns
constexpr int kChannelsPerTile = 8;

template <typename S>
struct Level {
  S* data;
  int64_t height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

template <typename S, typename C>
struct Pooling {
  Level<S> levels[kMaxLevels];
  C scales[kMaxLevels];
  int num_levels;
  int64_t num_images, channels, num_rois;
  int bins_h, bins_w;
  int64_t sampling_ratio;
  bool aligned;
  const C* rois;
  const int64_t* level_of;  // null with one level

  __device__ int bins() const { return bins_h * bins_w; }
  // -1 for a region that reads nothing.
  __device__ int level(int64_t r) const {
    const int64_t level = level_of == nullptr ? 0 : level_of[r];
    return level >= 0 && level < num_levels ? static_cast<int>(level) : -1;
  }
  __device__ int64_t image(int64_t r) const {
    const C image = rois[r * 5];
    return image >= 0 && image < static_cast<C>(num_images) ? static_cast<int64_t>(image) : -1;
  }
  __device__ Axis<C> x_axis(int64_t r, int level) const {
    return make_axis(rois[r * 5 + 1], rois[r * 5 + 3], scales[level], bins_w, levels[level].width, sampling_ratio,
                     aligned);
  }
  __device__ Axis<C> y_axis(int64_t r, int level) const {
    return make_axis(rois[r * 5 + 2], rois[r * 5 + 4], scales[level], bins_h, levels[level].height, sampling_ratio,
                     aligned);
  }
};

// Taps of both axes of a region in shared memory.
template <typename T>
struct SharedTaps {
  int32_t* row_starts;     // (bins_h + 1)
  int32_t* column_starts;  // (bins_w + 1)
  int32_t* rows;
  int32_t* columns;
  T* row_weights;
  T* column_weights;
};

// Most taps of an axis: bins share at most their outer cells, unless a given number of samples is spread out.
__host__ __device__ inline int64_t most_taps(int64_t size, int64_t bins, int64_t sampling_ratio) {
  return sampling_ratio > 0 ? 2 * sampling_ratio * bins : size + 4 * bins;
}

template <typename T>
__host__ __device__ inline int64_t shared_bytes(int64_t row_taps, int64_t column_taps, int64_t bins_h, int64_t bins_w) {
  return (row_taps + column_taps) * static_cast<int64_t>(sizeof(T) + sizeof(int32_t)) +
         (bins_h + bins_w + 2) * static_cast<int64_t>(sizeof(int32_t));
}

template <typename T>
__device__ SharedTaps<T> divide_shared(unsigned char* memory, int64_t row_taps, int64_t column_taps, int bins_h) {
  SharedTaps<T> taps;
  taps.row_weights = reinterpret_cast<T*>(memory);
  taps.column_weights = taps.row_weights + row_taps;
  taps.rows = reinterpret_cast<int32_t*>(taps.column_weights + column_taps);
  taps.columns = taps.rows + row_taps;
  taps.row_starts = taps.columns + column_taps;
  taps.column_starts = taps.row_starts + bins_h + 1;
  return taps;
}

template <typename C, typename T>
__device__ void fill_taps(const Axis<C>& axis, int32_t* starts, int32_t* cells, T* weights, int64_t capacity,
                          int thread, int num_threads) {
  for (int bin = thread; bin < axis.bins; bin += num_threads) {
    int count = 0;
    visit_taps(axis, bin, [&](int32_t, C) { ++count; });
    starts[bin + 1] = count;
  }
  __syncthreads();
  if (thread == 0) {
    starts[0] = 0;
    for (int bin = 0; bin < axis.bins; ++bin) {
      const int64_t end = static_cast<int64_t>(starts[bin]) + starts[bin + 1];
      starts[bin + 1] = static_cast<int32_t>(end < capacity ? end : capacity);
    }
  }
  __syncthreads();
  for (int bin = thread; bin < axis.bins; bin += num_threads) {
    int32_t tap = starts[bin];
    const int32_t end = starts[bin + 1];
    visit_taps(axis, bin, [&](int32_t cell, C weight) {
      if (tap < end) {
        cells[tap] = cell;
        weights[tap] = static_cast<T>(weight);
        ++tap;
      }
    });
  }
  __syncthreads();
}

// What a thread works on: a channel and a bin. Neighbouring threads take neighbouring bins of a channel, or, on
// channels-last maps, neighbouring channels of a bin: whichever lies together in memory.
struct Item {
  int channel, bin;
};

__device__ inline Item item_at(int index, int num_channels, int num_bins, bool channels_last) {
  if (channels_last) return {index % num_channels, index / num_channels};
  return {index / num_bins, index % num_bins};
}

// Grid: (regions, channel groups).
template <typename S, typename C, typename T>
__global__ void pool_kernel(Pooling<S, C> pooling, int64_t row_taps, int64_t column_taps, bool channels_last,
                            S* __restrict__ output) {
  DETLAB_DYNAMIC_SHARED(memory);
  const int64_t r = blockIdx.x;
  const int first_channel = blockIdx.y * kChannelsPerBlock;
  const int num_channels = at_most<int>(kChannelsPerBlock, static_cast<int>(pooling.channels) - first_channel);
  const int num_bins = pooling.bins();
  S* target = output + (r * pooling.channels + first_channel) * num_bins;
  const int level_index = pooling.level(r);
  const int64_t image = pooling.image(r);
  if (level_index < 0 || image < 0) {
    for (int i = threadIdx.x; i < num_channels * num_bins; i += blockDim.x) target[i] = static_cast<S>(0.0f);
    return;
  }
  const Axis<C> y_axis = pooling.y_axis(r, level_index), x_axis = pooling.x_axis(r, level_index);
  if (!y_axis.is_finite() || !x_axis.is_finite()) {
    for (int i = threadIdx.x; i < num_channels * num_bins; i += blockDim.x) target[i] = static_cast<S>(nanf(""));
    return;
  }
  const SharedTaps<T> taps = divide_shared<T>(memory, row_taps, column_taps, pooling.bins_h);
  fill_taps(y_axis, taps.row_starts, taps.rows, taps.row_weights, row_taps, threadIdx.x, blockDim.x);
  fill_taps(x_axis, taps.column_starts, taps.columns, taps.column_weights, column_taps, threadIdx.x, blockDim.x);
  const Level<S> level = pooling.levels[level_index];
  const S* map = level.data + image * level.image_stride + first_channel * level.channel_stride;
  for (int i = threadIdx.x; i < num_channels * num_bins; i += blockDim.x) {
    const Item item = item_at(i, num_channels, num_bins, channels_last);
    const int bin_y = item.bin / pooling.bins_w, bin_x = item.bin % pooling.bins_w;
    const S* plane = map + item.channel * level.channel_stride;
    T sum = 0;
    for (int y = taps.row_starts[bin_y]; y < taps.row_starts[bin_y + 1]; ++y) {
      const S* line = plane + taps.rows[y] * level.row_stride;
      T line_sum = 0;
      for (int x = taps.column_starts[bin_x]; x < taps.column_starts[bin_x + 1]; ++x) {
        const T value = static_cast<T>(line[taps.columns[x] * level.column_stride]);
        line_sum = fma(taps.column_weights[x], value, line_sum);
      }
      sum = fma(taps.row_weights[y], line_sum, sum);
    }
    target[item.channel * num_bins + item.bin] = static_cast<S>(sum);
  }
}

// Adds to `pooling.levels`, which hold sums of type T. Grid: (regions, channel groups). The order of the additions, and
// so the last digits, differ from run to run.
template <typename S, typename C, typename T>
__global__ void spread_kernel(Pooling<T, C> pooling, int64_t row_taps, int64_t column_taps, bool channels_last,
                              const S* __restrict__ grad) {
  DETLAB_DYNAMIC_SHARED(memory);
  const int64_t r = blockIdx.x;
  const int level_index = pooling.level(r);
  const int64_t image = pooling.image(r);
  if (level_index < 0 || image < 0) return;
  const Axis<C> y_axis = pooling.y_axis(r, level_index), x_axis = pooling.x_axis(r, level_index);
  if (!y_axis.is_finite() || !x_axis.is_finite()) return;
  const SharedTaps<T> taps = divide_shared<T>(memory, row_taps, column_taps, pooling.bins_h);
  fill_taps(y_axis, taps.row_starts, taps.rows, taps.row_weights, row_taps, threadIdx.x, blockDim.x);
  fill_taps(x_axis, taps.column_starts, taps.columns, taps.column_weights, column_taps, threadIdx.x, blockDim.x);
  const int first_channel = blockIdx.y * kChannelsPerBlock;
  const int num_channels = at_most<int>(kChannelsPerBlock, static_cast<int>(pooling.channels) - first_channel);
  const int num_bins = pooling.bins();
  const S* source = grad + (r * pooling.channels + first_channel) * num_bins;
  const Level<T> level = pooling.levels[level_index];
  T* map = level.data + image * level.image_stride + first_channel * level.channel_stride;
  for (int i = threadIdx.x; i < num_channels * num_bins; i += blockDim.x) {
    const Item item = item_at(i, num_channels, num_bins, channels_last);
    const int bin_y = item.bin / pooling.bins_w, bin_x = item.bin % pooling.bins_w;
    const T value = static_cast<T>(source[item.channel * num_bins + item.bin]);
    T* plane = map + item.channel * level.channel_stride;
    for (int y = taps.row_starts[bin_y]; y < taps.row_starts[bin_y + 1]; ++y) {
      T* line = plane + taps.rows[y] * level.row_stride;
      const T line_value = value * taps.row_weights[y];
      for (int x = taps.column_starts[bin_x]; x < taps.column_starts[bin_x + 1]; ++x) {
        atomicAdd(line + taps.columns[x] * level.column_stride, line_value * taps.column_weights[x]);
      }
    }
  }
}

// Weight of every bin of an axis at kTile cells from `first_cell`; (bins, kTile). Returns whether any is not 0.
template <typename C, typename T>
__device__ bool tile_weights(const Axis<C>& axis, int64_t first_cell, T* weights, int thread, int num_threads) {
  bool reads = false;
  for (int bin = thread; bin < axis.bins; bin += num_threads) {
    for (int k = 0; k < kTile; ++k) weights[bin * kTile + k] = 0;
    visit_taps(axis, bin, [&](int32_t cell, C weight) {
      const int64_t k = cell - first_cell;
      if (k >= 0 && k < kTile) {
        weights[bin * kTile + k] += static_cast<T>(weight);
        reads = true;
      }
    });
  }
  return reads;
}

template <typename C>
__device__ bool may_read(const Axis<C>& axis, int64_t first_cell) {
  const C end = axis.start + axis.bin_size * static_cast<C>(axis.bins);
  const C low = at_most(axis.start, end) - 2, high = at_least(axis.start, end) + 2;
  // Positions just off the map read its border.
  const C first = first_cell == 0 ? static_cast<C>(-1) : static_cast<C>(first_cell);
  return high >= first && low <= static_cast<C>(first_cell + kTile);
}

// The deterministic backward: a thread owns a cell in some channels and adds up what reaches it, regions in their
// order. Grid: (tiles of all images of the level, channel groups); block: kTile x kTile.
template <typename S, typename C, typename T>
__global__ void collect_kernel(Pooling<S, C> pooling, int level_index, const S* __restrict__ grad) {
  DETLAB_DYNAMIC_SHARED(memory);
  T* row_weights = reinterpret_cast<T*>(memory);
  T* column_weights = row_weights + pooling.bins_h * kTile;
  __shared__ int reads_rows, reads_columns;
  const Level<S> level = pooling.levels[level_index];
  const int64_t tiles_x = (level.width + kTile - 1) / kTile, tiles_y = (level.height + kTile - 1) / kTile;
  const int64_t image = blockIdx.x / (tiles_x * tiles_y), tile = blockIdx.x % (tiles_x * tiles_y);
  const int64_t first_y = tile / tiles_x * kTile, first_x = tile % tiles_x * kTile;
  const int thread = threadIdx.x, cell_y = thread / kTile, cell_x = thread % kTile;
  const int first_channel = blockIdx.y * kChannelsPerTile;
  const int num_channels = at_most<int>(kChannelsPerTile, static_cast<int>(pooling.channels) - first_channel);
  const int num_bins = pooling.bins();
  T sums[kChannelsPerTile];
  for (int c = 0; c < kChannelsPerTile; ++c) sums[c] = 0;
  for (int64_t r = 0; r < pooling.num_rois; ++r) {
    if (pooling.level(r) != level_index || pooling.image(r) != image) continue;
    const Axis<C> y_axis = pooling.y_axis(r, level_index), x_axis = pooling.x_axis(r, level_index);
    if (!y_axis.is_finite() || !x_axis.is_finite()) continue;
    if (!may_read(y_axis, first_y) || !may_read(x_axis, first_x)) continue;
    if (thread == 0) reads_rows = reads_columns = 0;
    __syncthreads();
    if (tile_weights(y_axis, first_y, row_weights, thread, blockDim.x)) reads_rows = 1;
    if (tile_weights(x_axis, first_x, column_weights, thread, blockDim.x)) reads_columns = 1;
    __syncthreads();
    if (reads_rows && reads_columns) {
      const S* source = grad + (r * pooling.channels + first_channel) * num_bins;
      for (int y = 0; y < pooling.bins_h; ++y) {
        const T row_weight = row_weights[y * kTile + cell_y];
        if (row_weight == 0) continue;
        for (int x = 0; x < pooling.bins_w; ++x) {
          const T weight = row_weight * column_weights[x * kTile + cell_x];
          if (weight == 0) continue;
          for (int c = 0; c < num_channels; ++c) {
            sums[c] = fma(weight, static_cast<T>(source[c * num_bins + y * pooling.bins_w + x]), sums[c]);
          }
        }
      }
    }
    __syncthreads();
  }
  const int64_t y = first_y + cell_y, x = first_x + cell_x;
  if (y >= level.height || x >= level.width) return;
  S* target = level.data + image * level.image_stride + first_channel * level.channel_stride + y * level.row_stride +
              x * level.column_stride;
  for (int c = 0; c < num_channels; ++c) target[c * level.channel_stride] = static_cast<S>(sums[c]);
}

template <typename S, typename C>
Pooling<S, C> describe(const std::vector<Tensor>& maps, const Tensor& rois, const std::optional<Tensor>& levels,
                       const Sizes& output_size, const Scales& scales, int64_t sampling_ratio, bool aligned) {
  STD_TORCH_CHECK(maps.size() <= kMaxLevels, "detlab: at most ", kMaxLevels, " feature levels, got ", maps.size());
  Pooling<S, C> pooling = {};
  for (size_t i = 0; i < maps.size(); ++i) {
    const Tensor& map = maps[i];
    pooling.levels[i] = {write<S>(map), map.size(2),   map.size(3),  map.stride(0),
                         map.stride(1), map.stride(2), map.stride(3)};
    pooling.scales[i] = static_cast<C>(scales[i]);
  }
  pooling.num_levels = static_cast<int>(maps.size());
  pooling.num_images = maps[0].size(0);
  pooling.channels = maps[0].size(1);
  pooling.num_rois = rois.size(0);
  pooling.bins_h = static_cast<int>(output_size[0]);
  pooling.bins_w = static_cast<int>(output_size[1]);
  pooling.sampling_ratio = sampling_ratio;
  pooling.aligned = aligned;
  pooling.rois = read<C>(rois);
  pooling.level_of = levels.has_value() ? read<int64_t>(*levels) : nullptr;
  return pooling;
}

// More shared memory than any kernel gets unasked, which output sizes of hundreds of bins need.
template <typename Kernel>
void grant_shared(Kernel kernel, int64_t bytes) {
  constexpr int64_t kGrantedToAll = 48 * 1024;
  if (bytes <= kGrantedToAll) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

// How the kernels that work region by region are launched.
struct Plan {
  dim3 grid;
  int64_t row_taps = 0, column_taps = 0, bytes = 0;
  bool channels_last = false;
};

template <typename T, typename Kernel>
Plan plan_regions(const std::vector<Tensor>& maps, int64_t num_rois, const Sizes& output_size, int64_t sampling_ratio,
                  Kernel kernel) {
  Plan plan;
  int64_t height = 0, width = 0;
  for (const Tensor& map : maps) {
    height = std::max(height, map.size(2));
    width = std::max(width, map.size(3));
  }
  plan.row_taps = most_taps(height, output_size[0], sampling_ratio);
  plan.column_taps = most_taps(width, output_size[1], sampling_ratio);
  plan.bytes = shared_bytes<T>(plan.row_taps, plan.column_taps, output_size[0], output_size[1]);
  grant_shared(kernel, plan.bytes);
  plan.grid =
      dim3(static_cast<unsigned>(num_rois), static_cast<unsigned>(divide_up(maps[0].size(1), kChannelsPerBlock)));
  plan.channels_last = maps[0].stride(1) == 1 && maps[0].stride(3) != 1;
  return plan;
}

// Regions and levels in the types and order that the kernels read.
struct Regions {
  Tensor rois;
  std::optional<Tensor> levels;

  Regions(const Tensor& given, const std::optional<Tensor>& given_levels)
      : rois(as_type(given, wide_type(given.scalar_type()))) {
    if (given_levels.has_value()) levels = as_type(*given_levels, ScalarType::Long);
  }
};

template <typename S, typename C>
void spread(const Tensor& grad, const std::vector<Tensor>& sums, const Regions& regions, const Sizes& output_size,
            const Scales& scales, int64_t sampling_ratio, bool aligned, cudaStream_t stream) {
  using T = Wide<S>;
  const auto kernel = spread_kernel<S, C, T>;
  const Plan plan = plan_regions<T>(sums, regions.rois.size(0), output_size, sampling_ratio, kernel);
  const auto pooling = describe<T, C>(sums, regions.rois, regions.levels, output_size, scales, sampling_ratio, aligned);
  DETLAB_LAUNCH(kernel, plan.grid, kThreads, plan.bytes, stream, pooling, plan.row_taps, plan.column_taps,
                plan.channels_last, read<S>(grad));
}

template <typename S, typename C>
void collect(const Tensor& grad, const std::vector<Tensor>& grads, const Regions& regions, const Sizes& output_size,
             const Scales& scales, int64_t sampling_ratio, bool aligned, cudaStream_t stream) {
  using T = Wide<S>;
  const auto kernel = collect_kernel<S, C, T>;
  const auto pooling =
      describe<S, C>(grads, regions.rois, regions.levels, output_size, scales, sampling_ratio, aligned);
  const int64_t bytes = (output_size[0] + output_size[1]) * kTile * static_cast<int64_t>(sizeof(T));
  grant_shared(kernel, bytes);
  for (size_t level = 0; level < grads.size(); ++level) {
    const Tensor& map = grads[level];
    if (map.numel() == 0) continue;
    const int64_t tiles = divide_up(map.size(2), kTile) * divide_up(map.size(3), kTile) * map.size(0);
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(divide_up(map.size(1), kChannelsPerTile)));
    DETLAB_LAUNCH(kernel, grid, kTile * kTile, bytes, stream, pooling, static_cast<int>(level), read<S>(grad));
  }
}

}  // namespace

Tensor roi_align_levels(std::vector<Tensor> features, Tensor rois, std::optional<Tensor> levels, Sizes output_size,
                        Scales scales, int64_t sampling_ratio, bool aligned) {
  check_pooling(features, rois, levels, output_size, scales);
  const Launch launch(features[0]);
  const Regions regions(rois, levels);
  const Tensor output = new_tensor(features[0], {rois.size(0), features[0].size(1), output_size[0], output_size[1]},
                                   features[0].scalar_type());
  if (output.numel() == 0) return output;
  with_type(features[0].scalar_type(), [&](auto number) {
    with_wide_type(regions.rois.scalar_type(), [&](auto coordinate) {
      using S = decltype(number);
      using C = decltype(coordinate);
      using T = Wide<S>;
      const auto kernel = pool_kernel<S, C, T>;
      const Plan plan = plan_regions<T>(features, rois.size(0), output_size, sampling_ratio, kernel);
      const auto pooling =
          describe<S, C>(features, regions.rois, regions.levels, output_size, scales, sampling_ratio, aligned);
      DETLAB_LAUNCH(kernel, plan.grid, kThreads, plan.bytes, launch.stream(), pooling, plan.row_taps, plan.column_taps,
                    plan.channels_last, write<S>(output));
    });
  });
  return output;
}

std::vector<Tensor> roi_align_levels_backward(Tensor grad, std::vector<Tensor> features, Tensor rois,
                                              std::optional<Tensor> levels, Sizes output_size, Scales scales,
                                              int64_t sampling_ratio, bool aligned, bool deterministic) {
  check_pooling(features, rois, levels, output_size, scales);
  check_shape("grad", grad, {rois.size(0), features[0].size(1), output_size[0], output_size[1]});
  check_floating("grad", grad, features[0]);
  const Launch launch(features[0]);
  const Regions regions(rois, levels);
  const ScalarType type = features[0].scalar_type();
  const Tensor dense = as_type(grad, type);
  const bool has_regions = dense.numel() > 0;
  std::vector<Tensor> grads;
  for (const Tensor& map : features) {
    Tensor result = torch::stable::empty_like(map);
    if (!deterministic || !has_regions) torch::stable::zero_(result);
    grads.push_back(result);
  }
  if (!has_regions) return grads;
  // Half precision would lose small addends; sums are formed in single precision beside the result.
  std::vector<Tensor> sums = grads;
  const bool is_narrow = wide_type(type) != type;
  if (!deterministic && is_narrow) {
    for (Tensor& sum : sums) sum = torch::stable::to(sum, wide_type(type));
  }
  with_type(type, [&](auto number) {
    with_wide_type(regions.rois.scalar_type(), [&](auto coordinate) {
      using S = decltype(number);
      using C = decltype(coordinate);
      const auto run = deterministic ? collect<S, C> : spread<S, C>;
      run(dense, deterministic ? grads : sums, regions, output_size, scales, sampling_ratio, aligned, launch.stream());
    });
  });
  if (!deterministic && is_narrow) {
    for (size_t i = 0; i < sums.size(); ++i) torch::stable::copy_(grads[i], sums[i]);
  }
  return grads;
}

}  // namespace cuda
}  // namespace detlab
