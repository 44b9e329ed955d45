"""Detection in one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.config.config import CfgNode
from detlab.config.constraints import check_config
from detlab.data.catalog import MetadataCatalog
from detlab.data.transforms.augmentation_impl import ResizeShortestEdge
from detlab.modeling.meta_arch.build import build_model

__all__ = ["DefaultPredictor"]


class DefaultPredictor:
    """Detection in one image at a time, as a config describes it, with ``MODEL.WEIGHTS`` loaded.

    For many images, or for speed, call the model with batches instead.

    Args:
        cfg: kept as a frozen copy.

    Attributes:
        metadata: of the first data set of ``DATASETS.TEST``, for drawing; only there if that is not empty.

    Example::

        predictor = DefaultPredictor(cfg)
        outputs = predictor(cv2.imread("image.jpg"))
    """

    def __init__(self, cfg: CfgNode) -> None:
        check_config(cfg, training=False)
        self.cfg = cfg.clone()
        self.cfg.freeze()
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"DefaultPredictor handles INPUT.FORMAT 'RGB' and 'BGR', got {cfg.INPUT.FORMAT!r}")
        self.input_format = cfg.INPUT.FORMAT
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self.aug = ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Detect.

        Args:
            original_image: (H, W, 3) array of BGR pixels, as ``cv2.imread`` gives them.

        Returns:
            The model's outputs for this image, such as ``{"instances": Instances}``, in the image's coordinates.

        Raises:
            TypeError: no array was given.
            ValueError: an array of another shape.
        """
        if not isinstance(original_image, np.ndarray):
            raise TypeError(
                f"DefaultPredictor needs an (H, W, 3) numpy array, got {type(original_image).__name__}"
                + (" (cv2.imread gives None for a file that it cannot read)" if original_image is None else "")
            )
        if original_image.ndim != 3 or original_image.shape[2] != 3 or 0 in original_image.shape:
            raise ValueError(f"DefaultPredictor needs an (H, W, 3) BGR image, got shape {original_image.shape}")
        height, width = original_image.shape[:2]
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        resized = self.aug.get_transform(image).apply_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
        with torch.no_grad():
            return self.model([{"image": pixels, "height": height, "width": width}])[0]
