// Enough of CUDA for the kernels of detlab/layers/csrc/cuda to run, slowly, on the CPU: each thread of a block is a
// fiber that runs to the next barrier or vote. Fibers take turns in another order after each of them, and from block to
// block, so that a kernel that lacks one gives wrong numbers here rather than on a GPU only. A few blocks run at the
// same time, each on a thread of the operating system: they are taken up in order, and one that waits for a block that
// is not running yet waits forever, as it may on a GPU.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __launch_bounds__(...)

using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;
using cudaStream_t = void*;
using std::ceil;
using std::cos;
using std::fabs;
using std::floor;
using std::fma;
using std::sin;
using std::sqrt;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
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

// Blocks run at the same time: what one writes is there for the others as a whole, or not yet.
template <typename T, typename Update>
T update_atomically(T* target, const Update& update) {
  T old, changed;
  __atomic_load(target, &old, __ATOMIC_SEQ_CST);
  do {
    changed = update(old);
  } while (!__atomic_compare_exchange(target, &old, &changed, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}
template <typename T>
T atomicAdd(T* target, T value) {
  return update_atomically(target, [value](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* target, T value) {
  return update_atomically(target, [value](T old) { return old > value ? old : value; });
}
template <typename T>
T atomicXor(T* target, T value) {
  return __atomic_fetch_xor(target, value, __ATOMIC_SEQ_CST);
}
template <typename T>
T atomicOr(T* target, T value) {
  return __atomic_fetch_or(target, value, __ATOMIC_SEQ_CST);
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __nanosleep(unsigned) { std::this_thread::yield(); }

inline int __ffsll(long long word) { return __builtin_ffsll(word); }
inline int __popcll(unsigned long long word) { return __builtin_popcountll(word); }

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace detlab_emulation {

constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned kWarp = 32;
constexpr unsigned kBlocksAtOnce = 3;
constexpr size_t kMostShared = 227 * 1024;  // bytes that a block can have on the largest GPUs

inline std::atomic<int64_t> num_launches{0}, num_barriers{0}, num_votes{0};
inline std::atomic<unsigned> num_blocks{0};  // run so far

// Where threads wait for each other.
struct Meeting {
  unsigned arrived = 0, rounds = 0;
  unsigned votes = 0, result = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool is_done = false;
};

// A block that is running.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting barrier;
  const std::function<void()>* body = nullptr;
  std::vector<unsigned char> shared_memory;
  ucontext_t scheduler;
  Fiber* current = nullptr;
  unsigned num_done = 0;
  bool is_moving = false;  // somebody got further in this turn

  explicit Block(unsigned threads) : fibers(threads), warps((threads + kWarp - 1) / kWarp) {}
};

inline thread_local Block* running = nullptr;

inline void enter() {
  (*running->body)();
  running->current->is_done = true;
  swapcontext(&running->current->context, &running->scheduler);
}

// Until as many threads as are expected have come; the index of the thread changes while others run.
template <typename Expected>
unsigned meet(Meeting& meeting, const Expected& expected) {
  const dim3 own = threadIdx;
  const unsigned round = meeting.rounds;
  ++meeting.arrived;
  while (meeting.rounds == round) {
    if (meeting.arrived == expected()) {
      meeting.arrived = 0;
      meeting.result = meeting.votes;
      meeting.votes = 0;
      ++meeting.rounds;
      running->is_moving = true;
    }
    swapcontext(&running->current->context, &running->scheduler);
    threadIdx = own;
  }
  return meeting.result;
}

inline void start(Block& block, const std::function<void()>& kernel) {
  block.body = &kernel;
  block.num_done = 0;
  block.barrier = Meeting();
  std::fill(block.warps.begin(), block.warps.end(), Meeting());
  for (Fiber& fiber : block.fibers) {
    fiber.is_done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
}

inline void run_block(Block& block, bool backwards) {
  const unsigned count = static_cast<unsigned>(block.fibers.size());
  running = &block;
  for (; block.num_done < count; backwards = !backwards) {
    block.is_moving = false;
    for (unsigned turn = 0; turn < count; ++turn) {
      const unsigned index = backwards ? count - 1 - turn : turn;
      Fiber& fiber = block.fibers[index];
      if (fiber.is_done) continue;
      threadIdx.x = index;
      block.current = &fiber;
      swapcontext(&block.scheduler, &fiber.context);
      block.num_done += fiber.is_done;
      block.is_moving = block.is_moving || fiber.is_done;
    }
    // The first turn ends at the first barrier, where the last to come lets the others pass.
    if (!block.is_moving) {
      std::fprintf(stderr, "a barrier or vote that some threads of the block never reach\n");
      std::abort();
    }
  }
}

inline void launch(dim3 grid, dim3 block_size, size_t shared_bytes, const std::function<void()>& kernel) {
  const unsigned count = grid.x * grid.y * grid.z;
  std::atomic<unsigned> next{0};
  if (shared_bytes > kMostShared) throw std::runtime_error("a kernel asks for more shared memory than there is");
  ++num_launches;
  const auto work = [&] {
    Block block(block_size.x);
    gridDim = grid;
    blockDim = block_size;
    for (unsigned index; (index = next++) < count;) {
      blockIdx = dim3(index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y);
      // Nothing of the last block is left to be relied on.
      block.shared_memory.assign(shared_bytes + 16, 0xee);
      start(block, kernel);
      run_block(block, num_blocks++ % 2 == 1);
    }
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < std::min(count, kBlocksAtOnce); ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

inline unsigned char* dynamic_shared() {
  const auto address = reinterpret_cast<uintptr_t>(running->shared_memory.data());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

}  // namespace detlab_emulation

// Of all threads of the block that have not returned.
inline void __syncthreads() {
  detlab_emulation::Block& block = *detlab_emulation::running;
  if (threadIdx.x == 0) ++detlab_emulation::num_barriers;
  detlab_emulation::meet(block.barrier, [&] { return static_cast<unsigned>(block.fibers.size()) - block.num_done; });
}

// One bit for each thread of the warp that says yes. `mask` are those that vote.
inline unsigned __ballot_sync(unsigned mask, bool yes) {
  detlab_emulation::Meeting& warp = detlab_emulation::running->warps[threadIdx.x / detlab_emulation::kWarp];
  if (threadIdx.x % detlab_emulation::kWarp == 0) ++detlab_emulation::num_votes;
  if (yes) warp.votes |= 1u << threadIdx.x % detlab_emulation::kWarp;
  return detlab_emulation::meet(warp, [&] { return static_cast<unsigned>(__builtin_popcount(mask)); });
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
