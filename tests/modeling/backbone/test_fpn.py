import pytest
import torch
from torch import nn

from detlab.layers.shape_spec import ShapeSpec
from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7


class TwoMaps(Backbone):
    """Maps of strides 4 and 8 made of the image's own pixels."""

    def __init__(self, strides=(4, 8)):
        super().__init__()
        self._out_features = ["res2", "res3"]
        self._out_feature_channels = {"res2": 3, "res3": 3}
        self._out_feature_strides = dict(zip(self._out_features, strides))

    def forward(self, x):
        return {
            n: x[:, :, :: self._out_feature_strides[n], :: self._out_feature_strides[n]] for n in self._out_features
        }


@pytest.mark.parametrize("fuse", ["sum", "avg"])
def test_pyramid_equals_the_figure_of_the_paper(fuse):
    fpn = FPN(TwoMaps(), ["res2", "res3"], 5, fuse_type=fuse)
    x = torch.randn(2, 3, 32, 40)
    maps = TwoMaps()(x)
    coarse = fpn.fpn_lateral3(maps["res3"])
    fine = fpn.fpn_lateral2(maps["res2"]) + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine = fine / 2 if fuse == "avg" else fine
    outputs = fpn(x)
    assert torch.allclose(outputs["p2"], fpn.fpn_output2(fine), atol=1e-6)
    assert torch.allclose(outputs["p3"], fpn.fpn_output3(coarse), atol=1e-6)
    assert fpn.size_divisibility == 8
    assert fpn.output_shape() == {"p2": ShapeSpec(channels=5, stride=4), "p3": ShapeSpec(channels=5, stride=8)}


def test_top_blocks_add_coarser_levels():
    pool = LastLevelMaxPool(in_feature="p3")
    outputs = FPN(TwoMaps(), ["res2", "res3"], 5, top_block=pool)(torch.randn(1, 3, 32, 32))
    assert list(outputs) == ["p2", "p3", "p4"]
    assert torch.equal(outputs["p4"], outputs["p3"][:, :, ::2, ::2])
    convs = LastLevelP6P7(3, 5, in_feature="res3")
    outputs = FPN(TwoMaps(), ["res2", "res3"], 5, top_block=convs)(torch.randn(1, 3, 32, 32))
    assert [outputs[f"p{i}"].shape[-1] for i in (2, 3, 4, 5)] == [8, 4, 2, 1]


def test_norms_take_the_place_of_biases():
    fpn = FPN(TwoMaps(), ["res2", "res3"], 32, norm="GN")
    assert fpn.fpn_output2.bias is None and isinstance(fpn.fpn_output2.norm, nn.GroupNorm)


def test_wrong_settings_are_refused_in_words():
    with pytest.raises(ValueError, match="strides double"):
        FPN(TwoMaps(strides=(4, 16)), ["res2", "res3"], 5)
    with pytest.raises(ValueError, match=r"MODEL\.FPN\.IN_FEATURES names 'res9'.* gives res2, res3"):
        FPN(TwoMaps(), ["res2", "res9"], 5)
    with pytest.raises(ValueError, match=r"MODEL\.FPN\.IN_FEATURES is empty"):
        FPN(TwoMaps(), [], 5)
    with pytest.raises(ValueError, match="'sum' or 'avg', got 'max'"):
        FPN(TwoMaps(), ["res2", "res3"], 5, fuse_type="max")
