#include "simd.h"

#define DETLAB_TABLE kDefaultKernels
#define DETLAB_NAME "default"
#define DETLAB_VECTOR_BYTES 16

#include "simd_kernels.inl"
