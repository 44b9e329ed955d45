"""Files in COCO format with something wrong in them: each is read to the end, or refused with a sentence."""

import json
import multiprocessing
import random
import resource
from collections import Counter

from tests.data.datasets.fuzz_target import TARGET, mutate, read, write_seeds
from tests.fuzz import complaint
from tests.limits import MEBIBYTE, Outcome

SEED = 2
NUM_CASES = 400
SECONDS = 240
MORE_BYTES = 1024 * MEBIBYTE


def test_the_file_that_the_others_are_made_of_is_read_to_the_end(tmp_path):
    (tmp_path / "seeds").mkdir()
    (good,) = write_seeds(tmp_path / "seeds")
    path = tmp_path / "good.json"
    path.write_bytes(good.read_bytes())
    read(str(path))


def test_damaged_files_are_read_or_refused_with_a_sentence_that_names_them(tmp_path):
    (tmp_path / "seeds").mkdir()
    (good,) = write_seeds(tmp_path / "seeds")
    data, rng = good.read_bytes(), random.Random(SEED)
    cases = [mutate(data, rng) for _ in range(NUM_CASES)]
    # One process for all, and a new one: threads of compiled code that other tests have used do not survive a fork.
    process = multiprocessing.get_context("spawn").Process(target=_read_all, args=(cases, tmp_path))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()

    endings, complaints = json.loads((tmp_path / "report").read_text())

    assert not complaints, "\n".join(complaints)
    assert process.exitcode == 0, f"the process died over case {sum(endings.values())} in {tmp_path}"
    assert min(endings[kind] for kind in ("", "ValueError")) > NUM_CASES / 20


def _read_all(cases, folder):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    read(str(_written(folder, "good", (folder / "seeds" / "good.json").read_bytes())))
    with open("/proc/self/status", encoding="ascii") as status:
        in_use = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + MORE_BYTES, in_use + MORE_BYTES))
    endings, complaints = Counter(), []
    for number, case in enumerate(cases):
        path = _written(folder, f"case-{number}", case)
        error = ""
        try:
            read(str(path))
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
        endings[error.partition(":")[0]] += 1
        if wrong := complaint(TARGET, Outcome(error, 0.0, 0), path):
            complaints.append(f"case {number}: {wrong[:300]}")
        (folder / "report").write_text(json.dumps([endings, complaints]))


def _written(folder, name, content):
    path = folder / f"{name}.json"
    path.write_bytes(content)
    return path
