// IoU of every pair of rotated boxes.

#include "boxes.cuh"
#include "device.cuh"

namespace detlab {
namespace cuda {
namespace {

constexpr int kPairThreads = 128;
constexpr int kPairRows = 16;

// Grid: (groups of columns, groups of kPairRows rows).
template <typename T>
__global__ void iou_kernel(const T* __restrict__ boxes1, int64_t rows, const T* __restrict__ boxes2, int64_t columns,
                           T* ious) {
  __shared__ TurnedBox<T> row_boxes[kPairRows];
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kPairRows;
  const int num_rows = static_cast<int>(at_most<int64_t>(kPairRows, rows - first_row));
  const int thread = threadIdx.x;
  if (thread < num_rows) row_boxes[thread] = TurnedBox<T>::at(boxes1 + (first_row + thread) * 5);
  __syncthreads();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kPairThreads + thread;
  if (column >= columns) return;
  const TurnedBox<T> box = TurnedBox<T>::at(boxes2 + column * 5);
  for (int row = 0; row < num_rows; ++row) ious[(first_row + row) * columns + column] = turned_iou(row_boxes[row], box);
}

}  // namespace

Tensor box_iou_rotated(Tensor boxes1, Tensor boxes2) {
  check_rotated_pairs(boxes1, boxes2);
  const Launch launch(boxes1);
  const ScalarType wide = wide_type(boxes1.scalar_type());
  const Tensor exact1 = as_type(boxes1, wide), exact2 = as_type(boxes2, wide);
  const int64_t rows = boxes1.size(0), columns = boxes2.size(0);
  const Tensor ious = new_tensor(boxes1, {rows, columns}, wide);
  if (ious.numel() == 0) return ious;
  with_wide_type(wide, [&](auto number) {
    using T = decltype(number);
    const auto kernel = iou_kernel<T>;
    // The second number of a grid ends at 65535.
    constexpr int64_t kRowsPerLaunch = int64_t{65535} * kPairRows;
    for (int64_t first = 0; first < rows; first += kRowsPerLaunch) {
      const int64_t count = std::min(rows - first, kRowsPerLaunch);
      const dim3 grid(static_cast<unsigned>(divide_up(columns, kPairThreads)),
                      static_cast<unsigned>(divide_up(count, kPairRows)));
      DETLAB_LAUNCH(kernel, grid, kPairThreads, 0, launch.stream(), read<T>(exact1) + first * 5, count, read<T>(exact2),
                    columns, write<T>(ious) + first * columns);
    }
  });
  return ious;
}

}  // namespace cuda
}  // namespace detlab
