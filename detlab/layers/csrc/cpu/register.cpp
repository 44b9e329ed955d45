#include "../kernels.h"

STABLE_TORCH_LIBRARY_IMPL(detlab, CPU, library) { DETLAB_REGISTER_OPERATORS(library, cpu) }
