// Boxes as planes of numbers, one plane for each quantity, the way the vector kernels read them.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "simd.h"

namespace detlab {

// x1 y1 x2 y2.
template <typename T>
struct AlignedBoxes {
  using Number = T;
  static constexpr int kPlanes = kBoxPlanes;
  static constexpr int kSize = 4;

  static void split(const T* box, T* quantities) {
    for (int k = 0; k < 4; ++k) quantities[k] = box[k];
    quantities[4] = (box[2] - box[0]) * (box[3] - box[1]);
  }
  static void suppress(const T* const* kept, int num_kept, const T* const* boxes, int64_t first, int64_t last,
                       T threshold, uint8_t* dead) {
    box_kernels<T>().suppress(kept, num_kept, boxes, first, last, threshold, dead);
  }
  static const auto& match() { return box_kernels<T>().match; }
  static const auto& mark() { return box_kernels<T>().mark; }
};

// Center x y, width, height, angle in degrees, counter-clockwise.
template <typename T>
struct TurnedBoxes {
  using Number = T;
  static constexpr int kPlanes = kRotatedPlanes;
  static constexpr int kSize = 5;

  static void split(const T* box, T* quantities) {
    const T angle = box[4] * static_cast<T>(3.14159265358979323846 / 180);
    quantities[0] = box[0];
    quantities[1] = box[1];
    quantities[2] = box[2] / 2;
    quantities[3] = box[3] / 2;
    quantities[4] = std::cos(angle);
    quantities[5] = std::sin(angle);
    quantities[6] = std::sqrt(quantities[2] * quantities[2] + quantities[3] * quantities[3]);
  }
  static void suppress(const T* const* kept, int num_kept, const T* const* boxes, int64_t first, int64_t last,
                       T threshold, uint8_t* dead) {
    box_kernels<T>().suppress_rotated(kept, num_kept, boxes, first, last, threshold, dead);
  }
  static const auto& match() { return box_kernels<T>().match_rotated; }
  static const auto& mark() { return box_kernels<T>().mark_rotated; }
};

template <typename Boxes>
class BoxPlanes {
  using T = typename Boxes::Number;

 public:
  // Takes the boxes in `order`, or as they are where it is null.
  BoxPlanes(const T* boxes, const int64_t* order, int64_t count) : numbers_((count + kLanes<T>)*Boxes::kPlanes) {
    for (int plane = 0; plane < Boxes::kPlanes; ++plane) {
      planes_[plane] = numbers_.data() + plane * (count + kLanes<T>);
    }
    T quantities[Boxes::kPlanes];
    for (int64_t i = 0; i < count; ++i) {
      Boxes::split(boxes + (order == nullptr ? i : order[i]) * Boxes::kSize, quantities);
      for (int plane = 0; plane < Boxes::kPlanes; ++plane) planes_[plane][i] = quantities[plane];
    }
  }
  BoxPlanes(const BoxPlanes&) = delete;
  BoxPlanes& operator=(const BoxPlanes&) = delete;

  const T* const* get() const { return planes_; }
  const T* operator[](int plane) const { return planes_[plane]; }
  void move(int64_t from, int64_t to) {
    for (T* plane : planes_) plane[to] = plane[from];
  }

 private:
  std::vector<T> numbers_;  // with room behind each plane for reading whole vectors
  T* planes_[Boxes::kPlanes];
};

}  // namespace detlab
