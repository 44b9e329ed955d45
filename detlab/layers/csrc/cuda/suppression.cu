// Greedy suppression on the device. Candidates are sorted by score; classes are compared exactly.

#include <cmath>
#include <limits>

#include "boxes.cuh"
#include "device.cuh"

namespace detlab {
namespace cuda {
namespace {

constexpr int kWord = 64;            // candidates that one word of flags covers
constexpr int64_t kWindow = 4096;    // candidates settled together
constexpr int kKeptPerSlice = 1024;  // kept boxes that one block compares with
constexpr int kFixedThreads = 1024;

using Word = unsigned long long;

// The largest number of type T that is not above the limit: `x > limit` in double is `x > rounded` for every x in T.
template <typename T>
T round_down(double limit) {
  const T rounded = static_cast<T>(limit);
  return static_cast<double>(rounded) > limit ? std::nextafter(rounded, -std::numeric_limits<T>::infinity()) : rounded;
}

// Candidates of one call, best first.
template <typename T>
struct Candidates {
  const T* boxes;
  const int64_t* order;    // indices of boxes by decreasing score
  const int64_t* classes;  // null: all of one class
  int64_t count;
  T threshold;

  template <typename Box>
  __device__ Box box(int64_t rank) const {
    return Box::at(boxes + order[rank] * Box::kSize);
  }
  __device__ int64_t class_of(int64_t rank) const { return classes == nullptr ? 0 : classes[order[rank]]; }
};

// Flags the candidates of a window that a box kept earlier suppresses. Grid: (words of the window, slices of the kept).
template <typename Box, typename T>
__global__ void compare_with_kept(Candidates<T> candidates, int64_t first, int64_t last, const int64_t* kept_ranks,
                                  const int64_t* num_kept, Word* removed) {
  __shared__ Word flags;
  if (threadIdx.x == 0) flags = 0;
  __syncthreads();
  const int64_t rank = first + static_cast<int64_t>(blockIdx.x) * kWord + threadIdx.x;
  const int64_t slice = static_cast<int64_t>(blockIdx.y) * kKeptPerSlice;
  const int64_t end = at_most<int64_t>(slice + kKeptPerSlice, *num_kept);
  if (rank < last && slice < end) {
    const Box box = candidates.template box<Box>(rank);
    const int64_t own_class = candidates.class_of(rank);
    for (int64_t k = slice; k < end; ++k) {
      const int64_t other = kept_ranks[k];
      if (candidates.class_of(other) != own_class) continue;
      if (overlaps_more(candidates.template box<Box>(other), box, candidates.threshold)) {
        atomicOr(&flags, Word{1} << threadIdx.x);
        break;
      }
    }
  }
  __syncthreads();
  if (threadIdx.x == 0 && flags != 0) atomicOr(removed + blockIdx.x, flags);
}

// overlaps[i * words + w]: which candidates of word w candidate i of the window would suppress. Grid: (words, words).
template <typename Box, typename T>
__global__ void compare_in_window(Candidates<T> candidates, int64_t first, int64_t last, int64_t words, Word* overlaps) {
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kWord + threadIdx.x, rank = first + row;
  if (blockIdx.x < blockIdx.y || rank >= last) return;
  const Box box = candidates.template box<Box>(rank);
  const int64_t own_class = candidates.class_of(rank);
  Word word = 0;
  for (int k = 0; k < kWord; ++k) {
    const int64_t other = first + static_cast<int64_t>(blockIdx.x) * kWord + k;
    if (other <= rank || other >= last || candidates.class_of(other) != own_class) continue;
    if (overlaps_more(box, candidates.template box<Box>(other), candidates.threshold)) word |= Word{1} << k;
  }
  overlaps[row * words + blockIdx.x] = word;
}

// One block walks the window in order, a word at a time: one thread settles the word, all carry its consequences on.
template <typename T>
__global__ void settle_window(Candidates<T> candidates, int64_t first, int64_t last, int64_t words,
                              const Word* __restrict__ overlaps, Word* removed, int64_t* kept_ranks, int64_t* kept,
                              int64_t* num_kept) {
  __shared__ Word chosen;
  for (int64_t w = 0; w < words; ++w) {
    const int64_t start = first + w * kWord;
    const int count = static_cast<int>(at_most<int64_t>(kWord, last - start));
    if (threadIdx.x == 0) {
      Word gone = removed[w];
      chosen = 0;
      for (int k = 0; k < count; ++k) {
        if (gone >> k & 1) continue;
        chosen |= Word{1} << k;
        gone |= overlaps[(w * kWord + k) * words + w];
        kept_ranks[*num_kept] = start + k;
        kept[*num_kept] = candidates.order[start + k];
        *num_kept += 1;
      }
    }
    __syncthreads();
    for (int64_t other = w + 1 + threadIdx.x; other < words; other += blockDim.x) {
      Word gone = removed[other];
      for (int k = 0; k < count; ++k) {
        if (chosen >> k & 1) gone |= overlaps[(w * kWord + k) * words + other];
      }
      removed[other] = gone;
    }
    __syncthreads();
  }
}

// NaN becomes -inf, so that it sorts behind everything.
template <typename T>
__global__ void clean_scores(const T* scores, int64_t count, T* cleaned) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    cleaned[i] = scores[i] == scores[i] ? scores[i] : -static_cast<T>(INFINITY);
  }
}

Tensor cleaned_scores(const Tensor& scores, cudaStream_t stream) {
  const Tensor exact = as_type(scores, wide_type(scores.scalar_type()));
  const Tensor cleaned = torch::stable::empty_like(exact);
  with_wide_type(exact.scalar_type(), [&](auto score) {
    using P = decltype(score);
    const auto clean = clean_scores<P>;
    DETLAB_LAUNCH(clean, blocks_for(exact.numel(), 256), 256, 0, stream, read<P>(exact), exact.numel(),
                  write<P>(cleaned));
  });
  return cleaned;
}

template <typename Box>
Tensor nms_of(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes, double iou_threshold) {
  using T = typename Box::Number;
  const Launch launch(boxes);
  const int64_t count = boxes.size(0);
  const Tensor kept = new_tensor(boxes, {count}, ScalarType::Long);
  if (count == 0) return kept;
  const Tensor order = call_sort(cleaned_scores(scores, launch.stream()));
  std::optional<Tensor> dense_classes;
  if (classes.has_value()) dense_classes = as_type(*classes, ScalarType::Long);
  const Candidates<T> candidates = {read<T>(boxes), read<int64_t>(order),
                                    classes.has_value() ? read<int64_t>(*dense_classes) : nullptr, count,
                                    round_down<T>(iou_threshold)};
  const int64_t window = std::min(count, kWindow), most_words = divide_up(window, kWord);
  const Tensor kept_ranks = new_tensor(boxes, {count}, ScalarType::Long);
  const Tensor num_kept = new_zero_tensor(boxes, {1}, ScalarType::Long);
  const Tensor overlaps = new_tensor(boxes, {window * most_words}, ScalarType::Long);
  const Tensor removed = new_zero_tensor(boxes, {divide_up(count, kWindow) * most_words}, ScalarType::Long);
  const auto with_kept = compare_with_kept<Box, T>;
  const auto in_window = compare_in_window<Box, T>;
  const auto settle = settle_window<T>;
  for (int64_t first = 0; first < count; first += kWindow) {
    const int64_t last = std::min(count, first + kWindow), words = divide_up(last - first, kWord);
    Word* flags = write<Word>(removed) + first / kWindow * most_words;
    if (first > 0) {
      const dim3 grid(static_cast<unsigned>(words), static_cast<unsigned>(divide_up(first, kKeptPerSlice)));
      DETLAB_LAUNCH(with_kept, grid, kWord, 0, launch.stream(), candidates, first, last, read<int64_t>(kept_ranks),
                    read<int64_t>(num_kept), flags);
    }
    const dim3 square(static_cast<unsigned>(words), static_cast<unsigned>(words));
    DETLAB_LAUNCH(in_window, square, kWord, 0, launch.stream(), candidates, first, last, words, write<Word>(overlaps));
    DETLAB_LAUNCH(settle, 1, kWord, 0, launch.stream(), candidates, first, last, words, read<Word>(overlaps), flags,
                  write<int64_t>(kept_ranks), write<int64_t>(kept), write<int64_t>(num_kept));
  }
  int64_t size = 0;
  check(cudaMemcpyAsync(&size, num_kept.data_ptr(), sizeof(size), cudaMemcpyDeviceToHost, launch.stream()));
  check(cudaStreamSynchronize(launch.stream()));
  Tensor view = kept;
  return torch::stable::narrow(view, 0, 0, size);
}

template <typename T>
struct FixedBatch {
  const T* boxes;          // (N, B, 4)
  const int64_t* order;    // (N, B), by decreasing score
  const int64_t* classes;  // (N, B)
  int64_t num_boxes, max_output;
  T threshold;
};

// One block for each image: takes candidates a word at a time, compares them with what is kept, settles them, and stops
// at the first padding or when enough are kept.
template <typename T, typename P>
__global__ void fixed_kernel(FixedBatch<T> batch, const P* __restrict__ scores, int64_t* indices, int64_t* counts) {
  __shared__ Word gone, overlaps[kWord];
  __shared__ int num_real;
  __shared__ int64_t num_kept;
  const int64_t image = blockIdx.x, offset = image * batch.num_boxes;
  const int64_t* order = batch.order + offset;
  const int64_t* classes = batch.classes + offset;
  const T* boxes = batch.boxes + offset * 4;
  int64_t* kept = indices + image * batch.max_output;
  const int thread = threadIdx.x, lane = thread % kWord, group = thread / kWord, num_groups = blockDim.x / kWord;
  const P nothing = -static_cast<P>(INFINITY);
  if (thread == 0) num_kept = 0;
  __syncthreads();
  for (int64_t start = 0; start < batch.num_boxes; start += kWord) {
    if (num_kept >= batch.max_output) break;
    if (thread == 0) {
      gone = 0;
      num_real = 0;
    }
    if (thread < kWord) overlaps[thread] = 0;
    __syncthreads();
    const int64_t rank = start + lane;
    const bool is_real = rank < batch.num_boxes && scores[offset + order[rank]] > nothing;
    if (group == 0 && is_real) atomicAdd(&num_real, 1);
    if (is_real) {
      const int64_t own = order[rank], own_class = classes[own];
      const AlignedBox<T> box = AlignedBox<T>::at(boxes + own * 4);
      for (int64_t k = group; k < num_kept; k += num_groups) {
        if (classes[kept[k]] != own_class) continue;
        if (overlaps_more(AlignedBox<T>::at(boxes + kept[k] * 4), box, batch.threshold)) {
          atomicOr(&gone, Word{1} << lane);
          break;
        }
      }
      for (int k = group; k < lane; k += num_groups) {
        const int64_t other = order[start + k];
        if (classes[other] != own_class) continue;
        if (overlaps_more(AlignedBox<T>::at(boxes + other * 4), box, batch.threshold)) {
          atomicOr(&overlaps[k], Word{1} << lane);
        }
      }
    }
    __syncthreads();
    if (thread == 0) {
      Word suppressed = gone;
      for (int k = 0; k < num_real && num_kept < batch.max_output; ++k) {
        if (suppressed >> k & 1) continue;
        suppressed |= overlaps[k];
        kept[num_kept] = order[start + k];
        num_kept += 1;
      }
    }
    __syncthreads();
    const bool is_last = num_real < kWord;
    __syncthreads();
    if (is_last) break;
  }
  for (int64_t k = num_kept + thread; k < batch.max_output; k += blockDim.x) kept[k] = 0;
  if (thread == 0) counts[image] = num_kept;
}

template <typename T>
__global__ void iou_kernel(const T* __restrict__ boxes1, int64_t count1, const T* __restrict__ boxes2, int64_t count2,
                           T* ious) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count1 * count2; i += step) {
    ious[i] = turned_iou(TurnedBox<T>::at(boxes1 + i / count2 * 5), TurnedBox<T>::at(boxes2 + i % count2 * 5));
  }
}

void check_candidates(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes, int64_t size) {
  check_shape("boxes", boxes, {kAnySize, size});
  check_shape("scores", scores, {boxes.size(0)});
  check_floating("boxes", boxes, boxes);
  check_floating("scores", scores, boxes);
  if (!classes.has_value()) return;
  check_shape("classes", *classes, {boxes.size(0)});
  check_integers("classes", *classes, boxes);
}

}  // namespace

Tensor nms(Tensor boxes, Tensor scores, std::optional<Tensor> classes, double iou_threshold) {
  check_candidates(boxes, scores, classes, 4);
  const Tensor exact = as_type(boxes, wide_type(boxes.scalar_type()));
  return exact.scalar_type() == ScalarType::Double ? nms_of<AlignedBox<double>>(exact, scores, classes, iou_threshold)
                                                   : nms_of<AlignedBox<float>>(exact, scores, classes, iou_threshold);
}

Tensor nms_rotated(Tensor boxes, Tensor scores, std::optional<Tensor> classes, double iou_threshold) {
  check_candidates(boxes, scores, classes, 5);
  const Tensor exact = as_type(boxes, wide_type(boxes.scalar_type()));
  return exact.scalar_type() == ScalarType::Double ? nms_of<TurnedBox<double>>(exact, scores, classes, iou_threshold)
                                                   : nms_of<TurnedBox<float>>(exact, scores, classes, iou_threshold);
}

std::tuple<Tensor, Tensor> nms_fixed(Tensor boxes, Tensor scores, Tensor classes, double iou_threshold,
                                     int64_t max_output) {
  check_shape("boxes", boxes, {kAnySize, kAnySize, 4});
  check_shape("scores", scores, {boxes.size(0), boxes.size(1)});
  check_shape("classes", classes, {boxes.size(0), boxes.size(1)});
  check_floating("boxes", boxes, boxes);
  check_floating("scores", scores, boxes);
  check_integers("classes", classes, boxes);
  STD_TORCH_CHECK(max_output >= 0, "detlab: 'max_output' must not be negative, got ", max_output);
  const Launch launch(boxes);
  const int64_t num_images = boxes.size(0), num_boxes = boxes.size(1);
  const Tensor indices = new_zero_tensor(boxes, {num_images, max_output}, ScalarType::Long);
  const Tensor counts = new_zero_tensor(boxes, {num_images}, ScalarType::Long);
  if (num_images == 0 || num_boxes == 0) return {indices, counts};
  const Tensor exact = as_type(boxes, wide_type(boxes.scalar_type()));
  const Tensor dense_classes = as_type(classes, ScalarType::Long);
  const Tensor cleaned = cleaned_scores(scores, launch.stream());
  const Tensor order = call_sort(cleaned);
  with_wide_type(cleaned.scalar_type(), [&](auto score) {
    with_wide_type(exact.scalar_type(), [&](auto number) {
      using P = decltype(score);
      using T = decltype(number);
      const FixedBatch<T> batch = {read<T>(exact), read<int64_t>(order), read<int64_t>(dense_classes),
                                   num_boxes,      max_output,           round_down<T>(iou_threshold)};
      const auto kernel = fixed_kernel<T, P>;
      DETLAB_LAUNCH(kernel, static_cast<unsigned>(num_images), kFixedThreads, 0, launch.stream(), batch,
                    read<P>(cleaned), write<int64_t>(indices), write<int64_t>(counts));
    });
  });
  return {indices, counts};
}

Tensor box_iou_rotated(Tensor boxes1, Tensor boxes2) {
  check_shape("boxes1", boxes1, {kAnySize, 5});
  check_shape("boxes2", boxes2, {kAnySize, 5});
  check_floating("boxes1", boxes1, boxes1);
  check_floating("boxes2", boxes2, boxes1);
  const Launch launch(boxes1);
  const ScalarType wide = wide_type(boxes1.scalar_type());
  const Tensor exact1 = as_type(boxes1, wide), exact2 = as_type(boxes2, wide);
  const Tensor ious = new_tensor(boxes1, {boxes1.size(0), boxes2.size(0)}, wide);
  if (ious.numel() == 0) return ious;
  with_wide_type(wide, [&](auto number) {
    using T = decltype(number);
    const auto kernel = iou_kernel<T>;
    DETLAB_LAUNCH(kernel, blocks_for(ious.numel(), 256), 256, 0, launch.stream(), read<T>(exact1), boxes1.size(0),
                  read<T>(exact2), boxes2.size(0), write<T>(ious));
  });
  return ious;
}

}  // namespace cuda
}  // namespace detlab
