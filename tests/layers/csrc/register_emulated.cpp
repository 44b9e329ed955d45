// The CUDA operators under a name of their own, on tensors of the CPU.
#include "kernels.h"

STABLE_TORCH_LIBRARY_IMPL(detlab_emulated, CPU, library) { DETLAB_REGISTER_OPERATORS(library, cuda) }
