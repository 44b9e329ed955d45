// Overlap of two boxes, in the order of operations of the CPU kernels.
#pragma once

#include "device.cuh"

namespace detlab {
namespace cuda {

// x1 y1 x2 y2.
template <typename T>
struct AlignedBox {
  static constexpr int kSize = 4;
  using Number = T;
  T x1, y1, x2, y2;

  __device__ static AlignedBox at(const T* numbers) { return {numbers[0], numbers[1], numbers[2], numbers[3]}; }
  __device__ T area() const { return (x2 - x1) * (y2 - y1); }
};

// A division is slow; most pairs are told apart by a product that lets through what rounding could decide.
template <typename T>
__device__ inline bool overlaps_more(const AlignedBox<T>& a, const AlignedBox<T>& b, T threshold) {
  const T width = (a.x2 < b.x2 ? a.x2 : b.x2) - (a.x1 > b.x1 ? a.x1 : b.x1);
  const T height = (a.y2 < b.y2 ? a.y2 : b.y2) - (a.y1 > b.y1 ? a.y1 : b.y1);
  const T inter = (width > 0 ? width : 0) * (height > 0 ? height : 0);
  const T either = a.area() + b.area() - inter;
  if (threshold >= 0 && !(inter > threshold * either * static_cast<T>(0.9999))) return false;
  return inter / either > threshold;
}

// What is no number, and what overflows, counts as 0.
template <typename T>
__device__ inline T overlap(const AlignedBox<T>& a, const AlignedBox<T>& b) {
  const T width = (a.x2 < b.x2 ? a.x2 : b.x2) - (a.x1 > b.x1 ? a.x1 : b.x1);
  const T height = (a.y2 < b.y2 ? a.y2 : b.y2) - (a.y1 > b.y1 ? a.y1 : b.y1);
  const T inter = (width > 0 ? width : 0) * (height > 0 ? height : 0);
  if (!(inter > 0)) return 0;
  const T ratio = inter / (a.area() + b.area() - inter);
  return ratio - ratio == 0 ? ratio : static_cast<T>(0);
}

// Center x y, width, height, angle in degrees, counter-clockwise.
template <typename T>
struct TurnedBox {
  static constexpr int kSize = 5;
  using Number = T;
  T x, y, half_w, half_h, cos, sin, half_diagonal;

  __device__ static TurnedBox at(const T* numbers) {
    const T angle = numbers[4] * static_cast<T>(3.14159265358979323846 / 180);
    const T half_w = numbers[2] / 2, half_h = numbers[3] / 2;
    return {
        numbers[0], numbers[1], half_w, half_h, ::cos(angle), ::sin(angle), ::sqrt(half_w * half_w + half_h * half_h)};
  }
  __device__ T area() const { return 4 * half_w * half_h; }
};

template <typename T>
__device__ inline T clamp(T value, T low, T high) {
  return value < low ? low : (value > high ? high : value);
}

// Signed area between an edge and the lower side of an axis-aligned box around the origin, inside that box.
template <typename T>
__device__ inline T area_under_edge(T x0, T y0, T x1, T y1, T half_w, T half_h) {
  const T full = half_h + half_h, run = x1 - x0;
  const T enter = clamp(x0, -half_w, half_w), leave = clamp(x1, -half_w, half_w);
  const T slope = run != 0 ? (y1 - y0) / run : static_cast<T>(0);
  const T at_enter = y0 + (enter - x0) * slope + half_h, at_leave = y0 + (leave - x0) * slope + half_h;
  const T low = at_enter < at_leave ? at_enter : at_leave, high = at_enter < at_leave ? at_leave : at_enter;
  const T rise = high - low, zero = 0, one = 1;
  const T below = rise > 0 ? clamp(-low / rise, zero, one) : (low < 0 ? one : zero);
  const T up_to_top = rise > 0 ? clamp((full - low) / rise, zero, one) : (low < full ? one : zero);
  const T middle = (clamp(low, zero, full) + clamp(high, zero, full)) / 2;
  const T inside = up_to_top > below ? up_to_top - below : zero;
  return (leave - enter) * (inside * middle + (one - up_to_top) * full);
}

// IoU by Green's theorem, in the frame of `a`; see the CPU kernel of the same name.
template <typename T>
__device__ inline T turned_iou(const TurnedBox<T>& a, const TurnedBox<T>& b) {
  const T dx = b.x - a.x, dy = b.y - a.y;
  const T x = dx * a.cos - dy * a.sin, y = dx * a.sin + dy * a.cos;
  const T cos = b.cos * a.cos + b.sin * a.sin, sin = b.sin * a.cos - b.cos * a.sin;
  const T along_x = b.half_w * cos, along_y = -b.half_w * sin, across_x = b.half_h * sin, across_y = b.half_h * cos;
  const T xs[4] = {x + along_x + across_x, x - along_x + across_x, x - along_x - across_x, x + along_x - across_x};
  const T ys[4] = {y + along_y + across_y, y - along_y + across_y, y - along_y - across_y, y + along_y - across_y};
  T signed_area = 0;
  for (int k = 0; k < 4; ++k) {
    const int next = (k + 1) % 4;
    signed_area += area_under_edge(xs[k], ys[k], xs[next], ys[next], a.half_w, a.half_h);
  }
  const T area_a = a.area(), area_b = b.area(), area = signed_area < 0 ? -signed_area : signed_area;
  const T smallest = area_a < area_b ? area_a : area_b, inter = smallest < area ? smallest : area;
  const T either = area_a + area_b - inter;
  // The parts of boxes that do not meet cancel up to rounding.
  const T noise = area_a * (sizeof(T) == 4 ? static_cast<T>(2e-6) : static_cast<T>(4e-15));
  return inter > noise && either > 0 ? inter / either : static_cast<T>(0);
}

template <typename T>
__device__ inline T overlap(const TurnedBox<T>& a, const TurnedBox<T>& b) {
  return turned_iou(a, b);
}

template <typename T>
__device__ inline bool overlaps_more(const TurnedBox<T>& a, const TurnedBox<T>& b, T threshold) {
  const T dx = a.x - b.x, dy = a.y - b.y, reach = (a.half_diagonal + b.half_diagonal) * static_cast<T>(1.0001);
  // Boxes whose surrounding circles are apart, or nowhere, are not looked at closely.
  if (threshold >= 0 && !(dx * dx + dy * dy <= reach * reach)) return false;
  return turned_iou(a, b) > threshold;
}

}  // namespace cuda
}  // namespace detlab
