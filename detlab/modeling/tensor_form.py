"""Which models can run as one function of padded tensors.

Compiled and exported models must not ask how many objects there are. The package's own stages do not; a subclass that
overrides one of them may, and is refused by name rather than replaced by its parent's stage.
"""

from collections.abc import Iterator

from torch import nn

from detlab.structures.object_batch import takes_padded

__all__ = ["check_tensor_form"]

# A tensor core only detects, so overriding these does it no harm.
_TRAINING_ONLY = frozenset({
    "_sample_proposals", "_subsample_labels", "box_reg_loss", "get_fed_loss_classes", "label_and_sample_anchors",
    "label_and_sample_proposals", "losses", "predict_boxes_for_gt_classes", "sigmoid_cross_entropy_loss",
})  # fmt: skip


def check_tensor_form(model: nn.Module, in_training: bool = False) -> None:
    """Refuse a model that is no function of padded tensors.

    Args:
        model: with the parts that it calls.
        in_training: also look at what only training calls.

    Raises:
        TypeError: a part of it does not take padded batches; says which.
    """
    stages = [("proposal_generator", "forward"), ("roi_heads", "forward")]
    found = [
        _named(getattr(model, part), method)
        for part, method in stages
        if _lacks_tensor_form(getattr(model, part, None), method)
    ]
    found += [name for part in model.modules() for name in _overrides_without_tensor_form(part, in_training)]
    if found:
        raise TypeError(
            f"{', '.join(dict.fromkeys(found))} takes lists of Instances, whose lengths a compiled or exported model "
            "cannot know; write it for an ObjectBatch and mark it with detlab.structures.object_batch.padded"
        )


def _named(part: nn.Module, method: str) -> str:
    return f"{type(part).__name__}.{method}"


def _lacks_tensor_form(part: nn.Module | None, method: str) -> bool:
    return part is not None and not takes_padded(getattr(type(part), method))


def _overrides_without_tensor_form(part: nn.Module, in_training: bool) -> Iterator[str]:
    """The methods of a class that override one which takes padded batches, and do not themselves."""
    for parent in type(part).__mro__[1:]:
        for name, method in vars(parent).items():
            if name in _TRAINING_ONLY and not in_training:
                continue
            if callable(method) and takes_padded(method) and not takes_padded(getattr(type(part), name)):
                yield _named(part, name)
