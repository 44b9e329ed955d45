import json
import sys

import onnx
import onnxruntime
import pytest
import torch

from detlab.export import FixedSizeRCNN, export_onnx, onnx_translations
from detlab.export.onnx import OPSET
from detlab.modeling import build_model
from detlab.modeling.proposal_generator.rpn import RPN
from tests.export.test_fixed_size import make_zoo_model, real_images
from tests.modeling.tiny import tiny_config


def make_tiny_model(meta_arch="GeneralizedRCNN", **parts):
    torch.manual_seed(0)
    return build_model(tiny_config(meta_arch, **parts)).eval()


def write(model, images, path, **settings):
    """The model in a file that the checker accepts, as a session."""
    export_onnx(model, images, path, **settings)
    onnx.checker.check_model(path, full_check=True)
    return onnxruntime.InferenceSession(path)


def run(session, images, image_sizes):
    """What ONNX Runtime gives, by name."""
    names = [x.name for x in session.get_outputs()]
    found = session.run(names, {"images": images.numpy(), "image_sizes": image_sizes.numpy()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found)}


TOLERANCES = {"boxes": 1e-2, "scores": 1e-4, "masks": 1e-3, "keypoint_heatmaps": 1e-3, "logits": 1e-3}


def assert_gives_the_same(session, model, images, image_sizes=None):
    if image_sizes is None:
        image_sizes = torch.tensor([images.shape[-2:]] * len(images), dtype=torch.float32)
    with torch.no_grad():
        wanted = {k: v for k, v in FixedSizeRCNN(model)(images, image_sizes)._asdict().items() if v is not None}
    found = run(session, images, image_sizes)
    assert found.keys() == wanted.keys()
    assert (wanted["counts"] > 0).all()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=TOLERANCES.get(name, 0), msg=lambda m: name + m)  # noqa: B023


@pytest.mark.parametrize("parts", [{}, {"masks": True}, {"keypoints": True}])
def test_onnx_runtime_finds_the_same_in_real_images_of_any_number_and_size(parts, shared_dir, tmp_path):
    model = make_tiny_model(**parts)
    session = write(model, real_images(shared_dir, 1), tmp_path / "model.onnx")
    assert_gives_the_same(session, model, real_images(shared_dir, 1))
    assert_gives_the_same(session, model, real_images(shared_dir, 3, (160, 320)))
    image_sizes = torch.tensor([[192.0, 256.0], [150.0, 201.0]])
    assert_gives_the_same(session, model, real_images(shared_dir, 2), image_sizes)


def test_a_proposal_network_is_exported_with_its_proposals(shared_dir, tmp_path):
    model = make_tiny_model("ProposalNetwork")
    images = real_images(shared_dir, 2, (160, 320))
    assert_gives_the_same(write(model, images, tmp_path / "model.onnx", dynamic=False), model, images)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", ["COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"]
)
def test_r50_fpn_of_the_zoo_gives_the_same_in_onnx_runtime(config, shared_dir, tmp_path):
    model = make_zoo_model(config)
    session = write(model, real_images(shared_dir, 1, (256, 320)), tmp_path / "model.onnx")
    assert_gives_the_same(session, model, real_images(shared_dir, 1, (256, 320)))
    assert_gives_the_same(session, model, real_images(shared_dir, 2, (320, 256)))


@pytest.fixture(scope="module")
def mask_model_file(tmp_path_factory):
    """A Mask R-CNN for one size of images."""
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    model = make_tiny_model(masks=True)
    export_onnx(model, torch.zeros(1, 3, 64, 96), path, class_names=["person", "dog", "Äpfel"], dynamic=False)
    return path


def test_the_file_says_what_a_caller_needs_to_know(mask_model_file):
    session = onnxruntime.InferenceSession(mask_model_file)
    meta = session.get_modelmeta()
    assert meta.producer_name == "detlab"
    assert json.loads(meta.custom_metadata_map["class_names"]) == ["person", "dog", "Äpfel"]
    assert meta.custom_metadata_map["input_format"] == "BGR"
    assert meta.custom_metadata_map["size_divisibility"] == "8"
    assert [x.name for x in session.get_inputs()] == ["images", "image_sizes"]
    assert [x.name for x in session.get_outputs()] == ["boxes", "scores", "classes", "counts", "masks"]
    assert session.get_inputs()[0].shape == [1, 3, 64, 96]


def test_only_standard_operators_of_the_named_set_are_used(mask_model_file):
    written = onnx.load(mask_model_file)
    assert [(x.domain, x.version) for x in written.opset_import] == [("", OPSET)]
    assert len(written.functions) == 0
    used = [node.op_type for node in written.graph.node]
    assert used.count("RoiAlign") == 4 and used.count("NonMaxSuppression") == 2


def test_the_public_table_is_enough_for_the_exporter_itself(shared_dir):
    model, images = make_tiny_model(masks=True), real_images(shared_dir, 1)
    core, table = FixedSizeRCNN(model), onnx_translations()
    exported = torch.onnx.export(core, (images,), dynamo=True, verbose=False, custom_translation_table=table)
    found = onnxruntime.InferenceSession(exported.model_proto.SerializeToString()).run(None, {"images": images.numpy()})
    with torch.no_grad():
        wanted = [value for value in core(images) if value is not None]
    assert len(found) == len(wanted) == 5
    for own, value in zip(found, wanted):
        torch.testing.assert_close(torch.from_numpy(own), value, rtol=0, atol=1e-3)


def test_class_names_that_are_not_as_many_as_the_classes_are_refused():
    with pytest.raises(ValueError, match="the model has 3 classes, but class_names has 2"):
        export_onnx(make_tiny_model(), torch.zeros(1, 3, 64, 96), class_names=["a", "b"])


def test_an_unknown_input_format_is_refused():
    with pytest.raises(ValueError, match="input_format is 'RGB' or 'BGR', got 'rgb'"):
        export_onnx(make_tiny_model(), torch.zeros(1, 3, 64, 96), input_format="rgb")


class OnLists(RPN):
    def predict_proposals(self, anchors, logits, deltas, image_sizes):
        return list(super().predict_proposals(anchors, logits, deltas, image_sizes))


def test_a_part_without_a_tensor_form_is_refused_by_name():
    model = make_tiny_model()
    model.proposal_generator.__class__ = OnLists
    with pytest.raises(TypeError, match=r"OnLists\.predict_proposals takes lists of Instances"):
        export_onnx(model, torch.zeros(1, 3, 64, 96))


def test_an_operator_without_a_translation_is_refused_by_name():
    cfg = tiny_config()
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool"
    with pytest.raises(TypeError, match=r"uses torchvision\.roi_pool\.default, which has no translation to ONNX"):
        export_onnx(build_model(cfg), torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package} is needed for exporting to ONNX: pip install "detlab\[onnx\]"'):
        export_onnx(make_tiny_model(), torch.zeros(1, 3, 64, 96))
