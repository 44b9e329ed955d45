// The CUDA operators under a name of their own, on tensors of the CPU.
#include "cuda_emulation.h"
#include "kernels.h"

STABLE_TORCH_LIBRARY_IMPL(detlab_emulated, CPU, library) { DETLAB_REGISTER_OPERATORS(library, cuda) }

// What the emulation counted since the library was loaded.
extern "C" {
__attribute__((visibility("default"))) int64_t detlab_emulated_launches() { return detlab_emulation::num_launches; }
__attribute__((visibility("default"))) int64_t detlab_emulated_blocks() { return detlab_emulation::num_blocks; }
__attribute__((visibility("default"))) int64_t detlab_emulated_barriers() { return detlab_emulation::num_barriers; }
__attribute__((visibility("default"))) int64_t detlab_emulated_votes() { return detlab_emulation::num_votes; }
}
