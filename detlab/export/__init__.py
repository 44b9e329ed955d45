"""Models in the forms that other programs run."""

from detlab.export.fixed_size import FixedSizeOutput, FixedSizeRCNN, export_program
from detlab.export.onnx import export_onnx, onnx_translations

__all__ = ["FixedSizeOutput", "FixedSizeRCNN", "export_onnx", "export_program", "onnx_translations"]
