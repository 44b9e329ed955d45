"""The predictor."""

import numpy as np
import pytest
import torch

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.engine.predictor import DefaultPredictor
from detlab.modeling.meta_arch.build import build_model
from tests.modeling.tiny import tiny_config


@pytest.fixture(scope="module")
def predictor_cfg(tmp_path_factory):
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST = 48
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(cfg), str(tmp_path_factory.mktemp("weights"))).save("tiny")
    cfg.MODEL.WEIGHTS = str(next(tmp_path_factory.getbasetemp().glob("weights*/tiny.pth")))
    return cfg


def test_the_predictor_answers_in_the_coordinates_of_the_image(predictor_cfg):
    image = np.random.RandomState(0).randint(0, 255, (60, 90, 3), dtype=np.uint8)
    instances = DefaultPredictor(predictor_cfg)(image)["instances"]
    assert instances.image_size == (60, 90)
    assert len(instances) > 0
    assert not predictor_cfg.is_frozen()


def test_the_predictor_turns_the_channels_for_an_rgb_model(predictor_cfg):
    image = np.random.RandomState(0).randint(0, 255, (60, 90, 3), dtype=np.uint8)
    rgb = predictor_cfg.clone()
    rgb.INPUT.FORMAT = "RGB"
    from_bgr, from_rgb = DefaultPredictor(predictor_cfg)(image), DefaultPredictor(rgb)(image[:, :, ::-1])
    assert torch.equal(from_bgr["instances"].scores, from_rgb["instances"].scores)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (None, TypeError, "cv2.imread"),
        (np.zeros((4, 4), np.uint8), ValueError, r"\(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"\(0, 4, 3\)"),
    ],
)
def test_the_predictor_refuses_what_is_no_image(predictor_cfg, image, error, message):
    with pytest.raises(error, match=message):
        DefaultPredictor(predictor_cfg)(image)


def test_the_predictor_refuses_other_formats(predictor_cfg):
    cfg = predictor_cfg.clone()
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match="'L'"):
        DefaultPredictor(cfg)
