// ROIAlign on feature levels. A block serves one region and some channels. First it finds which rows and columns each
// bin reads, with what weight (a bin's average of bilinear samples is separable), so that a cell is read once for a bin
// instead of up to four times for each sample.

#include "pooling.cuh"
#include "roi_taps.cuh"

namespace detlab {
namespace cuda {
namespace {

constexpr int kMaxLevels = 16;

// What a region reads: nothing, where its result is all `fill`.
template <typename C>
struct Region {
  bool reads;
  float fill;
  int level;
  int64_t image;
  Axis<C> y_axis, x_axis;
};

template <typename S, typename C>
struct Pooling {
  FeatureMap<S> levels[kMaxLevels];
  C scales[kMaxLevels];
  int num_levels;
  int64_t num_rois;
  int bins_h, bins_w;
  int64_t sampling_ratio;
  bool aligned;
  const C* rois;
  const int64_t* level_of;  // null with one level

  __device__ int bins() const { return bins_h * bins_w; }
  __device__ int64_t channels() const { return levels[0].channels; }
  __device__ int64_t level(int64_t r) const { return level_of == nullptr ? 0 : level_of[r]; }
  __device__ Axis<C> axis(int64_t r, int level, bool is_y) const {
    const C* roi = rois + r * 5 + (is_y ? 2 : 1);
    return make_axis(roi[0], roi[2], scales[level], is_y ? bins_h : bins_w,
                     is_y ? levels[level].height : levels[level].width, sampling_ratio, aligned);
  }
  // In the order of the CPU's: what is nowhere gives NaN, a level that does not exist 0.
  __device__ Region<C> region(int64_t r) const {
    Region<C> region = {false, nanf(""), 0, image_index(rois[r * 5], levels[0].images), {}, {}};
    if (region.image < 0 || !are_finite(rois + r * 5 + 1, 4)) return region;
    if (level(r) < 0 || level(r) >= num_levels) {
      region.fill = 0;
      return region;
    }
    region.level = static_cast<int>(level(r));
    region.y_axis = axis(r, region.level, true);
    region.x_axis = axis(r, region.level, false);
    region.reads = region.y_axis.is_finite() && region.x_axis.is_finite();
    return region;
  }
};

// Calls `run(row taps, column taps)`.
template <typename T, typename C, typename Run>
__device__ void with_taps(const Region<C>& region, const Run& run) {
  __shared__ PreparedTaps<C, T> rows, columns;
  if (can_be_prepared(region.y_axis) && can_be_prepared(region.x_axis)) {
    prepare_taps(region.y_axis, region.x_axis, rows, columns);
    run(rows, columns);
  } else {
    run(AxisTaps<C>{region.y_axis}, AxisTaps<C>{region.x_axis});
  }
}

// Grid: (regions, channel groups).
template <typename S, typename C, typename T>
__global__ void pool_kernel(Pooling<S, C> pooling, PooledBins<S> output) {
  const int64_t r = blockIdx.x;
  const BlockOfChannels block(pooling.channels(), pooling.bins(), output.is_channels_last());
  const Region<C> region = pooling.region(r);
  if (!region.reads) {
    block.fill(output, r, region.fill);
    return;
  }
  const FeatureMap<S> map = pooling.levels[region.level];
  with_taps<T>(region, [&](const auto& rows, const auto& columns) {
    block.visit_items([&](int channel, int bin) {
      const S* plane = map.plane(region.image, channel);
      T sum = 0;
      rows.visit(bin / pooling.bins_w, [&](int32_t y, auto row_weight) {
        const S* line = plane + y * map.row_stride;
        T line_sum = 0;
        columns.visit(bin % pooling.bins_w, [&](int32_t x, auto weight) {
          line_sum = fma(static_cast<T>(weight), static_cast<T>(line[x * map.column_stride]), line_sum);
        });
        sum = fma(static_cast<T>(row_weight), line_sum, sum);
      });
      output.at(r, channel)[bin * output.bin_stride] = static_cast<S>(sum);
    });
  });
}

// Adds to `pooling.levels`, which hold sums of type T. Grid: (regions, channel groups). The order of the additions, and
// so the last digits, differ from run to run.
template <typename S, typename C, typename T>
__global__ void spread_kernel(Pooling<T, C> pooling, PooledBins<const S> grad) {
  const int64_t r = blockIdx.x;
  const BlockOfChannels block(pooling.channels(), pooling.bins(), grad.is_channels_last());
  const Region<C> region = pooling.region(r);
  if (!region.reads) return;
  const FeatureMap<T> map = pooling.levels[region.level];
  with_taps<T>(region, [&](const auto& rows, const auto& columns) {
    block.visit_items([&](int channel, int bin) {
      const T value = static_cast<T>(grad.at(r, channel)[bin * grad.bin_stride]);
      T* plane = map.plane(region.image, channel);
      rows.visit(bin / pooling.bins_w, [&](int32_t y, auto row_weight) {
        T* line = plane + y * map.row_stride;
        const T line_value = value * static_cast<T>(row_weight);
        columns.visit(bin % pooling.bins_w, [&](int32_t x, auto weight) {
          atomicAdd(line + x * map.column_stride, line_value * static_cast<T>(weight));
        });
      });
    });
  });
}

// Weight of every bin of an axis at kTile cells from `first_cell`; (bins, kTile). Returns whether any is not 0.
template <typename C, typename T>
__device__ bool tile_weights(const Axis<C>& axis, int64_t first_cell, T* weights) {
  bool reads = false;
  for (int bin = threadIdx.x; bin < axis.bins; bin += blockDim.x) {
    for (int k = 0; k < kTile; ++k) weights[bin * kTile + k] = 0;
    AxisTaps<C>{axis}.visit(bin, [&](int32_t cell, C weight) {
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

// The weights of a region's bins at the cells of a tile.
template <typename T>
struct TileWeights {
  T* rows;     // (bins_h, kTile)
  T* columns;  // (bins_w, kTile)
};

// Adds what reaches a cell from the bins of a region.
template <typename S, typename C, typename T>
__device__ void add_bins(const Pooling<S, C>& pooling, int64_t r, const OwnCell& cell, const TileWeights<T>& weights,
                         const PooledBins<const S>& grad, T* sums) {
  const S* source = grad.at(r, cell.first_channel);
  for (int y = 0; y < pooling.bins_h; ++y) {
    const T row_weight = weights.rows[y * kTile + threadIdx.x / kTile];
    if (row_weight == 0) continue;
    for (int x = 0; x < pooling.bins_w; ++x) {
      const T weight = row_weight * weights.columns[x * kTile + threadIdx.x % kTile];
      if (weight == 0) continue;
      const S* values = source + (y * pooling.bins_w + x) * grad.bin_stride;
      for (int c = 0; c < cell.num_channels; ++c) {
        sums[c] = fma(weight, static_cast<T>(values[c * grad.channel_stride]), sums[c]);
      }
    }
  }
}

// The deterministic backward: a thread owns a cell in some channels and adds up what reaches it, regions in their
// order. Grid: (tiles of all images of the level, channel groups); block: kTile x kTile.
template <typename S, typename C, typename T>
__global__ void collect_kernel(Pooling<S, C> pooling, int level, PooledBins<const S> grad) {
  DETLAB_DYNAMIC_SHARED(memory);
  __shared__ int reads_rows, reads_columns;
  T* row_weights = reinterpret_cast<T*>(memory);
  const TileWeights<T> weights = {row_weights, row_weights + pooling.bins_h * kTile};
  const OwnCell cell(pooling.levels[level]);
  T sums[kChannelsPerTile];
  for (int c = 0; c < kChannelsPerTile; ++c) sums[c] = 0;
  for (int64_t r = 0; r < pooling.num_rois; ++r) {
    if (pooling.level(r) != level) continue;
    const Region<C> region = pooling.region(r);
    if (!region.reads || region.image != cell.image) continue;
    if (!may_read(region.y_axis, cell.first_y) || !may_read(region.x_axis, cell.first_x)) continue;
    if (threadIdx.x == 0) reads_rows = reads_columns = 0;
    __syncthreads();
    if (tile_weights(region.y_axis, cell.first_y, weights.rows)) reads_rows = 1;
    if (tile_weights(region.x_axis, cell.first_x, weights.columns)) reads_columns = 1;
    __syncthreads();
    if (reads_rows && reads_columns) add_bins(pooling, r, cell, weights, grad, sums);
    __syncthreads();
  }
  cell.store(pooling.levels[level], sums);
}

// The arguments of a call, in the types and order that the kernels read.
struct Arguments {
  Tensor rois;
  std::optional<Tensor> levels;
  Sizes output_size;
  Scales scales;
  int64_t sampling_ratio;
  bool aligned;

  Arguments(const Tensor& given_rois, const std::optional<Tensor>& given_levels, const Sizes& output_size,
            const Scales& scales, int64_t sampling_ratio, bool aligned)
      : rois(as_type(given_rois, wide_type(given_rois.scalar_type()))),
        output_size(output_size),
        scales(scales),
        sampling_ratio(sampling_ratio),
        aligned(aligned) {
    if (given_levels.has_value()) levels = as_type(*given_levels, ScalarType::Long);
  }

  template <typename S, typename C>
  Pooling<S, C> on(const std::vector<Tensor>& maps) const {
    STD_TORCH_CHECK(maps.size() <= kMaxLevels, "detlab: at most ", kMaxLevels, " feature levels, got ", maps.size());
    Pooling<S, C> pooling = {};
    for (size_t i = 0; i < maps.size(); ++i) {
      pooling.levels[i] = describe_map<S>(maps[i]);
      pooling.scales[i] = static_cast<C>(scales[i]);
    }
    pooling.num_levels = static_cast<int>(maps.size());
    pooling.num_rois = rois.size(0);
    pooling.bins_h = static_cast<int>(output_size[0]);
    pooling.bins_w = static_cast<int>(output_size[1]);
    pooling.sampling_ratio = sampling_ratio;
    pooling.aligned = aligned;
    pooling.rois = read<C>(rois);
    pooling.level_of = levels.has_value() ? read<int64_t>(*levels) : nullptr;
    return pooling;
  }
};

template <typename S, typename C>
void spread(const Tensor& grad, const std::vector<Tensor>& sums, const Arguments& arguments, cudaStream_t stream) {
  using T = Wide<S>;
  const auto kernel = spread_kernel<S, C, T>;
  const dim3 grid = blocks_of_regions(arguments.rois.size(0), grad.size(1));
  const auto pooling = arguments.on<T, C>(sums);
  DETLAB_LAUNCH(kernel, grid, kPoolThreads, 0, stream, pooling, describe_pooled<const S>(grad));
}

template <typename S, typename C>
void collect(const Tensor& grad, const std::vector<Tensor>& grads, const Arguments& arguments, cudaStream_t stream) {
  using T = Wide<S>;
  const auto kernel = collect_kernel<S, C, T>;
  const auto pooling = arguments.on<S, C>(grads);
  const int64_t bytes = (arguments.output_size[0] + arguments.output_size[1]) * kTile * static_cast<int64_t>(sizeof(T));
  grant_shared(kernel, bytes);
  for (size_t level = 0; level < grads.size(); ++level) {
    if (grads[level].numel() == 0) continue;
    DETLAB_LAUNCH(kernel, blocks_of_tiles(grads[level]), kTile * kTile, bytes, stream, pooling, static_cast<int>(level),
                  describe_pooled<const S>(grad));
  }
}

}  // namespace

Tensor roi_align_levels(std::vector<Tensor> features, Tensor rois, std::optional<Tensor> levels, Sizes output_size,
                        Scales scales, int64_t sampling_ratio, bool aligned) {
  check_pooling(features, rois, levels, output_size, scales);
  const Launch launch(features[0]);
  const Arguments arguments(rois, levels, output_size, scales, sampling_ratio, aligned);
  const Tensor output =
      new_in_order_of(features[0], rois.size(0), output_size[0], output_size[1],
                      [&](const Sizes& shape) { return new_tensor(features[0], shape, features[0].scalar_type()); });
  if (output.numel() == 0) return output;
  with_types(features[0], arguments.rois, [&](auto number, auto coordinate) {
    using S = decltype(number);
    using C = decltype(coordinate);
    const auto kernel = pool_kernel<S, C, Wide<S>>;
    const dim3 grid = blocks_of_regions(rois.size(0), output.size(1));
    const auto pooling = arguments.on<S, C>(features);
    DETLAB_LAUNCH(kernel, grid, kPoolThreads, 0, launch.stream(), pooling, describe_pooled<S>(output));
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
  const Arguments arguments(rois, levels, output_size, scales, sampling_ratio, aligned);
  const Tensor dense = dense_pooled(grad, features[0].scalar_type());
  std::vector<MapSums> sums;
  std::vector<Tensor> maps, grads;
  const bool in_place = deterministic && dense.numel() > 0;  // each cell is written once
  for (const Tensor& map : features) {
    if (in_place) {
      maps.push_back(torch::stable::empty_like(map));
    } else {
      sums.emplace_back(map);
      maps.push_back(sums.back().sums());
    }
  }
  if (dense.numel() > 0) {
    with_types(features[0], arguments.rois, [&](auto number, auto coordinate) {
      using S = decltype(number);
      using C = decltype(coordinate);
      const auto run = deterministic ? collect<S, C> : spread<S, C>;
      run(dense, maps, arguments, launch.stream());
    });
  }
  if (in_place) return maps;
  for (MapSums& sum : sums) grads.push_back(sum.finish());
  return grads;
}

}  // namespace cuda
}  // namespace detlab
