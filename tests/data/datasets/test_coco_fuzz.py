"""Files in COCO format with something wrong in them: each is read to the end, or refused with a sentence."""

import json
import random
from collections import Counter

from tests.data.datasets.fuzz_target import TARGET, mutate, read, write_seeds
from tests.fuzz import complaint
from tests.limits import Outcome, run_limited

SEED = 2
NUM_CASES = 400


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

    outcome = run_limited(_read_all, cases, tmp_path, seconds=300)

    assert outcome.error == ""
    endings, complaints = json.loads((tmp_path / "report").read_text())
    assert not complaints, "\n".join(complaints)
    assert min(endings[kind] for kind in ("", "ValueError")) > NUM_CASES / 20


def _read_all(cases, folder):
    """One process for all: a fork for each would take longer than the reading."""
    endings, complaints = Counter(), []
    for number, case in enumerate(cases):
        path = folder / f"case-{number}.json"
        path.write_bytes(case)
        error = ""
        try:
            TARGET.read(str(path))
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
        endings[error.partition(":")[0]] += 1
        if wrong := complaint(TARGET, Outcome(error, 0.0, 0), path):
            complaints.append(f"case {number}: {wrong[:300]}")
        (folder / "report").write_text(json.dumps([endings, complaints]))
