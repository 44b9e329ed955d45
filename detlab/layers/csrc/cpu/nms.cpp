// Greedy suppression, class by class, in blocks of candidates: a block is settled one by one, then everything behind it
// is compared with what the block kept, by as many threads as there are. No result depends on their number.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "../kernels.h"
#include "box_planes.h"
#include "memory.h"
#include "parallel.h"

namespace detlab {
namespace cpu {
namespace {

constexpr int64_t kBlock = 256;
// Pairs of boxes that make it worth to wake another thread.
constexpr int64_t kPairsPerTask = 1 << 18;
constexpr int64_t kLargeGroup = 2048;

// Candidates of one class, best first.
struct Group {
  int64_t first, last;  // positions in Candidates::boxes
};

// The candidates of one image. A candidate's rank is its place by score among all of them.
struct Candidates {
  std::vector<int64_t> box_of_rank;
  std::vector<int64_t> ranks, boxes;  // by class, and by score within a class
  std::vector<Group> groups;
};

struct Keyed {
  uint64_t key;
  int64_t value;
};

// Fewer than this are sorted by comparing them.
constexpr size_t kRadixSort = 256;

// Sorts by key; entries of one key stay in their order, which must be that of their values.
void sort_by_key(std::vector<Keyed>& entries) {
  if (entries.size() < kRadixSort) {
    std::sort(entries.begin(), entries.end(),
              [](const Keyed& a, const Keyed& b) { return a.key != b.key ? a.key < b.key : a.value < b.value; });
    return;
  }
  uint64_t varying = 0;
  for (const Keyed& entry : entries) varying |= entry.key ^ entries[0].key;
  constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
  std::vector<Keyed> sorted(entries.size());
  for (int shift = 0; shift < 64; shift += kDigitBits) {
    if ((varying >> shift) % kDigits == 0) continue;
    std::array<int64_t, kDigits + 1> starts = {};
    for (const Keyed& entry : entries) ++starts[(entry.key >> shift) % kDigits + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    for (const Keyed& entry : entries) sorted[starts[(entry.key >> shift) % kDigits]++] = entry;
    entries.swap(sorted);
  }
}

uint64_t descending_key(float score) {
  if (score == 0) score = 0;  // -0 and 0 are equal
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return ~(bits >> 31 ? ~bits : bits | 0x80000000u) & 0xffffffffu;
}

uint64_t descending_key(double score) {
  if (score == 0) score = 0;
  uint64_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return ~(bits >> 63 ? ~bits : bits | 0x8000000000000000u);
}

// Boxes by decreasing score, equal scores in their order; NaN counts as -inf. With `skip_padding` both are left out.
template <typename T>
std::vector<int64_t> sort_by_score(const T* scores, int64_t count, bool skip_padding) {
  constexpr T nothing = -std::numeric_limits<T>::infinity();
  std::vector<Keyed> entries;
  entries.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const T score = std::isnan(scores[i]) ? nothing : scores[i];
    if (skip_padding && score == nothing) continue;
    entries.push_back({descending_key(score), i});
  }
  sort_by_key(entries);
  std::vector<int64_t> boxes(entries.size());
  for (size_t i = 0; i < entries.size(); ++i) boxes[i] = entries[i].value;
  return boxes;
}

void group_by_class(const int64_t* classes, Candidates& found) {
  const int64_t size = static_cast<int64_t>(found.box_of_rank.size());
  std::vector<Keyed> entries(size);
  for (int64_t rank = 0; rank < size; ++rank) {
    entries[rank] = {static_cast<uint64_t>(classes[found.box_of_rank[rank]]), rank};
  }
  sort_by_key(entries);
  for (int64_t i = 0; i < size; ++i) {
    if (i == 0 || entries[i].key != entries[i - 1].key) found.groups.push_back({i, i});
    found.groups.back().last = i + 1;
    found.ranks[i] = entries[i].value;
    found.boxes[i] = found.box_of_rank[entries[i].value];
  }
}

template <typename T>
Candidates find_candidates(const T* scores, const int64_t* classes, int64_t count, bool skip_padding) {
  Candidates found;
  found.box_of_rank = sort_by_score(scores, count, skip_padding);
  found.boxes = found.box_of_rank;
  found.ranks.resize(found.boxes.size());
  if (classes != nullptr) {
    group_by_class(classes, found);
    return found;
  }
  std::iota(found.ranks.begin(), found.ranks.end(), 0);
  if (!found.boxes.empty()) found.groups.push_back({0, static_cast<int64_t>(found.boxes.size())});
  return found;
}

// Suppression within one group.
template <typename Boxes>
class Suppression {
  using T = typename Boxes::Number;

 public:
  Suppression(const T* boxes, const Candidates& candidates, const Group& group, T threshold)
      : planes_(boxes, candidates.boxes.data() + group.first, group.last - group.first),
        ranks_(candidates.ranks.begin() + group.first, candidates.ranks.begin() + group.last),
        dead_(ranks_.size(), 0),
        threshold_(threshold) {}

  // Marks the first `max_kept` survivors among the group's candidates, by their ranks.
  void run(int64_t max_kept, uint8_t* is_kept) {
    int64_t start = 0, end = static_cast<int64_t>(ranks_.size()), num_kept = 0;
    while (start < end && num_kept < max_kept) {
      const int64_t block_end = std::min(end, start + kBlock);
      std::vector<int64_t> survivors = settle_block(start, block_end, max_kept - num_kept);
      for (int64_t survivor : survivors) is_kept[ranks_[survivor]] = 1;
      num_kept += static_cast<int64_t>(survivors.size());
      start = block_end;
      if (num_kept >= max_kept || start == end) break;
      suppress_behind(survivors, start, end);
      end = drop_dead(start, end);
    }
  }

 private:
  std::vector<int64_t> settle_block(int64_t first, int64_t last, int64_t max_kept) {
    std::vector<int64_t> survivors;
    const T* one[Boxes::kPlanes];
    for (int64_t i = first; i < last && static_cast<int64_t>(survivors.size()) < max_kept; ++i) {
      if (dead_[i]) continue;
      survivors.push_back(i);
      for (int plane = 0; plane < Boxes::kPlanes; ++plane) one[plane] = planes_[plane] + i;
      Boxes::suppress(one, 1, planes_.get(), i + 1, last, threshold_, dead_.data());
    }
    return survivors;
  }

  void suppress_behind(const std::vector<int64_t>& survivors, int64_t first, int64_t last) {
    const int num_kept = static_cast<int>(survivors.size());
    std::vector<T> numbers(static_cast<size_t>(num_kept) * Boxes::kPlanes);
    const T* kept[Boxes::kPlanes];
    for (int plane = 0; plane < Boxes::kPlanes; ++plane) {
      T* line = numbers.data() + static_cast<size_t>(plane) * num_kept;
      for (int k = 0; k < num_kept; ++k) line[k] = planes_[plane][survivors[k]];
      kept[plane] = line;
    }
    const int64_t grain = std::max<int64_t>(64, kPairsPerTask / std::max(num_kept, 1));
    torch::stable::parallel_for(first, last, grain, [&](int64_t begin, int64_t end) {
      Boxes::suppress(kept, num_kept, planes_.get(), begin, end, threshold_, dead_.data());
    });
  }

  int64_t drop_dead(int64_t first, int64_t last) {
    int64_t target = first;
    for (int64_t i = first; i < last; ++i) {
      if (dead_[i]) continue;
      if (target != i) {
        planes_.move(i, target);
        ranks_[target] = ranks_[i];
        dead_[target] = 0;
      }
      ++target;
    }
    return target;
  }

  BoxPlanes<Boxes> planes_;
  std::vector<int64_t> ranks_;  // of what the planes hold now
  std::vector<uint8_t> dead_;
  const T threshold_;
};

// Marks the survivors of every group of every image; is_kept[image] has an entry for each rank.
template <typename Boxes, typename T>
void suppress_groups(const std::vector<Candidates>& images, const std::vector<const T*>& boxes, T threshold,
                     int64_t max_kept, std::vector<std::vector<uint8_t>>& is_kept) {
  struct Job {
    size_t image;
    Group group;
    int64_t size() const { return group.last - group.first; }
  };
  std::vector<Job> jobs;
  for (size_t image = 0; image < images.size(); ++image) {
    for (const Group& group : images[image].groups) jobs.push_back({image, group});
  }
  std::stable_sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.size() > b.size(); });
  const auto run = [&](const Job& job) {
    Suppression<Boxes>(boxes[job.image], images[job.image], job.group, threshold)
        .run(max_kept, is_kept[job.image].data());
  };
  // A few large groups share the threads one after the other; the others get a thread each.
  size_t large = 0;
  const bool has_few = jobs.size() < 2 * static_cast<size_t>(torch::stable::get_num_threads());
  while (has_few && large < jobs.size() && jobs[large].size() >= kLargeGroup) run(jobs[large++]);
  for_each_unit(static_cast<int64_t>(jobs.size() - large), [&](int64_t job) { run(jobs[large + job]); });
}

std::vector<int64_t> survivors_by_score(const Candidates& candidates, const std::vector<uint8_t>& is_kept) {
  std::vector<int64_t> survivors;
  for (size_t rank = 0; rank < is_kept.size(); ++rank) {
    if (is_kept[rank]) survivors.push_back(candidates.box_of_rank[rank]);
  }
  return survivors;
}

Candidates candidates_of(const Tensor& scores, int64_t offset, int64_t count, const int64_t* classes,
                         bool skip_padding) {
  if (scores.scalar_type() == ScalarType::Double) {
    return find_candidates(static_cast<const double*>(scores.data_ptr()) + offset, classes, count, skip_padding);
  }
  return find_candidates(static_cast<const float*>(scores.data_ptr()) + offset, classes, count, skip_padding);
}

template <typename Boxes>
Tensor nms_of(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes, double iou_threshold) {
  using T = typename Boxes::Number;
  const Tensor dense_scores = as_type(scores, wide_type(scores.scalar_type()));
  std::optional<Tensor> dense_classes;
  if (classes.has_value()) dense_classes = as_type(*classes, ScalarType::Long);
  const int64_t* class_numbers = classes.has_value() ? static_cast<const int64_t*>(dense_classes->data_ptr()) : nullptr;
  const std::vector<Candidates> images = {candidates_of(dense_scores, 0, boxes.size(0), class_numbers, false)};
  std::vector<std::vector<uint8_t>> is_kept = {std::vector<uint8_t>(images[0].boxes.size(), 0)};
  suppress_groups<Boxes, T>(images, {static_cast<const T*>(boxes.data_ptr())}, round_down<T>(iou_threshold),
                            boxes.size(0), is_kept);
  const std::vector<int64_t> kept = survivors_by_score(images[0], is_kept[0]);
  const Tensor result = new_tensor(boxes, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), static_cast<int64_t*>(result.data_ptr()));
  return result;
}

template <typename Boxes>
void nms_fixed_of(const Tensor& boxes, const Tensor& scores, const int64_t* classes, double iou_threshold,
                  int64_t max_output, int64_t* indices, int64_t* counts) {
  using T = typename Boxes::Number;
  const int64_t num_images = boxes.size(0), num_boxes = boxes.size(1);
  const T* numbers = static_cast<const T*>(boxes.data_ptr());
  std::vector<Candidates> images(num_images);
  std::vector<const T*> boxes_of(num_images);
  std::vector<std::vector<uint8_t>> is_kept(num_images);
  for_each_unit(num_images, [&](int64_t image) {
    images[image] = candidates_of(scores, image * num_boxes, num_boxes, classes + image * num_boxes, true);
    boxes_of[image] = numbers + image * num_boxes * Boxes::kSize;
    is_kept[image].assign(images[image].boxes.size(), 0);
  });
  suppress_groups<Boxes, T>(images, boxes_of, round_down<T>(iou_threshold), max_output, is_kept);
  for_each_unit(num_images, [&](int64_t image) {
    const std::vector<int64_t> kept = survivors_by_score(images[image], is_kept[image]);
    const int64_t count = std::min<int64_t>(static_cast<int64_t>(kept.size()), max_output);
    int64_t* row = indices + image * max_output;
    std::copy(kept.begin(), kept.begin() + count, row);
    std::fill(row + count, row + max_output, 0);
    counts[image] = count;
  });
}

}  // namespace

Tensor nms(Tensor boxes, Tensor scores, std::optional<Tensor> classes, double iou_threshold) {
  check_candidates(boxes, scores, classes, 4);
  const Tensor exact = as_type(boxes, wide_type(boxes.scalar_type()));
  return exact.scalar_type() == ScalarType::Double ? nms_of<AlignedBoxes<double>>(exact, scores, classes, iou_threshold)
                                                   : nms_of<AlignedBoxes<float>>(exact, scores, classes, iou_threshold);
}

Tensor nms_rotated(Tensor boxes, Tensor scores, std::optional<Tensor> classes, double iou_threshold) {
  check_candidates(boxes, scores, classes, 5);
  const Tensor exact = as_type(boxes, wide_type(boxes.scalar_type()));
  return exact.scalar_type() == ScalarType::Double ? nms_of<TurnedBoxes<double>>(exact, scores, classes, iou_threshold)
                                                   : nms_of<TurnedBoxes<float>>(exact, scores, classes, iou_threshold);
}

std::tuple<Tensor, Tensor> nms_fixed(Tensor boxes, Tensor scores, Tensor classes, double iou_threshold,
                                     int64_t max_output) {
  check_candidate_batch(boxes, scores, classes, max_output);
  const Tensor exact = as_type(boxes, wide_type(boxes.scalar_type()));
  const Tensor exact_scores = as_type(scores, wide_type(scores.scalar_type()));
  const Tensor dense_classes = as_type(classes, ScalarType::Long);
  const Tensor indices = new_tensor(boxes, {boxes.size(0), max_output}, ScalarType::Long);
  const Tensor counts = new_tensor(boxes, {boxes.size(0)}, ScalarType::Long);
  const bool is_double = exact.scalar_type() == ScalarType::Double, is_rotated = boxes.size(2) == 5;
  const auto run = is_rotated ? (is_double ? nms_fixed_of<TurnedBoxes<double>> : nms_fixed_of<TurnedBoxes<float>>)
                              : (is_double ? nms_fixed_of<AlignedBoxes<double>> : nms_fixed_of<AlignedBoxes<float>>);
  run(exact, exact_scores, static_cast<const int64_t*>(dense_classes.data_ptr()), iou_threshold, max_output,
      static_cast<int64_t*>(indices.data_ptr()), static_cast<int64_t*>(counts.data_ptr()));
  return {indices, counts};
}

Tensor box_iou_rotated(Tensor boxes1, Tensor boxes2) {
  check_rotated_pairs(boxes1, boxes2);
  const ScalarType wide = wide_type(boxes1.scalar_type());
  const Tensor exact1 = as_type(boxes1, wide), exact2 = as_type(boxes2, wide);
  const int64_t rows = boxes1.size(0), columns = boxes2.size(0);
  const Tensor ious = new_result(boxes1, {rows, columns}, wide);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const BoxPlanes<TurnedBoxes<T>> planes1(static_cast<const T*>(exact1.data_ptr()), nullptr, rows);
    const BoxPlanes<TurnedBoxes<T>> planes2(static_cast<const T*>(exact2.data_ptr()), nullptr, columns);
    T* target = static_cast<T*>(ious.data_ptr());
    torch::stable::parallel_for(
        0, rows, std::max<int64_t>(1, 4096 / std::max<int64_t>(columns, 1)), [&](int64_t first, int64_t last) {
          for (int64_t row = first; row < last; ++row) {
            box_kernels<T>().iou_rotated(planes1.get(), row, planes2.get(), columns, target + row * columns);
          }
        });
  };
  if (wide == ScalarType::Double) {
    run(0.0);
  } else {
    run(0.0f);
  }
  return ious;
}

}  // namespace cpu
}  // namespace detlab
