#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace detlab {
namespace {

// What is kept at most while no tensor uses it: the gradient maps of two images, about.
constexpr int64_t kMostBytesKept = int64_t{256} << 20;

// Blocks that no tensor uses, the longest unused first.
struct Shelf {
  std::mutex mutex;
  std::vector<LargeBlock> blocks;
  int64_t bytes = 0;

  LargeBlock remove(size_t index) {
    const LargeBlock block = blocks[index];
    blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(index));
    bytes -= block.bytes;
    return block;
  }
};

// Never destroyed: tensors may outlive every static object.
Shelf& shelf() {
  static Shelf* only = new Shelf;
  return *only;
}

LargeBlock new_block(int64_t bytes) {
  const int64_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* data = std::aligned_alloc(kHugePage, rounded);
  if (data == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(data, rounded, MADV_HUGEPAGE);
#endif
  return {data, rounded};
}

}  // namespace

// Neither function waits for the lock: in a process forked while another thread held it, it stays locked.
LargeBlock take_large_block(int64_t bytes) {
  Shelf& kept = shelf();
  const std::unique_lock<std::mutex> lock(kept.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return new_block(bytes);
  size_t best = kept.blocks.size();
  for (size_t i = 0; i < kept.blocks.size(); ++i) {
    const int64_t size = kept.blocks[i].bytes;
    // A block of more than twice the size is left to results that need it.
    if (size < bytes || size > 2 * bytes) continue;
    if (best == kept.blocks.size() || size < kept.blocks[best].bytes) best = i;
  }
  return best == kept.blocks.size() ? new_block(bytes) : kept.remove(best);
}

void return_large_block(const LargeBlock& block) {
  Shelf& kept = shelf();
  const std::unique_lock<std::mutex> lock(kept.mutex, std::try_to_lock);
  if (!lock.owns_lock() || block.bytes > kMostBytesKept) {
    std::free(block.data);
    return;
  }
  kept.blocks.push_back(block);
  kept.bytes += block.bytes;
  while (kept.bytes > kMostBytesKept) std::free(kept.remove(0).data);
}

}  // namespace detlab
