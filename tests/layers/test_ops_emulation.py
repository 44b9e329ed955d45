"""The emulation of CUDA's threads notices what the tests of the kernels count on it to notice."""

import signal
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

__global__ void vote(unsigned* votes) {
  votes[threadIdx.x] = __ballot_sync(~0u, threadIdx.x % 3 == 0);
  votes[threadIdx.x] &= __ballot_sync(~0u, threadIdx.x < 40);
}

// Blocks add to a sum in the order of their numbers.
__global__ void take_turns(int* turn, int* sum) {
  if (threadIdx.x == 0) {
    while (atomicAdd(turn, 0) != static_cast<int>(blockIdx.x)) __nanosleep(100);
    *sum = *sum * 3 + static_cast<int>(blockIdx.x);
    __threadfence();
    atomicAdd(turn, 1);
  }
  __syncthreads();
}

__global__ void leave_some_behind() {
  if (threadIdx.x < 3) __syncthreads();
  __ballot_sync(~0u, threadIdx.x < 3);
}

int count_wrong_votes() {
  unsigned votes[64];
  DETLAB_LAUNCH(vote, 1, 64, 0, nullptr, votes);
  int wrong = 0;
  for (unsigned i = 0; i < 64; ++i) {
    unsigned expected = 0;
    for (unsigned k = i / 32 * 32; k < i / 32 * 32 + 32; ++k) expected |= unsigned(k % 3 == 0 && k < 40) << k % 32;
    wrong += votes[i] != expected;
  }
  return wrong;
}

int sum_in_turns() {
  int turn = 0, sum = 0;
  DETLAB_LAUNCH(take_turns, 8, 32, 0, nullptr, &turn, &sum);
  return sum;
}

int main(int argc, char**) {
  if (argc > 1) DETLAB_LAUNCH(leave_some_behind, 1, 32, 0, nullptr);
  int numbers[256], counts[4], wrong = 0;
  for (int i = 0; i < 256; ++i) numbers[i] = i;
  DETLAB_LAUNCH(reverse, 4, 64, 64 * sizeof(int), nullptr, numbers);
  DETLAB_LAUNCH(count_threads, 4, 64, 0, nullptr, counts);
  for (int i = 0; i < 256; ++i) wrong += numbers[i] != i / 64 * 64 + 63 - i % 64;
  std::printf("%d %d", wrong > 0, counts[0] != 64 || counts[1] != 64 || counts[2] != 64 || counts[3] != 64);
  std::printf(" %d %d", count_wrong_votes(), sum_in_turns());
}
"""


def build_program(folder, barrier):
    source, program = folder / "program.cpp", folder / "program"
    source.write_text(PROGRAM)
    includes = [f"-I{EMULATION}", f"-I{_ops_build.find_torch() / 'include'}"]
    compiler = _ops_build.find_compiler()
    subprocess.run([compiler, *FLAGS, *includes, f"-DBARRIER={barrier}", str(source), "-o", str(program)], check=True)
    return program


def output_of(program):
    return subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split()


pytestmark = pytest.mark.skipif(_ops_build.obstacle() is not None, reason="there is nothing to compile with")


def test_kernel_without_its_barrier_gives_wrong_numbers(tmp_path):
    assert output_of(build_program(tmp_path, "__syncthreads();"))[:2] == ["0", "0"]
    assert output_of(build_program(tmp_path, ""))[:2] == ["1", "1"]


def test_warps_vote_and_blocks_wait_for_each_other(tmp_path):
    wrong_votes, sum_in_turns = output_of(build_program(tmp_path, "__syncthreads();"))[2:]
    assert wrong_votes == "0"
    assert int(sum_in_turns) == sum(block * 3 ** (7 - block) for block in range(8))


def test_barrier_that_some_threads_never_reach_ends_the_program(tmp_path):
    program = build_program(tmp_path, "__syncthreads();")
    result = subprocess.run([str(program), "leave"], check=False, capture_output=True, text=True)
    assert result.returncode == -signal.SIGABRT
    assert "a barrier or vote that some threads of the block never reach" in result.stderr
