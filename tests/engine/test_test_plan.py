"""What an evaluation needs is missed before training, and its results do not replace others."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from torch import nn

from detlab.data.build import build_detection_test_loader
from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.engine.defaults import DefaultTrainer, evaluate_only
from detlab.engine.test_plan import check_test_side, config_for_evaluation, warn_of_weights_that_are_not_finite
from detlab.evaluation.evaluator import DatasetEvaluator
from tests.engine.toys import ToyLoader, ToyModel, ToyTrainer, toy_cfg


class CountImages(DatasetEvaluator):
    """Its result is the number of images."""

    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        self.images += len(inputs)

    def evaluate(self):
        return {"count": {"images": float(self.images)}}


class PlainTrainer(DefaultTrainer):
    """A toy model; loaders and evaluators are the default trainer's unless a test replaces them."""

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(0)
        return SilentModel()

    @classmethod
    def build_train_loader(cls, cfg):
        return ToyLoader(seed=3)


class SilentModel(ToyModel):
    """Gives nothing in inference."""

    def forward(self, batch):
        return super().forward(batch) if self.training else [{} for _ in batch]


class CountingTrainer(PlainTrainer):
    """Measures something, without reading images."""

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(DatasetCatalog.get(dataset_name), mapper=None)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return CountImages()


@pytest.fixture
def registered(tmp_path):
    """Data sets ``plan_a`` and ``plan_b`` of two and three images, that are never read."""
    for name, count in (("plan_a", 2), ("plan_b", 3)):
        images = [{"file_name": f"{i}.png", "height": 4, "width": 4, "image_id": i} for i in range(count)]
        DatasetCatalog.register(name, lambda images=images: images)
    yield
    for name in ("plan_a", "plan_b"):
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


def plan_cfg(tmp_path, *options):
    return toy_cfg(tmp_path, "DATASETS.TEST", "['plan_a']", *options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["DATASETS.TEST", "['plan_aa']"], KeyError, "plan_aa.*plan_a"),
        (["DATASETS.TEST", "['plan_a', 'plan_c']"], KeyError, "plan_c"),
        (["INPUT.MIN_SIZE_TEST", -3], ValueError, r"INPUT\.MIN_SIZE_TEST.*-3"),
        (["INPUT.MAX_SIZE_TEST", 0], ValueError, r"INPUT\.MAX_SIZE_TEST.*0"),
        (["TEST.EXPECTED_RESULTS", "[['bbox', 'AP']]"], ValueError, r"\['bbox', 'AP'\].*tolerance"),
        (["TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 'high', 1]]"], ValueError, "high"),
        (["TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 1.0, -0.5]]"], ValueError, "-0.5"),
        (["DATASETS.TEST", "[]", "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 1.0, 1]]"], ValueError, "one data set"),
    ],
)
def test_what_is_wrong_with_the_test_side_is_said_before_the_first_iteration(
    tmp_path, registered, options, error, message
):
    with pytest.raises(error, match=f"(?s){message}"):
        trainer = CountingTrainer(plan_cfg(tmp_path, *options))
        trainer.train()
    assert not list(tmp_path.glob("*.pth"))


def test_a_set_without_an_evaluator_is_said_before_the_first_iteration_with_its_name(tmp_path, registered, caplog):
    MetadataCatalog.get("plan_a").evaluator_type = "riddles"
    trainer = PlainTrainer(plan_cfg(tmp_path))
    logging.getLogger("detlab").propagate = True
    with pytest.raises(ValueError, match="evaluator_type 'riddles'"):
        trainer.train()
    assert "before anything is computed: 'plan_a' of DATASETS.TEST" in caplog.text
    assert trainer.iter == 0


def test_annotations_that_are_not_there_are_said_before_the_first_iteration(tmp_path, registered):
    MetadataCatalog.get("plan_a").set(evaluator_type="coco", json_file=str(tmp_path / "gone.json"))
    trainer = PlainTrainer(plan_cfg(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        trainer.train()
    assert trainer.iter == 0


class Promising(CountImages):
    """Says beforehand what it will give."""

    def metric_names(self):
        return {"count": ("images",)}


class Derived(Promising):
    """May give other things, and does not say which."""


def evaluated_by(evaluator):
    class Trainer(CountingTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            if evaluator is NotImplementedError:
                raise NotImplementedError
            return evaluator

    return Trainer


@pytest.mark.parametrize(
    ("evaluator", "expected", "message"),
    [
        (
            Promising(),
            "['counts', 'images', 2, 0]",
            "'counts', 'images', but the tasks on data set 'plan_a' are count; did",
        ),
        (Promising(), "['count', 'image', 2, 0]", "the metrics of count on .* are images; did you mean 'images'"),
        ([Promising()], "['bbox', 'AP', 2, 0]", "the tasks on data set 'plan_a' are count"),
        (None, "['bbox', 'AP', 2, 0]", "the tasks on data set 'plan_a' are none"),
        (NotImplementedError, "['bbox', 'AP', 2, 0]", "the tasks on data set 'plan_a' are none"),
    ],
)
def test_results_that_no_evaluator_gives_are_not_expected_to_the_end(
    tmp_path, registered, evaluator, expected, message
):
    trainer = evaluated_by(evaluator)(plan_cfg(tmp_path, "TEST.EXPECTED_RESULTS", f"[{expected}]"))
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.iter == 0


@pytest.mark.parametrize(
    ("evaluator", "expected"),
    [
        (Promising(), "['count', 'images', 2, 0]"),
        (Promising(), "['count', 'images-small', 2, 0]"),
        (CountImages(), "['anything', 'images', 2, 0]"),
        (Derived(), "['anything', 'images', 2, 0]"),
        ([Promising(), Derived()], "['anything', 'images', 2, 0]"),
    ],
)
def test_results_that_an_evaluator_may_give_are_waited_for(tmp_path, registered, evaluator, expected):
    cfg = plan_cfg(tmp_path, "TEST.EXPECTED_RESULTS", f"[{expected}]")
    check_test_side(cfg, evaluated_by(evaluator), False)


def test_a_trainer_that_has_no_evaluator_warns_and_trains(tmp_path, registered, caplog):
    class Undecided(PlainTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            raise NotImplementedError

    trainer = Undecided(plan_cfg(tmp_path))
    logging.getLogger("detlab").propagate = True
    assert trainer.train() == {}
    assert trainer.iter == 6
    # Before training and at its end.
    assert sum("Undecided.build_evaluator gives none for data set 'plan_a'" in m for m in caplog.messages) == 2


def test_own_loaders_are_asked_and_no_worker_is_started(tmp_path, registered):
    class Own(CountingTrainer):
        asked = []

        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            cls.asked.append(dataset_name)
            return build_detection_test_loader(DatasetCatalog.get(dataset_name), mapper=None, num_workers=1)

        def run_step(self):
            assert not torch.multiprocessing.active_children()
            super().run_step()

    results = Own(plan_cfg(tmp_path, "DATASETS.TEST", "['plan_a', 'plan_b']")).train()
    assert Own.asked == ["plan_a", "plan_b"] * 2
    assert {name: result["count"]["images"] for name, result in results.items()} == {"plan_a": 2, "plan_b": 3}


def test_a_trainer_with_its_own_test_is_not_held_up(tmp_path, caplog):
    trainer = ToyTrainer(toy_cfg(tmp_path, "DATASETS.TEST", "['nowhere']"))
    logging.getLogger("detlab").propagate = True
    assert trainer.train() == {"bbox": {"AP": 1.0}}
    assert "'nowhere' of DATASETS.TEST cannot be loaded, if test() needs it" in caplog.text


def test_looking_at_the_test_side_draws_no_random_numbers(tmp_path, registered):
    class Drawing(CountingTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            random.random(), np.random.rand(), torch.rand(1)
            return CountImages()

    seeds = []
    for trainer_class, options in ((Drawing, []), (CountingTrainer, ["DATASETS.TEST", "[]"])):
        trainer = trainer_class(plan_cfg(tmp_path, "SOLVER.MAX_ITER", 1, *options))
        np.random.seed(5), random.seed(5), torch.manual_seed(5)
        trainer.train()
        seeds.append(trainer._one_step.seed)
    assert seeds[0] == seeds[1]


def test_an_evaluation_alone_looks_at_all_sets_before_the_first(tmp_path, registered):
    class Never(CountingTrainer):
        @classmethod
        def build_model(cls, cfg):
            raise AssertionError("too late")

    with pytest.raises(KeyError, match="plan_c"):
        evaluate_only(plan_cfg(tmp_path, "DATASETS.TEST", "['plan_a', 'plan_c']"), trainer_class=Never)


# --------------------------------------------------------------------------------------------------- where results go


def test_results_of_a_training_are_left_by_an_evaluation_alone(tmp_path, caplog):
    logging.getLogger("detlab").propagate = True
    cfg = toy_cfg(tmp_path)
    assert config_for_evaluation(cfg, "x/model.pth") is cfg
    (tmp_path / "last_evaluation.json").write_text(json.dumps({"iteration": 5, "results": {}}))
    own = config_for_evaluation(cfg, "x/model_0001.pth?matching_heuristics=True")
    assert own.OUTPUT_DIR == str(tmp_path / "eval_model_0001") and own.is_frozen()
    assert f"{own.OUTPUT_DIR}/inference" in caplog.text
    assert config_for_evaluation(cfg, "").OUTPUT_DIR == str(tmp_path / "eval_random_weights")


def test_the_training_says_that_it_has_results_and_the_evaluation_alone_goes_elsewhere(tmp_path, registered):
    class Note(CountingTrainer):
        folders = []

        @classmethod
        def test(cls, cfg, model, evaluators=None):
            cls.folders.append(cfg.OUTPUT_DIR)
            return super().test(cfg, model, evaluators)

    evaluate_only(plan_cfg(tmp_path), trainer_class=Note)
    Note(plan_cfg(tmp_path)).train()
    evaluate_only(plan_cfg(tmp_path), resume=True, trainer_class=Note)
    assert Note.folders == [str(tmp_path), str(tmp_path), str(tmp_path / "eval_model_final")]


# --------------------------------------------------------------------------------------------- weights without meaning


def test_weights_that_are_not_finite_are_named_when_they_are_evaluated(tmp_path, registered, caplog):
    logging.getLogger("detlab").propagate = True
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("minus_infinity", torch.tensor(-float("inf")))
    warn_of_weights_that_are_not_finite(model)
    warn_of_weights_that_are_not_finite(nn.Identity())
    assert not caplog.records
    model[0].bias.data[1] = float("nan")
    model[1].running_var[0] = float("inf")
    CountingTrainer.test(plan_cfg(tmp_path, "DATASETS.TEST", "[]"), model)
    (message,) = [m for m in caplog.messages if "not finite" in m]
    assert "0.bias, 1.running_var;" in message
