// The operators of one device, with the arguments of the schemas in _ops.py.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"

namespace detlab {

using Sizes = std::vector<int64_t>;
using Scales = std::vector<double>;

#define DETLAB_DECLARE_OPERATORS(device)                                                                              \
  namespace device {                                                                                                  \
  Tensor roi_align_levels(std::vector<Tensor> features, Tensor rois, std::optional<Tensor> levels, Sizes output_size, \
                          Scales scales, int64_t sampling_ratio, bool aligned);                                       \
  std::vector<Tensor> roi_align_levels_backward(Tensor grad, std::vector<Tensor> features, Tensor rois,               \
                                                std::optional<Tensor> levels, Sizes output_size, Scales scales,       \
                                                int64_t sampling_ratio, bool aligned, bool deterministic);            \
  Tensor roi_align_rotated(Tensor input, Tensor rois, Sizes output_size, double spatial_scale,                        \
                           int64_t sampling_ratio);                                                                   \
  Tensor roi_align_rotated_backward(Tensor grad, Tensor input, Tensor rois, Sizes output_size, double spatial_scale,  \
                                    int64_t sampling_ratio, bool deterministic);                                      \
  Tensor nms(Tensor boxes, Tensor scores, std::optional<Tensor> classes, double iou_threshold);                       \
  Tensor nms_rotated(Tensor boxes, Tensor scores, std::optional<Tensor> classes, double iou_threshold);               \
  std::tuple<Tensor, Tensor> nms_fixed(Tensor boxes, Tensor scores, Tensor classes, double iou_threshold,             \
                                       int64_t max_output);                                                           \
  Tensor box_iou_rotated(Tensor boxes1, Tensor boxes2);                                                               \
  Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold);                    \
  std::tuple<Tensor, Tensor, Tensor, Tensor> match_boxes(Tensor objects, Tensor object_valid, Tensor boxes);          \
  Tensor mask_targets_from_polygons(Tensor coords, Tensor polygon_offsets, Tensor object_offsets, Tensor rows,        \
                                    Tensor boxes, int64_t size);                                                      \
  Tensor mask_targets_from_bitmaps(Tensor bitmaps, Tensor rows, Tensor boxes, int64_t size);                          \
  }

DETLAB_DECLARE_OPERATORS(cpu)
DETLAB_DECLARE_OPERATORS(cuda)

#define DETLAB_REGISTER_OPERATORS(library, device)                                                    \
  library.impl("roi_align_levels", TORCH_BOX(&detlab::device::roi_align_levels));                     \
  library.impl("roi_align_levels_backward", TORCH_BOX(&detlab::device::roi_align_levels_backward));   \
  library.impl("roi_align_rotated", TORCH_BOX(&detlab::device::roi_align_rotated));                   \
  library.impl("roi_align_rotated_backward", TORCH_BOX(&detlab::device::roi_align_rotated_backward)); \
  library.impl("nms", TORCH_BOX(&detlab::device::nms));                                               \
  library.impl("nms_rotated", TORCH_BOX(&detlab::device::nms_rotated));                               \
  library.impl("nms_fixed", TORCH_BOX(&detlab::device::nms_fixed));                                   \
  library.impl("box_iou_rotated", TORCH_BOX(&detlab::device::box_iou_rotated));                       \
  library.impl("paste_masks", TORCH_BOX(&detlab::device::paste_masks));                               \
  library.impl("match_boxes", TORCH_BOX(&detlab::device::match_boxes));                               \
  library.impl("mask_targets_from_polygons", TORCH_BOX(&detlab::device::mask_targets_from_polygons)); \
  library.impl("mask_targets_from_bitmaps", TORCH_BOX(&detlab::device::mask_targets_from_bitmaps));

}  // namespace detlab
