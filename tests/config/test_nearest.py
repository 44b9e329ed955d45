"""Names alike are found, also in another section and in another case."""

from detlab.config.nearest import did_you_mean, nearest_names

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
