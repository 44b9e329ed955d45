// Mask pasting: a thread writes the bytes of four neighbouring pixels at once.

#include "device.cuh"

namespace detlab {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 4;

template <typename T>
struct Job {
  const T* masks;  // (N, rows, columns)
  const T* boxes;  // (N, 4)
  int64_t count, rows, columns, height, width;
  T threshold;  // negative: soft values
};

template <typename T>
__device__ T position_in_mask(int64_t pixel, T low, T high, int64_t cells) {
  const T across = (static_cast<T>(pixel) + static_cast<T>(0.5) - low) / (high - low) * 2 - 1;
  return ((across + 1) * static_cast<T>(cells) - 1) / 2;
}

template <typename T>
__device__ T cell(const T* mask, const Job<T>& job, int64_t y, int64_t x) {
  return y >= 0 && y < job.rows && x >= 0 && x < job.columns ? mask[y * job.columns + x] : static_cast<T>(0);
}

// A mask that is 0 around its cells, between the centers of four of them.
template <typename T>
__device__ T sample(const T* mask, const Job<T>& job, T y, T x) {
  if (!(y > -1 && y < static_cast<T>(job.rows) && x > -1 && x < static_cast<T>(job.columns))) return 0;
  const int64_t top = static_cast<int64_t>(floor(y)), left = static_cast<int64_t>(floor(x));
  const T down = y - static_cast<T>(top), right = x - static_cast<T>(left);
  const T left_value = cell(mask, job, top, left) * (1 - down) + cell(mask, job, top + 1, left) * down;
  const T right_value = cell(mask, job, top, left + 1) * (1 - down) + cell(mask, job, top + 1, left + 1) * down;
  return left_value * (1 - right) + right_value * right;
}

template <typename T>
__device__ unsigned char pixel_value(const Job<T>& job, int64_t index) {
  const int64_t x = index % job.width, row = index / job.width, y = row % job.height, n = row / job.height;
  const T* box = job.boxes + n * 4;
  T value = 0;
  if (box[2] > box[0] && box[3] > box[1]) {
    value = sample(job.masks + n * job.rows * job.columns, job, position_in_mask(y, box[1], box[3], job.rows),
                   position_in_mask(x, box[0], box[2], job.columns));
  }
  if (job.threshold < 0) return static_cast<unsigned char>(value * 255);
  return value >= job.threshold ? 1 : 0;
}

template <typename T>
__global__ void paste_kernel(Job<T> job, int64_t num_pixels, unsigned char* __restrict__ pixels) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t num_groups = (num_pixels + kPixels - 1) / kPixels;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; group < num_groups; group += step) {
    const int64_t first = group * kPixels;
    if (first + kPixels <= num_pixels) {
      uchar4 four;
      four.x = pixel_value(job, first);
      four.y = pixel_value(job, first + 1);
      four.z = pixel_value(job, first + 2);
      four.w = pixel_value(job, first + 3);
      reinterpret_cast<uchar4*>(pixels)[group] = four;
    } else {
      for (int64_t i = first; i < num_pixels; ++i) pixels[i] = pixel_value(job, i);
    }
  }
}

}  // namespace

Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  check_shape("masks", masks, {kAnySize, kAnySize, kAnySize});
  check_shape("boxes", boxes, {masks.size(0), 4});
  check_floating("masks", masks, masks);
  check_floating("boxes", boxes, masks);
  STD_TORCH_CHECK(height >= 0 && width >= 0, "detlab: the image size must not be negative");
  const Launch launch(masks);
  const ScalarType wide = wide_type(masks.scalar_type());
  const Tensor exact = as_type(masks, wide), exact_boxes = as_type(boxes, wide);
  const Tensor result =
      new_tensor(masks, {masks.size(0), height, width}, threshold < 0 ? ScalarType::Byte : ScalarType::Bool);
  const int64_t num_pixels = result.numel();
  if (num_pixels == 0) return result;
  with_wide_type(wide, [&](auto number) {
    using T = decltype(number);
    const Job<T> job = {read<T>(exact), read<T>(exact_boxes), masks.size(0), masks.size(1),
                        masks.size(2),  height,               width,         static_cast<T>(threshold)};
    const auto kernel = paste_kernel<T>;
    DETLAB_LAUNCH(kernel, blocks_for(divide_up(num_pixels, kPixels), kThreads), kThreads, 0, launch.stream(), job,
                  num_pixels, write<unsigned char>(result));
  });
  return result;
}

}  // namespace cuda
}  // namespace detlab
