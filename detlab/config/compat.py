"""Upgrades of configs whose keys carry older names.

A version is a set of key names. ``ConverterV<n>`` holds what changed from version n-1 to n. It works on full configs as
well as on the few keys of one file: keys that are not there are passed over.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from fvcore.common.config import CfgNode

from detlab.config.defaults import DEFAULTS
from detlab.config.values import shown

logger = logging.getLogger(__name__)

LATEST_VERSION: int = DEFAULTS["VERSION"]
_ABSENT = object()


def _lookup(cfg: Mapping[str, Any], dotted_key: str) -> Any:
    """The value under a dotted key, or ``_ABSENT``."""
    node: Any = cfg
    for part in dotted_key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return _ABSENT
        node = node[part]
    return node


def _put(cfg: CfgNode, dotted_key: str, value: Any) -> None:
    *parents, leaf = dotted_key.split(".")
    node = cfg
    for part in parents:
        if part not in node:
            node[part] = type(cfg)()
        node = node[part]
        if not isinstance(node, Mapping):
            raise ValueError(f"{dotted_key} cannot be set: {part} is the value {shown(node)}, no section")
    node[leaf] = value


def _take(cfg: CfgNode, dotted_key: str) -> Any:
    """Removes a key, and the sections it leaves empty; gives its value or ``_ABSENT``."""
    value = _lookup(cfg, dotted_key)
    if value is _ABSENT:
        return value
    while dotted_key:
        dotted_key, _, leaf = dotted_key.rpartition(".")
        section = _lookup(cfg, dotted_key) if dotted_key else cfg
        del section[leaf]
        if section:
            break
    return value


def _move(cfg: CfgNode, source: str, target: str) -> None:
    value = _take(cfg, source)
    if value is not _ABSENT:
        _put(cfg, target, value)


class _RenameConverter:
    """Renames keys one to one; ``RENAMES`` maps old names to new ones."""

    RENAMES: ClassVar[dict[str, str]] = {}
    # Keys of the version before that became something else than one new key.
    REPLACED: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def upgrade(cls, cfg: CfgNode) -> None:
        """Brings ``cfg`` to this version, in place."""
        for old, new in cls.RENAMES.items():
            _move(cfg, old, new)

    @classmethod
    def downgrade(cls, cfg: CfgNode) -> None:
        """Brings ``cfg`` to the version before, in place."""
        for old, new in cls.RENAMES.items():
            _move(cfg, new, old)


class ConverterV1(_RenameConverter):
    """From version 0: the RPN's head is named in the RPN's own section."""

    RENAMES = {"MODEL.RPN_HEAD.NAME": "MODEL.RPN.HEAD_NAME"}


class ConverterV2(_RenameConverter):
    """From version 1: thresholds say where they apply, switches sit in sections, anchors have their own section."""

    RENAMES = {
        "MODEL.WEIGHT": "MODEL.WEIGHTS",
        "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD": (
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
        ),
        "MODEL.PANOPTIC_FPN.COMBINE_ON": "MODEL.PANOPTIC_FPN.COMBINE.ENABLED",
        "MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD": "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        "MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT": "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE": "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE": "MODEL.RPN.LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        "MODEL.RETINANET.INFERENCE_NMS_THRESHOLD": "MODEL.RETINANET.NMS_THRESH_TEST",
        "MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD": "MODEL.RETINANET.SCORE_THRESH_TEST",
        "MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
        "MODEL.ROI_HEADS.NMS": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
        "MODEL.ROI_HEADS.SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "TEST.AUG_FLIP": "TEST.AUG.FLIP",
        "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
        "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
        "TEST.AUG_ON": "TEST.AUG.ENABLED",
        "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
    }
    # Version 1 kept two sets of anchors, of which the meta-architecture used one.
    ANCHOR_KEYS = ("SIZES", "ASPECT_RATIOS")
    REPLACED = (
        "MODEL.RPN.ANCHOR_SIZES",
        "MODEL.RPN.ANCHOR_ASPECT_RATIOS",
        "MODEL.RETINANET.ANCHOR_SIZES",
        "MODEL.RETINANET.ANCHOR_ASPECT_RATIOS",
        "MODEL.RETINANET.ANCHOR_STRIDES",
    )

    @classmethod
    def upgrade(cls, cfg: CfgNode) -> None:
        """Brings ``cfg`` from version 1 to 2, in place."""
        super().upgrade(cfg)
        used, unused = cls._anchor_sections(cfg)
        for key in cls.ANCHOR_KEYS:
            _move(cfg, f"{used}.ANCHOR_{key}", f"MODEL.ANCHOR_GENERATOR.{key}")
            _take(cfg, f"{unused}.ANCHOR_{key}")
        _take(cfg, "MODEL.RETINANET.ANCHOR_STRIDES")

    @classmethod
    def downgrade(cls, cfg: CfgNode) -> None:
        """Brings ``cfg`` from version 2 to 1, in place."""
        super().downgrade(cfg)
        for key in cls.ANCHOR_KEYS:
            value = _take(cfg, f"MODEL.ANCHOR_GENERATOR.{key}")
            if value is not _ABSENT:
                for section in ("MODEL.RPN", "MODEL.RETINANET"):
                    _put(cfg, f"{section}.ANCHOR_{key}", copy.deepcopy(value))
        if _lookup(cfg, "MODEL.RETINANET") is not _ABSENT:
            _put(cfg, "MODEL.RETINANET.ANCHOR_STRIDES", [])

    @classmethod
    def _anchor_sections(cls, cfg: CfgNode) -> tuple[str, str]:
        """The section whose anchors count, and the other one.

        A file need not say its meta-architecture; then the only anchors it gives are those it means.
        """
        architecture = _lookup(cfg, "MODEL.META_ARCHITECTURE")
        is_dense = architecture == "RetinaNet"
        if architecture is _ABSENT:
            is_dense = all(_lookup(cfg, f"MODEL.RPN.ANCHOR_{key}") is _ABSENT for key in cls.ANCHOR_KEYS)
        sections = ("MODEL.RETINANET", "MODEL.RPN")
        return sections if is_dense else sections[::-1]


_CONVERTERS: tuple[type[_RenameConverter], ...] = (ConverterV1, ConverterV2)


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """A copy of ``cfg`` with the key names of ``to_version`` (default: the latest).

    Raises:
        ValueError: if ``cfg.VERSION`` is not between 0 and ``to_version``.
    """
    target = LATEST_VERSION if to_version is None else to_version
    if not 0 <= cfg.VERSION <= target <= LATEST_VERSION:
        raise ValueError(
            f"cannot upgrade a config of version {cfg.VERSION} to version {target}; known are 0 to {LATEST_VERSION}"
        )
    return _convert(cfg, target)


def downgrade_config(cfg: CfgNode, to_version: int) -> CfgNode:
    """A copy of ``cfg`` with the key names of the older ``to_version``.

    A key that an older version did not have keeps its name. Anchors go to both sections that held them.

    Raises:
        ValueError: if ``to_version`` is not between 0 and ``cfg.VERSION``.
    """
    if not 0 <= to_version <= cfg.VERSION <= LATEST_VERSION:
        raise ValueError(
            f"cannot downgrade a config of version {cfg.VERSION} to version {to_version}; "
            f"known are 0 to {LATEST_VERSION}"
        )
    return _convert(cfg, to_version)


def _convert(cfg: CfgNode, target: int) -> CfgNode:
    result = cfg.clone()
    was_frozen = result.is_frozen()
    result.defrost()
    for converter in _CONVERTERS[result.VERSION : target]:
        converter.upgrade(result)
    for converter in reversed(_CONVERTERS[target : result.VERSION]):
        converter.downgrade(result)
    result.VERSION = target
    if was_frozen:
        result.freeze()
    return result


def guess_version(cfg: CfgNode, filename: str) -> int:
    """The version of a config that does not say so: the newest of which it holds no outdated key.

    Args:
        cfg: the keys of one file, without its ``VERSION``.
        filename: for the message that tells which key decided.
    """
    for number, converter in enumerate(_CONVERTERS):
        outdated = [old for old in (*converter.RENAMES, *converter.REPLACED) if _lookup(cfg, old) is not _ABSENT]
        if outdated:
            logger.warning("%s has no VERSION; its key %s is one of version %d.", filename, outdated[0], number)
            return number
    return LATEST_VERSION
