"""Weights under other names: blobs of Caffe2's Detectron, and backbones that sit deeper in the model than in a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["align_and_update_state_dicts", "convert_basic_c2_names", "convert_c2_detectron_names", "strip_prefix"]

logger = logging.getLogger(__name__)

# Ends of blob names. Affine layers have s(cale) and b(ias), or gamma and beta; rm and riv are running statistics.
PARAMETER_ENDINGS = {
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_gamma": "norm.weight",
    "bn_beta": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_running_mean": "norm.running_mean",
    "bn_riv": "norm.running_var",
    "bn_running_var": "norm.running_var",
    "gn_s": "norm.weight",
    "gn_b": "norm.bias",
    "w": "weight",
    "b": "bias",
}
BRANCHES = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}

# Blob without its ending to module, in the order of trying; each matches a whole name.
BACKBONE_RULES = [
    (r"(?:res_)?conv1", "stem.conv1"),
    (r"(?:pred|fc1000)", "linear"),
    (r"res(\d)_(\d+)_(branch\w+)", r"res\1.\2.\3"),
]
DETECTOR_RULES = [
    # The name ends in the last block of the stage: res4_5 in ResNet-50, res4_22 in ResNet-101.
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", r"fpn_lateral\1"),
    (r"fpn_res(\d)_\d+_sum", r"fpn_output\1"),
    (r"fpn_(6|7)", r"top_block.p\1"),
    (r"conv_rpn(?:_fpn\d)?", "proposal_generator.rpn_head.conv"),
    (r"rpn_cls_logits(?:_fpn\d)?", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn_bbox_pred(?:_fpn\d)?", "proposal_generator.rpn_head.anchor_deltas"),
    (r"retnet_cls_conv_n(\d)_fpn\d", r"head.cls_subnet.{2*\1}"),
    (r"retnet_bbox_conv_n(\d)_fpn\d", r"head.bbox_subnet.{2*\1}"),
    (r"retnet_cls_pred_fpn\d", "head.cls_score"),
    (r"retnet_bbox_pred_fpn\d", "head.bbox_pred"),
    (r"fc6", "box_head.fc1"),
    (r"fc7", "box_head.fc2"),
    (r"head_conv(\d)", r"box_head.conv\1"),
    (r"cls_score", "box_predictor.cls_score"),
    (r"bbox_pred", "box_predictor.bbox_pred"),
    (r"_\[mask\]_fcn(\d)", r"mask_head.mask_fcn\1"),
    (r"conv5_mask", "mask_head.deconv"),
    (r"mask_fcn_logits", "mask_head.predictor"),
    (r"conv_fcn(\d)", r"keypoint_head.conv_fcn\1"),
    (r"kps_score_lowres", "keypoint_head.score_lowres"),
]
# Fixed bilinear upsampling, which is no parameter here.
CONSTANT_BLOBS = {"kps_score_w", "kps_score_b"}


def convert_basic_c2_names(original_keys: Iterable[str]) -> list[str]:
    """Names of a ResNet's blobs to those used here: ``res2_0_branch2a_bn_s`` to ``res2.0.conv1.norm.weight``.

    Returns:
        One name for each key, in order. A name that no rule knows only gets its parameter's ending translated.
    """
    return [_convert(name, BACKBONE_RULES) for name in original_keys]


def _convert(name: str, rules: list[tuple[str, str]]) -> str:
    blob, parameter = _split_ending(name)
    return ".".join(filter(None, (_module_of(blob, rules), parameter)))


def _split_ending(name: str) -> tuple[str, str]:
    """``res2_0_branch2a_bn_s`` to ``("res2_0_branch2a", "norm.weight")``."""
    for ending, parameter in PARAMETER_ENDINGS.items():
        if name.endswith("_" + ending):
            return name[: -len(ending) - 1], parameter
    return name, ""


def _module_of(blob: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, blob)
        if match:
            module = match.expand(replacement)
            # Between two convolutions of a subnet stands an activation without weights.
            module = re.sub(r"\{2\*(\d)\}", lambda index: str(2 * int(index.group(1))), module)
            return ".".join(BRANCHES.get(part, part) for part in module.split("."))
    return blob


def convert_c2_detectron_names(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Blobs of a whole detector under the names used here, with the background class where it is expected here.

    Detectron's class 0 is the background. Here the scores of the background come last, and boxes and masks have none.

    Args:
        weights: blob name to tensor.

    Returns:
        New name to tensor, and new name to blob name.
    """
    converted: dict[str, Tensor] = {}
    original_names: dict[str, str] = {}
    for name in sorted(set(weights) - CONSTANT_BLOBS):
        new_name = _convert(name, DETECTOR_RULES + BACKBONE_RULES)
        # The RPN's and RetinaNet's blobs of all levels are one tensor under several names.
        if new_name not in converted:
            converted[new_name] = _reorder_classes(new_name, weights[name])
            original_names[new_name] = name
    return converted, original_names


def _reorder_classes(name: str, weight: Tensor) -> Tensor:
    module = name.rpartition(".")[0]
    if module == "box_predictor.cls_score":
        return torch.cat([weight[1:], weight[:1]])
    if module == "box_predictor.bbox_pred":
        return weight[4:]
    return weight[1:] if module == "mask_head.predictor" else weight


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, Tensor], ckpt_state_dict: Mapping[str, Tensor], c2_conversion: bool = True
) -> dict[str, Tensor]:
    """Renames a file's weights to the model's, where the name in the file is an end of the name in the model.

    ``res2.0.conv1.weight`` of the file fits ``backbone.bottom_up.res2.0.conv1.weight``. Of several that fit, the
    longest wins. Shapes are not looked at.

    Args:
        model_state_dict: of the model.
        ckpt_state_dict: of the file.
        c2_conversion: the file has names of Caffe2.

    Returns:
        The file's weights: under the model's names where they fit, under their own (converted) names otherwise.

    Raises:
        ValueError: one weight of the file fits several different weights of the model.
    """
    weights, original_names = dict(ckpt_state_dict), {name: name for name in ckpt_state_dict}
    if c2_conversion:
        weights, original_names = convert_c2_detectron_names(ckpt_state_dict)
    found = {name: _longest_known_end(name, weights) for name in model_state_dict}
    _check_unambiguous(found, model_state_dict)
    aligned = {name: weights[end] for name, end in found.items() if end is not None}
    for name, end in found.items():
        if end is not None:
            logger.debug("%s comes from %s", name, original_names[end])
    used = set(found.values())
    logger.info("%d of the file's %d weights have a name that the model knows", len(used - {None}), len(weights))
    return {**{name: value for name, value in weights.items() if name not in used}, **aligned}


def strip_prefix(weights: dict[str, Any], prefix: str) -> None:
    """Takes a prefix off all names, in place, if all have it; also off those of torch's notes beside the weights."""
    if not all(name.startswith(prefix) for name in weights):
        return
    for name in list(weights):
        weights[name.removeprefix(prefix)] = weights.pop(name)
    metadata = getattr(weights, "_metadata", None)
    if metadata is not None:
        # The notes of the wrapper itself, "", make room for those of what it wraps.
        weights._metadata = {  # type: ignore[attr-defined]
            name.removeprefix(prefix.rstrip(".")).lstrip("."): notes for name, notes in metadata.items() if name
        }


def _longest_known_end(name: str, known: Mapping[str, Any]) -> str | None:
    """The longest of ``a.b.c``, ``b.c``, ``c`` that is known."""
    parts = name.split(".")
    return next((end for i in range(len(parts)) if (end := ".".join(parts[i:])) in known), None)


def _check_unambiguous(found: Mapping[str, str | None], model: Mapping[str, Tensor]) -> None:
    owners: dict[str, str] = {}
    for name, end in found.items():
        if end is None:
            continue
        other = owners.setdefault(end, name)
        # A weight that the model itself shares between two places has two names.
        if other != name and not _share_memory(model[other], model[name]):
            raise ValueError(
                f"the checkpoint's {end!r} fits both {other!r} and {name!r} of the model; "
                "rename the checkpoint's weights to full names of the model"
            )


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.numel() > 0 and a.data_ptr() == b.data_ptr()
