"""Two gloo processes with a global batch of B take the same steps as one process with that batch."""

import math
from pathlib import Path

import pytest
import torch

from detlab.engine.defaults import create_ddp_model
from detlab.engine.launch import launch
from detlab.engine.train_loop import SimpleTrainer
from detlab.modeling import build_model
from detlab.modeling.roi_heads import StandardROIHeads, select_foreground_proposals
from detlab.solver import build_optimizer
from detlab.utils import comm
from tests.modeling.tiny import tiny_batch, tiny_config

ITERATIONS = 10


def config():
    """Every anchor and proposal takes part, so that no random draw differs between one process and two."""
    cfg = tiny_config(masks=True, keypoints=True)
    cfg.merge_from_list(["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100000,
                         "SOLVER.BASE_LR", 0.002])  # fmt: skip
    return cfg


def train(path: str) -> None:
    """Train on batches of four images; the second half of each, rank 1's part, has no objects."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cfg = config()
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    batch = tiny_batch(sizes=((64, 96),) * 4, num_objects=(3, 2, 0, 0))
    share = len(batch) // comm.get_world_size()
    own = batch[comm.get_rank() * share : (comm.get_rank() + 1) * share]
    trainer = SimpleTrainer(create_ddp_model(model), [own], optimizer)
    trainer.train(0, ITERATIONS)
    if comm.is_main_process():
        torch.save(model.state_dict(), path)


@pytest.mark.parametrize("processes", [2])
def test_weights_after_ten_iterations_are_those_of_one_process(processes, tmp_path):
    """Within half a percent of the distance travelled, all weights taken together.

    Sums in another order round differently, and the choice of proposals is a step function that turns a rounding error
    into another box now and then; a loss divided by its own rank's count would be off by a tenth or more. The images
    are of one size, since each process pads its own part of the batch.
    """
    one, many = tmp_path / "one.pth", tmp_path / "many.pth"
    launch(train, 1, args=(str(one),), device="cpu")
    launch(train, processes, dist_url="auto", args=(str(many),), device="cpu")
    start, expected, got = build_from_seed(), load(one), load(many)
    travelled = distance(expected, start)
    assert travelled > 0.01, "the weights hardly moved"
    assert distance(got, expected) <= 0.005 * travelled


class LeavesOutMasks(StandardROIHeads):
    """As users write it: looks at the objects, and runs no head where there is none."""

    def _forward_mask(self, features, instances):
        objects, _ = select_foreground_proposals(instances, self.num_classes)
        if sum(len(own) for own in objects) == 0:
            return {"loss_mask": 0.0}
        return super()._forward_mask(features, instances)


def exchange(folder: str) -> None:
    """One step without DDP; the images of rank 1 have no objects, as a mapper leaves them, and give no proposals."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cfg = config()
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    cfg.MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = True
    model = build_model(cfg).train()
    own = tiny_batch(sizes=((64, 96),) * 2, num_objects=(3, 2))
    if comm.get_rank() == 1:
        model.proposal_generator.min_box_size = 1e6
        for item in own:
            labels = item["instances"][:0]
            labels.remove("gt_masks")
            labels.remove("gt_keypoints")
            item["instances"] = labels
    sent = []
    all_reduce = torch.distributed.all_reduce

    def counted(tensor, *args, **kwargs):
        sent.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    losses = {name: loss.item() for name, loss in model(own).items()}
    model.roi_heads.__class__ = LeavesOutMasks
    by_lists = {name: float(loss) for name, loss in model(own).items()}
    torch.save(
        {"losses": losses, "by_lists": by_lists, "sent": sent},
        Path(folder, f"{comm.get_rank()}_of_{comm.get_world_size()}.pth"),
    )


def test_a_rank_without_proposals_exchanges_what_the_other_does_and_the_mean_loss_is_that_of_one_process(tmp_path):
    launch(exchange, 1, args=(str(tmp_path),), device="cpu")
    launch(exchange, 2, dist_url="auto", args=(str(tmp_path),), device="cpu")
    alone, first, second = load(tmp_path / "0_of_1.pth"), load(tmp_path / "0_of_2.pth"), load(tmp_path / "1_of_2.pth")
    assert alone["sent"] == [] and first["sent"] == second["sent"] == [3, 3]
    assert first["by_lists"] == pytest.approx(first["losses"], rel=1e-4)
    assert second["by_lists"] == pytest.approx(second["losses"], rel=1e-4)
    for name in ("loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint"):
        assert second["losses"][name] == 0 and alone["losses"][name] > 0
        assert first["losses"][name] / 2 == pytest.approx(alone["losses"][name], rel=1e-4), name


def distance(a, b):
    """Of two sets of weights, as one vector each."""
    return math.sqrt(sum((a[name] - b[name]).double().square().sum().item() for name in a))


def build_from_seed():
    torch.manual_seed(0)
    return {name: value.clone() for name, value in build_model(config()).state_dict().items()}


def load(path: Path):
    return torch.load(path, weights_only=True)
