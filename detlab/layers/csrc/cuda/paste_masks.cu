// Mask pasting: a thread writes a run of neighbouring pixels at once.

#include "../mask_axis.h"
#include "device.cuh"

namespace detlab {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 16;

struct alignas(kRun) Run {
  unsigned char pixels[kRun];
};

template <typename T>
struct Job {
  const T* masks;  // (N, rows, columns)
  const T* boxes;  // (N, 4)
  int64_t count, rows, columns, height, width;
  T threshold;  // negative: soft values
};

// Where a row or column of pixels falls into a mask.
template <typename T>
struct Place {
  bool is_inside;
  int64_t before;  // the cell before it, -1 before the first
  T share;         // of the cell after it
};

template <typename T>
__device__ Place<T> place_in_mask(int64_t pixel, T low, T high, int64_t cells) {
  const T position = position_in_mask(pixel, low, high, cells);
  if (!(position > -1 && position < static_cast<T>(cells))) return {false, 0, 0};
  const int64_t before = static_cast<int64_t>(floor(position));
  return {true, before, position - static_cast<T>(before)};
}

// One row of pixels of one image.
template <typename T>
struct Line {
  const T* mask;
  T left, right;  // of the box
  Place<T> y;

  __device__ Line(const Job<T>& job, int64_t n, int64_t row) : mask(job.masks + n * job.rows * job.columns) {
    const T* box = job.boxes + n * 4;
    left = box[0];
    right = box[2];
    y = {false, 0, 0};
    const bool is_finite = left - left == 0 && right - right == 0 && box[1] - box[1] == 0 && box[3] - box[3] == 0;
    if (is_finite && right > left && box[3] > box[1]) y = place_in_mask(row, box[1], box[3], job.rows);
  }
  // The mask's column between two of its rows; 0 around the mask.
  __device__ T mixed(const Job<T>& job, int64_t column) const {
    if (column < 0 || column >= job.columns) return 0;
    const T above = y.before >= 0 ? mask[y.before * job.columns + column] : static_cast<T>(0);
    const T below = y.before + 1 < job.rows ? mask[(y.before + 1) * job.columns + column] : static_cast<T>(0);
    return above * (1 - y.share) + below * y.share;
  }
  __device__ unsigned char pixel(const Job<T>& job, int64_t column) const {
    T value = 0;
    if (y.is_inside) {
      const Place<T> x = place_in_mask(column, left, right, job.columns);
      if (x.is_inside) value = mixed(job, x.before) * (1 - x.share) + mixed(job, x.before + 1) * x.share;
    }
    if (job.threshold < 0) return static_cast<unsigned char>(value * 255);
    return value >= job.threshold ? 1 : 0;
  }
};

template <typename T>
__global__ void paste_kernel(Job<T> job, int64_t num_pixels, unsigned char* __restrict__ target) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, num_runs = (num_pixels + kRun - 1) / kRun;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; r < num_runs; r += step) {
    const int64_t first = r * kRun, row = first / job.width;
    int64_t x = first - row * job.width, n = row / job.height, y = row - n * job.height;
    Line<T> line(job, n, y);
    const int count = static_cast<int>(at_most<int64_t>(kRun, num_pixels - first));
    Run run;
    for (int k = 0; k < count; ++k) {
      run.pixels[k] = line.pixel(job, x);
      if (++x < job.width) continue;
      x = 0;
      if (++y == job.height) {
        y = 0;
        ++n;
      }
      if (k + 1 < count) line = Line<T>(job, n, y);
    }
    if (count == kRun) {
      reinterpret_cast<Run*>(target)[r] = run;
    } else {
      for (int k = 0; k < count; ++k) target[first + k] = run.pixels[k];
    }
  }
}

}  // namespace

Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  check_pasting(masks, boxes, height, width);
  const Launch launch(masks);
  const ScalarType wide = wide_type(masks.scalar_type());
  const Tensor exact = as_type(masks, wide), exact_boxes = as_type(boxes, wide);
  const Tensor result =
      new_tensor(masks, {masks.size(0), height, width}, threshold < 0 ? ScalarType::Byte : ScalarType::Bool);
  const int64_t num_pixels = result.numel();
  if (num_pixels == 0) return result;
  with_wide_type(wide, [&](auto number) {
    using T = decltype(number);
    const Job<T> job = {read<T>(exact), read<T>(exact_boxes),     masks.size(0), masks.size(1), masks.size(2), height,
                        width,          static_cast<T>(threshold)};
    const auto kernel = paste_kernel<T>;
    DETLAB_LAUNCH(kernel, blocks_for(divide_up(num_pixels, kRun), kThreads), kThreads, 0, launch.stream(), job,
                  num_pixels, write<unsigned char>(result));
  });
  return result;
}

}  // namespace cuda
}  // namespace detlab
