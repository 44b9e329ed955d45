"""A model as one function from tensors to tensors of sizes known beforehand.

Shapes: N images, H x W their size.

The stages are the model's own; only the shell of ``Instances`` is missing. So ``torch.export`` and ``torch.compile``
follow it without a break, and a CUDA graph can hold it.

A program is made, kept and used so; whoever loads it needs this package for its operators, but neither the config nor
the model's own code::

    from detlab.export import export_program

    program = export_program(model, images)  # (N, 3, H, W); other N, H and W may come later
    torch.export.save(program, "model.pt2")

    import detlab.export  # registers the operators, and the class of what the program gives
    found = torch.export.load("model.pt2").module()(images, image_sizes)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from detlab.modeling.meta_arch.rcnn import FixedSizeOutput, FixedSizeProposals
from detlab.modeling.tensor_form import check_tensor_form

__all__ = ["FixedSizeOutput", "FixedSizeRCNN", "export_program", "trace_core"]

# A saved program names the class of what it gives; only a class known by a name can be.
for _kind in (FixedSizeOutput, FixedSizeProposals):
    pytree._register_namedtuple(_kind, serialized_type_name=f"detlab.{_kind.__name__}")


class FixedSizeRCNN(nn.Module):
    """The tensor core of a model, in inference.

    Args:
        model: with a method ``tensor_core``, such as a :class:`GeneralizedRCNN`; its weights are shared, and it is put
            into evaluation mode.

    Raises:
        TypeError: for a model without a tensor core, or with a part that overrides a stage without having one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not hasattr(model, "tensor_core"):
            raise TypeError(f"{type(model).__name__} has no tensor core: a method tensor_core(images, image_sizes)")
        if getattr(model, "proposal_generator", model) is None:
            raise TypeError(
                f"{type(model).__name__} takes its proposals from its inputs; it needs a proposal generator"
            )
        check_tensor_form(model)
        self.model: Any = model
        self.eval()

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> NamedTuple:
        """Detect.

        Args:
            images: (N, 3, H, W) in the channel order and range that the model was trained on, H and W multiples of the
                backbone's ``size_divisibility``; smaller images lie in the upper left corner.
            image_sizes: (N, 2), height and width of the part that is the image; None if that is all of it.

        Returns:
            What the model's ``tensor_core`` gives: a :class:`FixedSizeOutput` for a :class:`GeneralizedRCNN`.
        """
        sizes = _full_sizes(images) if image_sizes is None else image_sizes
        return self.model.tensor_core(images, sizes)


def export_program(model: nn.Module, images: Tensor, *, dynamic: bool = True) -> ExportedProgram:
    """The tensor core of a model as a program of ``torch.export``; see the head of this file for its use.

    Args:
        model: as for :class:`FixedSizeRCNN`.
        images: (N, 3, H, W), an example: only its shape counts.
        dynamic: the program takes any N, and any H and W that are multiples of the backbone's ``size_divisibility`` and
            at least twice that, or without one twice its stride. Otherwise it takes images of the example's shape.

    Returns:
        A program of two inputs, ``images`` and ``image_sizes`` (N, 2) float32.

    Raises:
        TypeError: as for :class:`FixedSizeRCNN`.
        ValueError: for an example that the model cannot take.
    """
    return trace_core(FixedSizeRCNN(model), images, dynamic)


def trace_core(core: FixedSizeRCNN, images: Tensor, dynamic: bool) -> ExportedProgram:
    """:func:`export_program` of a core that there is."""
    backbone = core.model.backbone
    step = max(backbone.size_divisibility, 1)
    # With fewer than two cells a map of features would be taken for one that never changes.
    least = 2 * (step if step > 1 else max(shape.stride for shape in backbone.output_shape().values()))
    _check_example(images, least if dynamic else step, step)
    # A size of 1 would be taken for one that never changes. A program keeps its example, so that is nobody's picture.
    num_examples = max(images.shape[0], 2) if dynamic else images.shape[0]
    images = torch.zeros((num_examples, *images.shape[1:]), device=next(core.parameters(), images).device)
    shapes: dict[str, Any] | None = None
    if dynamic:
        num_images, height, width = Dim("num_images"), Dim("height", min=least // step), Dim("width", min=least // step)
        shapes = {"images": {0: num_images, 2: step * height, 3: step * width}, "image_sizes": {0: num_images}}
    with torch.no_grad():
        return torch.export.export(core, (images, _full_sizes(images)), dynamic_shapes=shapes, strict=False)


def _check_example(images: Tensor, least: int, step: int) -> None:
    if images.dim() != 4 or not images.is_floating_point() or images.shape[0] == 0:
        raise ValueError(
            f"the example is a batch of images, (N, 3, H, W) floating-point numbers; got {images.dtype} "
            f"of shape {tuple(images.shape)}"
        )
    if any(side < least or side % step for side in images.shape[2:]):
        raise ValueError(
            f"the example's height and width must be multiples of {step} and at least {least}, "
            f"got {images.shape[2]}x{images.shape[3]}; pad it to the right and below"
        )


def _full_sizes(images: Tensor) -> Tensor:
    """(N, 2): every image fills the batch's height and width."""
    num_images, _, height, width = images.shape
    sides = [torch.full((num_images,), side, dtype=torch.float32, device=images.device) for side in (height, width)]
    return torch.stack(sides, dim=1)
