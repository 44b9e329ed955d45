// Greedy suppression, class by class, in blocks of candidates: a block is settled one by one, then everything behind it
// is compared with what the block kept, by as many threads as there are. No result depends on their number.

#include <algorithm>
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
  int64_t first, last;  // positions in Candidates::order
};

// The candidates of one image, grouped by class and sorted by score within a class.
struct Candidates {
  std::vector<int64_t> order;  // indices of boxes
  std::vector<int64_t> ranks;  // of order's entries, their place among all candidates by score
  std::vector<Group> groups;
};

template <typename T>
uint64_t descending_key(T score);

template <>
uint64_t descending_key(float score) {
  if (score == 0) score = 0;  // -0 and 0 are equal
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return ~(bits >> 31 ? ~bits : bits | 0x80000000u) & 0xffffffffu;
}

template <>
uint64_t descending_key(double score) {
  if (score == 0) score = 0;
  uint64_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return ~(bits >> 63 ? ~bits : bits | 0x8000000000000000u);
}

// Indices by decreasing score, equal scores in their order; NaN counts as -inf. With `skip_padding` both are left out.
template <typename T>
std::vector<int64_t> sort_by_score(const T* scores, int64_t count, bool skip_padding) {
  constexpr T nothing = -std::numeric_limits<T>::infinity();
  std::vector<std::pair<uint64_t, int64_t>> keyed;
  keyed.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const T score = std::isnan(scores[i]) ? nothing : scores[i];
    if (skip_padding && score == nothing) continue;
    keyed.emplace_back(descending_key(score), i);
  }
  std::sort(keyed.begin(), keyed.end());
  std::vector<int64_t> order(keyed.size());
  for (size_t i = 0; i < keyed.size(); ++i) order[i] = keyed[i].second;
  return order;
}

template <typename T>
Candidates find_candidates(const T* scores, const int64_t* classes, int64_t count, bool skip_padding) {
  Candidates found;
  found.order = sort_by_score(scores, count, skip_padding);
  const int64_t size = static_cast<int64_t>(found.order.size());
  found.ranks.resize(size);
  std::iota(found.ranks.begin(), found.ranks.end(), 0);
  if (classes != nullptr) {
    const auto class_at = [&](int64_t rank) { return classes[found.order[rank]]; };
    std::sort(found.ranks.begin(), found.ranks.end(), [&](int64_t a, int64_t b) {
      return class_at(a) != class_at(b) ? class_at(a) < class_at(b) : a < b;
    });
    std::vector<int64_t> by_class(size);
    for (int64_t i = 0; i < size; ++i) by_class[i] = found.order[found.ranks[i]];
    found.order.swap(by_class);
  }
  for (int64_t first = 0; first < size;) {
    int64_t last = classes == nullptr ? size : first + 1;
    while (last < size && classes[found.order[last]] == classes[found.order[first]]) ++last;
    found.groups.push_back({first, last});
    first = last;
  }
  return found;
}

// Suppression within one group.
template <typename Boxes>
class Suppression {
  using T = typename Boxes::Number;

 public:
  Suppression(const T* boxes, const int64_t* order, int64_t count, T threshold)
      : planes_(boxes, order, count), positions_(count), dead_(count, 0), threshold_(threshold) {
    std::iota(positions_.begin(), positions_.end(), 0);
  }

  // Marks the first `max_kept` survivors among the group's candidates.
  void run(int64_t max_kept, uint8_t* is_kept) {
    int64_t start = 0, end = static_cast<int64_t>(positions_.size()), num_kept = 0;
    while (start < end && num_kept < max_kept) {
      const int64_t block_end = std::min(end, start + kBlock);
      std::vector<int64_t> survivors = settle_block(start, block_end, max_kept - num_kept);
      for (int64_t survivor : survivors) is_kept[positions_[survivor]] = 1;
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
        positions_[target] = positions_[i];
        dead_[target] = 0;
      }
      ++target;
    }
    return target;
  }

  BoxPlanes<Boxes> planes_;
  std::vector<int64_t> positions_;  // in the group, of what the planes hold now
  std::vector<uint8_t> dead_;
  const T threshold_;
};

// Marks the survivors of every group of every image; is_kept[image] runs parallel to its candidates' order.
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
    const Candidates& candidates = images[job.image];
    Suppression<Boxes>(boxes[job.image], candidates.order.data() + job.group.first, job.size(), threshold)
        .run(max_kept, is_kept[job.image].data() + job.group.first);
  };
  // A few large groups share the threads one after the other; the others get a thread each.
  size_t large = 0;
  const bool has_few = jobs.size() < 2 * static_cast<size_t>(torch::stable::get_num_threads());
  while (has_few && large < jobs.size() && jobs[large].size() >= kLargeGroup) run(jobs[large++]);
  for_each_unit(static_cast<int64_t>(jobs.size() - large), [&](int64_t job) { run(jobs[large + job]); });
}

// Ranks of the survivors, best first.
std::vector<int64_t> surviving_ranks(const Candidates& candidates, const std::vector<uint8_t>& is_kept) {
  std::vector<int64_t> ranks;
  for (size_t i = 0; i < is_kept.size(); ++i) {
    if (is_kept[i]) ranks.push_back(candidates.ranks[i]);
  }
  if (candidates.groups.size() > 1) std::sort(ranks.begin(), ranks.end());
  return ranks;
}

std::vector<int64_t> survivors_by_score(const Candidates& candidates, const std::vector<uint8_t>& is_kept) {
  std::vector<int64_t> box_of_rank(candidates.order.size());
  for (size_t i = 0; i < candidates.order.size(); ++i) box_of_rank[candidates.ranks[i]] = candidates.order[i];
  std::vector<int64_t> survivors = surviving_ranks(candidates, is_kept);
  for (int64_t& entry : survivors) entry = box_of_rank[entry];
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
  std::vector<std::vector<uint8_t>> is_kept = {std::vector<uint8_t>(images[0].order.size(), 0)};
  suppress_groups<Boxes, T>(images, {static_cast<const T*>(boxes.data_ptr())}, round_down<T>(iou_threshold),
                            boxes.size(0), is_kept);
  const std::vector<int64_t> kept = survivors_by_score(images[0], is_kept[0]);
  const Tensor result = new_tensor(boxes, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), static_cast<int64_t*>(result.data_ptr()));
  return result;
}

template <typename T>
void nms_fixed_of(const Tensor& boxes, const Tensor& scores, const int64_t* classes, double iou_threshold,
                  int64_t max_output, int64_t* indices, int64_t* counts) {
  const int64_t num_images = boxes.size(0), num_boxes = boxes.size(1);
  const T* numbers = static_cast<const T*>(boxes.data_ptr());
  std::vector<Candidates> images(num_images);
  std::vector<const T*> boxes_of(num_images);
  std::vector<std::vector<uint8_t>> is_kept(num_images);
  for_each_unit(num_images, [&](int64_t image) {
    images[image] = candidates_of(scores, image * num_boxes, num_boxes, classes + image * num_boxes, true);
    boxes_of[image] = numbers + image * num_boxes * 4;
    is_kept[image].assign(images[image].order.size(), 0);
  });
  suppress_groups<AlignedBoxes<T>, T>(images, boxes_of, round_down<T>(iou_threshold), max_output, is_kept);
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
  const auto run = exact.scalar_type() == ScalarType::Double ? nms_fixed_of<double> : nms_fixed_of<float>;
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
    torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 4096 / std::max<int64_t>(columns, 1)),
                                [&](int64_t first, int64_t last) {
                                  for (int64_t row = first; row < last; ++row) {
                                    box_kernels<T>().iou_rotated(planes1.get(), row, planes2.get(), columns,
                                                                 target + row * columns);
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
