#!/usr/bin/env python3
"""Times a Faster or Mask R-CNN R50-FPN step against torchvision's on the same inputs, in one run.

    python tools/benchmark.py                       # CPU or GPU, training and inference
    python tools/benchmark.py --size 480 640 --batch 2 --repeats 7 --masks
    python tools/benchmark.py --operators           # detlab against itself with torchvision's operators
    python tools/benchmark.py --against ../old      # detlab against another checkout of itself
    python tools/benchmark.py --set MODEL.BACKBONE.DTYPE bfloat16      # with other settings than the zoo's
    python tools/benchmark.py --shares              # of a step: convolutions and matrix products, and the rest

Both models have random weights, frozen batch norms, three trainable backbone stages, 80 classes, the same numbers of
proposals, the same images and boxes. The two take turns, and of each the fastest repeat counts, so that a busy machine
harms both alike. Every row ends in the ratio of the second side's time to the first's: above 1 detlab, or detlab with
its compiled operators, or this checkout, is faster. Where the sides are processes of their own, a second ratio is that
of the processor time, which other programs on the machine disturb less.
"""

import argparse
import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

# The other side of --against may have no such module; it inherits what this side has set.
with contextlib.suppress(ImportError):
    from detlab.utils.threads import wait_asleep

    wait_asleep()

import torch
from torch import Tensor, nn

from detlab.config import get_cfg
from detlab.model_zoo import get_config
from detlab.modeling import build_model
from detlab.structures import BitMasks, Boxes, Instances

# What cannot be done without: the arithmetic of the network itself.
PRODUCTS = {
    "aten::mkldnn_convolution", "aten::cudnn_convolution", "aten::convolution_backward", "aten::conv_transpose2d",
    "aten::addmm", "aten::mm", "aten::bmm", "aten::slow_conv_transpose2d", "aten::thnn_conv2d",
    "aten::_slow_conv2d_forward", "aten::_slow_conv2d_backward",
}  # fmt: skip


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


def masks_of(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (B, 4) filled, (B, H, W) booleans."""
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(dim=1)
    return (x >= x0) & (x < x1) & (y[:, None] >= y0) & (y[:, None] < y1)


def detlab_model(args: argparse.Namespace) -> nn.Module:
    """The zoo's Faster or Mask R-CNN with torchvision's stride placement and proposal numbers."""
    name = "COCO-InstanceSegmentation/mask" if args.masks else "COCO-Detection/faster"
    cfg = get_cfg()
    cfg.merge_from_other_cfg(get_config(f"{name}_rcnn_R_50_FPN_1x.yaml"))
    cfg.merge_from_list(
        ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", "MODEL.RESNETS.STRIDE_IN_1X1", False,
         "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 2000, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 2000, *args.set]
    )  # fmt: skip
    return build_model(cfg)


def torchvision_model(args: argparse.Namespace) -> nn.Module:
    """The same network from torchvision, which leaves images of this size as they are."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

    make = maskrcnn_resnet50_fpn if args.masks else fasterrcnn_resnet50_fpn
    sizes = {"min_size": min(args.size), "max_size": max(args.size)}
    model = make(weights=None, weights_backbone=None, num_classes=81, **sizes)
    _freeze_batch_norms(model.backbone)
    # Its own switch for this works only together with pretrained weights.
    for part in (model.backbone.body.conv1, model.backbone.body.layer1):
        part.requires_grad_(False)
    return model.to(args.device)


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


def detlab_batch(images: Tensor, boxes: Tensor, classes: Tensor, with_masks: bool) -> list[dict]:
    """The inputs in detlab's form, at 0 to 255."""
    size = tuple(images.shape[2:])
    batch = []
    for image, b, c in zip(images, boxes, classes):
        objects = Instances(size, gt_boxes=Boxes(b), gt_classes=c)
        if with_masks:
            objects.gt_masks = BitMasks(masks_of(b, *size))
        batch.append({"image": image * 255, "instances": objects})
    return batch


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
    model = detlab_model(args)
    damp_residuals(model)
    batch = detlab_batch(*make_inputs(args.batch, *args.size, args.boxes, args.device), args.masks)
    return steps_of(model, lambda: model(batch), lambda: model(batch))


def torchvision_steps(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The same of torchvision's model."""
    model = torchvision_model(args)
    damp_residuals(model)
    images, boxes, classes = make_inputs(args.batch, *args.size, args.boxes, args.device)
    targets = [{"boxes": b, "labels": c + 1} for b, c in zip(boxes, classes)]
    if args.masks:
        for target in targets:
            target["masks"] = masks_of(target["boxes"], *args.size).to(torch.uint8)
    return steps_of(model, lambda: model(list(images), targets), lambda: model(list(images)))


def steps_of(
    model: nn.Module, losses: Callable[[], dict[str, Tensor]], detections: Callable[[], object]
) -> dict[str, Callable[[], object]]:
    """Named steps of a model."""
    training = training_step(losses, model)

    def train() -> None:
        if not model.training:
            model.train()
        training()

    @torch.no_grad()
    def infer() -> None:
        if model.training:
            model.eval()
        detections()

    return {"training": train, "inference": infer}


class Served:
    """detlab's steps in a process of their own, as a process loads its operators and its detlab once.

    Args:
        args: of the command line.
        environment: what is set in that process beside this one's.
    """

    def __init__(self, args: argparse.Namespace, **environment: str) -> None:
        command = [sys.executable, os.path.abspath(__file__), *args.command_line, "--serve"]
        self._process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, name: str) -> tuple[float, float]:
        """Seconds on the clock and of processor time of one step."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline().split()
        if len(reply) != 2:
            raise RuntimeError(f"the process of one side has ended with status {self._process.wait()}; see above")
        return float(reply[0]), float(reply[1])

    def end(self) -> None:
        self._process.communicate()


def serve(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Runs detlab's steps by name and writes how long each has taken."""
    steps = own_steps(args)
    for name in names:
        start, start_of_processor = time.perf_counter(), time.process_time()
        steps[name.strip()]()
        if args.device != "cpu":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, time.process_time() - start_of_processor, flush=True)


def compare_served(first: Served, second: Served, titles: tuple[str, str], repeats: int) -> None:
    """A table of the fastest turns of two processes that take turns; one turn of each warms up."""
    print(f"{'':12}{titles[0]:>18}{titles[1]:>20}{'ratio':>8}{'of processor time':>20}")
    for name in ("training", "inference"):
        best = [[float("inf")] * 2 for _ in range(2)]
        for turn in range(repeats + 1):
            for own, side in zip(best, (first, second)):
                taken = side.run(name)
                if turn > 0:
                    own[:] = map(min, own, taken)
        (time_1, processor_1), (time_2, processor_2) = best
        print(f"{name:12}{1 / time_1:18.3f}{1 / time_2:20.3f}{time_2 / time_1:8.2f}{processor_2 / processor_1:20.2f}",
              flush=True)  # fmt: skip
    first.end()
    second.end()


def print_shares(steps: dict[str, Callable[[], object]]) -> None:
    """What part of each step's processor time is spent in products, and how far the whole is above that."""
    for name, step in steps.items():
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
        products, total = sum(times.get(key, 0) for key in PRODUCTS), sum(times.values())
        print(f"{name:12} products {products / total:6.1%}, step {total / products:.2f} of them; then")
        for key in sorted(times.keys() - PRODUCTS, key=times.__getitem__, reverse=True)[:6]:
            print(f"{'':16}{times[key] / total:6.1%}  {key}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="of the images")
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--boxes", type=int, default=8, help="objects an image")
    parser.add_argument("--masks", action="store_true", help="Mask R-CNN in the place of Faster R-CNN")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="settings of detlab's model")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--operators", action="store_true", help="compare detlab's operators, not its models")
    mode.add_argument("--against", metavar="DIR", help="compare with the detlab of another checkout, in turns")
    mode.add_argument("--shares", action="store_true", help="of detlab's steps, instead of a comparison")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.command_line = [argument for argument in sys.argv[1:] if argument != "--serve"]
    if args.against and not os.path.isdir(os.path.join(args.against, "detlab")):
        parser.error(f"--against {args.against}: there is no folder 'detlab' in it")
    if args.against and args.set:
        # They may be unknown there; and what differs would not be the code alone.
        parser.error("--against compares checkouts under the same settings; leave out --set")
    return args


def main() -> None:
    args = parse_arguments()
    if args.serve:
        return serve(args, sys.stdin)
    print(f"{'Mask' if args.masks else 'Faster'} R-CNN R50-FPN, {args.batch} x {args.size[0]} x {args.size[1]}, "
          f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)  # fmt: skip
    if args.shares:
        return print_shares(own_steps(args))
    if args.operators:
        sides = Served(args, DETLAB_OPS="compiled"), Served(args, DETLAB_OPS="torchvision")
        return compare_served(*sides, ("compiled it/s", "torchvision's it/s"), args.repeats)
    if args.against:
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        sides = Served(args, PYTHONPATH=here), Served(args, PYTHONPATH=os.path.abspath(args.against))
        return compare_served(*sides, ("this checkout it/s", "the other it/s"), args.repeats)
    own, others = own_steps(args), torchvision_steps(args)
    print(f"{'':12}{'detlab it/s':>14}{'torchvision it/s':>20}{'ratio':>8}")
    for name in own:
        own_time, other_time = alternate(own[name], others[name], args.repeats, args.device)
        print(f"{name:12}{1 / own_time:14.3f}{1 / other_time:20.3f}{other_time / own_time:8.2f}", flush=True)
    return None


if __name__ == "__main__":
    main()
