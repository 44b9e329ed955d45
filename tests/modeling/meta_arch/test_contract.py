"""Every registered model trains and predicts on a tiny batch, one of whose images has no objects."""

import pytest
import torch

from detlab.modeling import META_ARCH_REGISTRY, build_model
from detlab.utils.events import EventStorage
from tests.modeling.tiny import tiny_batch, tiny_config

VARIANTS = [
    ("GeneralizedRCNN", {}),
    ("GeneralizedRCNN", {"masks": True, "keypoints": True}),
    ("ProposalNetwork", {}),
    ("SemanticSegmentor", {}),
]


def test_every_registered_model_is_in_this_file():
    assert {name for name, _ in META_ARCH_REGISTRY} == {name for name, _ in VARIANTS}


@pytest.mark.parametrize(("name", "parts"), VARIANTS)
def test_training_gives_finite_losses_and_gradients_everywhere(name, parts):
    torch.manual_seed(0)
    model = build_model(tiny_config(name, **parts)).train()
    with EventStorage(0):
        losses = model(tiny_batch())
    assert losses and all(value.isfinite() and value.requires_grad for value in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("name", "parts"), VARIANTS)
def test_training_needs_no_open_event_storage_and_no_objects_at_all(name, parts):
    model = build_model(tiny_config(name, **parts)).train()
    losses = model(tiny_batch(num_objects=(0, 0)))
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize(("name", "parts"), VARIANTS)
def test_results_have_the_size_asked_for(name, parts):
    model = build_model(tiny_config(name, **parts)).eval()
    batch = tiny_batch()
    with torch.no_grad():
        results = model(batch)
    assert len(results) == 2
    for item, result in zip(batch, results):
        size = (item["height"], item["width"])
        if "sem_seg" in result:
            assert result["sem_seg"].shape[1:] == size
            continue
        found = result.get("instances", result.get("proposals"))
        assert found.image_size == size
        if name == "GeneralizedRCNN":
            assert len(found) > 0 and (found.scores.diff() <= 0).all()
        if parts:
            assert found.pred_masks.shape == (len(found), *size) and found.pred_masks.dtype == torch.bool
            assert found.pred_keypoints.shape == (len(found), 5, 3)


def test_masks_can_be_asked_for_given_boxes():
    model = build_model(tiny_config(masks=True)).eval()
    batch = tiny_batch()
    with torch.no_grad():
        found = model.inference(batch, do_postprocess=False)
        given = [x[:3] for x in found]
        for own in given:
            own.remove("pred_masks")
        again = model.inference(batch, detected_instances=given, do_postprocess=False)
    for own, first in zip(again, found):
        assert torch.allclose(own.pred_masks, first.pred_masks[:3], atol=1e-5)


def test_training_without_ground_truth_is_refused_in_words():
    model = build_model(tiny_config()).train()
    batch = [{"image": item["image"]} for item in tiny_batch()]
    with pytest.raises(ValueError, match="no 'instances'"):
        model(batch)


def test_a_gpu_that_is_not_there_is_named_with_the_cure():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    cfg = tiny_config()
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(ValueError, match=r"set MODEL\.DEVICE cpu"):
        build_model(cfg)


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(KeyError, match="GeneralizedRCNN"):
        build_model(tiny_config("GeneralisedRCNN"))


def test_training_images_and_masks_are_shown_when_asked_for():
    cfg = tiny_config(masks=True)
    cfg.VIS_PERIOD = 1
    model = build_model(cfg).train()
    with EventStorage(0) as storage:
        model(tiny_batch())
        shown = {name: image for name, image, _ in storage._vis_data}
    assert len(shown) == 2
    boxes = next(image for name, image in shown.items() if "proposals" in name)
    assert boxes.shape == (3, 64, 2 * 96) and boxes.float().std() > 0


def test_a_device_that_is_none_is_refused_by_the_name_of_its_key():
    cfg = tiny_config()
    cfg.MODEL.DEVICE = "gpu"
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is 'gpu'; it is 'cuda'"):
        build_model(cfg)
