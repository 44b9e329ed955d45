// Work shared between torch's threads so that no result depends on how many there are: every unit writes what no
// other unit touches.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace detlab {

// Calls `run(worker_state, unit)` for every unit, each thread taking the next one when it is done with the last.
// `make_state()` is called once per thread, for buffers that units share one after the other.
template <typename MakeState, typename Run>
void for_each_unit(int64_t num_units, const MakeState& make_state, const Run& run) {
  if (num_units <= 0) return;
  const int64_t num_workers = std::min<int64_t>(num_units, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, num_workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      if (next.load(std::memory_order_relaxed) >= num_units) continue;
      auto state = make_state();
      for (int64_t unit = next++; unit < num_units; unit = next++) run(state, unit);
    }
  });
}

template <typename Run>
void for_each_unit(int64_t num_units, const Run& run) {
  for_each_unit(num_units, [] { return 0; }, [&](int, int64_t unit) { run(unit); });
}

}  // namespace detlab
