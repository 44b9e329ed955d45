// What the CUDA kernels share. They ask for nothing that a stream would have to wait for, except where a result's size
// is not known beforehand.
#pragma once

#if defined(DETLAB_EMULATE_CUDA)
#include "cuda_emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#endif

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "../kernels.h"
#include "../roi_axis.h"

// The tests run the kernels on the CPU; they bring their own version of what stands behind this condition.
#if !defined(DETLAB_EMULATE_CUDA)
#define DETLAB_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  do {                                                                \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);       \
    detlab::cuda::check(cudaGetLastError());                          \
  } while (0)
#define DETLAB_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace detlab {
namespace cuda {

inline void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "detlab: CUDA: ", cudaGetErrorString(error));
}

#if !defined(DETLAB_EMULATE_CUDA)
// Makes the device of a tensor the current one, and knows the stream that torch uses on it.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};
#endif

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Blocks for one thread per item; kernels step over what more there is.
inline unsigned blocks_for(int64_t items, int64_t threads) {
  return static_cast<unsigned>(std::min<int64_t>(std::max<int64_t>(divide_up(items, threads), 1), 1 << 20));
}

// The type to compute in.
template <typename S>
struct WideOf {
  using Type = float;
};
template <>
struct WideOf<double> {
  using Type = double;
};
template <typename S>
using Wide = typename WideOf<S>::Type;

// Calls `run(zero of the element type)`.
template <typename Run>
void with_type(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Double:
      return run(0.0);
    case ScalarType::Half:
      return run(__half());
    case ScalarType::BFloat16:
      return run(__nv_bfloat16());
    default:
      return run(0.0f);
  }
}

template <typename Run>
void with_wide_type(ScalarType type, const Run& run) {
  if (type == ScalarType::Double) {
    run(0.0);
  } else {
    run(0.0f);
  }
}

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <typename T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Values and indices, along the last axis; equal scores stay in their order.
inline std::tuple<Tensor, Tensor> sort_descending(const Tensor& scores) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(scores), from(std::optional<bool>(true)), from(int64_t{-1}), from(true)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace cuda
}  // namespace detlab
