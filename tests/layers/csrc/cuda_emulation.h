// Enough of CUDA for the kernels of detlab/layers/csrc/cuda to run, slowly, on the CPU: each thread of a block is a
// fiber that runs to the next barrier. Fibers take turns in another order after each barrier, and from block to block,
// so that a kernel that lacks one gives wrong numbers here rather than on a GPU only.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static

using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;
using cudaStream_t = void*;
using std::ceil;
using std::cos;
using std::floor;
using std::fma;
using std::sin;
using std::sqrt;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(target, source, bytes);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <typename T>
T atomicAdd(T* target, T value) {
  const T old = *target;
  *target += value;
  return old;
}
template <typename T>
T atomicOr(T* target, T value) {
  const T old = *target;
  *target |= value;
  return old;
}

template <typename T>
T atomicXor(T* target, T value) {
  const T old = *target;
  *target ^= value;
  return old;
}
template <typename T>
T atomicMax(T* target, T value) {
  const T old = *target;
  *target = old > value ? old : value;
  return old;
}

inline int __ffsll(long long word) { return __builtin_ffsll(word); }
inline int __popcll(unsigned long long word) { return __builtin_popcountll(word); }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace detlab_emulation {

constexpr size_t kStackBytes = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool is_done = false;
};

inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline const std::function<void()>* body = nullptr;
inline std::vector<unsigned char> shared_memory;
inline unsigned num_blocks = 0;  // run so far

inline void enter() {
  (*body)();
  current->is_done = true;
  swapcontext(&current->context, &scheduler);
}

inline void run_block(std::vector<Fiber>& fibers, bool backwards) {
  const size_t count = fibers.size();
  for (Fiber& fiber : fibers) {
    fiber.is_done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  size_t num_done = 0;
  for (; num_done < count; backwards = !backwards) {
    for (size_t turn = 0; turn < count; ++turn) {
      const size_t index = backwards ? count - 1 - turn : turn;
      Fiber& fiber = fibers[index];
      if (fiber.is_done) continue;
      threadIdx.x = static_cast<unsigned>(index);
      current = &fiber;
      swapcontext(&scheduler, &fiber.context);
      num_done += fiber.is_done;
    }
  }
}

inline void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  std::vector<Fiber> fibers(block.x);
  body = &kernel;
  gridDim = grid;
  blockDim = block;
  for (unsigned block = 0; block < grid.x * grid.y * grid.z; ++block) {
    blockIdx = dim3(block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y);
    // Nothing of the last block is left to be relied on.
    shared_memory.assign(shared_bytes + 16, 0xee);
    run_block(fibers, num_blocks++ % 2 == 1);
  }
}

inline unsigned char* dynamic_shared() {
  const auto address = reinterpret_cast<uintptr_t>(shared_memory.data());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

}  // namespace detlab_emulation

// The index of the thread changes while others run.
inline void __syncthreads() {
  const dim3 own = threadIdx;
  swapcontext(&detlab_emulation::current->context, &detlab_emulation::scheduler);
  threadIdx = own;
}

#define DETLAB_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)   \
  detlab_emulation::launch(dim3(grid), dim3(block), shared_bytes, [&] { \
    (void)(stream);                                                     \
    kernel(__VA_ARGS__);                                                \
  })
#define DETLAB_DYNAMIC_SHARED(name) unsigned char* name = detlab_emulation::dynamic_shared()

namespace detlab {
namespace cuda {

struct Launch {
  template <typename Tensor>
  explicit Launch(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

}  // namespace cuda
}  // namespace detlab
