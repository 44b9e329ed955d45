// Mask pasting: every pixel of every image is written once, as the byte that it becomes.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../kernels.h"
#include "../mask_axis.h"
#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace detlab {
namespace cpu {
namespace {

// One axis of a stretched mask: for each pixel of [first, last) the cell to its left in a line of the mask that has a
// zero added at both ends, and the share of the cell to its right.
template <typename T>
struct Stretch {
  int64_t first = 0, last = 0;
  std::vector<int32_t> left;
  std::vector<T> share;
};

template <typename T>
int64_t clipped(T pixel, int64_t size) {
  return static_cast<int64_t>(std::min(std::max(pixel, static_cast<T>(0)), static_cast<T>(size)));
}

template <typename T>
void stretch(T low, T high, int64_t cells, int64_t size, Stretch<T>& axis) {
  axis.left.clear();
  axis.share.clear();
  axis.first = axis.last = 0;
  if (!(high > low) || !std::isfinite(low) || !std::isfinite(high)) return;
  // The mask fades out within half a cell around the box.
  const T margin = (high - low) / static_cast<T>(cells) / 2;
  axis.first = clipped(std::floor(low - margin - 1), size);
  axis.last = clipped(std::ceil(high + margin + 1), size);
  for (int64_t pixel = axis.first; pixel < axis.last; ++pixel) {
    const T position = position_in_mask(pixel, low, high, cells);
    const T held = std::min(std::max(position, static_cast<T>(-1)), static_cast<T>(cells));
    const int32_t left = std::min(static_cast<int32_t>(std::floor(held)), static_cast<int32_t>(cells) - 1);
    axis.left.push_back(left + 1);
    axis.share.push_back(held - static_cast<T>(left));
  }
}

template <typename T>
struct Canvas {
  int64_t height, width;
  T threshold;  // negative: soft values

  bool is_soft() const { return threshold < 0; }
  uint8_t outside() const { return !is_soft() && threshold <= 0 ? 1 : 0; }
};

template <typename T>
struct Workspace {
  Stretch<T> xs, ys;
  std::vector<T> line;
};

// Two rows of the mask, mixed, between two zeros.
template <typename T>
void mix_rows(const T* mask, int64_t rows, int64_t columns, int32_t upper, T share, std::vector<T>& line) {
  line.assign(columns + 2, static_cast<T>(0));
  const auto add = [&](int64_t row, T weight) {
    if (row < 0 || row >= rows) return;
    for (int64_t x = 0; x < columns; ++x) line[x + 1] += mask[row * columns + x] * weight;
  };
  add(upper - 1, 1 - share);
  add(upper, share);
}

template <typename T>
void paste(const T* mask, int64_t rows, int64_t columns, const T* box, const Canvas<T>& canvas, uint8_t* pixels,
           Workspace<T>& work) {
  stretch(box[0], box[2], columns, canvas.width, work.xs);
  stretch(box[1], box[3], rows, canvas.height, work.ys);
  const int64_t width = work.xs.last - work.xs.first;
  if (width <= 0 || work.ys.last <= work.ys.first) {
    std::memset(pixels, canvas.outside(), canvas.height * canvas.width);
    return;
  }
  const auto& kernels = paste_kernels<T>();
  std::memset(pixels, canvas.outside(), work.ys.first * canvas.width);
  for (int64_t y = work.ys.first; y < work.ys.last; ++y) {
    uint8_t* row = pixels + y * canvas.width;
    const int64_t entry = y - work.ys.first;
    mix_rows(mask, rows, columns, work.ys.left[entry], work.ys.share[entry], work.line);
    std::memset(row, canvas.outside(), work.xs.first);
    if (canvas.is_soft()) {
      kernels.soft_row(work.line.data(), work.xs.left.data(), work.xs.share.data(), width, row + work.xs.first);
    } else {
      kernels.threshold_row(work.line.data(), work.xs.left.data(), work.xs.share.data(), width, canvas.threshold,
                            row + work.xs.first);
    }
    std::memset(row + work.xs.last, canvas.outside(), canvas.width - work.xs.last);
  }
  std::memset(pixels + work.ys.last * canvas.width, canvas.outside(), (canvas.height - work.ys.last) * canvas.width);
}

template <typename T>
void paste_all(const Tensor& masks, const Tensor& boxes, const Canvas<T>& canvas, uint8_t* pixels) {
  const T* values = static_cast<const T*>(masks.data_ptr());
  const T* sides = static_cast<const T*>(boxes.data_ptr());
  const int64_t rows = masks.size(1), columns = masks.size(2);
  for_each_unit(
      masks.size(0), [] { return Workspace<T>(); },
      [&](Workspace<T>& work, int64_t i) {
        paste(values + i * rows * columns, rows, columns, sides + i * 4, canvas,
              pixels + i * canvas.height * canvas.width, work);
      });
}

}  // namespace

Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  check_pasting(masks, boxes, height, width);
  const ScalarType wide = wide_type(masks.scalar_type());
  const Tensor exact = as_type(masks, wide), exact_boxes = as_type(boxes, wide);
  const Tensor result =
      new_result(masks, {masks.size(0), height, width}, threshold < 0 ? ScalarType::Byte : ScalarType::Bool);
  uint8_t* pixels = static_cast<uint8_t*>(result.data_ptr());
  if (result.numel() == 0) return result;
  if (wide == ScalarType::Double) {
    paste_all<double>(exact, exact_boxes, {height, width, threshold}, pixels);
  } else {
    paste_all<float>(exact, exact_boxes, {height, width, static_cast<float>(threshold)}, pixels);
  }
  return result;
}

}  // namespace cpu
}  // namespace detlab
