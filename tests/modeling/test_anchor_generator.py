import math

import pytest
import torch

from detlab.modeling.anchor_generator import DefaultAnchorGenerator, RotatedAnchorGenerator


def test_anchors_lie_where_a_loop_over_cells_puts_them():
    generator = DefaultAnchorGenerator(sizes=[[32, 64]], aspect_ratios=[[0.25, 1]], strides=[8], offset=0.5)
    boxes = generator([torch.zeros(2, 5, 2, 3)])[0].tensor
    expected = []
    for row in range(2):
        for column in range(3):
            cx, cy = (column + 0.5) * 8, (row + 0.5) * 8
            for size in (32, 64):
                for ratio in (0.25, 1):
                    w = size / math.sqrt(ratio)
                    h = w * ratio
                    expected.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    assert torch.allclose(boxes, torch.tensor(expected))


def test_each_level_has_its_own_sizes_and_one_list_serves_all():
    generator = DefaultAnchorGenerator(sizes=[[32], [64]], aspect_ratios=[[0.5, 1, 2]], strides=[4, 8])
    assert generator.num_anchors == generator.num_cell_anchors == [3, 3]
    small, large = generator([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)])
    assert torch.allclose(small.area(), torch.full((12,), 32.0**2))
    assert torch.allclose(large.area(), torch.full((3,), 64.0**2))


def test_rotated_anchors_carry_their_angles():
    generator = RotatedAnchorGenerator(
        sizes=[[16]], aspect_ratios=[[1]], strides=[4], angles=[[-90, 0, 90]], offset=0.0
    )
    boxes = generator([torch.zeros(1, 1, 1, 2)])[0].tensor
    assert boxes.tolist()[3:] == [[4, 0, 16, 16, -90], [4, 0, 16, 16, 0], [4, 0, 16, 16, 90]]


def test_anchors_stay_out_of_the_state_dict_and_move_with_the_module():
    generator = DefaultAnchorGenerator(sizes=[[32]], aspect_ratios=[[1]], strides=[4])
    assert not generator.state_dict()
    assert generator.double()([torch.zeros(1, 1, 1, 1)])[0].tensor.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sizes": [[1], [2], [3]], "aspect_ratios": [[1]], "strides": [4, 8]}, "3 lists for 2 feature maps"),
        ({"sizes": [[1], []], "aspect_ratios": [[1]], "strides": [4, 8]}, "hold an empty list"),
        ({"sizes": [[0, 8]], "aspect_ratios": [[1]], "strides": [4]}, r"ANCHOR_GENERATOR\.SIZES\) must be .* above 0"),
        ({"sizes": [[8]], "aspect_ratios": [[0]], "strides": [4]}, r"ASPECT_RATIOS\) must be .*got \[\[0\]\]"),
        ({"sizes": [[8]], "aspect_ratios": [-1.0], "strides": [4]}, "above 0"),
        ({"sizes": [[float("nan")]], "aspect_ratios": [[1]], "strides": [4]}, "finite"),
        ({"sizes": [], "aspect_ratios": [[1]], "strides": [4]}, "must not be empty"),
        ({"sizes": [[1]], "aspect_ratios": [[1]], "strides": [4], "offset": 1.5}, "offset"),
    ],
)
def test_wrong_settings_are_refused_in_words(arguments, words):
    with pytest.raises(ValueError, match=words):
        DefaultAnchorGenerator(**arguments)
