"""A model, data and trainers that are small enough to run in a test."""

import torch
from torch import nn

from detlab.config.config import get_cfg
from detlab.engine.train_loop import SimpleTrainer
from detlab.engine.trainer import DefaultTrainer


class ToyModel(nn.Module):
    """A linear map with dropout: random in training, like a detector that samples its boxes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch):
        points = torch.stack([item["point"] for item in batch])
        outputs = self.linear(self.dropout(points))
        return {"loss_a": outputs[:, 0].square().mean(), "loss_b": (outputs[:, 1] - 1).abs().mean()}


class ToyLoader:
    """Endless batches, each a function of its number and a seed, like those of the detection loaders."""

    def __init__(self, seed=0, batch_size=4):
        self.seed, self.batch_size, self.start = seed, batch_size, 0
        self.numbers = []

    def set_start_iteration(self, iteration):
        self.start = iteration

    def state_dict(self):
        return {"seed": self.seed}

    def load_state_dict(self, state):
        self.seed = state["seed"]

    def batch(self, number):
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        points = torch.randn(self.batch_size, 3, generator=generator)
        return [{"point": point, "file_name": f"{number}_{i}.jpg"} for i, point in enumerate(points)]

    def __iter__(self):
        number = self.start
        while True:
            self.numbers.append(number)
            yield self.batch(number)
            number += 1


class Poisoned(ToyLoader):
    """A point of one batch is not a number."""

    def __init__(self, number, **kwargs):
        super().__init__(**kwargs)
        self.poisoned_number = number

    def batch(self, number):
        items = super().batch(number)
        if number == self.poisoned_number:
            items[1]["point"] = items[1]["point"] * float("nan")
        return items


def toy_trainer(loader=None, trainer_class=SimpleTrainer, seed=0, **kwargs):
    """A trainer of a toy model whose first weights follow from ``seed``."""
    torch.manual_seed(seed)
    model = ToyModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return trainer_class(model, ToyLoader() if loader is None else loader, optimizer, **kwargs)


def weights(trainer):
    """A copy of all weights in one vector."""
    return nn.utils.parameters_to_vector(trainer.model.parameters()).detach().clone()


class ToyTrainer(DefaultTrainer):
    """Everything of the default trainer but model and data."""

    results = {"bbox": {"AP": 1.0}}

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(0)
        return ToyModel()

    @classmethod
    def build_train_loader(cls, cfg):
        return ToyLoader(seed=3)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return cls.results


def toy_cfg(tmp_path, *options):
    cfg = get_cfg()
    cfg.merge_from_list(
        ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", 6, "SOLVER.STEPS", "(4,)", "MODEL.DEVICE", "cpu",
         "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.WARMUP_ITERS", 2, *options]
    )  # fmt: skip
    cfg.freeze()
    return cfg
