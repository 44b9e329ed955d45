// Matching: a thread owns a box and goes through the objects of its image, which the block stages in shared memory.
// What the block found out about each object joins the rest with one atomic maximum, so the order does not matter.
//
// Shapes: N images, G objects in each, S boxes.

#include <cstring>

#include "boxes.cuh"
#include "device.cuh"

namespace detlab {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStaged = 128;  // objects

// Numbers that are not negative are ordered as their bits are.
template <typename T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using Type = unsigned;
};
template <>
struct BitsOf<double> {
  using Type = unsigned long long;
};
template <typename T>
using Bits = typename BitsOf<T>::Type;

template <typename T>
__device__ Bits<T> bits_of(T value) {
  Bits<T> bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <typename Box>
struct Matching {
  using T = typename Box::Number;

  const T* objects;      // (N, G, numbers of a box)
  const bool* is_valid;  // (N, G)
  const T* boxes;        // (N or 1, S, numbers)
  int64_t box_stride;    // from image to image
  int64_t num_boxes, blocks_per_image;
  int num_objects;
  T* overlaps;         // (N, S): of each box with its best object
  int64_t* rows;       // (N, S)
  T* object_overlaps;  // (N, G), zeros so far
  bool* is_best;       // (N, S)
};

// The box of a thread.
template <typename Box>
struct Own {
  int64_t image, index;  // index: into (N, S)
  bool is_real;
  Box box;

  __device__ explicit Own(const Matching<Box>& job) {
    image = blockIdx.x / job.blocks_per_image;
    const int64_t place = (blockIdx.x % job.blocks_per_image) * kThreads + threadIdx.x;
    is_real = place < job.num_boxes;
    index = image * job.num_boxes + place;
    box = Box::at(job.boxes + image * job.box_stride + (is_real ? place : 0) * Box::kSize);
  }
};

// Some objects of an image, for all threads of a block.
template <typename Box>
struct Stage {
  using T = typename Box::Number;

  Box boxes[kStaged];
  bool is_valid[kStaged];
  T overlaps[kStaged];       // known before
  Bits<T> largest[kStaged];  // found by the block

  __device__ int put(const Matching<Box>& job, int64_t image, int first) {
    const int count = at_most(kStaged, job.num_objects - first);
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
      const int64_t object = image * job.num_objects + first + k;
      boxes[k] = Box::at(job.objects + object * Box::kSize);
      is_valid[k] = job.is_valid[object];
      overlaps[k] = job.object_overlaps[object];
      largest[k] = 0;
    }
    __syncthreads();
    return count;
  }
  __device__ void join(const Matching<Box>& job, int64_t image, int first, int count) {
    __syncthreads();
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
      Bits<T>* known = reinterpret_cast<Bits<T>*>(job.object_overlaps + image * job.num_objects + first + k);
      if (largest[k] != 0) atomicMax(known, largest[k]);
    }
    __syncthreads();
  }
};

template <typename Box>
__global__ void find_best(Matching<Box> job) {
  using T = typename Box::Number;
  __shared__ Stage<Box> stage;
  const Own<Box> own(job);
  T best = 0;
  int row = -1;
  for (int first = 0; first < job.num_objects; first += kStaged) {
    const int count = stage.put(job, own.image, first);
    for (int k = 0; k < count; ++k) {
      if (!stage.is_valid[k]) continue;
      const T found = overlap(stage.boxes[k], own.box);
      if (row < 0 || found > best) {
        best = found;
        row = first + k;
      }
      // Most have nothing to add: looking costs less than an atomic operation.
      if (own.is_real && bits_of(found) > stage.largest[k]) atomicMax(&stage.largest[k], bits_of(found));
    }
    stage.join(job, own.image, first, count);
  }
  if (!own.is_real) return;
  job.overlaps[own.index] = best;
  job.rows[own.index] = row < 0 ? 0 : row;
}

// Once the objects' largest overlaps are known.
template <typename Box>
__global__ void find_equals(Matching<Box> job) {
  using T = typename Box::Number;
  __shared__ Stage<Box> stage;
  const Own<Box> own(job);
  const T most = own.is_real ? job.overlaps[own.index] : static_cast<T>(0);
  bool is_best = false;
  for (int first = 0; first < job.num_objects; first += kStaged) {
    const int count = stage.put(job, own.image, first);
    for (int k = 0; k < count; ++k) {
      const T wanted = stage.overlaps[k];  // 0 for an object that is not valid
      if (wanted > 0 && wanted <= most && overlap(stage.boxes[k], own.box) == wanted) is_best = true;
    }
    __syncthreads();
  }
  if (own.is_real) job.is_best[own.index] = is_best;
}

template <typename Box>
void run(const Tensor& objects, const Tensor& object_valid, const Tensor& boxes,
         const std::tuple<Tensor, Tensor, Tensor, Tensor>& results, cudaStream_t stream) {
  using T = typename Box::Number;
  const auto& [overlaps, rows, object_overlaps, is_best] = results;
  const int64_t num_images = objects.size(0), num_boxes = boxes.size(1);
  const int64_t blocks_per_image = divide_up(num_boxes, kThreads), num_blocks = num_images * blocks_per_image;
  STD_TORCH_CHECK(num_blocks < int64_t{1} << 31 && objects.size(1) < int64_t{1} << 30,
                  "detlab: too many boxes or objects to match");
  if (num_blocks == 0) return;
  const Matching<Box> job = {read<T>(objects),
                             read<bool>(object_valid),
                             read<T>(boxes),
                             boxes.size(0) == 1 ? 0 : num_boxes * Box::kSize,
                             num_boxes,
                             blocks_per_image,
                             static_cast<int>(objects.size(1)),
                             write<T>(overlaps),
                             write<int64_t>(rows),
                             write<T>(object_overlaps),
                             write<bool>(is_best)};
  const auto best = find_best<Box>;
  const auto equals = find_equals<Box>;
  const unsigned grid = static_cast<unsigned>(num_blocks);
  DETLAB_LAUNCH(best, grid, kThreads, 0, stream, job);
  DETLAB_LAUNCH(equals, grid, kThreads, 0, stream, job);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> match_boxes(Tensor objects, Tensor object_valid, Tensor boxes) {
  check_matching(objects, object_valid, boxes);
  const Launch launch(objects);
  const ScalarType wide = wide_type(objects.scalar_type());
  const Tensor exact_objects = as_type(objects, wide), exact_boxes = as_type(boxes, wide);
  const Tensor valid = as_type(object_valid, ScalarType::Bool);
  const std::vector<int64_t> shape = {objects.size(0), boxes.size(1)};
  const std::tuple<Tensor, Tensor, Tensor, Tensor> results = {
      new_tensor(objects, shape, wide), new_tensor(objects, shape, ScalarType::Long),
      new_zero_tensor(objects, {objects.size(0), objects.size(1)}, wide), new_tensor(objects, shape, ScalarType::Bool)};
  with_wide_type(wide, [&](auto number) {
    using T = decltype(number);
    const auto match = objects.size(2) == 4 ? run<AlignedBox<T>> : run<TurnedBox<T>>;
    match(exact_objects, valid, exact_boxes, results, launch.stream());
  });
  return results;
}

}  // namespace cuda
}  // namespace detlab
