"""The emulation of CUDA's threads notices what the tests of the kernels count on it to notice."""

import subprocess

import pytest

from detlab.layers import _ops_build
from tests.layers.backends import EMULATION, FLAGS

PROGRAM = """
#include "cuda_emulation.h"
#include <cstdio>

__global__ void reverse(int* numbers) {
  DETLAB_DYNAMIC_SHARED(memory);
  int* shared = reinterpret_cast<int*>(memory);
  shared[threadIdx.x] = numbers[blockIdx.x * blockDim.x + threadIdx.x];
  BARRIER
  numbers[blockIdx.x * blockDim.x + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void count_threads(int* counts) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  BARRIER
  atomicAdd(&count, 1);
  __syncthreads();
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

int main() {
  int numbers[256], counts[4], wrong = 0;
  for (int i = 0; i < 256; ++i) numbers[i] = i;
  DETLAB_LAUNCH(reverse, 4, 64, 64 * sizeof(int), nullptr, numbers);
  DETLAB_LAUNCH(count_threads, 4, 64, 0, nullptr, counts);
  for (int i = 0; i < 256; ++i) wrong += numbers[i] != i / 64 * 64 + 63 - i % 64;
  std::printf("%d %d", wrong > 0, counts[0] != 64 || counts[1] != 64 || counts[2] != 64 || counts[3] != 64);
}
"""


def run_program(folder, barrier):
    source, program = folder / "program.cpp", folder / "program"
    source.write_text(PROGRAM)
    includes = [f"-I{EMULATION}", f"-I{_ops_build.find_torch() / 'include'}"]
    compiler = _ops_build.find_compiler()
    subprocess.run([compiler, *FLAGS, *includes, f"-DBARRIER={barrier}", str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(_ops_build.obstacle() is not None, reason="there is nothing to compile with")
def test_kernel_without_its_barrier_gives_wrong_numbers(tmp_path):
    assert run_program(tmp_path, "__syncthreads();") == "0 0"
    assert run_program(tmp_path, "") == "1 1"
