"""Flags and settings are told apart wherever they stand, and make a config."""

import argparse
import os
import re

import pytest

from detlab.engine.command_line import SettingsParser, config_from_args, default_argument_parser


def parse(*words):
    return default_argument_parser().parse_args(words)


@pytest.mark.parametrize(
    ("words", "opts"),
    [
        ("OUTPUT_DIR x --eval-only", ["OUTPUT_DIR", "x"]),
        ("--eval-only OUTPUT_DIR x", ["OUTPUT_DIR", "x"]),
        ("OUTPUT_DIR x --eval-only SEED 3", ["OUTPUT_DIR", "x", "SEED", "3"]),
        ("train.output_dir=x +a.b=1 ~c.d --eval-only", ["train.output_dir=x", "+a.b=1", "~c.d"]),
        ("train.output_dir=x --eval-only optimizer.lr=-1", ["train.output_dir=x", "optimizer.lr=-1"]),
        ("SOLVER.X -1 --eval SOLVER.Y -1e-3 SOLVER.Z -x", ["SOLVER.X", "-1", "SOLVER.Y", "-1e-3", "SOLVER.Z", "-x"]),
    ],
)
def test_flags_stand_before_between_and_behind_settings(words, opts):
    args = parse(*words.split())
    assert (args.eval_only, args.resume, args.opts) == (True, False, opts)


def test_flags_behind_settings_have_their_arguments():
    args = parse("SEED", "3", "--num-gpus", "2", "--config-file=a.yaml", "--import", "x.py", "A.B", "[-1]")
    assert (args.num_gpus, args.config_file, args.imports) == (2, "a.yaml", ["x.py"])
    assert args.opts == ["SEED", "3", "A.B", "[-1]"]


def test_flags_of_a_program_of_ones_own_are_known():
    parser = default_argument_parser()
    parser.add_argument("-n", "--name")
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--pair", nargs=2)
    parser.add_argument("--speed", nargs="?", const="fast")
    args = parser.parse_args(["SEED", "3", "-nada", "--pair", "a", "b", "--speed", "--sizes", "1", "2"])
    assert (args.name, args.pair, args.speed, args.sizes) == ("ada", ["a", "b"], "fast", [1, 2])
    assert args.opts == ["SEED", "3"]
    assert parser.parse_args(["SEED", "3", "-n", "ada"]).name == "ada"


def test_behind_two_dashes_there_are_only_settings():
    assert parse("--resume", "--", "A", "--resume").opts == ["A", "--resume"]


def test_a_program_that_takes_unknown_flags_gets_those_before_the_settings():
    args, unknown = default_argument_parser().parse_known_args(["--mine", "SEED", "3"])
    assert (unknown, args.opts) == (["--mine"], ["SEED", "3"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("OUTPUT_DIR --eval-only", "the setting OUTPUT_DIR has no value: the flag --eval-only follows it"),
        ("SEED 3 --evalonly", r"unknown flag '--evalonly' behind the settings; did you mean '--eval-only'"),
        ("SEED 3 --config-file", "argument --config-file: expected one argument"),
        ("SEED 3 --num-gpus two", "argument --num-gpus: must be a whole number"),
        ("--evalonly SEED 3", "unrecognized arguments: --evalonly"),
    ],
)
def test_what_cannot_be_meant_is_said_in_a_sentence(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(*words.split())
    assert message in capsys.readouterr().err


def test_the_words_of_the_program_are_taken_by_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool", "SEED", "3"])
    parser = SettingsParser(formatter_class=argparse.RawDescriptionHelpFormatter, settings_help="the settings")
    assert parser.parse_args().opts == ["SEED", "3"]
    assert "the settings" in parser.format_help()


# ------------------------------------------------------------------------------------------------ what the tools take


def test_the_command_line_has_what_users_of_such_tools_know():
    args = default_argument_parser().parse_args(
        ["--config-file", "a.yaml", "--import", "x.py", "--import", "y", "--num-gpus", "2", "--resume", "SEED", "3"]
    )
    assert (args.config_file, args.imports, args.num_gpus, args.opts) == ("a.yaml", ["x.py", "y"], 2, ["SEED", "3"])
    assert (args.resume, args.eval_only, args.num_machines, args.machine_rank) == (True, False, 1, 0)
    assert args.dist_url == "auto"
    assert "torchrun" in default_argument_parser().format_help()
    assert "my epilog" in default_argument_parser("my epilog").format_help()


@pytest.mark.parametrize(
    "arguments", [("--num-gpus", "-1"), ("--num-gpus", "two"), ("--num-machines", "0"), ("--machine-rank", "-2")]
)
def test_a_number_that_cannot_be_is_refused_by_the_command_line(arguments, capsys):
    with pytest.raises(SystemExit):
        default_argument_parser().parse_args(arguments)
    option, value = arguments
    assert re.search(rf"argument {option}: must be a whole number from \d on, got '{value}'", capsys.readouterr().err)


def test_a_python_config_is_sent_to_the_program_that_takes_it(tmp_path):
    (tmp_path / "model.py").write_text("model = dict()\n")
    args = default_argument_parser().parse_args(["--config-file", str(tmp_path / "model.py")])
    with pytest.raises(ValueError, match=r"lazyconfig_train_net\.py"):
        config_from_args(args)


def test_the_config_is_read_after_the_modules_and_frozen(tmp_path):
    module = tmp_path / "early.py"
    module.write_text("import os\nos.environ['EARLY_MODULE'] = 'loaded'\n")
    file = tmp_path / "c.yaml"
    file.write_text("SEED: 5\n")
    parser = default_argument_parser()
    cfg = config_from_args(
        parser.parse_args(["--import", str(module), "--config-file", str(file), "SOLVER.MAX_ITER", "7"])
    )
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.is_frozen()) == (5, 7, True)
    assert os.environ.pop("EARLY_MODULE") == "loaded"
