// Greedy suppression on the device, for a batch of images, in one launch and with nothing that the host would wait for.
//
// Candidates stand in the order of their scores and are settled a window at a time: which of them do boxes kept earlier
// suppress, which better ones of the window overlap which (a bit for each pair), and a walk along those bits that
// decides. The blocks of an image hand out the comparisons of a window among themselves, piece by piece; the one that
// finishes the last piece settles the window, the others wait for that. A block only ever waits for what running blocks
// have taken on, so no number of them needs a place on the device at the same time. Windows past an image's last
// candidate, or past the last box that it may keep, are not even looked at. Classes are compared exactly.
//
// Shapes: N images, B candidates in each, P boxes kept at most, W windows.

#include "candidates.cuh"
#include "device.cuh"

namespace detlab {
namespace cuda {
namespace {

using Word = unsigned long long;

constexpr int kWord = 64;      // candidates that one word of flags covers
constexpr int kWindow = 4096;  // candidates settled together
constexpr int kWords = kWindow / kWord;
constexpr int kThreads = 512;       // of a block; the candidates of a piece
constexpr int kKeptPerPiece = 128;  // kept boxes that a piece compares its candidates with
constexpr int kBlocks = 256;        // of all images: about two for each multiprocessor of a large GPU

// What all blocks see; the counts and flags begin at zero.
template <typename Box>
struct Task {
  const Box* boxes;         // (N, B), best first
  const int64_t* classes;   // (N, B), or null: all of one class
  const int64_t* order;     // (N, B): rank by score -> index of the box
  const int64_t* num_real;  // (N): those behind are padding
  int64_t count;            // B
  typename Box::Number threshold;
  int64_t max_kept;   // P
  int64_t* ranks;     // (N, P) of the boxes kept
  int64_t* indices;   // (N, P) the same, as indices of boxes
  int64_t* num_kept;  // (N)
  int64_t num_windows, width;
  Word* removed;      // (N, kWords): candidates of the window that a box kept before it suppresses
  Word* rivals;       // (N, width / 64, width): bit k of row w, column i: candidate w * 64 + k overlaps the worse one i
  Word* taken;        // (N, W): pieces handed out
  Word* done;         // (N, W): pieces finished
  Word* kept_before;  // (N, W + 1): one more than the boxes kept before the window, 0 while that is not known

  // The task of one image alone.
  __device__ Task of_image(int64_t image) const {
    Task task = *this;
    task.boxes += image * count;
    if (classes != nullptr) task.classes += image * count;
    task.order += image * count;
    task.num_real += image;
    task.ranks += image * max_kept;
    task.indices += image * max_kept;
    task.num_kept += image;
    task.removed += image * kWords;
    task.rivals += image * (width / kWord) * width;
    task.taken += image * num_windows;
    task.done += image * num_windows;
    task.kept_before += image * (num_windows + 1);
    return task;
  }
  __device__ int64_t class_of(int64_t rank) const { return classes == nullptr ? 0 : classes[rank]; }
};

// A window of an image, and how its comparisons are divided.
struct Window {
  int64_t index, first;  // rank of its first candidate
  int size, words, groups;
  int64_t num_kept, slices;  // boxes kept before it

  __device__ Window(int64_t index, int64_t num_real, int64_t num_kept)
      : index(index), first(index * kWindow), num_kept(num_kept) {
    size = static_cast<int>(at_most<int64_t>(kWindow, num_real - first));
    words = (size + kWord - 1) / kWord;
    groups = (size + kThreads - 1) / kThreads;
    slices = (num_kept + kKeptPerPiece - 1) / kKeptPerPiece;
  }
  // A group of candidates with a slice of the kept boxes, or with a word of the window's own.
  __device__ int64_t pieces() const { return (slices + words) * groups; }
};

// Boxes that all threads of a block compare theirs with.
template <typename Box>
struct Stage {
  Box boxes[kWord];
  int64_t classes[kWord];

  __device__ void put(int slot, const Task<Box>& task, int64_t rank) {
    boxes[slot] = task.boxes[rank];
    classes[slot] = task.class_of(rank);
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

// The memory of a block.
template <typename Box>
struct BlockMemory {
  Stage<Box> stage;
  Word removed[kWords], chosen[kWords];
  Word word;  // passed from the first thread to all
};

// Each block gets another number.
__device__ inline int64_t take(Word* counter, Word* passed) {
  __syncthreads();
  if (threadIdx.x == 0) *passed = atomicAdd(counter, Word{1});
  __syncthreads();
  return static_cast<int64_t>(*passed);
}

// Whether the block finished the last piece; it then sees what the others wrote.
__device__ inline bool finish(Word* counter, int64_t pieces, Word* passed) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *passed = atomicAdd(counter, Word{1}) + 1;
    __threadfence();
  }
  __syncthreads();
  return static_cast<int64_t>(*passed) == pieces;
}

// Waits until a value that another block publishes is there, with all that the other wrote before.
__device__ inline Word wait_for(Word* value, Word* passed) {
  __syncthreads();
  if (threadIdx.x == 0) {
    Word seen = 0;
    while ((seen = atomicAdd(value, Word{0})) == 0) __nanosleep(200);
    __threadfence();
    *passed = seen;
  }
  __syncthreads();
  return *passed;
}

// Sets the bits of candidates, by their place in the window, for which `flag` is true. For whole warps.
__device__ inline void set_flags(Word* flags, int place, bool flag) {
  const unsigned votes = __ballot_sync(~0u, flag);
  if (threadIdx.x % 32 == 0 && votes != 0) atomicOr(flags + place / kWord, Word{votes} << place % kWord);
}

template <typename Box>
__device__ void compare_with_kept(const Task<Box>& task, const Window& window, int64_t slice, int place,
                                  Stage<Box>& stage) {
  const int64_t end = at_most<int64_t>((slice + 1) * kKeptPerPiece, window.num_kept);
  const bool is_real = place < window.size;
  const int64_t rank = window.first + (is_real ? place : 0);
  const Box box = task.boxes[rank];
  const int64_t own_class = task.class_of(rank);
  bool is_removed = false;
  for (int64_t k = slice * kKeptPerPiece; k < end; k += kWord) {
    if (threadIdx.x < kWord && k + threadIdx.x < end) stage.put(threadIdx.x, task, task.ranks[k + threadIdx.x]);
    __syncthreads();
    const int count = static_cast<int>(at_most<int64_t>(kWord, end - k));
    is_removed = is_removed || stage.overlapping(box, own_class, count, task.threshold) != 0;
    __syncthreads();
  }
  set_flags(task.removed, place, is_real && is_removed);
}

template <typename Box>
__device__ void compare_in_window(const Task<Box>& task, const Window& window, int word, int place, Stage<Box>& stage) {
  const int count = at_most(kWord, window.size - word * kWord);
  if (static_cast<int>(threadIdx.x) < count) stage.put(threadIdx.x, task, window.first + word * kWord + threadIdx.x);
  __syncthreads();
  if (place < word * kWord || place >= window.size) return;
  const int64_t rank = window.first + place;
  Word rivals = stage.overlapping(task.boxes[rank], task.class_of(rank), count, task.threshold);
  if (place / kWord == word) rivals &= (Word{1} << place % kWord) - 1;
  task.rivals[word * task.width + place] = rivals;
}

__device__ inline Word vote(bool low, bool high) {
  return Word{__ballot_sync(~0u, low)} | Word{__ballot_sync(~0u, high)} << 32;
}

// Of `open` candidates, those that no better one of them suppresses; a warp, each lane of which looks after two. In
// each round all those stay that have no open rival, and their worse ones go: as many rounds as the longest chain of
// candidates of which each one's fate hangs on the one before, seldom more than a few.
__device__ inline Word settle_word(Word open, const Word* rivals) {
  const int lane = threadIdx.x % 32;
  const Word low = rivals[lane], high = rivals[lane + 32];
  Word chosen = 0;
  while (open != 0) {
    const Word safe =
        vote((open >> lane & 1) != 0 && (low & open) == 0, (open >> (lane + 32) & 1) != 0 && (high & open) == 0);
    chosen |= safe;
    open &= ~(safe | vote((low & safe) != 0, (high & safe) != 0));
  }
  return chosen;
}

// Marks those of a word that the ones chosen before suppress; the block's groups of threads share the words before.
template <typename Box>
__device__ void remove_overlapped(const Task<Box>& task, const Window& window, int word, BlockMemory<Box>& memory) {
  const int lane = threadIdx.x % kWord, place = word * kWord + lane;
  Word gone = 0;
  if (place < window.size) {
    for (int w = threadIdx.x / kWord; w < word; w += kThreads / kWord) {
      gone |= task.rivals[w * task.width + place] & memory.chosen[w];
    }
  }
  set_flags(memory.removed, place, gone != 0);
}

// One block walks the window a word at a time; every warp settles the word for itself.
template <typename Box>
__device__ void settle(const Task<Box>& task, const Window& window, BlockMemory<Box>& memory) {
  const int thread = threadIdx.x;
  int64_t num_kept = window.num_kept;
  if (thread < window.words) {
    memory.removed[thread] = task.removed[thread];
    task.removed[thread] = 0;  // for the next window
  }
  __syncthreads();
  for (int w = 0; w < window.words && num_kept < task.max_kept; ++w) {
    remove_overlapped(task, window, w, memory);
    __syncthreads();
    const Word real = ~Word{0} >> (kWord - at_most(kWord, window.size - w * kWord));
    const Word chosen = settle_word(real & ~memory.removed[w], task.rivals + w * task.width + w * kWord);
    if (thread == 0) memory.chosen[w] = chosen;
    if (thread < kWord && (chosen >> thread & 1) != 0) {
      const int64_t place = num_kept + __popcll(chosen & ((Word{1} << thread) - 1));
      const int64_t rank = window.first + w * kWord + thread;
      if (place < task.max_kept) {
        task.ranks[place] = rank;
        task.indices[place] = task.order[rank];
      }
    }
    num_kept += __popcll(chosen);
    __syncthreads();
  }
  if (thread == 0) {
    num_kept = at_most(num_kept, task.max_kept);
    *task.num_kept = num_kept;
    __threadfence();
    atomicAdd(task.kept_before + window.index + 1, static_cast<Word>(num_kept) + 1);
  }
}

// Grid: (images, blocks that share the work of an image).
template <typename Box>
__global__ void __launch_bounds__(kThreads, sizeof(typename Box::Number) == 4 ? 2 : 1) suppress_kernel(Task<Box> all) {
  __shared__ BlockMemory<Box> memory;
  const Task<Box> task = all.of_image(blockIdx.x);
  const int64_t num_real = *task.num_real;
  for (int64_t index = 0; index * kWindow < num_real; ++index) {
    const Word known = index == 0 ? 1 : wait_for(task.kept_before + index, &memory.word);
    const Window window(index, num_real, static_cast<int64_t>(known) - 1);
    if (window.num_kept >= task.max_kept) return;
    const int64_t pieces = window.pieces();
    for (int64_t piece = 0; (piece = take(task.taken + index, &memory.word)) < pieces;) {
      const int64_t others = piece / window.groups;
      const int place = static_cast<int>(piece % window.groups) * kThreads + threadIdx.x;
      if (others < window.slices) {
        compare_with_kept(task, window, others, place, memory.stage);
      } else {
        compare_in_window(task, window, static_cast<int>(others - window.slices), place, memory.stage);
      }
      if (finish(task.done + index, pieces, &memory.word)) settle(task, window, memory);
    }
  }
}

struct Kept {
  Tensor indices;  // (N, P); where there is padding, 0 past the count
  Tensor counts;   // (N)
};

// Blocks for an image: no more than the largest window has pieces.
int64_t blocks_per_image(int64_t num_images, int64_t count, int64_t max_kept) {
  const int64_t size = std::min<int64_t>(count, kWindow);
  const int64_t most_kept = count > kWindow ? std::min(count, max_kept) : 0;
  const int64_t pieces = (divide_up(most_kept, kKeptPerPiece) + divide_up(size, kWord)) * divide_up(size, kThreads);
  return std::min(pieces, std::max<int64_t>(kBlocks / num_images, 8));
}

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
  const int64_t num_windows = divide_up(count, kWindow);
  const int64_t words = divide_up(std::min<int64_t>(count, kWindow), kWord), width = words * kWord;
  // What begins at zero, filled in one go.
  const Tensor state = zeros({num_images * (1 + kWords + 3 * num_windows + 1)});
  int64_t* num_real = write<int64_t>(state);
  Word* removed = reinterpret_cast<Word*>(num_real + num_images);
  Word* taken = removed + num_images * kWords;
  Word* done = taken + num_images * num_windows;
  const Sorted sorted = sort_candidates<Box>(boxes, scores, classes, num_images, count, padding, num_real, stream);
  const Tensor rivals = numbers({num_images, words, width}), ranks = numbers(kept_shape);
  const Task<Box> task = {read<Box>(sorted.boxes),
                          classes.has_value() ? read<int64_t>(*sorted.classes) : nullptr,
                          read<int64_t>(sorted.order),
                          num_real,
                          count,
                          round_down<typename Box::Number>(iou_threshold),
                          max_kept,
                          write<int64_t>(ranks),
                          write<int64_t>(kept.indices),
                          write<int64_t>(kept.counts),
                          num_windows,
                          width,
                          removed,
                          write<Word>(rivals),
                          taken,
                          done,
                          done + num_images * num_windows};
  const dim3 grid(static_cast<unsigned>(num_images),
                  static_cast<unsigned>(blocks_per_image(num_images, count, max_kept)));
  const auto kernel = suppress_kernel<Box>;
  DETLAB_LAUNCH(kernel, grid, kThreads, 0, stream, task);
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

}  // namespace cuda
}  // namespace detlab
