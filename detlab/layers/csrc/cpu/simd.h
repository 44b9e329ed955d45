// The inner loops of the CPU kernels, compiled once for each instruction set and chosen at run time.
//
// Channels travel in groups of one cache line (kLineBytes): a "cell" is one position of a feature map with the
// kLanes channels of its group, stored together. Feature maps are repacked into cells a part at a time.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace detlab {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

constexpr int kLineBytes = 64;

template <typename T>
constexpr int kLanes = kLineBytes / static_cast<int>(sizeof(T));

// What one region reads along its two axes. A bin's average of bilinear samples on a grid is separable: the sum over
// its rows and columns of row weight times column weight times cell.
template <typename T>
struct RegionTaps {
  int bins_h, bins_w, num_columns;
  const int32_t* row_starts;  // (bins_h + 1): bin i reads the rows [row_starts[i], row_starts[i + 1])
  const int32_t* rows;
  const T* row_weights;
  const int32_t* column_starts;  // (bins_w + 1)
  const int32_t* column_slots;   // index into columns
  const T* column_weights;
  const int32_t* columns;  // (num_columns): the distinct columns read
};

// A bin as a weighted sum of cells, for regions that are not separable.
template <typename T>
struct BinTaps {
  int bins;
  const int64_t* starts;  // (bins + 1)
  const int32_t* cells;
  const T* weights;
};

// Cells in memory; strides count numbers, not cells, so that channels-last maps can be read in place.
template <typename T>
struct CellGrid {
  T* data;
  int64_t row_stride;
  int64_t column_stride;
};

template <typename T>
struct PoolKernels {
  // tile: (bins, kLanes). scratch: one cell for each column.
  void (*forward)(const RegionTaps<T>& taps, CellGrid<const T> cells, T* scratch, T* tile);
  void (*backward)(const RegionTaps<T>& taps, const T* tile, T* scratch, CellGrid<T> cells);
  void (*gather)(const BinTaps<T>& taps, const T* cells, T* tile);
  void (*scatter)(const BinTaps<T>& taps, const T* tile, T* cells);
};

// Between a tensor's numbers S and cells of T; `channels` of the lanes are real, the others read as 0.
template <typename S, typename T>
struct PackKernels {
  // source[channel * channel_stride + position * position_stride] -> cells[position * kLanes + channel]
  void (*pack)(const S* source, int64_t channel_stride, int64_t position_stride, int64_t positions, int channels,
               T* cells);
  void (*unpack)(const T* cells, int64_t channel_stride, int64_t position_stride, int64_t positions, int channels,
                 S* target);
  // The same for a target too large for the caches: where whole lines are written they go around them, which spares
  // reading them first. finish_streaming() must follow.
  void (*unpack_streaming)(const T* cells, int64_t channel_stride, int64_t position_stride, int64_t positions,
                           int channels, S* target);
};

// Candidates for suppression as planes of numbers: x1, y1, x2, y2, area; or center x, y, half width, half height,
// cosine, sine and half diagonal of rotated boxes.
constexpr int kBoxPlanes = 5;
constexpr int kRotatedPlanes = 7;

// As wide as the numbers.
template <typename T>
using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <typename T>
struct BoxKernels {
  // Marks in `dead` every candidate of [first, last) that one of the kept boxes overlaps by more than the threshold.
  // The planes of the candidates are readable for kLanes numbers past their end.
  void (*suppress)(const T* const* kept, int num_kept, const T* const* boxes, int64_t first, int64_t last, T threshold,
                   uint8_t* dead);
  void (*suppress_rotated)(const T* const* kept, int num_kept, const T* const* boxes, int64_t first, int64_t last,
                           T threshold, uint8_t* dead);
  // IoU of rotated box `row` of one set with every box of the other.
  void (*iou_rotated)(const T* const* boxes1, int64_t row, const T* const* boxes2, int64_t count, T* ious);
  // Compares object `row` with every box; where it overlaps a box more than `best` says, it takes the place there.
  // Returns its largest overlap. Whole vectors are read and written: all has room for kLanes numbers past its end.
  T (*match)(const T* const* objects, Index<T> row, const T* const* boxes, int64_t count, T* best, Index<T>* best_row);
  T (*match_rotated)(const T* const* objects, Index<T> row, const T* const* boxes, int64_t count, T* best,
                     Index<T>* best_row);
  // Sets is_equal[i] to 1 where the overlap of object `row` with box i is `overlap`.
  void (*mark)(const T* const* objects, Index<T> row, const T* const* boxes, int64_t count, T overlap,
               uint8_t* is_equal);
  void (*mark_rotated)(const T* const* objects, Index<T> row, const T* const* boxes, int64_t count, T overlap,
                       uint8_t* is_equal);
};

struct CropKernels {
  // A bitmap pooled as a map of zeros and ones; bins at or above `threshold` are set in target (bins_h, bins_w).
  // bitmap: what is not 0 is inside. The region reads columns from `first_column` on; sums: `num_columns` of them.
  void (*crop)(const RegionTaps<float>& taps, const uint8_t* bitmap, int64_t row_stride, int32_t first_column,
               int32_t num_columns, float threshold, float* sums, uint8_t* target);
};

template <typename T>
struct PasteKernels {
  // Pixel i shows line[left[i]] and line[left[i] + 1] mixed by share[i]; set if at least `threshold`.
  void (*threshold_row)(const T* line, const int32_t* left, const T* share, int64_t count, T threshold,
                        uint8_t* pixels);
  // The same as a number in 0..255.
  void (*soft_row)(const T* line, const int32_t* left, const T* share, int64_t count, uint8_t* pixels);
};

struct SimdKernels {
  const char* name;
  // Copies around the caches; finish_streaming() must follow.
  void (*stream)(const void* source, void* target, int64_t bytes);
  // Lets the other threads see what was streamed.
  void (*finish_streaming)();
  PoolKernels<float> pool_float;
  PoolKernels<double> pool_double;
  PackKernels<float, float> pack_float;
  PackKernels<double, double> pack_double;
  PackKernels<Half, float> pack_half;
  PackKernels<BFloat16, float> pack_bfloat16;
  BoxKernels<float> box_float;
  BoxKernels<double> box_double;
  PasteKernels<float> paste_float;
  PasteKernels<double> paste_double;
  CropKernels crop;
};

// The best table for this processor; DETLAB_CPU_CAPABILITY (default, avx2 or avx512) asks for a lesser one.
const SimdKernels& simd();

template <typename T>
const PoolKernels<T>& pool_kernels();
template <>
inline const PoolKernels<float>& pool_kernels<float>() {
  return simd().pool_float;
}
template <>
inline const PoolKernels<double>& pool_kernels<double>() {
  return simd().pool_double;
}

template <typename S>
struct Storage;
template <>
struct Storage<float> {
  using Wide = float;
  static const PackKernels<float, float>& kernels() { return simd().pack_float; }
};
template <>
struct Storage<double> {
  using Wide = double;
  static const PackKernels<double, double>& kernels() { return simd().pack_double; }
};
template <>
struct Storage<Half> {
  using Wide = float;
  static const PackKernels<Half, float>& kernels() { return simd().pack_half; }
};
template <>
struct Storage<BFloat16> {
  using Wide = float;
  static const PackKernels<BFloat16, float>& kernels() { return simd().pack_bfloat16; }
};

template <typename T>
const BoxKernels<T>& box_kernels();
template <>
inline const BoxKernels<float>& box_kernels<float>() {
  return simd().box_float;
}
template <>
inline const BoxKernels<double>& box_kernels<double>() {
  return simd().box_double;
}

template <typename T>
const PasteKernels<T>& paste_kernels();
template <>
inline const PasteKernels<float>& paste_kernels<float>() {
  return simd().paste_float;
}
template <>
inline const PasteKernels<double>& paste_kernels<double>() {
  return simd().paste_double;
}

}  // namespace detlab
