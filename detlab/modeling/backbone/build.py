"""The registry of backbones."""

from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.backbone.backbone import Backbone
from detlab.utils.registry import Registry

__all__ = ["BACKBONE_REGISTRY", "build_backbone"]

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "Callables ``(cfg, input_shape: ShapeSpec) -> Backbone``."


def build_backbone(cfg, input_shape: ShapeSpec | None = None) -> Backbone:
    """The backbone that ``cfg.MODEL.BACKBONE.NAME`` names.

    Args:
        cfg: the configuration.
        input_shape: of the images; by default as many channels as ``MODEL.PIXEL_MEAN`` has values.

    Raises:
        TypeError: if what is registered under the name makes something else than a :class:`Backbone`.
    """
    name = cfg.MODEL.BACKBONE.NAME
    backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    if not isinstance(backbone, Backbone):
        raise TypeError(f"'{name}' made a {type(backbone).__name__}; a registered backbone must subclass Backbone")
    return backbone
