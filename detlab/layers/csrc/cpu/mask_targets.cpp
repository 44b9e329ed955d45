// What mask heads are trained on: the part of an object that lies in a box, stretched to a square. A thread takes one
// box at a time.

#include <algorithm>
#include <cstring>
#include <vector>

#include "../kernels.h"
#include "../polygon_fill.h"
#include "memory.h"
#include "parallel.h"
#include "roi_taps.h"
#include "simd.h"

namespace detlab {
namespace cpu {
namespace {

// The canvas of one box.
class Canvas {
 public:
  explicit Canvas(int64_t size)
      : size_(size),
        num_words_((size + kPixelsPerWord - 1) / kPixelsPerWord),
        crossings_(size * num_words_, 0),
        pixels_(size * num_words_, 0) {}

  template <typename T>
  void draw(const PackedObjects& objects, int64_t row, const T* box) {
    std::fill(pixels_.begin(), pixels_.end(), PixelWord{0});
    int64_t first, last;
    objects.polygons_of(row, &first, &last);
    const Stretch<T> stretch(box, size_);
    if (!stretch.is_finite) return;
    for (int64_t polygon = first; polygon < last; ++polygon) {
      if (place(objects, polygon, stretch)) fill();
    }
  }

  // target: (size, size).
  void write(uint8_t* target) const {
    for (int64_t y = 0; y < size_; ++y) {
      const PixelWord* words = pixels_.data() + y / kPixelsPerWord;
      const int bit = static_cast<int>(y % kPixelsPerWord);
      for (int64_t x = 0; x < size_; ++x) target[y * size_ + x] = words[x * num_words_] >> bit & 1;
    }
  }

 private:
  template <typename T>
  bool place(const PackedObjects& objects, int64_t polygon, const Stretch<T>& stretch) {
    int64_t first, last;
    objects.points_of(polygon, &first, &last);
    points_.resize(last - first);
    for (int64_t i = first; i < last; ++i) {
      if (!stretch.place(objects.coords + 2 * i, &points_[i - first])) return false;
    }
    return true;
  }

  void fill() {
    int64_t left = size_, right = -1;
    for (size_t i = 0; i < points_.size(); ++i) {
      const LatticePoint &start = points_[i], &end = points_[i + 1 < points_.size() ? i + 1 : 0];
      const Edge edge(start, end);
      const int64_t first = edge.first_column(0), last = edge.last_column(size_ - 1);
      for (int64_t column = first; column <= last; ++column) {
        const int64_t row = edge.row_below(column, size_);
        if (row == size_) continue;
        crossings_[column * num_words_ + row / kPixelsPerWord] ^= PixelWord{1} << row % kPixelsPerWord;
        left = std::min(left, column);
        right = std::max(right, column);
      }
    }
    for (int64_t column = left; column <= right; ++column) {
      fill_column(crossings_.data() + column * num_words_, pixels_.data() + column * num_words_, num_words_);
    }
  }

  const int64_t size_, num_words_;
  std::vector<PixelWord> crossings_, pixels_;  // (size, words)
  std::vector<LatticePoint> points_;
};

template <typename T>
void draw_targets(const PackedObjects& objects, const int64_t* rows, const T* boxes, int64_t count, int64_t size,
                  uint8_t* targets) {
  for_each_unit(
      count, [&] { return Canvas(size); },
      [&](Canvas& canvas, int64_t r) {
        canvas.draw(objects, rows[r], boxes + r * 4);
        canvas.write(targets + r * size * size);
      });
}

struct CropState {
  OwnedTaps<float> taps;
  Buffer<float> sums;
};

template <typename C>
void crop_targets(const Tensor& bitmaps, const int64_t* rows, const C* boxes, int64_t count, int64_t size,
                  uint8_t* targets) {
  const uint8_t* pixels = static_cast<const uint8_t*>(bitmaps.data_ptr());
  const int64_t num_objects = bitmaps.size(0), height = bitmaps.size(1), width = bitmaps.size(2);
  for_each_unit(
      count, [] { return CropState(); },
      [&](CropState& state, int64_t r) {
        uint8_t* target = targets + r * size * size;
        const C* box = boxes + r * 4;
        const C one = 1;
        const Axis<C> y_axis = make_axis(box[1], box[3], one, size, height, 0, true);
        const Axis<C> x_axis = make_axis(box[0], box[2], one, size, width, 0, true);
        const bool has_object = rows[r] >= 0 && rows[r] < num_objects;
        if (!has_object || !y_axis.is_finite() || !x_axis.is_finite()) {
          std::memset(target, 0, size * size);
          return;
        }
        find_taps(y_axis, x_axis, state.taps);
        const Window& window = state.taps.window;
        float* sums = state.sums.reserve(window.width());
        simd().crop.crop(state.taps.view(), pixels + rows[r] * height * width, width, static_cast<int32_t>(window.left),
                         static_cast<int32_t>(window.width()), 0.5f, sums, target);
      });
}

// Rows and boxes as the kernels read them, and the result.
struct Targets {
  Tensor rows, boxes, result;

  Targets(const Tensor& given_rows, const Tensor& given_boxes, int64_t size)
      : rows(as_type(given_rows, ScalarType::Long)),
        boxes(as_type(given_boxes, wide_type(given_boxes.scalar_type()))),
        result(new_result(given_boxes, {given_rows.size(0), size, size}, ScalarType::Bool)) {}

  // Calls `run(rows, boxes, number of them, result)`.
  template <typename Run>
  void fill(const Run& run) const {
    const int64_t* numbers = static_cast<const int64_t*>(rows.data_ptr());
    uint8_t* bytes = static_cast<uint8_t*>(result.data_ptr());
    if (boxes.scalar_type() == ScalarType::Double) {
      run(numbers, static_cast<const double*>(boxes.data_ptr()), rows.size(0), bytes);
    } else {
      run(numbers, static_cast<const float*>(boxes.data_ptr()), rows.size(0), bytes);
    }
  }
};

}  // namespace

Tensor mask_targets_from_polygons(Tensor coords, Tensor polygon_offsets, Tensor object_offsets, Tensor rows,
                                  Tensor boxes, int64_t size) {
  check_polygon_targets(coords, polygon_offsets, object_offsets, rows, boxes, size);
  const Tensor points = as_type(coords, ScalarType::Double);
  const Tensor of_polygons = as_type(polygon_offsets, ScalarType::Long),
               of_objects = as_type(object_offsets, ScalarType::Long);
  const PackedObjects objects = {static_cast<const double*>(points.data_ptr()),
                                 static_cast<const int64_t*>(of_polygons.data_ptr()),
                                 static_cast<const int64_t*>(of_objects.data_ptr()),
                                 points.size(0),
                                 of_polygons.size(0) - 1,
                                 of_objects.size(0) - 1};
  const Targets targets(rows, boxes, size);
  targets.fill([&](const int64_t* rows, const auto* boxes, int64_t count, uint8_t* result) {
    draw_targets(objects, rows, boxes, count, size, result);
  });
  return targets.result;
}

Tensor mask_targets_from_bitmaps(Tensor bitmaps, Tensor rows, Tensor boxes, int64_t size) {
  check_bitmap_targets(bitmaps, rows, boxes, size);
  const Tensor dense = as_type(bitmaps, bitmaps.scalar_type());
  const Targets targets(rows, boxes, size);
  targets.fill([&](const int64_t* rows, const auto* boxes, int64_t count, uint8_t* result) {
    crop_targets(dense, rows, boxes, count, size, result);
  });
  return targets.result;
}

}  // namespace cpu
}  // namespace detlab
