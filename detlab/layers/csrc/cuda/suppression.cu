// Greedy suppression on the device, for a batch of images, with nothing that the host would wait for.
//
// Candidates are brought into the order of their scores and settled a window at a time: which of them do boxes kept
// earlier suppress, which overlap which (a bit for each pair), and a walk along those bits that decides. Classes are
// compared exactly.
//
// Shapes: N images, B candidates in each, P boxes kept at most, W words of flags in a window.

#include <cmath>

#include "boxes.cuh"
#include "device.cuh"

namespace detlab {
namespace cuda {
namespace {

using Word = unsigned long long;

constexpr int kWord = 64;            // candidates that one word of flags covers
constexpr int kWindow = 4096;        // candidates settled together
constexpr int kKeptPerSlice = 1024;  // kept boxes that one block compares with
constexpr int kSettlers = 1024;      // threads that settle an image

template <typename Box>
struct Candidates {
  const Box* boxes;         // (N, B), best first
  const int64_t* classes;   // (N, B), or null: all of one class
  const int64_t* num_real;  // (N): those behind are padding
  int count;                // B
  typename Box::Number threshold;

  __device__ int64_t class_of(int64_t index) const { return classes == nullptr ? 0 : classes[index]; }
};

struct Outcome {
  const int64_t* order;  // (N, B): rank by score -> index of the box
  int64_t* ranks;        // (N, P) of the boxes kept
  int64_t* indices;      // (N, P)
  int64_t* num_kept;     // (N)
  int64_t max_kept;      // P
};

// The ranks [first, last). Rows of `overlaps` are candidates, also those that only fill the last word.
struct Window {
  int first, last, words;
  Word* removed;   // (N, W): candidates that a box kept before the window suppresses
  Word* overlaps;  // (N, W * 64, W): bit k of word w in row i says that i suppresses candidate w * 64 + k, if kept
};

template <typename Box>
__device__ bool is_settled(const Candidates<Box>& candidates, const Outcome& outcome, const Window& window, int image) {
  return window.first >= candidates.num_real[image] || outcome.num_kept[image] >= outcome.max_kept;
}

template <typename Box>
__device__ int end_of(const Candidates<Box>& candidates, const Window& window, int image) {
  return static_cast<int>(at_most<int64_t>(window.last, candidates.num_real[image]));
}

// Boxes that all threads of a block compare theirs with.
template <typename Box>
struct Stage {
  Box boxes[kWord];
  int64_t classes[kWord];

  __device__ void put(int slot, const Candidates<Box>& candidates, int64_t index) {
    boxes[slot] = candidates.boxes[index];
    classes[slot] = candidates.class_of(index);
  }
  // One bit for each of the first `count`.
  __device__ Word overlapping(const Box& box, int64_t own_class, int count, typename Box::Number threshold) const {
    Word word = 0;
    for (int k = 0; k < count; ++k) {
      if (classes[k] == own_class && overlaps_more(boxes[k], box, threshold)) word |= Word{1} << k;
    }
    return word;
  }
};

// Grid: (words of the window, slices of the kept, images); block: the candidates of a word.
template <typename Box>
__global__ void compare_with_kept(Candidates<Box> candidates, Window window, Outcome outcome) {
  __shared__ Stage<Box> kept;
  __shared__ Word flags;
  const int image = blockIdx.z, thread = threadIdx.x;
  const int64_t slice = static_cast<int64_t>(blockIdx.y) * kKeptPerSlice;
  const int64_t slice_end = at_most<int64_t>(slice + kKeptPerSlice, outcome.num_kept[image]);
  if (slice >= slice_end || is_settled(candidates, outcome, window, image)) return;
  const int64_t first_box = static_cast<int64_t>(image) * candidates.count;
  const int64_t* ranks = outcome.ranks + image * outcome.max_kept;
  const int rank = window.first + static_cast<int>(blockIdx.x) * kWord + thread;
  const bool is_real = rank < end_of(candidates, window, image);
  const int64_t index = first_box + (is_real ? rank : window.first);
  const Box box = candidates.boxes[index];
  const int64_t own_class = candidates.class_of(index);
  bool is_removed = false;
  if (thread == 0) flags = 0;
  for (int64_t k = slice; k < slice_end; k += kWord) {
    if (k + thread < slice_end) kept.put(thread, candidates, first_box + ranks[k + thread]);
    __syncthreads();
    const int count = static_cast<int>(at_most<int64_t>(kWord, slice_end - k));
    is_removed = is_removed || kept.overlapping(box, own_class, count, candidates.threshold) != 0;
    __syncthreads();
  }
  if (is_real && is_removed) atomicOr(&flags, Word{1} << thread);
  __syncthreads();
  if (thread == 0 && flags != 0) atomicOr(window.removed + image * window.words + blockIdx.x, flags);
}

// Grid: (words that may be suppressed, words that suppress, images); block: the candidates of a word.
template <typename Box>
__global__ void compare_in_window(Candidates<Box> candidates, Window window, Outcome outcome) {
  __shared__ Stage<Box> others;
  const int image = blockIdx.z, thread = threadIdx.x, row = static_cast<int>(blockIdx.y) * kWord + thread;
  if (blockIdx.x < blockIdx.y || is_settled(candidates, outcome, window, image)) return;
  const int end = end_of(candidates, window, image);
  const int first_other = window.first + static_cast<int>(blockIdx.x) * kWord, other = first_other + thread;
  const int64_t first_box = static_cast<int64_t>(image) * candidates.count;
  if (other < end) others.put(thread, candidates, first_box + other);
  __syncthreads();
  if (window.first + row >= end || first_other >= end) return;
  const int64_t index = first_box + window.first + row;
  const int count = at_most(kWord, end - first_other);
  // Bits of better candidates are not cleared: the walk is past them.
  const Word word =
      others.overlapping(candidates.boxes[index], candidates.class_of(index), count, candidates.threshold);
  window.overlaps[(static_cast<int64_t>(image) * window.words * kWord + row) * window.words + blockIdx.x] = word;
}

// Of `open` candidates, those that no better one of them suppresses.
__device__ inline Word settle_word(Word open, const Word* overlaps) {
  Word chosen = 0;
  while (open != 0) {
    const int best = __ffsll(static_cast<long long>(open)) - 1;
    chosen |= Word{1} << best;
    open &= ~(overlaps[best] | Word{1} << best);
  }
  return chosen;
}

// A block walks the window of its image a word at a time: one thread settles the word, all carry its consequences on.
template <typename Box>
__global__ void settle_window(Candidates<Box> candidates, Window window, Outcome outcome) {
  __shared__ Word removed[kWindow / kWord], own_overlaps[2][kWord], chosen;
  const int image = blockIdx.x, thread = threadIdx.x, lane = thread % kWord, group = thread / kWord;
  if (is_settled(candidates, outcome, window, image)) return;
  const int count = end_of(candidates, window, image) - window.first, words = (count + kWord - 1) / kWord;
  const Word* overlaps = window.overlaps + static_cast<int64_t>(image) * window.words * kWord * window.words;
  const auto row = [&](int word, int bit) {
    return overlaps + static_cast<int64_t>(word * kWord + bit) * window.words;
  };
  int64_t num_kept = outcome.num_kept[image];
  for (int w = thread; w < words; w += blockDim.x) removed[w] = window.removed[image * window.words + w];
  if (group == 0) own_overlaps[0][lane] = row(0, lane)[0];
  __syncthreads();
  for (int w = 0; w < words && num_kept < outcome.max_kept; ++w) {
    if (thread == 0) {
      const Word real = ~Word{0} >> (kWord - at_most(kWord, count - w * kWord));
      chosen = settle_word(real & ~removed[w], own_overlaps[w % 2]);
    }
    __syncthreads();
    for (int other = w + 1 + lane; other < words; other += kWord) {
      Word gone = 0;
      for (int k = group; k < kWord; k += blockDim.x / kWord) {
        if (chosen >> k & 1) gone |= row(w, k)[other];
      }
      if (gone != 0) atomicOr(&removed[other], gone);
    }
    if (group == 0 && w + 1 < words) own_overlaps[(w + 1) % 2][lane] = row(w + 1, lane)[w + 1];
    const int64_t place = num_kept + __popcll(chosen & ((Word{1} << lane) - 1));
    if (group == 1 && (chosen >> lane & 1) && place < outcome.max_kept) {
      const int rank = window.first + w * kWord + lane;
      outcome.ranks[image * outcome.max_kept + place] = rank;
      outcome.indices[image * outcome.max_kept + place] = outcome.order[image * int64_t{candidates.count} + rank];
    }
    num_kept += __popcll(chosen);
    __syncthreads();
  }
  if (thread == 0) outcome.num_kept[image] = at_most(num_kept, outcome.max_kept);
}

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

struct Kept {
  Tensor indices;  // (N, P); where there is padding, 0 past the count
  Tensor counts;   // (N)
};

// boxes: (N, B, numbers of a box) or (B, numbers), contiguous; scores and classes: N * B numbers.
template <typename Box>
Kept suppress(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes, int64_t num_images,
              int64_t count, double iou_threshold, int64_t max_kept, Padding padding, cudaStream_t stream) {
  const auto numbers = [&](std::vector<int64_t> shape) { return new_tensor(boxes, shape, ScalarType::Long); };
  const auto zeros = [&](std::vector<int64_t> shape) { return new_zero_tensor(boxes, shape, ScalarType::Long); };
  const std::vector<int64_t> kept_shape = {num_images, max_kept};
  const Kept kept = {padding == Padding::kNone ? numbers(kept_shape) : zeros(kept_shape), zeros({num_images})};
  if (num_images == 0 || count == 0 || max_kept == 0) return kept;
  STD_TORCH_CHECK(count < int64_t{1} << 30, "detlab: too many boxes to suppress: ", count);
  const int64_t num_windows = divide_up(count, kWindow),
                most_words = divide_up(std::min<int64_t>(count, kWindow), kWord);
  // What begins at zero, filled in one go: the counts of real candidates, and each window's flags of removed ones.
  const Tensor state = zeros({num_images + num_windows * num_images * most_words});
  int64_t* num_real = write<int64_t>(state);
  Word* removed = reinterpret_cast<Word*>(num_real + num_images);
  const Sorted sorted = sort_candidates<Box>(boxes, scores, classes, num_images, count, padding, num_real, stream);
  const Tensor overlaps = numbers({num_images, most_words * kWord, most_words});
  const Tensor ranks = numbers(kept_shape);
  const Candidates<Box> candidates = {read<Box>(sorted.boxes),
                                      classes.has_value() ? read<int64_t>(*sorted.classes) : nullptr, num_real,
                                      static_cast<int>(count), round_down<typename Box::Number>(iou_threshold)};
  const Outcome outcome = {read<int64_t>(sorted.order), write<int64_t>(ranks), write<int64_t>(kept.indices),
                           write<int64_t>(kept.counts), max_kept};
  const auto with_kept = compare_with_kept<Box>;
  const auto in_window = compare_in_window<Box>;
  const auto settle = settle_window<Box>;
  const unsigned images = static_cast<unsigned>(num_images);
  for (int first = 0; first < count; first += kWindow, removed += num_images * most_words) {
    const int last = static_cast<int>(std::min<int64_t>(count, first + kWindow));
    const unsigned words = static_cast<unsigned>(divide_up(last - first, kWord));
    const Window window = {first, last, static_cast<int>(words), removed, write<Word>(overlaps)};
    if (first > 0) {
      const int64_t slices = divide_up(std::min<int64_t>(first, max_kept), kKeptPerSlice);
      const dim3 grid(words, static_cast<unsigned>(slices), images);
      DETLAB_LAUNCH(with_kept, grid, kWord, 0, stream, candidates, window, outcome);
    }
    DETLAB_LAUNCH(in_window, dim3(words, words, images), kWord, 0, stream, candidates, window, outcome);
    DETLAB_LAUNCH(settle, images, kSettlers, 0, stream, candidates, window, outcome);
  }
  return kept;
}

template <template <typename> class BoxOf>
Tensor nms_of(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes, double iou_threshold) {
  const Launch launch(boxes);
  const Tensor exact = as_type(boxes, wide_type(boxes.scalar_type()));
  const auto run = exact.scalar_type() == ScalarType::Double ? suppress<BoxOf<double>> : suppress<BoxOf<float>>;
  const int64_t count = boxes.size(0);
  Kept kept = run(exact, scores, classes, 1, count, iou_threshold, count, Padding::kNone, launch.stream());
  int64_t size = 0;
  check(cudaMemcpyAsync(&size, kept.counts.data_ptr(), sizeof(size), cudaMemcpyDeviceToHost, launch.stream()));
  check(cudaStreamSynchronize(launch.stream()));
  Tensor row = torch::stable::select(kept.indices, 0, 0);
  return torch::stable::narrow(row, 0, 0, size);
}

constexpr int kPairThreads = 128;
constexpr int kPairRows = 16;

// Grid: (groups of columns, groups of kPairRows rows).
template <typename T>
__global__ void iou_kernel(const T* __restrict__ boxes1, int64_t rows, const T* __restrict__ boxes2, int64_t columns,
                           T* ious) {
  __shared__ TurnedBox<T> row_boxes[kPairRows];
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kPairRows;
  const int num_rows = static_cast<int>(at_most<int64_t>(kPairRows, rows - first_row));
  const int thread = threadIdx.x;
  if (thread < num_rows) row_boxes[thread] = TurnedBox<T>::at(boxes1 + (first_row + thread) * 5);
  __syncthreads();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kPairThreads + thread;
  if (column >= columns) return;
  const TurnedBox<T> box = TurnedBox<T>::at(boxes2 + column * 5);
  for (int row = 0; row < num_rows; ++row) ious[(first_row + row) * columns + column] = turned_iou(row_boxes[row], box);
}

}  // namespace

Tensor nms(Tensor boxes, Tensor scores, std::optional<Tensor> classes, double iou_threshold) {
  check_candidates(boxes, scores, classes, 4);
  return nms_of<AlignedBox>(boxes, scores, classes, iou_threshold);
}

Tensor nms_rotated(Tensor boxes, Tensor scores, std::optional<Tensor> classes, double iou_threshold) {
  check_candidates(boxes, scores, classes, 5);
  return nms_of<TurnedBox>(boxes, scores, classes, iou_threshold);
}

std::tuple<Tensor, Tensor> nms_fixed(Tensor boxes, Tensor scores, Tensor classes, double iou_threshold,
                                     int64_t max_output) {
  check_candidate_batch(boxes, scores, classes, max_output);
  const Launch launch(boxes);
  const Tensor exact = as_type(boxes, wide_type(boxes.scalar_type()));
  const bool is_double = exact.scalar_type() == ScalarType::Double, is_rotated = boxes.size(2) == 5;
  const auto run = is_rotated ? (is_double ? suppress<TurnedBox<double>> : suppress<TurnedBox<float>>)
                              : (is_double ? suppress<AlignedBox<double>> : suppress<AlignedBox<float>>);
  const Kept kept = run(exact, scores, classes, boxes.size(0), boxes.size(1), iou_threshold, max_output,
                        Padding::kMarkedByScore, launch.stream());
  return {kept.indices, kept.counts};
}

Tensor box_iou_rotated(Tensor boxes1, Tensor boxes2) {
  check_rotated_pairs(boxes1, boxes2);
  const Launch launch(boxes1);
  const ScalarType wide = wide_type(boxes1.scalar_type());
  const Tensor exact1 = as_type(boxes1, wide), exact2 = as_type(boxes2, wide);
  const int64_t rows = boxes1.size(0), columns = boxes2.size(0);
  const Tensor ious = new_tensor(boxes1, {rows, columns}, wide);
  if (ious.numel() == 0) return ious;
  with_wide_type(wide, [&](auto number) {
    using T = decltype(number);
    const auto kernel = iou_kernel<T>;
    // The second number of a grid ends at 65535.
    constexpr int64_t kRowsPerLaunch = int64_t{65535} * kPairRows;
    for (int64_t first = 0; first < rows; first += kRowsPerLaunch) {
      const int64_t count = std::min(rows - first, kRowsPerLaunch);
      const dim3 grid(static_cast<unsigned>(divide_up(columns, kPairThreads)),
                      static_cast<unsigned>(divide_up(count, kPairRows)));
      DETLAB_LAUNCH(kernel, grid, kPairThreads, 0, launch.stream(), read<T>(exact1) + first * 5, count, read<T>(exact2),
                    columns, write<T>(ious) + first * columns);
    }
  });
  return ious;
}

}  // namespace cuda
}  // namespace detlab
