import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from detlab.export import FixedSizeOutput, FixedSizeRCNN, export_program
from detlab.model_zoo import get_config
from detlab.modeling import build_model
from detlab.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detlab.structures.keypoints import heatmaps_to_keypoints
from tests.modeling.tiny import tiny_config


def make_model(masks):
    torch.manual_seed(0)
    return build_model(tiny_config(masks=masks)).eval()


def make_zoo_model(config):
    """An R50-FPN model of the zoo with random weights whose features stay finite."""
    torch.manual_seed(0)
    cfg = get_config(config)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    model = build_model(cfg).eval()
    for name, value in model.named_buffers():
        if name.endswith("conv3.norm.weight"):
            value.fill_(0.2)
    return model


def real_images(shared_dir, count, size=(192, 256)):
    """(N, 3, H, W) resized COCO pictures, as float BGR in [0, 255]."""
    paths = sorted((shared_dir / "datasets/coco/val2017").glob("*.jpg"))[:count]
    assert len(paths) == count, f"fewer than {count} pictures in {shared_dir}"
    pictures = [Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR) for path in paths]
    return torch.stack([torch.from_numpy(np.array(p)[:, :, ::-1].copy()).permute(2, 0, 1).float() for p in pictures])


def assert_same_detections(fixed, instances, n):
    count = int(fixed.counts[n])
    assert len(instances) == count > 0
    assert torch.allclose(instances.pred_boxes.tensor, fixed.boxes[n, :count], atol=1e-3)
    assert torch.allclose(instances.scores, fixed.scores[n, :count], atol=1e-5)
    assert torch.equal(instances.pred_classes, fixed.classes[n, :count])
    if fixed.masks is not None:
        assert torch.allclose(instances.pred_masks[:, 0], fixed.masks[n, :count], atol=1e-4)
    assert (fixed.scores[n, count:] == 0).all() and (fixed.boxes[n, count:] == 0).all()


@pytest.mark.parametrize("masks", [False, True])
def test_valid_entries_equal_the_instances_path_on_real_images(masks, shared_dir):
    model, images = make_model(masks), real_images(shared_dir, 2)
    with torch.no_grad():
        fixed = FixedSizeRCNN(model)(images)
        instances = model.inference([{"image": image} for image in images], do_postprocess=False)
    assert fixed.boxes.shape == (2, 10, 4)
    for n in range(2):
        assert_same_detections(fixed, instances[n], n)


def test_a_smaller_image_in_the_corner_is_detected_as_if_padded(shared_dir):
    model, images = make_model(masks=False), real_images(shared_dir, 2)
    small = images[1, :, :160, :200]
    with torch.no_grad():
        sizes = torch.tensor([[192.0, 256.0], [160.0, 200.0]])
        fixed = FixedSizeRCNN(model)(images, sizes)
        instances = model.inference([{"image": images[0]}, {"image": small}], do_postprocess=False)
    for n in range(2):
        assert_same_detections(fixed, instances[n], n)


def assert_same_outputs(found, wanted):
    for a, b in zip(found, wanted):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-4)
    assert (wanted.counts > 0).all()


@pytest.mark.parametrize("parts", [{}, {"masks": True}, {"keypoints": True}])
def test_one_program_serves_any_number_and_size_of_images(parts, shared_dir):
    torch.manual_seed(0)
    model = build_model(tiny_config(**parts)).eval()
    core, program = FixedSizeRCNN(model), export_program(model, real_images(shared_dir, 1)).module()
    for count, size in ((1, (192, 256)), (3, (160, 320))):
        images = real_images(shared_dir, count, size)
        image_sizes = torch.tensor([size] * count) - 10.0
        with torch.no_grad():
            assert_same_outputs(program(images, image_sizes), core(images, image_sizes))


def make_model_without_pyramid():
    """Mask R-CNN in the C4 form, whose backbone takes images of any height and width."""
    torch.manual_seed(0)
    cfg = tiny_config(masks=True)
    cfg.merge_from_list(
        [
            "MODEL.BACKBONE.NAME", "build_resnet_backbone",
            "MODEL.RESNETS.DEPTH", 50,
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
            "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
            "MODEL.RESNETS.NORM", "LN",
            "MODEL.RESNETS.OUT_FEATURES", ["res4"],
            "MODEL.RPN.IN_FEATURES", ["res4"],
            "MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32]],
            "MODEL.ROI_HEADS.NAME", "Res5ROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES", ["res4"],
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14,
        ]
    )  # fmt: skip
    return build_model(cfg).eval()


def test_a_program_without_a_pyramid_takes_any_height_and_width(shared_dir):
    model = make_model_without_pyramid()
    core, program = FixedSizeRCNN(model), export_program(model, torch.zeros(1, 3, 32, 48)).module()
    images, image_sizes = real_images(shared_dir, 2, (101, 67)), torch.tensor([[101.0, 67.0], [90.0, 50.0]])
    with torch.no_grad():
        assert_same_outputs(program(images, image_sizes), core(images, image_sizes))
    with pytest.raises(ValueError, match="multiples of 1 and at least 32, got 31x48"):
        export_program(model, torch.zeros(1, 3, 31, 48))


def test_a_program_is_traced_on_no_picture(shared_dir):
    program = export_program(make_model(masks=False), real_images(shared_dir, 1), dynamic=False)
    images, image_sizes = program.example_inputs[0]
    assert images.shape == (1, 3, 192, 256) and (images == 0).all()
    assert image_sizes.tolist() == [[192.0, 256.0]]


def test_a_program_of_fixed_shape_refuses_another(shared_dir):
    program = export_program(make_model(masks=False), torch.zeros(1, 3, 64, 96), dynamic=False).module()
    assert program(torch.zeros(1, 3, 64, 96), torch.tensor([[64.0, 96.0]])).boxes.shape == (1, 10, 4)
    with pytest.raises(AssertionError, match="Guard failed"):
        program(torch.zeros(1, 3, 96, 96), torch.tensor([[96.0, 96.0]]))


LOAD = """
import sys, torch
import detlab.export
images, image_sizes = torch.load(sys.argv[2])
torch.save(tuple(torch.export.load(sys.argv[1]).module()(images, image_sizes)), sys.argv[3])
"""


def test_a_saved_program_runs_in_a_process_that_has_no_model(shared_dir, tmp_path):
    model, images = make_model(masks=True), real_images(shared_dir, 2)
    inputs = (images, torch.tensor([[192.0, 256.0]] * 2))
    torch.export.save(export_program(model, images), tmp_path / "model.pt2")
    torch.save(inputs, tmp_path / "inputs.pt")
    paths = [str(tmp_path / name) for name in ("model.pt2", "inputs.pt", "found.pt")]
    subprocess.run([sys.executable, "-c", LOAD, *paths], check=True)
    with torch.no_grad():
        assert_same_outputs(FixedSizeOutput(*torch.load(paths[2])), FixedSizeRCNN(model)(*inputs))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(1, 3, 60, 96), "multiples of 8 and at least 16, got 60x96"),
        (torch.zeros(1, 3, 8, 96), "multiples of 8 and at least 16, got 8x96"),
        (torch.zeros(3, 64, 96), r"got torch.float32 of shape \(3, 64, 96\)"),
        (torch.zeros(1, 3, 64, 96, dtype=torch.uint8), "got torch.uint8"),
    ],
)
def test_an_example_that_the_model_cannot_take_is_refused(example, message):
    with pytest.raises(ValueError, match=message):
        export_program(make_model(masks=False), example)


@pytest.mark.parametrize("masks", [False, True])
def test_dynamo_finds_no_graph_break(masks, shared_dir):
    core, images = FixedSizeRCNN(make_model(masks)), real_images(shared_dir, 1)
    with torch.no_grad():
        explanation = torch._dynamo.explain(core)(images)
    assert explanation.graph_break_count == 0, explanation.break_reasons
    assert explanation.graph_count == 1


@pytest.mark.parametrize(
    "config", ["COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"]
)
def test_r50_fpn_of_the_zoo_exports_without_a_break_and_equals_the_instances_path(config, shared_dir):
    model, images = make_zoo_model(config), real_images(shared_dir, 1, (256, 320))
    core = FixedSizeRCNN(model)
    program = torch.export.export(core, (images,), strict=False)
    with torch.no_grad():
        exported = program.module()(images)
        instances = model.inference([{"image": images[0]}], do_postprocess=False)
        explanation = torch._dynamo.explain(core)(images)
    assert exported.boxes.shape == (1, 100, 4)
    assert_same_detections(exported, instances[0], 0)
    assert explanation.graph_break_count == 0, explanation.break_reasons


def test_a_model_without_a_tensor_core_is_refused_in_words():
    with pytest.raises(TypeError, match="SemanticSegmentor has no tensor core"):
        FixedSizeRCNN(build_model(tiny_config("SemanticSegmentor")))


def test_the_core_of_a_keypoint_model_gives_heat_maps_that_peak_where_the_keypoints_are(shared_dir):
    torch.manual_seed(0)
    model, images = build_model(tiny_config(keypoints=True)).eval(), real_images(shared_dir, 2)
    with torch.no_grad():
        fixed = FixedSizeRCNN(model)(images)
        instances = model.inference([{"image": image} for image in images], do_postprocess=False)
    for n, own in enumerate(instances):
        count = fixed.counts[n]
        points = heatmaps_to_keypoints(fixed.keypoint_heatmaps[n, :count], fixed.boxes[n, :count])
        assert len(own) == count > 0
        assert torch.allclose(own.pred_keypoints, points[:, :, [0, 1, 3]], atol=1e-3)


def test_the_core_of_a_proposal_network_gives_its_proposals(shared_dir):
    torch.manual_seed(0)
    model, images = build_model(tiny_config("ProposalNetwork")).eval(), real_images(shared_dir, 1)
    with torch.no_grad():
        fixed = FixedSizeRCNN(model)(images)
        found = model([{"image": images[0]}])[0]["proposals"]
    assert len(found) == fixed.counts[0] > 0
    assert torch.allclose(found.proposal_boxes.tensor, fixed.boxes[0, : len(found)], atol=1e-3)


class ScoresHalved(FastRCNNOutputLayers):
    """As users write it: overrides a stage, and knows of lists only."""

    def inference(self, predictions, proposals):
        found, rows = super().inference(predictions, proposals)
        for own in found:
            own.scores = own.scores / 2
        return found, rows


def test_a_part_that_overrides_a_stage_is_refused_by_name_and_works_in_the_model(shared_dir):
    model, images = make_model(masks=True), real_images(shared_dir, 1)
    with torch.no_grad():
        before = model.inference([{"image": images[0]}])[0]["instances"]
        model.roi_heads.box_predictor.__class__ = ScoresHalved
        after = model.inference([{"image": images[0]}])[0]["instances"]
    assert len(before) > 0 and torch.allclose(after.scores, before.scores / 2)
    assert torch.equal(after.pred_masks, before.pred_masks)
    with pytest.raises(TypeError, match=r"ScoresHalved\.inference takes lists of Instances"):
        FixedSizeRCNN(model)
