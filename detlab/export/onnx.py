"""Models for ONNX Runtime and others that read ONNX.

Needs the packages of the extra ``onnx``. Keypoints come as heat maps, which :func:`heatmaps_to_keypoints` reads.
Rotated boxes, deformable convolutions and ROIPool have no translation, and models with them are refused.

Shapes: N images, H x W their size.
"""

import json
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from detlab.export import onnx_operators
from detlab.export.fixed_size import FixedSizeRCNN, trace_core
from detlab.utils.optional import require

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

__all__ = ["OPSET", "export_onnx", "onnx_translations"]

# RoiAlign samples as this package does from 16 on. The exporter's translations, and so ours, are written for 18;
# another number only sends the result through a converter.
OPSET = 18


def onnx_translations() -> dict[Any, Callable]:
    """What stands for this package's operators in ONNX.

    It is what ``torch.onnx.export(FixedSizeRCNN(model), ..., dynamo=True, custom_translation_table=...)`` takes, for
    who wants other inputs or names than :func:`export_onnx` gives. ``roi_align_levels`` becomes a RoiAlign for each
    level, ``nms_fixed`` one NonMaxSuppression whose results are padded to the fixed number. Standard operators only.

    Raises:
        ImportError: if onnx or onnxscript is missing.
    """
    _require_packages()
    return {
        torch.ops.detlab.roi_align_levels.default: onnx_operators.roi_align_levels,
        torch.ops.detlab.nms_fixed.default: onnx_operators.nms_fixed,
    }


def export_onnx(
    model: nn.Module,
    example_images: Tensor,
    path: str | PathLike[str] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    input_format: str | None = None,
    dynamic: bool = True,
) -> "ONNXProgram":
    """The tensor core of a model in ONNX.

    Its inputs are ``images`` (N, 3, H, W) and ``image_sizes`` (N, 2), float32, see :class:`FixedSizeRCNN`; its outputs
    are named as the fields of :class:`FixedSizeOutput`, padded likewise. The file's metadata has what a caller needs to
    prepare images: ``input_format``, ``size_divisibility``, and ``class_names`` as a JSON list.

    Args:
        model: as for :class:`FixedSizeRCNN`.
        example_images: (N, 3, H, W); only the shape counts.
        path: the file to write; None writes none.
        class_names: of the classes, in their order.
        input_format: ``RGB`` or ``BGR``; by default what the model says.
        dynamic: the same file serves other N, H and W, see :func:`export_program`.

    Raises:
        ImportError: if onnx or onnxscript is missing.
        TypeError: as for :class:`FixedSizeRCNN`, or for a model with an operator that has no translation.
        ValueError: for an example that the model cannot take, names that are not as many as the classes, or an unknown
            input format.
    """
    _require_packages()
    metadata = _metadata(model, class_names, input_format)
    program = trace_core(_TensorsByName(model), example_images, dynamic)
    translations = onnx_translations()
    _check_operators(program, translations)
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        custom_translation_table=translations,
        input_names=["images", "image_sizes"],
        output_names=_output_names(program),
    )
    assert exported is not None
    exported.model.producer_name = "detlab"
    exported.model.metadata_props.update(metadata)
    if path is not None:
        exported.save(path)
    return exported


class _TensorsByName(FixedSizeRCNN):
    """The core with what it gives as a dict, without what the model does not have."""

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> Any:
        found = super().forward(images, image_sizes)._asdict()
        return {name: value for name, value in found.items() if value is not None}


def _output_names(program: ExportedProgram) -> list[str]:
    spec = program.call_spec.out_spec
    assert spec is not None
    return list(pytree.tree_unflatten([None] * spec.num_leaves, spec))


def _require_packages() -> None:
    for package in ("onnx", "onnxscript"):
        require(package, extra="onnx", purpose="exporting to ONNX")


def _metadata(model: Any, class_names: Sequence[str] | None, input_format: str | None) -> dict[str, str]:
    num_classes = getattr(getattr(model, "roi_heads", None), "num_classes", None)
    if class_names is not None and num_classes is not None and len(class_names) != num_classes:
        raise ValueError(f"the model has {num_classes} classes, but class_names has {len(class_names)}")
    if input_format not in (None, "RGB", "BGR"):
        raise ValueError(f"input_format is 'RGB' or 'BGR', got '{input_format}'")
    found = {
        "input_format": input_format or getattr(model, "input_format", None),
        "class_names": None if class_names is None else json.dumps(list(class_names), ensure_ascii=False),
        "size_divisibility": str(max(model.backbone.size_divisibility, 1)) if hasattr(model, "backbone") else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _check_operators(program: ExportedProgram, translations: dict[Any, Callable]) -> None:
    others = {"detlab", "torchvision"}
    used = {n.target for n in program.graph.nodes if n.users and getattr(n.target, "namespace", None) in others}
    missing = sorted(str(target) for target in used if target not in translations)
    if missing:
        raise TypeError(
            f"the model uses {', '.join(missing)}, which has no translation to ONNX; choose a part without it, or run "
            "the model by export_program"
        )
