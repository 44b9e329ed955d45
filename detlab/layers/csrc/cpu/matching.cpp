// Matching: each box's best object and each object's best box, a block of boxes at a time, so that the overlaps of all
// pairs are never in memory together. A second pass finds the boxes that share an object's best overlap; it only looks
// at objects of which the block can hold one.

#include <algorithm>
#include <mutex>
#include <vector>

#include "../kernels.h"
#include "box_planes.h"
#include "memory.h"
#include "parallel.h"

namespace detlab {
namespace cpu {
namespace {

constexpr int64_t kBlock = 256;

// Objects of one image that exist.
template <typename Boxes>
struct Objects {
  using T = typename Boxes::Number;

  std::vector<int64_t> rows;
  BoxPlanes<Boxes> planes;

  Objects(const T* objects, const bool* is_valid, int64_t count)
      : rows(valid_rows(is_valid, count)), planes(objects, rows.data(), size()) {}

  int64_t size() const { return static_cast<int64_t>(rows.size()); }

 private:
  static std::vector<int64_t> valid_rows(const bool* is_valid, int64_t count) {
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < count; ++row) {
      if (is_valid[row]) rows.push_back(row);
    }
    return rows;
  }
};

template <typename T>
struct Matches {
  T* overlaps;         // (N, S): of each box with its best object
  int64_t* rows;       // (N, S)
  T* object_overlaps;  // (N, G)
  bool* is_best;       // (N, S)
};

// The smallest upright box around a block of boxes, for objects that overlap none of them to be passed over.
template <typename Boxes>
struct Hull {
  explicit Hull(const BoxPlanes<Boxes>&, int64_t) {}
  bool meets(const BoxPlanes<Boxes>&, int64_t) const { return true; }
};

template <typename T>
struct Hull<AlignedBoxes<T>> {
  T x1, y1, x2, y2;

  Hull(const BoxPlanes<AlignedBoxes<T>>& boxes, int64_t count) {
    constexpr T far = std::numeric_limits<T>::infinity();
    x1 = y1 = far;
    x2 = y2 = -far;
    for (int64_t i = 0; i < count; ++i) {
      x1 = boxes[0][i] < x1 ? boxes[0][i] : x1;
      y1 = boxes[1][i] < y1 ? boxes[1][i] : y1;
      x2 = boxes[2][i] > x2 ? boxes[2][i] : x2;
      y2 = boxes[3][i] > y2 ? boxes[3][i] : y2;
    }
  }
  bool meets(const BoxPlanes<AlignedBoxes<T>>& objects, int64_t row) const {
    return std::min(x2, objects[2][row]) > std::max(x1, objects[0][row]) &&
           std::min(y2, objects[3][row]) > std::max(y1, objects[1][row]);
  }
};

template <typename Boxes>
class Matching {
  using T = typename Boxes::Number;

 public:
  Matching(const Tensor& objects, const Tensor& object_valid, const Tensor& boxes, const Matches<T>& matches)
      : boxes_(static_cast<const T*>(boxes.data_ptr())),
        box_sets_(boxes.size(0)),
        num_boxes_(boxes.size(1)),
        num_rows_(objects.size(1)),
        blocks_per_set_((num_boxes_ + kBlock - 1) / kBlock),
        matches_(matches) {
    const T* numbers = static_cast<const T*>(objects.data_ptr());
    const bool* is_valid = static_cast<const bool*>(object_valid.data_ptr());
    images_.reserve(objects.size(0));
    for (int64_t image = 0; image < objects.size(0); ++image) {
      first_.push_back(static_cast<int64_t>(largest_.size()));
      images_.emplace_back(
          new Objects<Boxes>(numbers + image * num_rows_ * Boxes::kSize, is_valid + image * num_rows_, num_rows_));
      largest_.resize(largest_.size() + images_.back()->size(), static_cast<T>(0));
    }
  }

  void run() {
    const int64_t num_units = box_sets_ * blocks_per_set_;
    for_each_unit(
        num_units, [this] { return Finder(*this); },
        [this](Finder& finder, int64_t unit) {
          const Block block(*this, unit);
          for_images(block, [&](int64_t image) { finder.find_best(block, image); });
        });
    write_object_overlaps();
    for_each_unit(num_units, [this](int64_t unit) { mark_best(unit); });
  }

 private:
  // Boxes of one image, or of all if these share them.
  struct Block {
    int64_t set, first, count;
    BoxPlanes<Boxes> planes;
    Hull<Boxes> hull;

    Block(const Matching& job, int64_t unit)
        : set(unit / job.blocks_per_set_),
          first(unit % job.blocks_per_set_ * kBlock),
          count(std::min(kBlock, job.num_boxes_ - first)),
          planes(job.boxes_ + (set * job.num_boxes_ + first) * Boxes::kSize, nullptr, count),
          hull(planes, count) {}
  };

  template <typename Visit>
  void for_images(const Block& block, const Visit& visit) const {
    const int64_t num_images = static_cast<int64_t>(images_.size());
    if (box_sets_ == num_images) return visit(block.set);
    for (int64_t image = 0; image < num_images; ++image) visit(image);
  }

  // A thread's part of the first pass. What it found out about the objects joins the rest when it is done.
  class Finder {
   public:
    explicit Finder(Matching& job)
        : job_(job),
          largest_(job.largest_.size(), static_cast<T>(0)),
          best_(kBlock + kLanes<T>),
          best_row_(kBlock + kLanes<T>) {}
    ~Finder() {
      const std::lock_guard<std::mutex> guard(job_.lock_);
      for (size_t i = 0; i < largest_.size(); ++i) job_.largest_[i] = std::max(job_.largest_[i], largest_[i]);
    }
    Finder(const Finder&) = delete;
    Finder& operator=(const Finder&) = delete;

    void find_best(const Block& block, int64_t image) {
      const Objects<Boxes>& objects = *job_.images_[image];
      T* largest = largest_.data() + job_.first_[image];
      std::fill(best_.begin(), best_.end(), static_cast<T>(0));
      std::fill(best_row_.begin(), best_row_.end(), 0);
      for (int64_t row = 0; row < objects.size(); ++row) {
        if (!block.hull.meets(objects.planes, row)) continue;
        const T found = Boxes::match()(objects.planes.get(), static_cast<Index<T>>(row), block.planes.get(),
                                       block.count, best_.data(), best_row_.data());
        largest[row] = std::max(largest[row], found);
      }
      const int64_t start = image * job_.num_boxes_ + block.first;
      std::copy(best_.begin(), best_.begin() + block.count, job_.matches_.overlaps + start);
      for (int64_t i = 0; i < block.count; ++i) {
        job_.matches_.rows[start + i] = objects.rows.empty() ? 0 : objects.rows[best_row_[i]];
      }
    }

   private:
    Matching& job_;
    std::vector<T> largest_, best_;
    std::vector<Index<T>> best_row_;
  };

  void write_object_overlaps() const {
    std::fill(matches_.object_overlaps, matches_.object_overlaps + static_cast<int64_t>(images_.size()) * num_rows_,
              static_cast<T>(0));
    for (size_t image = 0; image < images_.size(); ++image) {
      const std::vector<int64_t>& rows = images_[image]->rows;
      T* target = matches_.object_overlaps + static_cast<int64_t>(image) * num_rows_;
      for (size_t k = 0; k < rows.size(); ++k) target[rows[k]] = largest_[first_[image] + k];
    }
  }

  void mark_best(int64_t unit) const {
    const Block block(*this, unit);
    uint8_t is_best[kBlock + kLanes<T>];
    for_images(block, [&](int64_t image) {
      const Objects<Boxes>& objects = *images_[image];
      const int64_t start = image * num_boxes_ + block.first;
      const T most = *std::max_element(matches_.overlaps + start, matches_.overlaps + start + block.count);
      std::fill(is_best, is_best + block.count, 0);
      for (int64_t row = 0; row < objects.size(); ++row) {
        const T wanted = largest_[first_[image] + row];
        if (!(wanted > 0 && wanted <= most) || !block.hull.meets(objects.planes, row)) continue;
        Boxes::mark()(objects.planes.get(), static_cast<Index<T>>(row), block.planes.get(), block.count, wanted,
                      is_best);
      }
      std::copy(is_best, is_best + block.count, matches_.is_best + start);
    });
  }

  const T* boxes_;
  const int64_t box_sets_, num_boxes_, num_rows_, blocks_per_set_;
  const Matches<T> matches_;
  std::vector<std::unique_ptr<const Objects<Boxes>>> images_;
  std::vector<int64_t> first_;  // of each image's objects among all that exist
  std::vector<T> largest_;      // overlap of each of them
  std::mutex lock_;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> match_boxes(Tensor objects, Tensor object_valid, Tensor boxes) {
  check_matching(objects, object_valid, boxes);
  const ScalarType wide = wide_type(objects.scalar_type());
  const Tensor exact_objects = as_type(objects, wide), exact_boxes = as_type(boxes, wide);
  const Tensor valid = as_type(object_valid, ScalarType::Bool);
  const std::vector<int64_t> shape = {objects.size(0), boxes.size(1)};
  const Tensor overlaps = new_tensor(objects, shape, wide), rows = new_tensor(objects, shape, ScalarType::Long);
  const Tensor object_overlaps = new_tensor(objects, {objects.size(0), objects.size(1)}, wide);
  const Tensor is_best = new_tensor(objects, shape, ScalarType::Bool);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Matches<T> matches = {static_cast<T*>(overlaps.data_ptr()), static_cast<int64_t*>(rows.data_ptr()),
                                static_cast<T*>(object_overlaps.data_ptr()), static_cast<bool*>(is_best.data_ptr())};
    if (objects.size(2) == 4) {
      Matching<AlignedBoxes<T>>(exact_objects, valid, exact_boxes, matches).run();
    } else {
      Matching<TurnedBoxes<T>>(exact_objects, valid, exact_boxes, matches).run();
    }
  };
  if (wide == ScalarType::Double) {
    run(0.0);
  } else {
    run(0.0f);
  }
  return {overlaps, rows, object_overlaps, is_best};
}

}  // namespace cpu
}  // namespace detlab
