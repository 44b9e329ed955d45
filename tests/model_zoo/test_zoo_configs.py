"""Every config of the zoo resolves to the recorded settings, and Python configs to the models of the yaml ones."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml

from detlab.config.config import CfgNode, get_cfg
from detlab.config.instantiate import instantiate
from detlab.config.lazy import LazyConfig
from detlab.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detlab.solver.build import build_lr_scheduler, build_optimizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Python config and the yaml one of the same model.
PAIRS = [
    "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/rpn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
]


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", as_lists(value)


def as_lists(value):
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def load(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


def test_every_recorded_config_resolves_to_exactly_its_settings(shared_dir):
    recorded = json.loads((shared_dir / "compat" / "zoo_configs.json").read_text())
    defaults = dict(leaves(get_cfg()))
    assert len(recorded) == 92
    for name, settings in recorded.items():
        resolved = {key: value for key, value in leaves(load(name)) if value != defaults[key]}
        assert resolved == settings, name


def test_every_yaml_config_states_only_what_its_base_does_not():
    # The quick start is read as an example, where a default may be worth stating.
    zoo = [path for path in CONFIGS.rglob("*.yaml") if "quick_start" not in path.parts]
    for path in sorted(zoo):
        own = yaml.safe_load(path.read_text())
        base = CfgNode.load_yaml_with_base(os.path.join(path.parent, own.pop("_BASE_"))) if "_BASE_" in own else {}
        below = {**dict(leaves(get_cfg())), **dict(leaves(base))}
        repeated = [key for key, value in leaves(own) if below[key] == value and key != "VERSION"]
        assert not repeated, f"{path.relative_to(CONFIGS)} repeats {repeated}"


def test_every_yaml_config_builds_its_model_or_says_which_family_is_still_to_come():
    """Names of families that are registered later leave ``to_come`` by themselves."""
    to_come, seen = set(), {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        cfg = load(path.relative_to(CONFIGS))
        key = cfg.MODEL.dump()
        if key in seen:
            continue
        seen[key] = path
        try:
            with torch.device("meta"):
                META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
        except KeyError as error:
            assert "is not part of detlab yet" in str(error), path
            to_come.add(str(error).split("'")[1])
    assert to_come <= {"RetinaNet", "PanopticFPN", "CascadeROIHeads"}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    lazy = LazyConfig.load(str(CONFIGS / f"{request.param}.py"))
    return lazy, load(f"{request.param}.yaml")


def test_a_python_config_builds_the_same_model_as_the_yaml_one(pair):
    lazy, cfg = pair
    cfg.MODEL.DEVICE = "cpu"
    with torch.device("meta"):
        ours = instantiate(lazy.model)
    theirs = build_model(cfg)
    assert type(ours) is type(theirs)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    trained = [name for name, p in theirs.named_parameters() if p.requires_grad]
    assert [name for name, p in ours.named_parameters() if p.requires_grad] == trained
    assert settings_of(ours) == settings_of(theirs)


def settings_of(model):
    """Every plain public value held by a module of the model, under the module's name; weights of 1 are left out."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_") and isinstance(value, (bool, int, float, str, list, tuple, dict)):
                plain = as_lists(value)
                if isinstance(plain, dict):
                    plain = {part: weight for part, weight in plain.items() if weight != 1.0}
                if "object at" not in repr(plain):
                    found[f"{name}.{key}"] = plain
    return found


def test_a_python_config_trains_with_the_same_schedule(pair):
    lazy, cfg = pair
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    lazy.optimizer.params.model = model
    optimizer = instantiate(lazy.optimizer)
    expected = build_optimizer(cfg, model)
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert group_settings(optimizer) == group_settings(expected)
    multiplier = instantiate(lazy.lr_multiplier)
    scheduler = build_lr_scheduler(cfg, expected)
    for iteration in (0, 1, 500, 999, 1000, 30000, 59999, 60000, 79999, 80000, 89999):
        scheduler.last_epoch = iteration
        rate = scheduler.get_lr()[0]
        assert multiplier(iteration / lazy.train.max_iter) * cfg.SOLVER.BASE_LR == pytest.approx(rate, rel=1e-9)


def group_settings(optimizer):
    """Learning rate, momentum and decay of each parameter, by its shape."""
    return sorted(
        (tuple(p.shape), group["lr"], group["momentum"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    )


def test_a_python_config_reads_the_same_data(pair):
    lazy, cfg = pair
    train, test = lazy.dataloader.train, lazy.dataloader.test
    resize, flip = train.mapper.augmentations
    assert (train.dataset.names,) == cfg.DATASETS.TRAIN and (test.dataset.names,) == cfg.DATASETS.TEST
    assert tuple(resize.short_edge_length) == cfg.INPUT.MIN_SIZE_TRAIN and resize.max_size == cfg.INPUT.MAX_SIZE_TRAIN
    assert resize.sample_style == cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING and flip.horizontal is True
    assert test.mapper.augmentations[0].short_edge_length == cfg.INPUT.MIN_SIZE_TEST
    assert test.mapper.augmentations[0].max_size == cfg.INPUT.MAX_SIZE_TEST
    assert train.mapper.image_format == test.mapper.image_format == cfg.INPUT.FORMAT
    assert train.mapper.use_instance_mask is cfg.MODEL.MASK_ON
    assert (train.total_batch_size, train.num_workers) == (cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS)
    assert lazy.dataloader.evaluator.dataset_name == test.dataset.names


@pytest.mark.parametrize("name", PAIRS)
def test_a_python_config_can_be_saved_and_loaded_back(name, tmp_path, caplog):
    config = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    assert caplog.text == ""
    loaded = LazyConfig.load(str(tmp_path / "config.yaml"))
    assert LazyConfig.to_py(loaded) == LazyConfig.to_py(config)
    with torch.device("meta"):
        assert instantiate(loaded.model).state_dict().keys() == instantiate(config.model).state_dict().keys()


@pytest.mark.parametrize("length", [1, 2, 3, 6, 9])
def test_schedules_decay_where_the_zoo_does(length):
    multiplier = LazyConfig.load(str(CONFIGS / "common" / "coco_schedule.py"), f"lr_multiplier_{length}x")
    milestones = list(multiplier.scheduler.milestones)
    total = 90000 * length
    assert milestones[-1] == total and multiplier.warmup_length * total == pytest.approx(1000)
    if length == 3:
        assert milestones[:2] == list(load("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml").SOLVER.STEPS)
