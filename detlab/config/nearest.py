"""What a mistyped name probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from detlab.utils.registry import ReadableKeyError


class UnknownKeyError(ReadableKeyError):
    """A setting that does not exist."""


# What other trainers call it, by the last part of the name in small letters; and what to know about it.
_COUNTED = "training is counted in iterations of SOLVER.IMS_PER_BATCH images, not in epochs"
_ELSEWHERE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("lr", "lr0", "learning_rate"), ("SOLVER.BASE_LR", "")),
    "lrf": ("SOLVER.BASE_LR_END", "which is a rate, not a share of the first"),
    **dict.fromkeys(("epoch", "epochs", "max_epochs", "total_epochs", "num_epochs"), ("SOLVER.MAX_ITER", _COUNTED)),
    **dict.fromkeys(("max_iters", "max_steps", "total_iters"), ("SOLVER.MAX_ITER", "")),
    **dict.fromkeys(
        ("batch", "batch_size", "samples_per_gpu", "imgs_per_gpu"),
        ("SOLVER.IMS_PER_BATCH", "which counts the images of all processes together"),
    ),
    **dict.fromkeys(("workers", "workers_per_gpu", "num_workers"), ("DATALOADER.NUM_WORKERS", "")),
    **dict.fromkeys(
        ("imgsz", "img_size", "img_scale", "image_size"), ("INPUT.MIN_SIZE_TRAIN", "with INPUT.MAX_SIZE_TRAIN")
    ),
    **dict.fromkeys(("work_dir", "save_dir"), ("OUTPUT_DIR", "")),
    **dict.fromkeys(("load_from", "pretrained"), ("MODEL.WEIGHTS", "")),
    "resume_from": ("MODEL.WEIGHTS", "or start with --resume"),
    **dict.fromkeys(("data", "ann_file", "data_root"), ("DATASETS.TRAIN", "names of registered datasets")),
    **dict.fromkeys(("conf", "score_thr"), ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "")),
    **dict.fromkeys(("iou", "iou_threshold"), ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "")),
    "nc": ("MODEL.ROI_HEADS.NUM_CLASSES", ""),
    "optimizer": ("SOLVER.OPTIMIZER", ""),
    "max_det": ("TEST.DETECTIONS_PER_IMAGE", ""),
    "amp": ("SOLVER.AMP.ENABLED", ""),
}


def nearest_names(asked: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to ``count`` known names, most alike first.

    Upper and lower case count as equal. For dotted names the last part may also decide alone, so that a key asked for
    in the wrong section is found.
    """
    originals = {name.upper(): name for name in known}
    wanted = asked.upper()
    leaf = wanted.rpartition(".")[2]
    alike = difflib.get_close_matches(wanted, originals, n=count, cutoff=0.7)
    same_leaf = [name for name in originals if name.rpartition(".")[2] == leaf and name not in alike]
    return [originals[name] for name in (alike + same_leaf)[:count]]


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """``"; did you mean 'A' or 'B'?"``; of a key of another trainer what it is called here, if that is known.

    An empty text where nothing is alike.
    """
    known = list(known)
    here, remark = _ELSEWHERE.get(asked.rpartition(".")[2].lower(), ("", ""))
    if here in known:
        return f"; here it is {here!r}{remark and f', {remark}'}"
    names = [repr(name) for name in nearest_names(asked, known)]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def probable_slip(name: str, known: Iterable[str], whole: bool = False) -> str | None:
    """The known name that somebody who wrote another one probably meant, or None.

    That is one of nearly the same letters (``MAX_ITERS`` for ``MAX_ITER``), or one that has the other's words in it
    (``LR`` for ``BASE_LR``). Names that differ by digits alone (``RES4``, ``RES5``) do so on purpose.

    Args:
        name: what was written.
        known: what could have been meant.
        whole: only names of nearly the same letters.
    """
    others = sorted((other for other in known if other != name), key=len)
    for other in [] if whole else others:
        if f"_{name}_" in f"_{other}_":
            return other
    for other in difflib.get_close_matches(name, others, n=1, cutoff=0.85):
        if re.sub(r"\d", "", other) != re.sub(r"\d", "", name):
            return other
    return None
