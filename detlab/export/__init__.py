"""Models in the forms that other programs run."""

from detlab.export.fixed_size import FixedSizeOutput, FixedSizeRCNN

__all__ = ["FixedSizeOutput", "FixedSizeRCNN"]
