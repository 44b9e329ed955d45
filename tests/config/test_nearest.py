"""Names alike are found, also in another section and in another case."""

from detlab.config.config import get_cfg
from detlab.config.merging import _dotted_keys
from detlab.config.nearest import _ELSEWHERE, did_you_mean, nearest_names, probable_slip

KNOWN = ["MODEL.WEIGHTS", "MODEL.RPN.NMS_THRESH", "SOLVER.BASE_LR", "SOLVER.BASE_LR_END", "SOLVER.MAX_ITER"]


def test_a_misspelt_name_finds_the_right_one_first():
    assert nearest_names("SOLVER.BASE_LRR", KNOWN)[0] == "SOLVER.BASE_LR"


def test_case_does_not_count():
    assert nearest_names("solver.max_iter", KNOWN)[0] == "SOLVER.MAX_ITER"


def test_a_key_in_the_wrong_section_is_found():
    assert "SOLVER.BASE_LR" in nearest_names("TRAIN.OPTIMIZER.PARAMETERS.BASE_LR", KNOWN)


def test_nothing_alike_gives_no_text():
    assert did_you_mean("ZZZ", KNOWN) == ""


def test_the_text_is_a_question():
    assert did_you_mean("MODEL.WEIGHT", KNOWN) == "; did you mean 'MODEL.WEIGHTS'?"


def test_a_name_of_nearly_the_same_letters_or_with_the_same_words_in_it_is_a_probable_slip():
    known = ["BASE_LR_END", "BASE_LR", "MAX_ITER", "RES5_DILATION", "CONV_DIM"]
    assert probable_slip("MAX_ITERS", known) == "MAX_ITER"
    assert probable_slip("LR", known) == "BASE_LR"
    assert probable_slip("LR", known, whole=True) is None
    assert probable_slip("RES4_DILATION", known) is None
    assert probable_slip("FC_DIM", known) is None
    assert probable_slip("MAX_ITER", known) is None


def test_names_of_other_trainers_are_known_only_where_their_meaning_is():
    assert did_you_mean("train.max_epochs", KNOWN).startswith("; here it is 'SOLVER.MAX_ITER', training is counted in")
    assert did_you_mean("work_dir", KNOWN) == ""


def test_every_name_of_another_trainer_leads_to_a_key():
    known = [*_dotted_keys(get_cfg())]
    assert all(f"here it is '{here}'" in did_you_mean(name, known) for name, (here, _) in _ELSEWHERE.items())
