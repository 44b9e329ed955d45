// Filling polygons in a square canvas exactly as the COCO tools do, with the arithmetic of utils/_polygon_fill.py, the
// same on every device. Coordinates are rounded to fifths of a pixel; the line between the fifths 5c + 2 and 5c + 3 is
// the middle of the canvas's column c. A pixel is inside where an odd number of edges cross the middle of its column
// at or above it. A column's pixels are bits of words, from the top.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace detlab {

using PixelWord = unsigned long long;

constexpr int kPixelsPerWord = 64;
constexpr int64_t kSteps = 5;
// Up to here a double counts fifths of a pixel.
constexpr double kFarthest = 1e15;

// In fifths of a pixel of the canvas.
struct LatticePoint {
  int64_t x, y;
};

// Moves what lies in a box to a canvas of `size` x `size`.
template <typename T>
struct Stretch {
  T left, top, scale_x, scale_y;
  bool is_finite;

  DETLAB_BOTH Stretch(const T* box, int64_t size)
      // Boxes of no size would ask for infinite stretch.
      : left(box[0]),
        top(box[1]),
        scale_x(static_cast<T>(size) / at_least(box[2] - box[0], static_cast<T>(0.1))),
        scale_y(static_cast<T>(size) / at_least(box[3] - box[1], static_cast<T>(0.1))),
        is_finite(box[0] - box[0] == 0 && box[1] - box[1] == 0 && box[2] - box[2] == 0 && box[3] - box[3] == 0) {}

  // Whether the place is one: for numbers that are none, or beyond counting, it is not.
  DETLAB_BOTH bool place(const double* point, LatticePoint* place) const {
    const double x = (point[0] - static_cast<double>(left)) * static_cast<double>(scale_x);
    const double y = (point[1] - static_cast<double>(top)) * static_cast<double>(scale_y);
    if (!(x >= -kFarthest && x <= kFarthest && y >= -kFarthest && y <= kFarthest)) return false;
    // The conversion cuts off what is behind the point, also of negative numbers.
    *place = {static_cast<int64_t>(static_cast<double>(kSteps) * x + 0.5),
              static_cast<int64_t>(static_cast<double>(kSteps) * y + 0.5)};
    return true;
  }
};

DETLAB_BOTH inline int64_t divide_down(int64_t value, int64_t by) {
  return value >= 0 ? value / by : -((by - 1 - value) / by);
}

// An edge between two points of the lattice, walked along its longer direction and rounded in the other.
class Edge {
 public:
  DETLAB_BOTH Edge(const LatticePoint& start, const LatticePoint& end) : start_(start), end_(end) {
    const int64_t run = end.x >= start.x ? end.x - start.x : start.x - end.x;
    const int64_t climb = end.y >= start.y ? end.y - start.y : start.y - end.y;
    is_flat_ = run >= climb;
    if (is_flat_ ? start.x > end.x : start.y > end.y) {
      start_ = end;
      end_ = start;
    }
    rise_ = is_flat_ ? static_cast<double>(end_.y - start_.y) / static_cast<double>(run)
                     : static_cast<double>(end_.x - start_.x) / static_cast<double>(climb);
  }

  // The columns [first, last] of those given whose middle it crosses.
  DETLAB_BOTH int64_t first_column(int64_t first) const {
    const int64_t left = start_.x < end_.x ? start_.x : end_.x;
    return at_least(-divide_down(2 - left, kSteps), first);
  }
  DETLAB_BOTH int64_t last_column(int64_t last) const {
    const int64_t right = start_.x < end_.x ? end_.x : start_.x;
    return at_most(divide_down(right - 3, kSteps), last);
  }

  // The first row below the crossing with a column's middle, in [0, height].
  DETLAB_BOTH int64_t row_below(int64_t column, int64_t height) const {
    const double upper = static_cast<double>(is_flat_ ? upper_of_flat(column) : upper_of_steep(column));
    const double row = ceil((upper + 0.5) / static_cast<double>(kSteps) - 0.5);
    return static_cast<int64_t>(at_most(at_least(row, 0.0), static_cast<double>(height)));
  }

 private:
  // Of the two points of the lattice beside the middle of a column the upper one.
  DETLAB_BOTH int64_t upper_of_flat(int64_t column) const {
    const int64_t steps = kSteps * column + 3 - start_.x;
    const double low = static_cast<double>(start_.y);
    const int64_t after = static_cast<int64_t>(low + rise_ * static_cast<double>(steps) + 0.5);
    const int64_t before = static_cast<int64_t>(low + rise_ * static_cast<double>(steps - 1) + 0.5);
    return at_most(before, after);
  }
  DETLAB_BOTH int64_t upper_of_steep(int64_t column) const {
    const double middle = static_cast<double>(kSteps * column + 3), low = static_cast<double>(start_.x);
    // One step short of the real crossing; where rounding puts it, only trying tells.
    double steps = floor((middle - 0.5 - low) / rise_) - 1;
    for (int k = 0; k < 3; ++k) {
      const bool is_past = (low + rise_ * steps + 0.5 >= middle) == (rise_ > 0);
      if (!is_past) steps += 1;
    }
    return start_.y + static_cast<int64_t>(steps) - 1;
  }

  LatticePoint start_, end_;
  double rise_;
  bool is_flat_;
};

// Adds what lies between a polygon's crossings with a column to the column's pixels, and forgets the crossings.
DETLAB_BOTH inline void fill_column(PixelWord* crossings, PixelWord* pixels, int64_t num_words) {
  bool is_inside = false;
  for (int64_t w = 0; w < num_words; ++w) {
    PixelWord word = crossings[w];
    crossings[w] = 0;
    for (int shift = 1; shift < kPixelsPerWord; shift *= 2) word ^= word << shift;
    if (is_inside) word = ~word;
    is_inside = (word >> (kPixelsPerWord - 1)) != 0;
    pixels[w] |= word;
  }
}

// Objects as polygons, one after the other. Offsets are held to what is there, whatever they say.
struct PackedObjects {
  const double* coords;            // (V, 2)
  const int64_t* polygon_offsets;  // (P + 1) into the points
  const int64_t* object_offsets;   // (O + 1) into the polygons
  int64_t num_points, num_polygons, num_objects;

  // The polygons [first, last) of an object; none for a row that names none.
  DETLAB_BOTH void polygons_of(int64_t row, int64_t* first, int64_t* last) const {
    *first = *last = 0;
    if (row < 0 || row >= num_objects) return;
    *first = at_most(at_least(object_offsets[row], int64_t{0}), num_polygons);
    *last = at_most(at_least(object_offsets[row + 1], *first), num_polygons);
  }
  DETLAB_BOTH void points_of(int64_t polygon, int64_t* first, int64_t* last) const {
    *first = at_most(at_least(polygon_offsets[polygon], int64_t{0}), num_points);
    *last = at_most(at_least(polygon_offsets[polygon + 1], *first), num_points);
  }
};

}  // namespace detlab
