// ROIAlign for rotated regions; a block serves one region and some channels, a thread one channel of one bin.

#include "pooling.cuh"

namespace detlab {
namespace cuda {
namespace {

template <typename C>
struct Grid {
  int bins_h, bins_w;
  int64_t sampling_ratio;
  C scale;
};

// A region turned into the coordinates of its map.
template <typename C>
struct TurnedRegion {
  C center_x, center_y, bin_w, bin_h, left, top, cos, sin;
  int64_t grid_h, grid_w, image;
  bool reads;  // it is finite, and of an image that exists

  TurnedRegion() = default;
  __device__ TurnedRegion(const C* roi, const Grid<C>& grid, int64_t num_images) {
    const C half = static_cast<C>(0.5);
    image = image_index(roi[0], num_images);
    center_x = roi[1] * grid.scale - half;
    center_y = roi[2] * grid.scale - half;
    const C width = roi[3] * grid.scale, height = roi[4] * grid.scale;
    const C angle = roi[5] * static_cast<C>(3.14159265358979323846 / 180);
    cos = ::cos(angle);
    sin = ::sin(angle);
    bin_w = width / static_cast<C>(grid.bins_w);
    bin_h = height / static_cast<C>(grid.bins_h);
    left = -width * half;
    top = -height * half;
    grid_w = samples_per_bin(bin_w, grid.sampling_ratio);
    grid_h = samples_per_bin(bin_h, grid.sampling_ratio);
    const C numbers[5] = {center_x, center_y, width, height, cos};
    reads = image >= 0 && are_finite(numbers, 5);
  }

  __device__ C share() const { return 1 / (static_cast<C>(grid_h) * static_cast<C>(grid_w)); }
  __device__ TurnedBin<C> bin(int bin_y, int bin_x, int64_t height, int64_t width) const {
    return {center_x,
            center_y,
            cos,
            sin,
            left + static_cast<C>(bin_x) * bin_w,
            top + static_cast<C>(bin_y) * bin_h,
            bin_w,
            bin_h,
            grid_h,
            grid_w,
            height,
            width};
  }
  __device__ Sample<C> row_of(C across, C along, int64_t height) const {
    return place_sample(across * cos - along * sin + center_y, height);
  }
  __device__ Sample<C> column_of(C across, C along, int64_t width) const {
    return place_sample(across * sin + along * cos + center_x, width);
  }

  // Calls `visit(row, column, weight)` for what a bin reads.
  template <typename Visit>
  __device__ void visit_bin(int bin_y, int bin_x, int64_t height, int64_t width, const Visit& visit) const {
    if (grid_h < 1 || grid_w < 1) return;
    const TurnedBin<C> bin = this->bin(bin_y, bin_x, height, width);
    const C share = this->share();
    int64_t first_row, last_row, first, last;
    bin.possible_rows(&first_row, &last_row);
    for (int64_t i = first_row; i < last_row; ++i) {
      const C across = bin.across(i);
      bin.possible_columns(i, &first, &last);
      for (int64_t j = first; j < last; ++j) {
        const C along = bin.along(j);
        const Sample<C> row = row_of(across, along, height), column = column_of(across, along, width);
        if (!row.is_on_map || !column.is_on_map) continue;
        const C down = row.high_share, right = column.high_share;
        visit(row.low, column.low, (1 - down) * (1 - right) * share);
        if (right > 0) visit(row.low, column.low + 1, (1 - down) * right * share);
        if (down > 0) visit(row.low + 1, column.low, down * (1 - right) * share);
        if (right > 0 && down > 0) visit(row.low + 1, column.low + 1, down * right * share);
      }
    }
  }
};

// Grid: (regions, channel groups).
template <typename S, typename C, typename T>
__global__ void pool_kernel(FeatureMap<S> map, const C* __restrict__ rois, Grid<C> grid, PooledBins<S> output) {
  const int64_t r = blockIdx.x;
  const BlockOfChannels block(map.channels, grid.bins_h * grid.bins_w, output.is_channels_last());
  const TurnedRegion<C> region(rois + r * 6, grid, map.images);
  if (!region.reads) {
    block.fill(output, r, nanf(""));
    return;
  }
  block.visit_items([&](int channel, int bin) {
    const S* plane = map.plane(region.image, channel);
    T sum = 0;
    region.visit_bin(bin / grid.bins_w, bin % grid.bins_w, map.height, map.width, [&](int32_t y, int32_t x, C weight) {
      const T value = static_cast<T>(plane[y * map.row_stride + x * map.column_stride]);
      sum = fma(static_cast<T>(weight), value, sum);
    });
    output.at(r, channel)[bin * output.bin_stride] = static_cast<S>(sum);
  });
}

// Adds to sums of type T; the order of the additions differs from run to run. Grid: (regions, channel groups).
template <typename S, typename C, typename T>
__global__ void spread_kernel(FeatureMap<T> sums, const C* __restrict__ rois, Grid<C> grid, PooledBins<const S> grad) {
  const int64_t r = blockIdx.x;
  const TurnedRegion<C> region(rois + r * 6, grid, sums.images);
  if (!region.reads) return;
  const BlockOfChannels block(sums.channels, grid.bins_h * grid.bins_w, grad.is_channels_last());
  block.visit_items([&](int channel, int bin) {
    T* plane = sums.plane(region.image, channel);
    const T value = static_cast<T>(grad.at(r, channel)[bin * grad.bin_stride]);
    region.visit_bin(bin / grid.bins_w, bin % grid.bins_w, sums.height, sums.width,
                     [&](int32_t y, int32_t x, C weight) {
                       atomicAdd(plane + y * sums.row_stride + x * sums.column_stride, static_cast<T>(weight) * value);
                     });
  });
}

// Samples along one direction of a region, counted over all its bins: [first, last).
struct SampleRange {
  int64_t first, last;
};

// A sample of a bin, and the next one.
struct SamplePlace {
  int bin;
  int64_t sample, grid;

  __device__ SamplePlace(int64_t index, int64_t grid)
      : bin(static_cast<int>(index / grid)), sample(index % grid), grid(grid) {}
  __device__ void advance() {
    if (++sample < grid) return;
    sample = 0;
    ++bin;
  }
};

// The samples at `start + (k + 0.5) * step` that can lie within `reach` of a place: a superset by a few.
template <typename C>
__device__ SampleRange samples_near(C place, C reach, C start, C step, int64_t count) {
  if (step < static_cast<C>(1e-12) && step > static_cast<C>(-1e-12)) return {0, count};
  const C one = (place - reach - start) / step, other = (place + reach - start) / step;
  const C most = static_cast<C>(count), zero = 0;
  const int64_t first = static_cast<int64_t>(at_most(at_least(at_most(one, other), zero), most)) - 2;
  const int64_t last = static_cast<int64_t>(at_most(at_least(at_least(one, other), zero), most)) + 2;
  return {at_least(first, int64_t{0}), at_most(last, count)};
}

// The share of a cell in a sample.
template <typename C>
__device__ C share_of(const Sample<C>& sample, int64_t cell) {
  if (!sample.is_on_map) return 0;
  if (sample.low == cell) return 1 - sample.high_share;
  return sample.low + 1 == cell ? sample.high_share : static_cast<C>(0);
}

// How far rounding may move a sample.
template <typename C>
__device__ C rounding_of(const TurnedRegion<C>& region, int64_t height, int64_t width) {
  const C eps = sizeof(C) == 4 ? static_cast<C>(1.2e-7) : static_cast<C>(2.3e-16);
  return 16 * eps *
         (fabs(region.center_x) + fabs(region.center_y) + fabs(region.left) + fabs(region.top) +
          static_cast<C>(height + width));
}

// Whether a region can reach a tile: their surrounding circles meet.
template <typename C>
__device__ bool may_reach(const TurnedRegion<C>& region, const OwnCell& cell, int64_t height, int64_t width) {
  const C half = static_cast<C>(kTile) / 2, dx = static_cast<C>(cell.first_x) + half - region.center_x,
          dy = static_cast<C>(cell.first_y) + half - region.center_y;
  const C radius =
      static_cast<C>(1.5) * half + 2 + rounding_of(region, height, width) + fabs(region.left) + fabs(region.top);
  return fabs(dx) <= radius && fabs(dy) <= radius;
}

// Calls `visit(bin, weight)` for the samples of a region that read a cell, always in the same order. They lie at most a
// cell away from it along either side of the map, also where the map's border holds what lies just off it.
template <typename C, typename Visit>
__device__ void visit_samples_of_cell(const TurnedRegion<C>& region, const Grid<C>& grid, const OwnCell& cell,
                                      int64_t height, int64_t width, const Visit& visit) {
  if (region.grid_h < 1 || region.grid_w < 1) return;
  const C dx = static_cast<C>(cell.x) - region.center_x, dy = static_cast<C>(cell.y) - region.center_y;
  const C reach = fabs(region.cos) + fabs(region.sin) + rounding_of(region, height, width), share = region.share();
  const SampleRange rows = samples_near(dx * region.sin + dy * region.cos, reach, region.top,
                                        region.bin_h / static_cast<C>(region.grid_h), region.grid_h * grid.bins_h);
  const SampleRange columns = samples_near(dx * region.cos - dy * region.sin, reach, region.left,
                                           region.bin_w / static_cast<C>(region.grid_w), region.grid_w * grid.bins_w);
  SamplePlace row(rows.first, region.grid_h);
  for (int64_t i = rows.first; i < rows.last; ++i, row.advance()) {
    SamplePlace column(columns.first, region.grid_w);
    for (int64_t j = columns.first; j < columns.last; ++j, column.advance()) {
      const TurnedBin<C> bin = region.bin(row.bin, column.bin, height, width);
      const C across = bin.across(row.sample), along = bin.along(column.sample);
      const C row_share = share_of(region.row_of(across, along, height), cell.y);
      const C column_share = share_of(region.column_of(across, along, width), cell.x);
      const C weight = row_share * column_share * share;
      if (weight != 0) visit(row.bin * grid.bins_w + column.bin, weight);
    }
  }
}

// The regions of a block's tile, some at a time: each thread looks at one, then all go through those that may matter.
template <typename C>
struct NearRegions {
  TurnedRegion<C> regions[kTile * kTile];
  unsigned may_matter[kTile * kTile / 32];
};

// The deterministic backward: a thread owns a cell in some channels and adds up what reaches it, regions in their
// order. Grid: (tiles of all images, channel groups); block: kTile x kTile.
template <typename S, typename C, typename T>
__global__ void collect_kernel(FeatureMap<S> map, const C* __restrict__ rois, int64_t num_rois, Grid<C> grid,
                               PooledBins<const S> grad) {
  __shared__ NearRegions<C> near;
  const OwnCell cell(map);
  const int thread = threadIdx.x;
  T sums[kChannelsPerTile];
  for (int c = 0; c < kChannelsPerTile; ++c) sums[c] = 0;
  for (int64_t first = 0; first < num_rois; first += kTile * kTile) {
    bool matters = false;
    if (first + thread < num_rois) {
      const TurnedRegion<C> region(rois + (first + thread) * 6, grid, map.images);
      matters = region.reads && region.image == cell.image && may_reach(region, cell, map.height, map.width);
      near.regions[thread] = region;
    }
    const unsigned votes = __ballot_sync(~0u, matters);
    if (thread % 32 == 0) near.may_matter[thread / 32] = votes;
    __syncthreads();
    for (int k = 0; k < kTile * kTile; ++k) {
      if ((near.may_matter[k / 32] >> k % 32 & 1) == 0) continue;
      const S* source = grad.at(first + k, cell.first_channel);
      visit_samples_of_cell(near.regions[k], grid, cell, map.height, map.width, [&](int bin, C weight) {
        const S* values = source + bin * grad.bin_stride;
        for (int c = 0; c < cell.num_channels; ++c) {
          sums[c] = fma(static_cast<T>(weight), static_cast<T>(values[c * grad.channel_stride]), sums[c]);
        }
      });
    }
    __syncthreads();
  }
  cell.store(map, sums);
}

template <typename C>
Grid<C> grid_of(const Sizes& output_size, double spatial_scale, int64_t sampling_ratio) {
  return {static_cast<int>(output_size[0]), static_cast<int>(output_size[1]), sampling_ratio,
          static_cast<C>(spatial_scale)};
}

}  // namespace

Tensor roi_align_rotated(Tensor input, Tensor rois, Sizes output_size, double spatial_scale, int64_t sampling_ratio) {
  check_rotated_pooling(input, rois, output_size);
  const Launch launch(input);
  const Tensor exact = as_type(rois, wide_type(rois.scalar_type()));
  const Tensor output = new_in_order_of(input, rois.size(0), output_size[0], output_size[1], [&](const Sizes& shape) {
    return new_tensor(input, shape, input.scalar_type());
  });
  if (output.numel() == 0) return output;
  with_types(input, exact, [&](auto number, auto coordinate) {
    using S = decltype(number);
    using C = decltype(coordinate);
    const auto kernel = pool_kernel<S, C, Wide<S>>;
    DETLAB_LAUNCH(kernel, blocks_of_regions(rois.size(0), input.size(1)), kPoolThreads, 0, launch.stream(),
                  describe_map<S>(input), read<C>(exact), grid_of<C>(output_size, spatial_scale, sampling_ratio),
                  describe_pooled<S>(output));
  });
  return output;
}

Tensor roi_align_rotated_backward(Tensor grad, Tensor input, Tensor rois, Sizes output_size, double spatial_scale,
                                  int64_t sampling_ratio, bool deterministic) {
  check_rotated_pooling(input, rois, output_size);
  check_shape("grad", grad, {rois.size(0), input.size(1), output_size[0], output_size[1]});
  check_floating("grad", grad, input);
  const Launch launch(input);
  const Tensor exact = as_type(rois, wide_type(rois.scalar_type()));
  const Tensor dense = dense_pooled(grad, input.scalar_type());
  if (dense.numel() == 0) {
    Tensor nothing = torch::stable::empty_like(input);
    torch::stable::zero_(nothing);
    return nothing;
  }
  if (deterministic) {  // each cell is written once
    const Tensor result = torch::stable::empty_like(input);
    with_types(input, exact, [&](auto number, auto coordinate) {
      using S = decltype(number);
      using C = decltype(coordinate);
      const auto kernel = collect_kernel<S, C, Wide<S>>;
      DETLAB_LAUNCH(kernel, blocks_of_tiles(input), kTile * kTile, 0, launch.stream(), describe_map<S>(result),
                    read<C>(exact), rois.size(0), grid_of<C>(output_size, spatial_scale, sampling_ratio),
                    describe_pooled<const S>(dense));
    });
    return result;
  }
  MapSums sums(input);
  with_types(input, exact, [&](auto number, auto coordinate) {
    using S = decltype(number);
    using C = decltype(coordinate);
    const auto kernel = spread_kernel<S, C, Wide<S>>;
    DETLAB_LAUNCH(kernel, blocks_of_regions(rois.size(0), input.size(1)), kPoolThreads, 0, launch.stream(),
                  describe_map<Wide<S>>(sums.sums()), read<C>(exact),
                  grid_of<C>(output_size, spatial_scale, sampling_ratio), describe_pooled<const S>(dense));
  });
  return sums.finish();
}

}  // namespace cuda
}  // namespace detlab
