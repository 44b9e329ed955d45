"""The registry of proposal generators."""

from torch import nn

from detlab.layers.shape_spec import ShapeSpec
from detlab.utils.registry import Registry

__all__ = ["PROPOSAL_GENERATOR_REGISTRY", "build_proposal_generator"]

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """Modules ``(cfg, input_shape)`` called with (images, features, gt_instances).

They return the proposals, N :class:`Instances` with ``proposal_boxes`` and ``objectness_logits``, and their losses.
"""
PROPOSAL_GENERATOR_REGISTRY.expect(RRPN="region proposals of rotated boxes")


def build_proposal_generator(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """The module that ``cfg.MODEL.PROPOSAL_GENERATOR.NAME`` names; None for ``PrecomputedProposals``."""
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == "PrecomputedProposals":
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
