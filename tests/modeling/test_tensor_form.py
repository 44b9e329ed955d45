import pytest
from torch import nn

from detlab.export import FixedSizeRCNN
from detlab.modeling import build_model
from detlab.modeling.proposal_generator import RPN
from detlab.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead, StandardROIHeads
from detlab.modeling.tensor_form import check_tensor_form
from detlab.structures.object_batch import padded
from tests.modeling.tiny import tiny_config


def forwards(kind, name):
    """A class that overrides a method with one that calls its parent's, and knows nothing of padding."""
    return type(f"My{kind.__name__}", (kind,), {name: lambda self, *a, **k: getattr(kind, name)(self, *a, **k)})


PARTS = {
    RPN: lambda model: model.proposal_generator,
    StandardROIHeads: lambda model: model.roi_heads,
    FastRCNNOutputLayers: lambda model: model.roi_heads.box_predictor,
    MaskRCNNConvUpsampleHead: lambda model: model.roi_heads.mask_head,
}


@pytest.fixture(scope="module")
def model():
    return build_model(tiny_config(masks=True, keypoints=True))


def check(model, kind, derived):
    part = PARTS[kind](model)
    part.__class__ = derived
    try:
        check_tensor_form(model)
    finally:
        part.__class__ = kind


def test_the_packages_own_models_have_one(model):
    check_tensor_form(model)
    check_tensor_form(build_model(tiny_config("ProposalNetwork")))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (RPN, "forward"),
        (RPN, "predict_proposals"),
        (StandardROIHeads, "forward"),
        (StandardROIHeads, "_forward_box"),
        (StandardROIHeads, "_forward_mask"),
        (StandardROIHeads, "_forward_keypoint"),
        (StandardROIHeads, "forward_with_given_boxes"),
        (FastRCNNOutputLayers, "inference"),
        (FastRCNNOutputLayers, "predict_boxes"),
        (FastRCNNOutputLayers, "predict_probs"),
        (MaskRCNNConvUpsampleHead, "forward"),
    ],
)
def test_a_stage_written_for_lists_is_refused_by_name(model, kind, name):
    with pytest.raises(TypeError, match=rf"My{kind.__name__}\.{name} takes lists of Instances.*padded"):
        check(model, kind, forwards(kind, name))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (RPN, "losses"),
        (RPN, "label_and_sample_anchors"),
        (StandardROIHeads, "label_and_sample_proposals"),
        (StandardROIHeads, "_sample_proposals"),
        (FastRCNNOutputLayers, "losses"),
        (FastRCNNOutputLayers, "box_reg_loss"),
        (FastRCNNOutputLayers, "get_fed_loss_classes"),
        (MaskRCNNConvUpsampleHead, "layers"),
        (FastRCNNOutputLayers, "forward"),
    ],
)
def test_what_serves_training_alone_or_knows_nothing_of_images_may_be_overridden(model, kind, name):
    check(model, kind, forwards(kind, name))


@pytest.mark.parametrize(("kind", "name"), [(RPN, "losses"), (StandardROIHeads, "label_and_sample_proposals")])
def test_what_serves_training_alone_is_refused_where_training_is_to_be_compiled(model, kind, name):
    part = PARTS[kind](model)
    part.__class__ = forwards(kind, name)
    try:
        with pytest.raises(TypeError, match=rf"My{kind.__name__}\.{name}"):
            check_tensor_form(model, in_training=True)
    finally:
        part.__class__ = kind


def test_an_override_that_is_marked_is_accepted(model):
    class Layers(FastRCNNOutputLayers):
        @padded
        def inference(self, predictions, proposals):
            return super().inference(predictions, proposals)

    check(model, FastRCNNOutputLayers, Layers)


def test_models_without_a_core_or_without_proposals_are_refused_in_words():
    with pytest.raises(TypeError, match="Linear has no tensor core"):
        FixedSizeRCNN(nn.Linear(1, 1))
    cfg = tiny_config()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    with pytest.raises(TypeError, match="needs a proposal generator"):
        FixedSizeRCNN(build_model(cfg))
