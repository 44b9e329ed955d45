"""What ``python -m tests.fuzz yaml`` reads: yaml configs, merged into the defaults."""

import random
from pathlib import Path

from detlab.config.config import get_cfg
from tests.fuzz import Target

SEEDS = {
    "plain.yaml": """\
MODEL:
  WEIGHTS: "model.pth"
  MASK_ON: true
  PIXEL_STD: [57.375, 57.12, 58.395]
  ANCHOR_GENERATOR:
    SIZES: [[32], [64], [128]]
  RPN: {IN_FEATURES: ["p2", "p3", "p4"], POSITIVE_FRACTION: 0.5}
DATASETS:
  TRAIN: ("coco_2017_train",)
SOLVER:
  STEPS: (60000, 80000)
  BASE_LR: 0.02
VERSION: 2
""",
    "habits.yaml": """\
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 1024) for x in range(1, 21)]"]
  CROP: &crop {ENABLED: True, SIZE: !!python/tuple [0.9, 0.8]}
SOLVER: {CLIP_GRADIENTS: {<<: {ENABLED: true}, CLIP_VALUE: 1.5}}
""",
    "old.yaml": "MODEL: {WEIGHT: x, RPN: {ANCHOR_SIZES: [[32]]}}\nTEST: {AUG_ON: true}\n",
}
PIECES = [
    "&a ", "*a", "<<: ", "!!python/tuple ", "!!binary ", "!!python/object/apply:eval ", "[", "]", "{", "}", ": ", "- ",
    "---\n", "_BASE_: ", "VERSION: 1\n", "1:1:1", "0x", "? ", "~", "'", '"', "|\n", "%YAML 1.1\n", "range(9)", "#",
]  # fmt: skip


def write_seeds(folder: Path) -> list[Path]:
    for name, text in SEEDS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in SEEDS]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Puts pieces of yaml's own syntax anywhere."""
    text = data.decode("utf-8")
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) * rng.choice((1, 1, 2, 50)) + text[at + rng.choice((0, 0, 3)) :]
    return text.encode("utf-8")


def read(path: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(path)
    cfg.dump()


TARGET = Target(read, write_seeds, ("ValueError", "UnknownKeyError", "FileNotFoundError"), mutate)
