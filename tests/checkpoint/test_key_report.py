"""Weights without a place are listed by module."""

from detlab.checkpoint.key_report import ShapeMismatch, describe_mismatches, describe_names


def test_names_are_grouped_by_module():
    text = describe_names(["b.weight", "a.x.bias", "a.x.weight", "scale"])
    assert text.splitlines() == ["  scale", "  a.x.{bias, weight}", "  b.weight"]


def test_mismatches_show_both_shapes():
    text = describe_mismatches([ShapeMismatch("head.weight", (81, 4), (3, 4)), ShapeMismatch("a", (1,), ())])
    assert text.splitlines() == [
        "  a: (1,) in the file, () in the model",
        "  head.weight: (81, 4) in the file, (3, 4) in the model",
    ]
