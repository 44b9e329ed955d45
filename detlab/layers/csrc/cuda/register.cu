#include "../kernels.h"

STABLE_TORCH_LIBRARY_IMPL(detlab, CUDA, library) { DETLAB_REGISTER_OPERATORS(library, cuda) }
