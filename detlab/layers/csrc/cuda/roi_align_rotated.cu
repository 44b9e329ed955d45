// ROIAlign for rotated regions; a block serves one region and some channels, a thread one channel of one bin.

#include "device.cuh"

namespace detlab {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChannelsPerBlock = 64;

template <typename S>
struct Maps {
  S* data;
  int64_t images, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

template <typename S>
Maps<S> describe(const Tensor& maps) {
  return {write<S>(maps), maps.size(0),   maps.size(1),   maps.size(2),  maps.size(3),
          maps.stride(0), maps.stride(1), maps.stride(2), maps.stride(3)};
}

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

  __device__ TurnedRegion(const C* roi, const Grid<C>& grid) {
    const C half = static_cast<C>(0.5);
    image = roi[0] >= 0 ? static_cast<int64_t>(roi[0]) : -1;
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
  }
  __device__ bool is_finite() const {
    const C sum = center_x + center_y + bin_w + bin_h + cos;
    return sum - sum == 0;
  }

  // Calls `visit(row, column, weight)` for what a bin reads.
  template <typename Visit>
  __device__ void visit_bin(int bin_y, int bin_x, int64_t height, int64_t width, const Visit& visit) const {
    if (grid_h < 1 || grid_w < 1) return;
    const C share = 1 / (static_cast<C>(grid_h) * static_cast<C>(grid_w));
    const TurnedBin<C> bin = {center_x,
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
    int64_t first_row, last_row, first, last;
    bin.possible_rows(&first_row, &last_row);
    for (int64_t i = first_row; i < last_row; ++i) {
      const C across = bin.across(i);
      bin.possible_columns(i, &first, &last);
      for (int64_t j = first; j < last; ++j) {
        const C along = bin.along(j);
        const Sample<C> row = place_sample(across * cos - along * sin + center_y, height);
        const Sample<C> column = place_sample(across * sin + along * cos + center_x, width);
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
__global__ void pool_kernel(Maps<S> maps, const C* __restrict__ rois, Grid<C> grid, S* __restrict__ output) {
  const int64_t r = blockIdx.x;
  const int first_channel = blockIdx.y * kChannelsPerBlock;
  const int num_channels = at_most<int>(kChannelsPerBlock, static_cast<int>(maps.channels) - first_channel);
  const int num_bins = grid.bins_h * grid.bins_w;
  const TurnedRegion<C> region(rois + r * 6, grid);
  S* target = output + (r * maps.channels + first_channel) * num_bins;
  const bool exists = region.image >= 0 && region.image < maps.images;
  for (int i = threadIdx.x; i < num_channels * num_bins; i += blockDim.x) {
    const int channel = i / num_bins, bin = i % num_bins;
    if (!exists || !region.is_finite()) {
      target[i] = static_cast<S>(exists ? nanf("") : 0.0f);
      continue;
    }
    const S* plane = maps.data + region.image * maps.image_stride + (first_channel + channel) * maps.channel_stride;
    T sum = 0;
    region.visit_bin(
        bin / grid.bins_w, bin % grid.bins_w, maps.height, maps.width, [&](int32_t y, int32_t x, C weight) {
          sum = fma(static_cast<T>(weight), static_cast<T>(plane[y * maps.row_stride + x * maps.column_stride]), sum);
        });
    target[i] = static_cast<S>(sum);
  }
}

// Adds to sums of type T; the order of the additions differs from run to run. Grid: (regions, channel groups).
template <typename S, typename C, typename T>
__global__ void spread_kernel(Maps<T> sums, const C* __restrict__ rois, Grid<C> grid, const S* __restrict__ grad) {
  const int64_t r = blockIdx.x;
  const TurnedRegion<C> region(rois + r * 6, grid);
  if (region.image < 0 || region.image >= sums.images || !region.is_finite()) return;
  const int first_channel = blockIdx.y * kChannelsPerBlock;
  const int num_channels = at_most<int>(kChannelsPerBlock, static_cast<int>(sums.channels) - first_channel);
  const int num_bins = grid.bins_h * grid.bins_w;
  const S* source = grad + (r * sums.channels + first_channel) * num_bins;
  for (int i = threadIdx.x; i < num_channels * num_bins; i += blockDim.x) {
    const int channel = i / num_bins, bin = i % num_bins;
    T* plane = sums.data + region.image * sums.image_stride + (first_channel + channel) * sums.channel_stride;
    const T value = static_cast<T>(source[i]);
    region.visit_bin(bin / grid.bins_w, bin % grid.bins_w, sums.height, sums.width,
                     [&](int32_t y, int32_t x, C weight) {
                       atomicAdd(plane + y * sums.row_stride + x * sums.column_stride, static_cast<T>(weight) * value);
                     });
  }
}

// The deterministic backward: one thread owns a whole channel of an image and adds to it region by region.
template <typename S, typename C, typename T>
__global__ void collect_kernel(Maps<T> sums, const C* __restrict__ rois, int64_t num_rois, Grid<C> grid,
                               const S* __restrict__ grad) {
  const int64_t plane_index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (plane_index >= sums.images * sums.channels) return;
  const int64_t image = plane_index / sums.channels, channel = plane_index % sums.channels;
  T* plane = sums.data + image * sums.image_stride + channel * sums.channel_stride;
  for (int64_t r = 0; r < num_rois; ++r) {
    const TurnedRegion<C> region(rois + r * 6, grid);
    if (region.image != image || !region.is_finite()) continue;
    const S* source = grad + (r * sums.channels + channel) * grid.bins_h * grid.bins_w;
    for (int bin = 0; bin < grid.bins_h * grid.bins_w; ++bin) {
      const T value = static_cast<T>(source[bin]);
      const auto add = [&](int32_t y, int32_t x, C weight) {
        T* cell = plane + y * sums.row_stride + x * sums.column_stride;
        *cell = fma(static_cast<T>(weight), value, *cell);
      };
      region.visit_bin(bin / grid.bins_w, bin % grid.bins_w, sums.height, sums.width, add);
    }
  }
}

template <typename C>
Grid<C> grid_of(const Sizes& output_size, double spatial_scale, int64_t sampling_ratio) {
  return {static_cast<int>(output_size[0]), static_cast<int>(output_size[1]), sampling_ratio,
          static_cast<C>(spatial_scale)};
}

dim3 blocks_of(const Tensor& maps, int64_t num_rois) {
  return dim3(static_cast<unsigned>(num_rois), static_cast<unsigned>(divide_up(maps.size(1), kChannelsPerBlock)));
}

}  // namespace

Tensor roi_align_rotated(Tensor input, Tensor rois, Sizes output_size, double spatial_scale, int64_t sampling_ratio) {
  check_rotated_pooling(input, rois, output_size);
  const Launch launch(input);
  const Tensor exact = as_type(rois, wide_type(rois.scalar_type()));
  const Tensor output =
      new_tensor(input, {rois.size(0), input.size(1), output_size[0], output_size[1]}, input.scalar_type());
  if (output.numel() == 0) return output;
  with_type(input.scalar_type(), [&](auto number) {
    with_wide_type(exact.scalar_type(), [&](auto coordinate) {
      using S = decltype(number);
      using C = decltype(coordinate);
      const auto kernel = pool_kernel<S, C, Wide<S>>;
      DETLAB_LAUNCH(kernel, blocks_of(input, rois.size(0)), kThreads, 0, launch.stream(), describe<S>(input),
                    read<C>(exact), grid_of<C>(output_size, spatial_scale, sampling_ratio), write<S>(output));
    });
  });
  return output;
}

Tensor roi_align_rotated_backward(Tensor grad, Tensor input, Tensor rois, Sizes output_size, double spatial_scale,
                                  int64_t sampling_ratio, bool deterministic) {
  check_rotated_pooling(input, rois, output_size);
  check_shape("grad", grad, {rois.size(0), input.size(1), output_size[0], output_size[1]});
  check_floating("grad", grad, input);
  const Launch launch(input);
  const Tensor exact = as_type(rois, wide_type(rois.scalar_type())), dense = as_type(grad, input.scalar_type());
  Tensor result = torch::stable::empty_like(input);
  torch::stable::zero_(result);
  if (dense.numel() == 0) return result;
  const ScalarType wide = wide_type(input.scalar_type());
  const bool is_narrow = wide != input.scalar_type();
  const Tensor sums = is_narrow ? torch::stable::to(result, wide) : result;
  with_type(input.scalar_type(), [&](auto number) {
    with_wide_type(exact.scalar_type(), [&](auto coordinate) {
      using S = decltype(number);
      using C = decltype(coordinate);
      using T = Wide<S>;
      const Grid<C> grid = grid_of<C>(output_size, spatial_scale, sampling_ratio);
      if (deterministic) {
        const auto kernel = collect_kernel<S, C, T>;
        constexpr int kPlanesPerBlock = 32;
        DETLAB_LAUNCH(kernel, blocks_for(input.size(0) * input.size(1), kPlanesPerBlock), kPlanesPerBlock, 0,
                      launch.stream(), describe<T>(sums), read<C>(exact), rois.size(0), grid, read<S>(dense));
      } else {
        const auto kernel = spread_kernel<S, C, T>;
        DETLAB_LAUNCH(kernel, blocks_of(input, rois.size(0)), kThreads, 0, launch.stream(), describe<T>(sums),
                      read<C>(exact), grid, read<S>(dense));
      }
    });
  });
  if (is_narrow) torch::stable::copy_(result, sums);
  return result;
}

}  // namespace cuda
}  // namespace detlab
