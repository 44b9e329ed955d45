"""Keypoints and their heat maps."""

import math

import pytest
import torch
import torch.nn.functional as F

from detlab.structures import keypoints as keypoints_module
from detlab.structures.keypoints import Keypoints, heatmaps_to_keypoints


def test_holds_float32_of_one_shape():
    assert Keypoints([[[1, 2, 2], [3, 4, 0]]]).tensor.dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(N, K, 3\): x, y, visibility; got \(2, 3\)"):
        Keypoints(torch.zeros(2, 3))


def test_index_cat_and_iteration():
    keypoints = Keypoints(torch.rand(4, 5, 3))
    assert keypoints[1].tensor.shape == (1, 5, 3)
    assert len(keypoints[torch.tensor([True, False, True, False])]) == 2
    assert torch.equal(Keypoints.cat([keypoints[:1], keypoints[1:]]).tensor, keypoints.tensor)
    assert [tuple(k.shape) for k in keypoints] == [(5, 3)] * 4
    assert "num_instances=4" in repr(keypoints)
    assert keypoints.to("cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match="at least one"):
        Keypoints.cat([])


class TestEncoding:
    def encode(self, *points, box=(10.0, 20.0, 30.0, 60.0), size=4):
        cell, valid = Keypoints([list(points)]).to_heatmap(torch.tensor([box]), size)
        return [c if v else None for c, v in zip(cell[0].tolist(), valid[0].tolist())]

    def test_a_point_falls_into_the_cell_that_covers_it(self):
        assert self.encode([10, 20, 2], [14.9, 29.9, 2], [15, 30, 1], [29.9, 59.9, 1]) == [0, 0, 5, 15]

    def test_the_far_border_belongs_to_the_last_cell(self):
        assert self.encode([30, 20, 2], [10, 60, 2], [30, 60, 2]) == [3, 12, 15]

    def test_points_outside_or_not_labelled_are_not_valid(self):
        assert self.encode([9.9, 20, 2], [15, 60.1, 2], [15, 30, 0]) == [None, None, None]

    def test_a_region_of_no_size_has_no_valid_point(self):
        assert self.encode([12, 25, 2], [10, 20, 2], box=(10.0, 20.0, 10.0, 40.0))[0] is None

    def test_no_objects_give_no_cells(self):
        cell, valid = Keypoints(torch.zeros(0, 17, 3)).to_heatmap(torch.zeros(0, 4), 56)
        assert cell.shape == valid.shape == (0, 17)
        assert cell.dtype == torch.int64

    def test_each_object_needs_its_box(self):
        with pytest.raises(ValueError, match="1 objects with keypoints but 2 boxes"):
            Keypoints(torch.zeros(1, 3, 3)).to_heatmap(torch.zeros(2, 4), 56)


def plain_decode(maps, rois):
    """One region after the other, with torch's own bicubic resize."""
    found = []
    for region_maps, (x1, y1, x2, y2) in zip(maps, rois.tolist()):
        width, height = max(x2 - x1, 1), max(y2 - y1, 1)
        columns, rows = math.ceil(width), math.ceil(height)
        for enlarged, small in zip(F.interpolate(region_maps[None], (rows, columns), mode="bicubic")[0], region_maps):
            logit, place = enlarged.flatten().max(0)
            x = (place % columns + 0.5) * width / columns + x1
            y = (place // columns + 0.5) * height / rows + y1
            found.append(torch.stack([x, y, logit, 1 / (small - logit).exp().sum()]))
    return torch.stack(found).view(*maps.shape[:2], 4)


class TestDecoding:
    @pytest.mark.parametrize("max_values", [1, 3000, 1 << 25])
    def test_equals_resizing_one_by_one(self, monkeypatch, max_values):
        monkeypatch.setattr(keypoints_module, "_ENLARGED_VALUES_ON_CPU", max_values)
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(12, 3, 14, 14, generator=generator)
        low = torch.rand(12, 2, generator=generator) * 50
        rois = torch.cat([low, low + torch.rand(12, 2, generator=generator) * torch.tensor([60.0, 90.0])], dim=1)
        rois[0, 2:] = rois[0, :2]
        rois[1, 2:] = rois[1, :2] + 14
        torch.testing.assert_close(heatmaps_to_keypoints(maps, rois), plain_decode(maps, rois), atol=1e-3, rtol=1e-4)

    def test_a_peak_is_found_where_it_was_put(self):
        points = Keypoints([[[13.0, 31.0, 2], [27.0, 55.0, 2]]])
        rois = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
        cell, _ = points.to_heatmap(rois, 20)
        maps = F.one_hot(cell, 400).view(1, 2, 20, 20).float() * 10
        decoded = heatmaps_to_keypoints(maps, rois)
        assert (decoded[..., :2] - points.tensor[..., :2]).abs().max() <= 2
        assert decoded.shape == (1, 2, 4)

    def test_score_is_a_probability_over_the_cells(self):
        maps = torch.zeros(1, 1, 8, 8)
        decoded = heatmaps_to_keypoints(maps, torch.tensor([[0.0, 0.0, 30.0, 20.0]]))
        torch.testing.assert_close(decoded[0, 0, 3], torch.tensor(1 / 64))

    def test_no_regions_give_no_points(self):
        assert heatmaps_to_keypoints(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4)).shape == (0, 17, 4)

    def test_half_precision_maps_are_decoded(self):
        maps = torch.randn(2, 3, 8, 8).bfloat16()
        rois = torch.tensor([[0.0, 0, 20, 10], [5.0, 5, 9, 30]])
        torch.testing.assert_close(heatmaps_to_keypoints(maps, rois), heatmaps_to_keypoints(maps.float(), rois))
