"""Saving and loading of models and runs."""

from fvcore.common.checkpoint import Checkpointer

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.checkpoint.periodic_checkpoint import PeriodicCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]
