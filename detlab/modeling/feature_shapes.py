"""The feature maps that a part of a model asks for by name."""

from collections.abc import Mapping, Sequence

from detlab.layers.shape_spec import ShapeSpec

__all__ = ["select_features"]


def select_features(
    shapes: Mapping[str, ShapeSpec], names: Sequence[str], key: str, giver: str = "the backbone"
) -> dict[str, ShapeSpec]:
    """The shapes of the maps that are asked for, in the order asked for.

    Args:
        shapes: of all maps there are, by name.
        names: the maps asked for.
        key: the setting that names them, for messages: ``"MODEL.RPN.IN_FEATURES"``.
        giver: of the maps, for messages.

    Raises:
        ValueError: a map is not there, or none is asked for; says which ones there are.
    """
    there = f"gives {', '.join(shapes) or 'none'}"
    if not names:
        raise ValueError(f"{key} is empty; {giver} {there}")
    missing = [repr(name) for name in names if name not in shapes]
    if missing:
        raise ValueError(f"{key} names {', '.join(missing)}, which {giver} does not give; it {there}")
    return {name: shapes[name] for name in names}
