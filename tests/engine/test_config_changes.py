"""A run resumed with another config: what is said, what counts, what is refused."""

import logging
import re

import pytest
import torch

from detlab.config.config import get_cfg
from detlab.engine.config_changes import Change, changed_settings, changes_results
from detlab.engine.defaults import DefaultTrainer
from tests.engine.toys import ToyModel, ToyTrainer, toy_cfg


class WideTrainer(ToyTrainer):
    """Has one output more than a ``ToyTrainer``."""

    @classmethod
    def build_model(cls, cfg):
        model = ToyModel()
        model.linear = torch.nn.Linear(3, 3)
        return model


class TorchScheduleTrainer(ToyTrainer):
    """Has a schedule of torch's own, with a state."""

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)


@pytest.fixture
def resumed(tmp_path, caplog):
    """``resumed(*options, trainer_class=...)``: a trainer that goes on from iteration 4 of a run, not yet trained."""

    def run(*options, trainer_class=ToyTrainer, first_class=ToyTrainer):
        first = first_class(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "()", "SOLVER.MOMENTUM", 0.9))
        first.train()
        logging.getLogger("detlab").propagate = True
        caplog.clear()
        same = ["SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "()", "SOLVER.MOMENTUM", 0.9]
        trainer = trainer_class(toy_cfg(tmp_path, *same, *options))
        trainer.resume_or_load(resume=True)
        return trainer

    return run


def row_of(text, key):
    """What the log's table says of a key: in the checkpoint, now, what counts."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {key} ")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_settings_are_compared_as_the_texts_hold_them():
    cfg = get_cfg()
    before = cfg.dump()
    assert changed_settings(before, cfg) == []
    cfg.SOLVER.STEPS, cfg.DATASETS.TRAIN = (3, 5), ("a",)
    assert changed_settings(before, cfg) == [
        Change("DATASETS.TRAIN", [], ["a"]),
        Change("SOLVER.STEPS", [30000], [3, 5]),
    ]
    (gone,) = changed_settings("{A: {B: 1}, " + get_cfg().dump(default_flow_style=True)[1:], get_cfg())
    assert gone == Change("A.B", 1, "(no such key)")


def test_nothing_is_said_or_changed_where_the_config_is_the_same(resumed, caplog):
    trainer = resumed()
    assert "another config" not in caplog.text
    assert trainer.start_iter == 4


def test_settings_that_hooks_have_changed_stay_where_the_config_is_the_same(tmp_path):
    first = ToyTrainer(toy_cfg(tmp_path))
    first.optimizer.param_groups[0]["weight_decay"] = 0.5
    first.train()
    again = ToyTrainer(toy_cfg(tmp_path, "SEED", 3))
    again.resume_or_load(resume=True)
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_a_new_learning_rate_counts_from_the_next_iteration_on(resumed, caplog, tmp_path):
    trainer = resumed("SOLVER.BASE_LR", 0.5, "SOLVER.MAX_ITER", 8)
    assert row_of(caplog.text, "SOLVER.BASE_LR") == ["0.001", "0.5", "now"]
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.5}
    trainer.train()
    assert trainer.storage.latest()["lr"][0] == 0.5


def test_a_new_schedule_counts_from_the_next_iteration_on(resumed, caplog):
    trainer = resumed("SOLVER.STEPS", "(3,)", "SOLVER.GAMMA", 0.1, "SOLVER.MAX_ITER", 9)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert row_of(caplog.text, "SOLVER.STEPS") == ["[]", "[3]", "now"]
    assert row_of(caplog.text, "SOLVER.MAX_ITER") == ["4", "9", "now"]


def test_momentum_and_weight_decay_of_the_config_count(resumed, caplog):
    trainer = resumed("SOLVER.MOMENTUM", 0.5, "SOLVER.WEIGHT_DECAY", 0.25, "SOLVER.NESTEROV", True)
    group = trainer.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.5, 0.25, True)
    assert "momentum_buffer" in trainer.optimizer.state[group["params"][0]]
    assert row_of(caplog.text, "SOLVER.MOMENTUM") == ["0.9", "0.5", "now"]


def test_the_seed_of_the_checkpoint_counts_and_this_is_said(resumed, caplog):
    trainer = resumed("SEED", 7)
    saved, now, counts = row_of(caplog.text, "SEED")
    assert (saved, now) == ("-1", "7")
    assert "the checkpoint" in counts
    assert trainer.data_loader.seed == 3


def test_another_batch_size_says_where_the_samples_go_on(resumed, caplog):
    resumed("SOLVER.IMS_PER_BATCH", 2)
    assert row_of(caplog.text, "SOLVER.IMS_PER_BATCH")[2] == "now: samples from number 8 on; the run has had 64"


def test_another_data_set_precision_and_test_set_count_and_are_said(resumed, caplog):
    options = ["DATASETS.TRAIN", "['b']", "DATASETS.TEST", "['c']", "SOLVER.AMP.ENABLED", True, "MODEL.WEIGHTS", "x"]
    resumed(*options)
    assert row_of(caplog.text, "DATASETS.TRAIN")[2].startswith("now: other samples")
    assert row_of(caplog.text, "DATASETS.TEST") == ["[]", "['c']", "now"]
    assert row_of(caplog.text, "SOLVER.AMP.ENABLED") == ["False", "True", "now"]
    assert row_of(caplog.text, "MODEL.WEIGHTS")[2].startswith("neither")


CURE = r"Go back to the settings of that run; or begin anew, .* in another OUTPUT_DIR and with MODEL\.WEIGHTS set to"


def test_another_optimizer_is_refused_with_both_names(resumed, caplog):
    with pytest.raises(ValueError, match=rf"SOLVER\.OPTIMIZER is 'AdamW'.*'SGD'.*{CURE}"):
        resumed("SOLVER.OPTIMIZER", "AdamW")
    assert row_of(caplog.text, "SOLVER.OPTIMIZER")[:2] == ["SGD", "AdamW"]


def test_a_model_of_other_shapes_is_refused_before_any_step(resumed):
    with pytest.raises(ValueError, match=r"momentum_buffer of linear\.weight has shape \(2, 3\)"):
        resumed(trainer_class=WideTrainer)


def test_settings_that_may_be_the_reason_are_named_when_a_state_does_not_fit(resumed, caplog):
    changes = ["MODEL.ROI_HEADS.NUM_CLASSES", 7, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 9, "MODEL.WEIGHTS", "x"]
    with pytest.raises(ValueError, match=r"model_final\.pth does not fit \(since it was saved, ") as refusal:
        resumed(*changes, trainer_class=WideTrainer)
    message = str(refusal.value)
    assert "since it was saved, MODEL.ROI_HEADS.NUM_CLASSES 80 -> 7: in the optimizer's state" in message
    assert re.search(CURE, message) and message.count("--resume") == 1
    assert row_of(caplog.text, "MODEL.ROI_HEADS.NUM_CLASSES")[:2] == ["80", "7"]
    assert row_of(caplog.text, "SOLVER.MAX_ITER")[:2] == ["4", "9"]


def test_a_state_that_is_refused_leaves_the_trainer_as_it_was(resumed, tmp_path):
    with pytest.raises(ValueError, match="does not fit"):
        resumed(trainer_class=WideTrainer)
    trainer = WideTrainer(toy_cfg(tmp_path))
    before = trainer.scheduler.state_dict()
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]
    with pytest.raises(ValueError, match="momentum_buffer"):
        trainer.load_state_dict(state)
    assert (trainer.iter, trainer.scheduler.state_dict()) == (0, before)


def test_other_groups_of_parameters_are_refused_with_the_setting_that_makes_them(resumed):
    with pytest.raises(ValueError, match=r"SOLVER\.WEIGHT_DECAY_BIAS None -> 0\.0: .* have 2 parameters .*, 1, 1 here"):
        resumed("SOLVER.WEIGHT_DECAY_BIAS", 0.0)


@pytest.mark.parametrize(
    ("key", "may_differ"),
    [
        ("DATASETS.TEST", True),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", True),
        ("INPUT.MIN_SIZE_TEST", True),
        ("MINE.KEY", True),
        ("SOLVER.BASE_LR", False),
        ("OUTPUT_DIR", False),
        ("TEST.EXPECTED_RESULTS", False),
    ],
)
def test_settings_of_training_do_not_change_results(key, may_differ):
    assert changes_results([Change("SEED", 1, 2), Change(key, 1, 2)]) == may_differ


def test_a_schedule_whose_rates_do_not_follow_from_the_iteration_keeps_its_state(resumed, caplog):
    trainer = resumed("SOLVER.BASE_LR", 0.5, trainer_class=TorchScheduleTrainer, first_class=TorchScheduleTrainer)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.00025
    assert row_of(caplog.text, "SOLVER.BASE_LR") == ["0.001", "0.5", "as the state of StepLR has it"]


def test_a_checkpoint_without_a_config_is_taken_as_before(tmp_path, caplog):
    first = ToyTrainer(toy_cfg(tmp_path))
    state = first.state_dict()
    assert state.pop("config") == first.cfg.dump()
    logging.getLogger("detlab").propagate = True
    second = ToyTrainer(toy_cfg(tmp_path, "SOLVER.BASE_LR", 0.5))
    second.load_state_dict(state)
    assert second.optimizer.param_groups[0]["initial_lr"] == 0.001
    assert "another config" not in caplog.text
    assert isinstance(second, DefaultTrainer)
