// Candidates of suppression in the order of their scores, for a batch of images, with nothing that the host would wait
// for.
//
// Shapes: N images, B candidates in each.
#pragma once

#include <cmath>

#include "boxes.cuh"
#include "device.cuh"

namespace detlab {
namespace cuda {

// NaN becomes -inf, so that it sorts behind everything.
template <typename P>
__global__ void clean_scores(const P* scores, int64_t count, P* cleaned) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    cleaned[i] = scores[i] == scores[i] ? scores[i] : -static_cast<P>(INFINITY);
  }
}

// What `arrange` brings into the order of the scores. Null scores: there is no padding.
template <typename Box, typename P>
struct Arrangement {
  const typename Box::Number* boxes;  // (N, B, numbers of a box)
  const int64_t* order;               // (N, B)
  const P* sorted_scores;             // (N, B)
  const int64_t* classes;             // (N, B) or null
  int64_t num_images, count;          // N, B
  Box* sorted_boxes;                  // (N, B)
  int64_t* sorted_classes;            // (N, B)
  int64_t* num_real;                  // (N), zeros so far
};

template <typename Box, typename P>
__global__ void arrange(Arrangement<Box, P> job) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, total = job.num_images * job.count;
  const P nothing = -static_cast<P>(INFINITY);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t image = i / job.count, rank = i % job.count, from = image * job.count + job.order[i];
    job.sorted_boxes[i] = Box::at(job.boxes + from * Box::kSize);
    if (job.classes != nullptr) job.sorted_classes[i] = job.classes[from];
    const bool all_real = job.sorted_scores == nullptr;
    const bool is_last = rank + 1 == job.count || !(all_real || job.sorted_scores[i + 1] > nothing);
    if ((all_real || job.sorted_scores[i] > nothing) && is_last) job.num_real[image] = rank + 1;
  }
}

enum class Padding { kNone, kMarkedByScore };

// Candidates in the order of their scores.
struct Sorted {
  Tensor order, boxes;
  std::optional<Tensor> classes;
};

// Fills num_real: (N), zeros so far.
template <typename Box>
Sorted sort_candidates(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes,
                       int64_t num_images, int64_t count, Padding padding, int64_t* num_real, cudaStream_t stream) {
  const int64_t total = num_images * count;
  const Tensor exact_scores = as_type(scores, wide_type(scores.scalar_type()));
  const Tensor cleaned = torch::stable::empty_like(exact_scores);
  Sorted sorted = {{}, new_tensor(boxes, {total * static_cast<int64_t>(sizeof(Box))}, ScalarType::Byte), {}};
  std::optional<Tensor> dense_classes;
  if (classes.has_value()) {
    dense_classes = as_type(*classes, ScalarType::Long);
    sorted.classes = torch::stable::empty_like(*dense_classes);
  }
  with_wide_type(cleaned.scalar_type(), [&](auto score) {
    using P = decltype(score);
    const auto clean = clean_scores<P>;
    DETLAB_LAUNCH(clean, blocks_for(total, 256), 256, 0, stream, read<P>(exact_scores), total, write<P>(cleaned));
    const auto [sorted_scores, order] = sort_descending(cleaned);
    sorted.order = order;
    const Arrangement<Box, P> job = {read<typename Box::Number>(boxes),
                                     read<int64_t>(order),
                                     padding == Padding::kMarkedByScore ? read<P>(sorted_scores) : nullptr,
                                     classes.has_value() ? read<int64_t>(*dense_classes) : nullptr,
                                     num_images,
                                     count,
                                     write<Box>(sorted.boxes),
                                     classes.has_value() ? write<int64_t>(*sorted.classes) : nullptr,
                                     num_real};
    const auto kernel = arrange<Box, P>;
    DETLAB_LAUNCH(kernel, blocks_for(total, 256), 256, 0, stream, job);
  });
  return sorted;
}

}  // namespace cuda
}  // namespace detlab
