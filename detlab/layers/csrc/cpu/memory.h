// Memory of the CPU kernels: results, and the buffers that threads work in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "../checks.h"
#include "simd.h"

namespace detlab {

// Results from this size on lie in blocks of huge pages, where the system grants them, and the blocks are used again:
// the system clears each page that it hands out, which takes longer than most operators need for their numbers.
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kLargeResult = 2 * kHugePage;

// Tensors from this size on are written around the caches, which could not hold them until they are read.
constexpr int64_t kStreamedTensor = int64_t{16} << 20;

struct LargeBlock {
  void* data;
  int64_t bytes;
};

// At least so many bytes, not set to anything.
LargeBlock take_large_block(int64_t bytes);
// Keeps the block for the next result, or frees it.
void return_large_block(const LargeBlock& block);

inline int64_t bytes_per_number(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
      return 4;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    default:
      return 1;
  }
}

inline bool is_streamed(const Tensor& tensor) {
  return tensor.numel() * bytes_per_number(tensor.scalar_type()) >= kStreamedTensor;
}

// Not set to anything. `strides` must be those of a dense tensor.
inline Tensor new_large_tensor(const Tensor& like, const std::vector<int64_t>& shape,
                               const std::vector<int64_t>& strides, ScalarType type) {
  int64_t bytes = bytes_per_number(type);
  for (int64_t size : shape) bytes *= size;
  const LargeBlock block = take_large_block(bytes);
  return torch::stable::from_blob(block.data, shape, strides, like.device(), type,
                                  [block](void*) { return_large_block(block); });
}

inline Tensor new_result(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size());
  int64_t count = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    strides[axis] = count;
    count *= shape[axis];
  }
  if (count * bytes_per_number(type) < kLargeResult) return new_tensor(like, shape, type);
  return new_large_tensor(like, shape, strides, type);
}

// Whether a feature map (N, C, H, W) fills its memory, in either of the usual orders.
inline bool is_dense_map(const Tensor& map) {
  const int64_t c = map.size(1), h = map.size(2), w = map.size(3);
  const bool is_channels_last =
      map.stride(1) == 1 && map.stride(3) == c && map.stride(2) == c * w && map.stride(0) == c * w * h;
  return map.is_contiguous() || is_channels_last;
}

inline Tensor new_result_like(const Tensor& map) {
  if (map.numel() * bytes_per_number(map.scalar_type()) < kLargeResult || !is_dense_map(map)) {
    return torch::stable::empty_like(map);
  }
  const auto sizes = map.sizes(), strides = map.strides();
  return new_large_tensor(map, {sizes.begin(), sizes.end()}, {strides.begin(), strides.end()}, map.scalar_type());
}

// Asks for memory that is needed soon and that the processor does not see coming.
template <typename T>
void prefetch(const T* data, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(data);
  for (int64_t k = 0; k < count * static_cast<int64_t>(sizeof(T)); k += kLineBytes) __builtin_prefetch(bytes + k);
}

// Numbers on cache-line boundaries, not set to anything.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { reserve(size); }

  T* reserve(int64_t size) {
    if (size > size_) {
      const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + kLineBytes - 1) / kLineBytes * kLineBytes;
      data_.reset(static_cast<T*>(std::aligned_alloc(kLineBytes, bytes)));
      if (!data_) throw std::bad_alloc();
      size_ = size;
    }
    return data_.get();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace detlab
