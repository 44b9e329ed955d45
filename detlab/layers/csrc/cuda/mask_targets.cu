// What mask heads are trained on: the part of an object that lies in a box, stretched to a square.
//
// Shapes: R boxes, O objects, H x W a bitmap, M x M the square.

#include "../polygon_fill.h"
#include "device.cuh"
#include "roi_taps.cuh"

namespace detlab {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kStripBytes = 32 * 1024;  // of shared memory

template <typename T>
struct Drawing {
  PackedObjects objects;
  const int64_t* rows;  // (R)
  const T* boxes;       // (R, 4)
  int64_t size, num_words;
  int64_t strip, num_strips;  // columns that a block draws
  unsigned char* targets;     // (R, M, M)
};

// Toggles the pixels below which the polygon's edges cross the columns [first, first + count). Returns false where the
// polygon has a corner that is no place.
template <typename T>
__device__ bool cross(const Drawing<T>& job, const Stretch<T>& stretch, int64_t polygon, int64_t first, int64_t count,
                      PixelWord* crossings) {
  int64_t begin, end;
  job.objects.points_of(polygon, &begin, &end);
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    LatticePoint here, next;
    if (!stretch.place(job.objects.coords + 2 * i, &here)) return false;
    // The other corner's own thread tells if it is none.
    if (!stretch.place(job.objects.coords + 2 * (i + 1 < end ? i + 1 : begin), &next)) continue;
    const Edge edge(here, next);
    const int64_t last_column = edge.last_column(first + count - 1);
    for (int64_t column = edge.first_column(first); column <= last_column; ++column) {
      const int64_t row = edge.row_below(column, job.size);
      if (row == job.size) continue;
      PixelWord* words = crossings + (column - first) * job.num_words;
      atomicXor(words + row / kPixelsPerWord, PixelWord{1} << row % kPixelsPerWord);
    }
  }
  return true;
}

// A block draws a strip of one box's square.
template <typename T>
__global__ void draw_kernel(Drawing<T> job) {
  DETLAB_DYNAMIC_SHARED(memory);
  __shared__ int is_nowhere;
  const int64_t r = blockIdx.x / job.num_strips, first = blockIdx.x % job.num_strips * job.strip;
  const int64_t count = at_most(job.strip, job.size - first);
  PixelWord* crossings = reinterpret_cast<PixelWord*>(memory);  // (strip, words)
  PixelWord* pixels = crossings + job.strip * job.num_words;
  for (int64_t i = threadIdx.x; i < 2 * job.strip * job.num_words; i += blockDim.x) crossings[i] = 0;
  const Stretch<T> stretch(job.boxes + r * 4, job.size);
  int64_t first_polygon, last_polygon;
  job.objects.polygons_of(stretch.is_finite ? job.rows[r] : -1, &first_polygon, &last_polygon);
  for (int64_t polygon = first_polygon; polygon < last_polygon; ++polygon) {
    if (threadIdx.x == 0) is_nowhere = 0;
    __syncthreads();
    if (!cross(job, stretch, polygon, first, count, crossings)) is_nowhere = 1;
    __syncthreads();
    for (int64_t column = threadIdx.x; column < count; column += blockDim.x) {
      PixelWord* words = crossings + column * job.num_words;
      if (is_nowhere) {
        for (int64_t w = 0; w < job.num_words; ++w) words[w] = 0;
      } else {
        fill_column(words, pixels + column * job.num_words, job.num_words);
      }
    }
    __syncthreads();
  }
  __syncthreads();
  unsigned char* target = job.targets + r * job.size * job.size;
  for (int64_t i = threadIdx.x; i < job.size * count; i += blockDim.x) {
    const int64_t y = i / count, x = i % count;
    const PixelWord word = pixels[x * job.num_words + y / kPixelsPerWord];
    target[y * job.size + first + x] = static_cast<unsigned char>(word >> y % kPixelsPerWord & 1);
  }
}

template <typename C>
struct Cropping {
  const unsigned char* bitmaps;  // (O, H, W)
  int64_t num_objects, height, width;
  const int64_t* rows;  // (R)
  const C* boxes;       // (R, 4)
  int64_t size;
  unsigned char* targets;  // (R, M, M)
};

// The average of a bitmap in a bin, in the order in which the CPU's kernels add up: the rows of each column first.
template <typename C>
__device__ float average_of_bin(const Axis<C>& y_axis, const Axis<C>& x_axis, int y, int x, const unsigned char* bitmap,
                                int64_t width) {
  float sum = 0;
  AxisTaps<C>{x_axis}.visit(x, [&](int32_t column, C column_weight) {
    float column_sum = 0;
    AxisTaps<C>{y_axis}.visit(y, [&](int32_t row, C row_weight) {
      if (bitmap[row * width + column] != 0) column_sum += static_cast<float>(row_weight);
    });
    sum = fma(static_cast<float>(column_weight), column_sum, sum);
  });
  return sum;
}

// A thread cuts one pixel of a square.
template <typename C>
__global__ void crop_kernel(Cropping<C> job, int64_t num_pixels) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, per_square = job.size * job.size;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_pixels; i += step) {
    const int64_t r = i / per_square, pixel = i % per_square, object = job.rows[r];
    job.targets[i] = 0;
    if (object < 0 || object >= job.num_objects) continue;
    const C* box = job.boxes + r * 4;
    const C one = 1;
    const Axis<C> x_axis = make_axis(box[0], box[2], one, job.size, job.width, 0, true);
    const Axis<C> y_axis = make_axis(box[1], box[3], one, job.size, job.height, 0, true);
    if (!x_axis.is_finite() || !y_axis.is_finite()) continue;
    const int y = static_cast<int>(pixel / job.size), x = static_cast<int>(pixel % job.size);
    const unsigned char* bitmap = job.bitmaps + object * job.height * job.width;
    job.targets[i] = average_of_bin(y_axis, x_axis, y, x, bitmap, job.width) >= 0.5f ? 1 : 0;
  }
}

// Rows and boxes as the kernels read them, and the result.
struct Targets {
  Tensor rows, boxes, result;

  Targets(const Tensor& given_rows, const Tensor& given_boxes, int64_t size)
      : rows(as_type(given_rows, ScalarType::Long)),
        boxes(as_type(given_boxes, wide_type(given_boxes.scalar_type()))),
        result(new_tensor(given_boxes, {given_rows.size(0), size, size}, ScalarType::Bool)) {}
};

}  // namespace

Tensor mask_targets_from_polygons(Tensor coords, Tensor polygon_offsets, Tensor object_offsets, Tensor rows,
                                  Tensor boxes, int64_t size) {
  check_polygon_targets(coords, polygon_offsets, object_offsets, rows, boxes, size);
  const Launch launch(boxes);
  const Tensor points = as_type(coords, ScalarType::Double);
  const Tensor of_polygons = as_type(polygon_offsets, ScalarType::Long),
               of_objects = as_type(object_offsets, ScalarType::Long);
  const Targets targets(rows, boxes, size);
  const int64_t count = rows.size(0);
  if (count == 0) return targets.result;
  const PackedObjects objects = {read<double>(points), read<int64_t>(of_polygons), read<int64_t>(of_objects),
                                 points.size(0),       of_polygons.size(0) - 1,    of_objects.size(0) - 1};
  const int64_t num_words = divide_up(size, kPixelsPerWord);
  const int64_t column_bytes = 2 * num_words * static_cast<int64_t>(sizeof(PixelWord));
  const int64_t strip = std::min(size, kStripBytes / column_bytes), num_strips = divide_up(size, strip);
  STD_TORCH_CHECK(count * num_strips < int64_t{1} << 31, "detlab: too many boxes to draw masks for");
  with_wide_type(targets.boxes.scalar_type(), [&](auto number) {
    using T = decltype(number);
    const Drawing<T> job = {
        objects,    read<int64_t>(targets.rows),         read<T>(targets.boxes), size, num_words, strip,
        num_strips, write<unsigned char>(targets.result)};
    const auto kernel = draw_kernel<T>;
    DETLAB_LAUNCH(kernel, static_cast<unsigned>(count * num_strips), kThreads, strip * column_bytes, launch.stream(),
                  job);
  });
  return targets.result;
}

Tensor mask_targets_from_bitmaps(Tensor bitmaps, Tensor rows, Tensor boxes, int64_t size) {
  check_bitmap_targets(bitmaps, rows, boxes, size);
  const Launch launch(boxes);
  const Tensor dense = as_type(bitmaps, bitmaps.scalar_type());
  const Targets targets(rows, boxes, size);
  const int64_t num_pixels = targets.result.numel();
  if (num_pixels == 0) return targets.result;
  with_wide_type(targets.boxes.scalar_type(), [&](auto number) {
    using C = decltype(number);
    const Cropping<C> job = {read<unsigned char>(dense),
                             bitmaps.size(0),
                             bitmaps.size(1),
                             bitmaps.size(2),
                             read<int64_t>(targets.rows),
                             read<C>(targets.boxes),
                             size,
                             write<unsigned char>(targets.result)};
    const auto kernel = crop_kernel<C>;
    DETLAB_LAUNCH(kernel, blocks_for(num_pixels, kThreads), kThreads, 0, launch.stream(), job, num_pixels);
  });
  return targets.result;
}

}  // namespace cuda
}  // namespace detlab
