"""Functions that plain pickle refuses come through."""

import functools
import math
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from detlab.utils.serialize import PicklableWrapper

SCALE = 3


def top_level(x):
    return x + 1


def there_and_back(obj):
    return pickle.loads(pickle.dumps(PicklableWrapper(obj)))


def make_counter(start):
    def count(step=1, *, by=2):
        """Counts."""
        return start + step * by * SCALE

    count.note = "attribute"
    return count


def make_factorial():
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    return factorial


def make_even_odd():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n > 0 and even(n - 1)

    return even


class Adder:
    amount = 5

    def add(self, x):
        return x + self.amount


def test_a_top_level_function_travels_by_name():
    assert there_and_back(top_level)._obj is top_level


def test_a_closure_keeps_values_defaults_globals_and_attributes():
    count = there_and_back(make_counter(10))
    assert count() == 10 + 2 * SCALE and count(3, by=1) == 10 + 3 * SCALE
    assert count.note == "attribute" and count._obj.__doc__ == "Counts."


def test_a_lambda_may_use_modules_and_inner_functions():
    assert there_and_back(lambda x: np.sum([math.sqrt(v) for v in x]))([4, 9]) == 5


def test_recursion_and_mutual_recursion_survive():
    assert there_and_back(make_factorial())(5) == 120
    even = there_and_back(make_even_odd())
    assert even(10) and not even(7)


def test_partials_methods_and_containers_of_functions_survive():
    assert there_and_back(functools.partial(lambda a, b: a - b, b=1))(5) == 4
    assert there_and_back(Adder().add)(1) == 6
    functions = [lambda x: x + 1, lambda x: x * 2]
    assert there_and_back(lambda x: [f(x) for f in functions])(5) == [6, 10]


def test_a_wrapped_object_keeps_its_attributes():
    wrapped = there_and_back(Adder())
    assert wrapped.amount == 5 and wrapped.add(2) == 7
    with pytest.raises(AttributeError):
        wrapped.nothing  # noqa: B018


def test_wrapping_twice_adds_no_layer():
    assert PicklableWrapper(PicklableWrapper(top_level))._obj is top_level


def test_another_process_can_call_it(tmp_path):
    path = tmp_path / "function.pkl"
    path.write_bytes(pickle.dumps(PicklableWrapper(lambda x: x * SCALE + np.float64(1))))
    code = f"import pickle; print(pickle.load(open({str(path)!r}, 'rb'))(7))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(output) == 22.0


# A notebook: what runs is no file that another process could run again.
NOTEBOOK = """
import dataclasses, sys
from detlab.data.build import build_detection_test_loader

@dataclasses.dataclass
class Mapper:
    factor: int
    def __call__(self, entry):
        return scaled(entry["n"], self.factor)

def scaled(n, factor):
    return OFFSET + factor * n

OFFSET = 100
loader = build_detection_test_loader(
    [{"n": n} for n in range(3)], mapper=Mapper(2), num_workers=1, multiprocessing_context="spawn"
)
print(list(loader))
"""


def run(*args):
    result = subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_mapper_class_of_a_notebook_works_in_spawned_workers():
    assert run("-c", NOTEBOOK) == "[[100], [102], [104]]\n"


SCRIPT = """
import dataclasses
from detlab.data.build import build_detection_test_loader

@dataclasses.dataclass
class Sample:
    n: int

class Mapper:
    def __call__(self, entry):
        return Sample(entry["n"])

if __name__ == "__main__":
    loader = build_detection_test_loader(
        [{"n": 7}], mapper=Mapper(), num_workers=1, multiprocessing_context="spawn"
    )
    ((sample,),) = loader
    assert type(sample) is Sample, type(sample)
    print(sample)
"""


def test_what_a_script_defines_is_of_the_same_class_in_spawned_workers(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    assert run(str(path)) == "Sample(n=7)\n"


SHARED = """
import torch
from detlab.data.build import build_detection_test_loader

counter = torch.zeros(1).share_memory_()

def mapper(entry):
    counter[0] += 1
    return entry

list(build_detection_test_loader([{"n": n} for n in range(3)], mapper=mapper, num_workers=1,
                                 multiprocessing_context="spawn"))
print(counter.item())
"""


def test_tensors_in_shared_memory_stay_shared_with_spawned_workers():
    assert run("-c", SHARED) == "3.0\n"


def test_an_object_that_cannot_be_pickled_at_all_is_refused():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(PicklableWrapper(lambda: lock))
