"""Whole models."""

from detlab.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detlab.modeling.meta_arch.rcnn import GeneralizedRCNN, ProposalNetwork
from detlab.modeling.meta_arch.semantic_seg import (
    SEM_SEG_HEADS_REGISTRY,
    SemanticSegmentor,
    SemSegFPNHead,
    build_sem_seg_head,
)

__all__ = [
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "GeneralizedRCNN",
    "ProposalNetwork",
    "SemSegFPNHead",
    "SemanticSegmentor",
    "build_model",
    "build_sem_seg_head",
]
