#!/usr/bin/env python3
"""Times a Faster R-CNN R50-FPN step against torchvision's ``fasterrcnn_resnet50_fpn`` on the same inputs, in one run.

    python tools/benchmark.py                       # CPU or GPU, training and inference
    python tools/benchmark.py --size 480 640 --batch 2 --repeats 7
    python tools/benchmark.py --operators           # detlab against itself with torchvision's operators

Both models have random weights, frozen batch norms, three trainable backbone stages, 80 classes, the same numbers of
proposals, the same images and boxes. The two take turns, and of each the fastest repeat counts, so that a busy machine
harms both alike. Every row ends in the ratio of the second side's time to the first's: above 1 detlab, or detlab with
its compiled operators, is faster.
"""

import argparse
import contextlib
import functools
import math
import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detlab.config import get_cfg
from detlab.model_zoo import get_config
from detlab.modeling import build_model
from detlab.structures import Boxes, Instances


def make_inputs(
    batch: int, height: int, width: int, boxes_per_image: int, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, H, W) in [0, 1], boxes (N, B, 4) xyxy and classes (N, B), drawn once."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, height, width, generator=generator)
    size = torch.tensor([width, height], dtype=torch.float32)
    low = torch.rand(batch, boxes_per_image, 2, generator=generator) * size * 0.6
    extent = (0.05 + 0.35 * torch.rand(batch, boxes_per_image, 2, generator=generator)) * size
    classes = torch.randint(0, 80, (batch, boxes_per_image), generator=generator)
    return images.to(device), torch.cat((low, low + extent), dim=2).to(device), classes.to(device)


def detlab_model(device: str) -> nn.Module:
    """The zoo's Faster R-CNN with torchvision's stride placement and proposal numbers."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.merge_from_list(
        ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.RESNETS.STRIDE_IN_1X1", False,
         "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 2000, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 2000]
    )  # fmt: skip
    return build_model(cfg)


def torchvision_model(device: str, height: int, width: int) -> nn.Module:
    """The same network from torchvision, which leaves images of this size as they are."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    model = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=81, min_size=min(height, width), max_size=max(height, width)
    )
    _freeze_batch_norms(model.backbone)
    # Its own switch for this works only together with pretrained weights.
    for part in (model.backbone.body.conv1, model.backbone.body.layer1):
        part.requires_grad_(False)
    return model.to(device)


def _freeze_batch_norms(module: nn.Module) -> None:
    """Without pretrained weights torchvision trains its norms, which is more work than what both sides should do."""
    from torchvision.ops import FrozenBatchNorm2d

    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            _freeze_batch_norms(child)


def damp_residuals(model: nn.Module) -> None:
    """Keep the features of random weights finite: every residual branch ends in a norm of weight 0.2."""
    for name, value in model.named_buffers():
        if name.endswith(("conv3.norm.weight", "bn3.weight")):
            value.fill_(0.2)


def detlab_batch(images: Tensor, boxes: Tensor, classes: Tensor) -> list[dict]:
    """The inputs in detlab's form, at 0 to 255."""
    size = tuple(images.shape[2:])
    return [
        {"image": image * 255, "instances": Instances(size, gt_boxes=Boxes(b), gt_classes=c)}
        for image, b, c in zip(images, boxes, classes)
    ]


def training_step(loss_of: Callable[[], dict[str, Tensor]], model: nn.Module) -> Callable[[], None]:
    """A function that runs forward and backward of one step."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        sum(loss_of().values()).backward()

    return step


def alternate(
    first: Callable[[], object],
    second: Callable[[], object],
    repeats: int,
    device: str,
    seconds_per_turn: float = 0.0,
) -> tuple[float, float]:
    """The fastest time of each, in seconds a call, the two taking turns; one turn of each warms up.

    A turn is one call, or as many as ``seconds_per_turn`` needs: calls too short to be timed alone are averaged.
    """
    best = [float("inf")] * 2
    calls = [calls_in(run, device, seconds_per_turn) for run in (first, second)]
    for _ in range(repeats):
        for i, run in enumerate((first, second)):
            best[i] = min(best[i], time_calls(run, calls[i], device))
    return best[0], best[1]


def calls_in(run: Callable[[], object], device: str, seconds: float) -> int:
    """How many calls fill this time, at least one."""
    calls = 1
    while (taken := time_calls(run, calls, device) * calls) < seconds:
        # The first calls are slower than those to come.
        calls = max(calls + 1, min(10 * calls, math.ceil(calls * seconds / max(taken, 1e-9))))
    return calls


def time_calls(run: Callable[[], object], calls: int, device: str) -> float:
    """Seconds a call; on a GPU, of its own clock."""
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def own_steps(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """A training step and an inference of detlab's model; each turns the model to its mode."""
    model = detlab_model(args.device)
    damp_residuals(model)
    batch = detlab_batch(*make_inputs(args.batch, *args.size, args.boxes, args.device))
    return steps_of(model, lambda: model(batch), lambda: model(batch))


def torchvision_steps(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The same of torchvision's model."""
    model = torchvision_model(args.device, *args.size)
    damp_residuals(model)
    images, boxes, classes = make_inputs(args.batch, *args.size, args.boxes, args.device)
    targets = [{"boxes": b, "labels": c + 1} for b, c in zip(boxes, classes)]
    return steps_of(model, lambda: model(list(images), targets), lambda: model(list(images)))


def steps_of(
    model: nn.Module, losses: Callable[[], dict[str, Tensor]], detections: Callable[[], object]
) -> dict[str, Callable[[], object]]:
    """Named steps of a model."""
    training = training_step(losses, model)

    def train() -> None:
        model.train()
        training()

    @torch.no_grad()
    def infer() -> None:
        model.eval()
        detections()

    return {"training": train, "inference": infer}


def steps_with_operators(choice: str, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """detlab's steps in a process of their own, as a process loads its operators once.

    Args:
        choice: for ``DETLAB_OPS``.
        args: of the command line.
    """
    spawn = multiprocessing.get_context("spawn")
    connection, far_end = spawn.Pipe()
    spawn.Process(target=serve_steps, args=(choice, args, far_end), daemon=True).start()
    far_end.close()

    def ask(name: str) -> None:
        connection.send(name)
        connection.recv()

    return {name: functools.partial(ask, name) for name in ("training", "inference")}


def serve_steps(choice: str, args: argparse.Namespace, connection: multiprocessing.connection.Connection) -> None:
    """Runs steps of detlab's model by name until the other end is closed."""
    os.environ["DETLAB_OPS"] = choice
    steps = own_steps(args)
    with contextlib.suppress(EOFError):
        while True:
            steps[connection.recv()]()
            if args.device != "cpu":
                torch.cuda.synchronize()
            connection.send(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="of the images")
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--boxes", type=int, default=8, help="objects an image")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--operators", action="store_true", help="compare detlab's operators, not its models")
    args = parser.parse_args()

    if args.operators:
        names = ("compiled it/s", "torchvision's it/s")
        sides = (steps_with_operators("compiled", args), steps_with_operators("torchvision", args))
        # What takes turns in other processes is timed by this one's clock.
        timed_on = "cpu"
    else:
        names = ("detlab it/s", "torchvision it/s")
        sides = (own_steps(args), torchvision_steps(args))
        timed_on = args.device
    print(f"Faster R-CNN R50-FPN, {args.batch} x {args.size[0]} x {args.size[1]}, {args.device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    print(f"{'':12}{names[0]:>14}{names[1]:>20}{'ratio':>8}")
    for name in sides[0]:
        own_time, other_time = alternate(sides[0][name], sides[1][name], args.repeats, timed_on)
        print(f"{name:12}{1 / own_time:14.3f}{1 / other_time:20.3f}{other_time / own_time:8.2f}", flush=True)


if __name__ == "__main__":
    main()
