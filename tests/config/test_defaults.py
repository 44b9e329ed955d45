"""The defaults are those of the public interface, and each is explained where it stands."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from detlab.config import defaults
from detlab.config.config import get_cfg


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_lists(value):
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


# Keys of our own, beside the recorded ones.
NEW_KEYS = {
    "DATALOADER.RANDOM_SUBSET_RATIO": 1.0,
    "MODEL.BACKBONE.DTYPE": "",
    "MODEL.COMPILE": False,
    "MODEL.LAYOUT": "auto",
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.AMP.PRECISION": "",
}


def test_every_key_and_default_is_the_recorded_one(shared_dir):
    recorded = yaml.safe_load((shared_dir / "compat" / "config_defaults.yaml").read_text())
    ours = {key: as_lists(value) for key, value in leaves(get_cfg())}
    assert ours == {**dict(leaves(recorded)), **NEW_KEYS}
    for key, value in leaves(recorded):
        assert type(ours[key]) is type(value), key


def test_a_dump_reads_back_as_the_same_config():
    text = get_cfg().dump()
    assert dict(leaves(yaml.safe_load(text))) == {key: as_lists(value) for key, value in leaves(get_cfg())}
    assert "&id" not in text, "yaml anchors make a config hard to read"


def test_changing_a_config_leaves_the_defaults_alone():
    before = copy.deepcopy(defaults.DEFAULTS)
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN.append(1.0)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES[0][0] = 7
    cfg.SOLVER.BASE_LR = 3.0
    assert before == defaults.DEFAULTS
    assert get_cfg().SOLVER.BASE_LR != 3.0


@pytest.mark.parametrize("section", ["INPUT", "DATALOADER", "SOLVER", "RPN", "ROI_BOX_HEAD", "RETINANET"])
def test_sections_carry_explanations(section):
    source = Path(defaults.__file__).read_text()
    body = re.search(rf"^{section}: dict.*?^}}", source, flags=re.DOTALL | re.MULTILINE).group()
    assert body.count("    # ") >= 4
