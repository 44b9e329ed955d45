"""Batches of images of several sizes."""

import pytest
import torch

from detlab.structures.image_list import ImageList


def test_images_are_padded_at_the_right_and_the_bottom():
    images = [torch.rand(3, 5, 9), torch.rand(3, 8, 4)]
    batch = ImageList.from_tensors(images, pad_value=7.0)
    assert batch.tensor.shape == (2, 3, 8, 9)
    assert batch.image_sizes == [(5, 9), (8, 4)]
    for i, image in enumerate(images):
        assert torch.equal(batch[i], image)
        assert batch.tensor[i].sum() == pytest.approx((image.sum() + 7 * (3 * 72 - image.numel())).item(), rel=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_sizes_become_divisible(count):
    batch = ImageList.from_tensors([torch.ones(3, 33, 64)] * count, size_divisibility=32)
    assert batch.tensor.shape == (count, 3, 64, 64)
    assert batch.tensor.sum() == count * 3 * 33 * 64
    assert ImageList.from_tensors([torch.ones(1, 5, 7)], size_divisibility=1).tensor.shape == (1, 1, 5, 7)


def test_constraints_of_a_backbone_win():
    images = [torch.ones(3, 20, 30)]
    divisible = ImageList.from_tensors(images, 7, padding_constraints={"size_divisibility": 16})
    assert divisible.tensor.shape == (1, 3, 32, 32)
    square = ImageList.from_tensors(images, 32, padding_constraints={"square_size": 48, "size_divisibility": 16})
    assert square.tensor.shape == (1, 3, 48, 48)
    assert ImageList.from_tensors(images, padding_constraints={"square_size": 0}).tensor.shape == (1, 3, 20, 30)


def test_an_image_larger_than_the_square_is_refused():
    with pytest.raises(ValueError, match="20x30 does not fit the model's square_size 24"):
        ImageList.from_tensors([torch.ones(3, 20, 30)], padding_constraints={"square_size": 24})


def test_one_image_that_fits_is_not_copied():
    image = torch.rand(3, 32, 32)
    assert ImageList.from_tensors([image], 32).tensor.data_ptr() == image.data_ptr()


def test_maps_without_channels_are_batched_too():
    batch = ImageList.from_tensors([torch.ones(4, 5, dtype=torch.int64), torch.ones(6, 2, dtype=torch.int64)], 4, 255)
    assert batch.tensor.shape == (2, 8, 8)
    assert batch.tensor.dtype == torch.int64
    assert batch.tensor[1, 7, 7] == 255


def test_gradients_reach_every_image():
    images = [torch.rand(1, 2, 3, requires_grad=True), torch.rand(1, 3, 2, requires_grad=True)]
    ImageList.from_tensors(images).tensor.sum().backward()
    assert all(torch.equal(image.grad, torch.ones_like(image)) for image in images)


def test_what_is_no_batch_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        ImageList.from_tensors([])
    with pytest.raises(ValueError, match=r"got \(3, 4, 4\) and \(1, 4, 4\)"):
        ImageList.from_tensors([torch.ones(3, 4, 4), torch.ones(1, 4, 4)])


def test_to_keeps_the_sizes():
    batch = ImageList.from_tensors([torch.ones(3, 4, 5)]).to(torch.float64)
    assert batch.tensor.dtype == torch.float64
    assert batch.image_sizes == [(4, 5)]
    assert len(batch) == 1
    assert batch.device == torch.device("cpu")
