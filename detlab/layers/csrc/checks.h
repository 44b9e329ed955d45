// What every kernel asks of its arguments. The Python door checks the same with kinder words; these keep a direct call
// of torch.ops.detlab.* from reading memory that is not there.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

namespace detlab {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAnySize = -1;
// Side of a mask target, as of any mask that is drawn: 16384 x 16384 pixels.
constexpr int64_t kLargestTarget = int64_t{1} << 14;

inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (int64_t size : shape) {
    fits = fits && (size == kAnySize || tensor.size(axis) == size);
    ++axis;
  }
  STD_TORCH_CHECK(fits, "detlab: '", name, "' has a shape that does not fit the other arguments");
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

inline void check_floating(const char* name, const Tensor& tensor, const Tensor& other) {
  STD_TORCH_CHECK(is_floating(tensor.scalar_type()), "detlab: '", name, "' must hold floating-point numbers");
  STD_TORCH_CHECK(tensor.is_cuda() == other.is_cuda() && tensor.is_cpu() == other.is_cpu() &&
                      tensor.get_device_index() == other.get_device_index(),
                  "detlab: '", name, "' is not on the device of the other tensors");
}

inline void check_integers(const char* name, const Tensor& tensor, const Tensor& other) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, "detlab: '", name, "' must hold int64");
  STD_TORCH_CHECK(tensor.is_cuda() == other.is_cuda() && tensor.get_device_index() == other.get_device_index(),
                  "detlab: '", name, "' is not on the device of the other tensors");
}

inline void check_bools(const char* name, const Tensor& tensor, const Tensor& other) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Bool, "detlab: '", name, "' must hold bool");
  STD_TORCH_CHECK(tensor.is_cuda() == other.is_cuda() && tensor.get_device_index() == other.get_device_index(),
                  "detlab: '", name, "' is not on the device of the other tensors");
}

inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  const Tensor typed = tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

// The type to compute in: half precision is too coarse for coordinates and sums.
inline ScalarType wide_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

inline Tensor new_zero_tensor(const Tensor& like, std::vector<int64_t> shape, ScalarType type) {
  return torch::stable::new_zeros(like, shape, type);
}

inline void check_output_size(const std::vector<int64_t>& output_size) {
  STD_TORCH_CHECK(output_size.size() == 2 && output_size[0] > 0 && output_size[1] > 0,
                  "detlab: 'output_size' must be a positive height and width");
}

// The arguments that pooling on feature levels shares between forward and backward, and between devices.
inline void check_pooling(const std::vector<Tensor>& features, const Tensor& rois, const std::optional<Tensor>& levels,
                          const std::vector<int64_t>& output_size, const std::vector<double>& scales) {
  STD_TORCH_CHECK(!features.empty() && features.size() == scales.size(),
                  "detlab: each feature level needs one scale, got ", features.size(), " levels and ", scales.size(),
                  " scales");
  STD_TORCH_CHECK(levels.has_value() || features.size() == 1, "detlab: 'levels' is needed with several features");
  check_output_size(output_size);
  check_shape("rois", rois, {kAnySize, 5});
  check_floating("rois", rois, features[0]);
  check_shape("features", features[0], {kAnySize, kAnySize, kAnySize, kAnySize});
  for (const Tensor& level : features) {
    check_shape("features", level, {features[0].size(0), features[0].size(1), kAnySize, kAnySize});
    check_floating("features", level, features[0]);
    STD_TORCH_CHECK(level.scalar_type() == features[0].scalar_type(), "detlab: 'features' mixes types");
    STD_TORCH_CHECK(rois.size(0) == 0 || level.numel() > 0 || level.size(1) == 0,
                    "detlab: regions on an empty feature map");
  }
  if (levels.has_value()) {
    check_shape("levels", *levels, {rois.size(0)});
    check_integers("levels", *levels, rois);
  }
}

// The arguments of suppression: boxes (B, size), scores (B,), classes (B,) or none.
inline void check_candidates(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes,
                             int64_t size) {
  check_shape("boxes", boxes, {kAnySize, size});
  check_shape("scores", scores, {boxes.size(0)});
  check_floating("boxes", boxes, boxes);
  check_floating("scores", scores, boxes);
  if (!classes.has_value()) return;
  check_shape("classes", *classes, {boxes.size(0)});
  check_integers("classes", *classes, boxes);
}

inline void check_box_size(int64_t size) {
  STD_TORCH_CHECK(size == 4 || size == 5, "detlab: boxes have 4 numbers, or 5 if rotated, not ", size);
}

// The same for a batch: boxes (N, B, 4), or (N, B, 5) if rotated, scores (N, B), classes (N, B).
inline void check_candidate_batch(const Tensor& boxes, const Tensor& scores, const Tensor& classes,
                                  int64_t max_output) {
  check_shape("boxes", boxes, {kAnySize, kAnySize, kAnySize});
  check_box_size(boxes.size(2));
  check_shape("scores", scores, {boxes.size(0), boxes.size(1)});
  check_shape("classes", classes, {boxes.size(0), boxes.size(1)});
  check_floating("boxes", boxes, boxes);
  check_floating("scores", scores, boxes);
  check_integers("classes", classes, boxes);
  STD_TORCH_CHECK(max_output >= 0, "detlab: 'max_output' must not be negative, got ", max_output);
}

inline void check_rotated_pairs(const Tensor& boxes1, const Tensor& boxes2) {
  check_shape("boxes1", boxes1, {kAnySize, 5});
  check_shape("boxes2", boxes2, {kAnySize, 5});
  check_floating("boxes1", boxes1, boxes1);
  check_floating("boxes2", boxes2, boxes1);
}

inline void check_rotated_pooling(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size) {
  check_shape("input", input, {kAnySize, kAnySize, kAnySize, kAnySize});
  check_shape("rois", rois, {kAnySize, 6});
  check_floating("input", input, input);
  check_floating("rois", rois, input);
  check_output_size(output_size);
  STD_TORCH_CHECK(rois.size(0) == 0 || input.numel() > 0 || input.size(1) == 0,
                  "detlab: regions on an empty feature map");
  STD_TORCH_CHECK(input.size(2) * input.size(3) < (int64_t{1} << 31), "detlab: the feature map is too large");
}

inline void check_pasting(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width) {
  check_shape("masks", masks, {kAnySize, kAnySize, kAnySize});
  check_shape("boxes", boxes, {masks.size(0), 4});
  check_floating("masks", masks, masks);
  check_floating("boxes", boxes, masks);
  STD_TORCH_CHECK(height >= 0 && width >= 0, "detlab: the image size must not be negative");
  STD_TORCH_CHECK(masks.size(0) == 0 || (masks.size(1) > 0 && masks.size(2) > 0), "detlab: masks without cells");
}

// Objects (N, G, D) and boxes (N or 1, S, D), of which D = 4 or 5 numbers give each; the objects that exist (N, G).
inline void check_matching(const Tensor& objects, const Tensor& object_valid, const Tensor& boxes) {
  check_shape("objects", objects, {kAnySize, kAnySize, kAnySize});
  check_shape("object_valid", object_valid, {objects.size(0), objects.size(1)});
  check_shape("boxes", boxes, {kAnySize, kAnySize, objects.size(2)});
  check_floating("objects", objects, objects);
  check_floating("boxes", boxes, objects);
  check_bools("object_valid", object_valid, objects);
  check_box_size(objects.size(2));
  STD_TORCH_CHECK(boxes.scalar_type() == objects.scalar_type(), "detlab: 'objects' and 'boxes' mix types");
  STD_TORCH_CHECK(boxes.size(0) == 1 || boxes.size(0) == objects.size(0), "detlab: boxes of ", boxes.size(0),
                  " images but objects of ", objects.size(0));
}

// What mask targets share: the objects (R,) of boxes (R, 4), on the device of `masks`.
inline void check_targets(const Tensor& masks, const Tensor& rows, const Tensor& boxes, int64_t size) {
  check_shape("rows", rows, {kAnySize});
  check_shape("boxes", boxes, {rows.size(0), 4});
  check_floating("boxes", boxes, masks);
  check_integers("rows", rows, masks);
  STD_TORCH_CHECK(size > 0 && size <= kLargestTarget, "detlab: 'size' must be in 1..", kLargestTarget, ", got ", size);
}

inline void check_polygon_targets(const Tensor& coords, const Tensor& polygon_offsets, const Tensor& object_offsets,
                                  const Tensor& rows, const Tensor& boxes, int64_t size) {
  check_shape("coords", coords, {kAnySize, 2});
  check_floating("coords", coords, coords);
  check_shape("polygon_offsets", polygon_offsets, {kAnySize});
  check_shape("object_offsets", object_offsets, {kAnySize});
  check_integers("polygon_offsets", polygon_offsets, coords);
  check_integers("object_offsets", object_offsets, coords);
  STD_TORCH_CHECK(polygon_offsets.size(0) > 0 && object_offsets.size(0) > 0,
                  "detlab: offsets have one entry more than there are polygons, or objects");
  check_targets(coords, rows, boxes, size);
}

inline void check_bitmap_targets(const Tensor& bitmaps, const Tensor& rows, const Tensor& boxes, int64_t size) {
  check_shape("bitmaps", bitmaps, {kAnySize, kAnySize, kAnySize});
  STD_TORCH_CHECK(bitmaps.scalar_type() == ScalarType::Bool || bitmaps.scalar_type() == ScalarType::Byte,
                  "detlab: 'bitmaps' must hold bool or uint8");
  STD_TORCH_CHECK(bitmaps.size(0) == 0 || rows.numel() == 0 || (bitmaps.size(1) > 0 && bitmaps.size(2) > 0),
                  "detlab: bitmaps without pixels");
  STD_TORCH_CHECK(bitmaps.size(1) < (int64_t{1} << 30) && bitmaps.size(2) < (int64_t{1} << 30),
                  "detlab: the bitmaps are too large");
  check_targets(bitmaps, rows, boxes, size);
}

// The largest number of type T that is not above the limit: `x > limit` in double is `x > rounded` for every x in T.
template <typename T>
T round_down(double limit) {
  const T rounded = static_cast<T>(limit);
  return static_cast<double>(rounded) > limit ? std::nextafter(rounded, -std::numeric_limits<T>::infinity()) : rounded;
}

}  // namespace detlab
