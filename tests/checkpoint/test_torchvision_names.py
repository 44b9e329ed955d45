"""torchvision's ResNets load under the names used here, and give the same features."""

import pytest
import torch

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.checkpoint.torchvision_names import are_torchvision_resnet_names, convert_torchvision_resnet_names


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer3.22.bn3.bias", "res4.22.conv3.norm.bias"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.weight"),
        ("layer4.0.downsample.1.running_mean", "res5.0.shortcut.norm.running_mean"),
        ("fc.bias", "linear.bias"),
        ("something.else", "something.else"),
    ],
)
def test_names(theirs, ours):
    assert list(convert_torchvision_resnet_names({theirs: 0})) == [ours]


def test_only_a_resnet_is_taken_for_one():
    assert not are_torchvision_resnet_names(["conv1.weight", "bn1.running_mean"])


@pytest.mark.parametrize("depth", [18, 50])
def test_features_equal_torchvisions(tmp_path, depth):
    import torchvision

    from detlab.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet

    torch.manual_seed(0)
    theirs = torchvision.models.get_model(f"resnet{depth}", weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    arguments = {"stride_in_1x1": False} if depth == 50 else {}
    stages = ResNet.make_default_stages(
        depth, BasicBlock if depth == 18 else BottleneckBlock, norm="FrozenBN", **arguments
    )
    ours = ResNet(BasicStem(norm="FrozenBN"), stages, num_classes=1000).eval()
    DetectionCheckpointer(ours).load(str(tmp_path / "resnet.pth"))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(image)["linear"], theirs(image), atol=1e-4)
