"""Models in two stages: propose boxes, then look at each (Faster and Mask R-CNN), and the first stage alone.

An input is a dict with ``image`` (C, H, W); in training also ``instances`` with ground truth; ``height`` and ``width``
are the size wanted of the result, by default the image's; ``proposals`` serve where no generator makes them.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detlab.config.config import configurable
from detlab.modeling.backbone.backbone import Backbone
from detlab.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlab.modeling.meta_arch.image_model import ImageModel, ground_truth_of, image_model_settings
from detlab.modeling.postprocessing import postprocess_each
from detlab.modeling.proposal_generator.build import build_proposal_generator
from detlab.modeling.roi_heads.roi_heads import build_roi_heads
from detlab.modeling.suppression import sizes_tensor
from detlab.modeling.tensor_form import check_tensor_form
from detlab.structures.image_list import ImageList
from detlab.structures.instances import Instances
from detlab.structures.object_batch import ObjectBatch, as_list, batch_on_device, notes_of, takes_padded, with_notes
from detlab.utils.events import get_event_storage, has_event_storage, log_scalars
from detlab.utils.image import convert_image_to_rgb

__all__ = ["FixedSizeOutput", "FixedSizeProposals", "GeneralizedRCNN", "ProposalNetwork", "TrainingStep"]


class TrainingStep(NamedTuple):
    """What a training forward gives."""

    losses: dict[str, Tensor]
    proposals: Sequence[Instances]
    measured: dict[str, Any]  # statistics by name, 0-dim tensors or numbers
    pictures: dict[str, Tensor] | None  # (C, H, W) by name, None if not asked for


class FixedSizeProposals(NamedTuple):
    """P boxes for each image, best first; those from ``counts`` on are padding, with zeros."""

    boxes: Tensor  # (N, P, 4) xyxy in pixels of the input
    logits: Tensor  # (N, P)
    counts: Tensor  # (N,) int64


class FixedSizeOutput(NamedTuple):
    """D entries for each image, best first; those from ``counts`` on are padding, with zeros."""

    boxes: Tensor  # (N, D, 4) xyxy in pixels of the input
    scores: Tensor  # (N, D)
    classes: Tensor  # (N, D) int64
    counts: Tensor  # (N,) int64
    masks: Tensor | None  # (N, D, M, M) probabilities inside each box; None for a model without masks
    keypoint_heatmaps: Tensor | None  # (N, D, J, S, S) logits, see heatmaps_to_keypoints; None without keypoints


def _losses_and_measures(model, images, targets, given) -> tuple[dict[str, Tensor], dict[str, Any]]:
    step = model.compute_losses(images, targets, given)
    return step.losses, step.measured


@cache
def _compiled_losses() -> Callable[..., tuple[dict[str, Tensor], dict[str, Any]]]:
    """The losses and statistics of a model as one graph, compiled for each model and each kind of input.

    It belongs to no model, so that a copy of a model does not train the first one.
    """
    return torch.compile(_losses_and_measures, fullgraph=True)


def _of_tensors_alone(images: ImageList, *batches: ObjectBatch | None) -> list[Any]:
    """The same with no number on the host that a graph would be specialised for."""
    sizes = sizes_tensor(images.image_sizes, images.tensor)
    return [ImageList(images.tensor, sizes), *[None if b is None else b.of_tensors_alone(sizes) for b in batches]]


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(ImageModel):
    """Backbone, proposal generator and ROI heads.

    Args:
        backbone: from images to feature maps.
        proposal_generator: None if the inputs bring ``proposals``.
        roi_heads: see :class:`ROIHeads`.
        pixel_mean: of each channel.
        pixel_std: of each channel.
        input_format: ``RGB`` or ``BGR``, the channel order of the inputs; needed to show them.
        vis_period: show training images every so many iterations; 0 never.
        compile_training: compile the training forward with ``torch.compile``; every new image size costs a compilation
            until sizes are taken as dynamic.

    Raises:
        TypeError: if the training forward is to be compiled and a part cannot be, see :func:`check_tensor_form`.
        ValueError: if the means and deviations do not fit, or images are to be shown without ``input_format``.
    """

    roi_heads: Any  # what the registry gives

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: tuple[float],
        pixel_std: tuple[float],
        input_format: str | None = None,
        vis_period: int = 0,
        compile_training: bool = False,
    ) -> None:
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.compile_training = compile_training
        if compile_training:
            check_tensor_form(self, in_training=True)
        self.input_format = input_format
        self.vis_period = vis_period
        if vis_period > 0 and input_format is None:
            raise ValueError("to show training images the model needs input_format, 'RGB' or 'BGR'")

    @classmethod
    def from_config(cls, cfg) -> dict:
        settings = image_model_settings(cfg)
        shapes = settings["backbone"].output_shape()
        return settings | {
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "compile_training": cfg.MODEL.COMPILE,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict] | Sequence[Instances]:
        """Losses by name in training; else of each input a dict with ``instances``, at the size it wants.

        Args:
            batched_inputs: see the head of this file.

        Raises:
            ValueError: in training, if the inputs have no ``instances``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = ground_truth_of(batched_inputs, self.device)
        if targets is None:
            raise ValueError(
                "training needs ground truth, but the inputs have no 'instances'; is the mapper's is_train on?"
            )
        is_shown = self.vis_period > 0 and has_event_storage() and get_event_storage().iter % self.vis_period == 0
        given = self._given_proposals(batched_inputs)
        if self.compile_training and not is_shown:
            losses, measured = _compiled_losses()(self, *_of_tensors_alone(images, targets, given))
            log_scalars(**measured)
            return losses
        step = self.compute_losses(images, targets, given, is_shown)
        log_scalars(**step.measured)
        if is_shown:
            self.visualize_training(batched_inputs, step.proposals)
            for name, picture in (step.pictures or {}).items():
                get_event_storage().put_image(name, picture)
        return step.losses

    def compute_losses(
        self,
        images: ImageList,
        targets: Sequence[Instances],
        given_proposals: Sequence[Instances] | None = None,
        with_pictures: bool = False,
    ) -> TrainingStep:
        """The training forward, from tensors to tensors.

        Args:
            images: normalised and padded.
            targets: N instances with ground truth.
            given_proposals: N instances, for a model without a proposal generator.
            with_pictures: the heads may draw what they learn from.
        """
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(images, features, given_proposals, targets)
        notes = notes_of(proposals)
        proposals = with_notes(proposals, notes)
        notes.pictures = {} if with_pictures else None
        sampled, head_losses = self._look_at(images, features, proposals, targets)
        measured = {**notes.measured, **notes_of(sampled).measured}
        return TrainingStep({**head_losses, **proposal_losses}, proposals, measured, notes.pictures)

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | Sequence[Instances]:
        """Detect.

        Args:
            batched_inputs: see the head of this file.
            detected_instances: with ``pred_boxes`` and ``pred_classes``, to have only masks and keypoints predicted.
            do_postprocess: rescale to the size wanted and paste masks.

        Returns:
            Dicts with ``instances``; without postprocessing the instances themselves, at the network's input size.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self._propose(images, features, self._given_proposals(batched_inputs), None)
            results, _ = self._look_at(images, features, proposals, None)
        else:
            given = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    def tensor_core(self, images: Tensor, image_sizes: Tensor) -> FixedSizeOutput:
        """:meth:`inference` from tensors to tensors of known sizes, which a compiler can follow.

        Args:
            images: (N, C, H, W), not normalised, H and W multiples of the backbone's ``size_divisibility``.
            image_sizes: (N, 2), height and width of the part of each that is the image.
        """
        padded_images = ImageList(self.normalize(images, image_sizes), image_sizes)
        features = self.backbone(padded_images.tensor)
        proposals, _ = self._propose(padded_images, features, None, None)
        found, _ = self.roi_heads(padded_images, features, proposals, None)
        masks = found.tensor("pred_masks").squeeze(2) if found.has("pred_masks") else None
        return FixedSizeOutput(
            boxes=found.tensor("pred_boxes"),
            scores=found.tensor("scores"),
            classes=found.tensor("pred_classes"),
            counts=found.valid.sum(dim=1),
            masks=masks,
            keypoint_heatmaps=found.tensor("pred_keypoint_heatmaps") if found.has("pred_keypoint_heatmaps") else None,
        )

    def _given_proposals(self, batched_inputs: list[dict]) -> ObjectBatch | None:
        """What the inputs bring where no generator makes proposals."""
        if self.proposal_generator is not None:
            return None
        if "proposals" not in batched_inputs[0]:
            raise ValueError("the model has no proposal generator and the inputs bring no 'proposals'; "
                             "set DATASETS.PROPOSAL_FILES_TRAIN / _TEST and MODEL.LOAD_PROPOSALS")  # fmt: skip
        return batch_on_device([x["proposals"] for x in batched_inputs], self.device)

    def _propose(self, images: ImageList, features, given_proposals, targets):
        """Proposals and their losses, made here or given."""
        if self.proposal_generator is not None:
            if targets is not None and not takes_padded(self.proposal_generator):
                targets = as_list(targets)
            return self.proposal_generator(images, features, targets)
        return given_proposals, {}

    def _look_at(self, images: ImageList, features, proposals, targets):
        """What the heads give, which take lists if they are written for lists."""
        if not takes_padded(self.roi_heads):
            proposals = as_list(proposals)
            targets = None if targets is None else as_list(targets)
        return self.roi_heads(images, features, proposals, targets)

    @staticmethod
    def _postprocess(
        instances: Sequence[Instances], batched_inputs: list[dict], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict]:
        """Each image's results at the size its input wants, as ``{"instances": ...}``."""
        results = postprocess_each(instances, batched_inputs, image_sizes)
        return [{"instances": result} for result in results]

    def visualize_training(
        self, batched_inputs: list[dict], proposals: Sequence[Instances], max_boxes: int = 20
    ) -> None:
        """Put the first image with its true boxes beside the same with its best proposals into the event storage."""
        from detlab.utils.visualizer import Visualizer

        item, own = batched_inputs[0], proposals[0]
        image = convert_image_to_rgb(item["image"].permute(1, 2, 0).cpu(), self.input_format)
        best = own.proposal_boxes.tensor[:max_boxes].detach().cpu().numpy()
        truth = item["instances"].gt_boxes.tensor.cpu().numpy()
        panels = [Visualizer(image).overlay_instances(boxes=boxes).get_image() for boxes in (truth, best)]
        strip = torch.cat([torch.from_numpy(panel.copy()) for panel in panels], dim=1).permute(2, 0, 1)
        get_event_storage().put_image("Left: true boxes; right: best proposals", strip)


@META_ARCH_REGISTRY.register()
class ProposalNetwork(ImageModel):
    """Backbone and proposal generator alone.

    Args:
        backbone: from images to feature maps.
        proposal_generator: see :data:`PROPOSAL_GENERATOR_REGISTRY`.
        pixel_mean: of each channel.
        pixel_std: of each channel.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: tuple[float],
        pixel_std: tuple[float],
    ) -> None:
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator

    @classmethod
    def from_config(cls, cfg) -> dict:
        settings = image_model_settings(cfg)
        return settings | {"proposal_generator": build_proposal_generator(cfg, settings["backbone"].output_shape())}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses by name in training; else of each input a dict with ``proposals``, at the size it wants."""
        images = self.preprocess_image(batched_inputs)
        targets = ground_truth_of(batched_inputs, self.device)
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        if self.training:
            log_scalars(**notes_of(proposals).measured)
            return losses
        return [{"proposals": own} for own in postprocess_each(proposals, batched_inputs, images.image_sizes)]

    def tensor_core(self, images: Tensor, image_sizes: Tensor) -> FixedSizeProposals:
        """The proposals as tensors of known sizes; see :meth:`GeneralizedRCNN.tensor_core`."""
        padded_images = ImageList(self.normalize(images, image_sizes), image_sizes)
        found, _ = self.proposal_generator(padded_images, self.backbone(padded_images.tensor), None)
        return FixedSizeProposals(
            found.tensor("proposal_boxes"), found.tensor("objectness_logits"), found.valid.sum(dim=1)
        )
