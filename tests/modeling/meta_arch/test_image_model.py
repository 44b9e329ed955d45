import pytest
import torch

from detlab.modeling import build_model
from detlab.modeling.meta_arch.image_model import ground_truth_of
from tests.modeling.tiny import tiny_batch, tiny_config


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_padding_begins_where_the_image_ends_in_every_precision(dtype):
    """Half precision knows no 2051: between 2048 and 4096 it has even numbers only."""
    model = build_model(tiny_config()).to(dtype)
    images = [torch.full((3, 4, width), 255, dtype=torch.uint8) for width in (2051, 2061)]
    prepared = model.preprocess_image([{"image": image} for image in images])
    assert prepared.tensor.dtype == dtype and prepared.image_sizes == [(4, 2051), (4, 2061)]
    for own, width in zip(prepared.tensor, (2051, 2061)):
        assert (own[:, :4, :width] != 0).all()
        assert (own[:, :, width:] == 0).all() and (own[:, 4:] == 0).all()


def test_images_are_normalised_alike_whether_they_have_padding_or_not():
    model = build_model(tiny_config())
    image = tiny_batch(((64, 96),), (1,))[0]["image"]
    alone = model.preprocess_image([{"image": image}])
    beside = model.preprocess_image([{"image": image}, {"image": image[:, :32, :32]}])
    assert torch.equal(alone.tensor[0], beside.tensor[0])
    assert torch.equal(beside.tensor[1, :, :32, :32], alone.tensor[0, :, :32, :32])


def test_ground_truth_is_one_batch_or_none():
    inputs = tiny_batch()
    targets = ground_truth_of(inputs, torch.device("cpu"))
    assert targets.counts == [2, 0]
    assert torch.equal(targets[0].gt_boxes.tensor, inputs[0]["instances"].gt_boxes.tensor)
    assert ground_truth_of([{"image": None}], torch.device("cpu")) is None
