"""From the command line to weights and results: tools/train_net.py and its relatives, on generated pictures."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detlab.data.datasets.shapes import generate_shapes
from detlab.engine import trainer
from detlab.engine.defaults import default_argument_parser
from detlab.engine.hooks import EVALUATION_HOOK_REGISTRY, HOOK_REGISTRY
from detlab.engine.launch import launch_from_args
from tests.engine.distributed_mains import load_tool, run_train_net
from tests.modeling.tiny import tiny_config

USER_MODULE = str(Path(__file__).with_name("user_module.py"))
NUM_ITERS = 6


@pytest.fixture(scope="module")
def _user_module(tmp_path_factory):
    """A folder of a few generated pictures for the user's module, whose hooks are gone afterwards."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(str(folder), num_train=12, num_val=3, image_size=(64, 80))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USER_MODULE_PICTURES", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)
    for registry, name in ((HOOK_REGISTRY, "WriteIterations"), (EVALUATION_HOOK_REGISTRY, "note_results")):
        registry._obj_map.pop(name, None)


def tiny_settings():
    """A config of a tiny model of the user's module."""
    cfg = tiny_config(masks=True)
    cfg.merge_from_list(
        [
            "MODEL.BACKBONE.NAME", "TwoMaps",
            "MODEL.ROI_HEADS.NAME", "RandomlyDeafROIHeads",
            "MODEL.ROI_HEADS.NUM_CLASSES", 5,
            "DATASETS.TRAIN", ["user_train"],
            "DATASETS.TEST", ["user_val"],
            "DATALOADER.NUM_WORKERS", 0,
            "INPUT.MIN_SIZE_TRAIN", [64, 72],
            "INPUT.MIN_SIZE_TEST", 64,
            "SOLVER.IMS_PER_BATCH", 2,
            "SOLVER.MAX_ITER", NUM_ITERS,
            "SOLVER.STEPS", [4],
            "SOLVER.WARMUP_ITERS", 2,
            "SOLVER.CHECKPOINT_PERIOD", 2,
            "SEED", 3,
        ]
    )  # fmt: skip
    return cfg


def arguments_for(output_dir, *flags, options=()):
    """A command line that writes to ``output_dir``; the config file lies beside it."""
    config_file = Path(f"{output_dir}.yaml")
    config_file.write_text(tiny_settings().dump())
    return ["--config-file", str(config_file), "--import", USER_MODULE, *flags,
            "OUTPUT_DIR", str(output_dir), *options]  # fmt: skip


@pytest.fixture
def command(_user_module, tmp_path):
    """``command(name, *flags, options=...)``: a command line that writes to a folder of this name."""
    return lambda name, *flags, options=(): arguments_for(tmp_path / name, *flags, options=options)


@pytest.fixture
def run_tool():
    """Runs a tool's ``main`` in this process."""

    def run(arguments, tool="train_net"):
        return load_tool(tool).main(default_argument_parser().parse_args(arguments))

    return run


def in_new_process(arguments, project_root, tool="train_net", **environment):
    """Runs a tool as a user does."""
    command = [sys.executable, str(project_root / "tools" / f"{tool}.py"), *arguments]
    variables = {**os.environ, "PYTHONPATH": str(project_root), **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def saved_weights(folder, name="model_final.pth"):
    return torch.load(Path(folder, name), weights_only=True)["model"]


def assert_same(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different


def test_a_users_module_trains_is_evaluated_and_leaves_everything(command, run_tool, tmp_path):
    results = run_tool(command("a"))
    folder = tmp_path / "a"
    assert {"bbox", "segm"} <= set(results)
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "model_final.pth"} <= names
    assert {"model_0000001.pth", "model_0000003.pth", "model_0000005.pth"} <= names
    assert (folder / "iterations.txt").read_text().split() == [str(i) for i in range(NUM_ITERS)]
    assert (folder / "results.txt").read_text() == str(results["bbox"]["AP"])
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_mask", "loss_rpn_cls", "lr", "data_time", "time"} <= set(rows[0])
    assert "bbox/AP" in rows[-1]
    assert "TwoMaps" in (folder / "config.yaml").read_text()

    options = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    # As text, since sizes without objects have a value that differs from itself.
    assert str(run_tool(command("b", "--eval-only", options=options))) == str(results)
    assert not (tmp_path / "b" / "model_final.pth").exists()
    assert str(run_tool(command("a", "--eval-only", "--resume"))) == str(results)


WITHOUT_EVALUATION = [
    "DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "3",
    "TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights_of_a_whole_run(_user_module, tmp_path_factory):
    """Of a run without data workers that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = arguments_for(folder, options=WITHOUT_EVALUATION)
    load_tool("train_net").main(default_argument_parser().parse_args(arguments))
    return saved_weights(folder)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_killed_in_the_middle_and_resumed_ends_with_the_same_weights(
    command, run_tool, project_root, tmp_path, weights_of_a_whole_run, num_workers
):
    options = [*WITHOUT_EVALUATION, "DATALOADER.NUM_WORKERS", str(num_workers)]
    killed = in_new_process(command("killed", options=options), project_root, USER_MODULE_KILL_AFTER="4")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "killed" / "last_checkpoint").read_text() == "model_0000003.pth"
    run_tool(command("killed", "--resume", options=[*options, "SEED", "55"]))
    assert (tmp_path / "killed" / "iterations.txt").read_text().split() == list("0123445")
    assert_same(weights_of_a_whole_run, saved_weights(tmp_path / "killed"))


def test_an_evaluation_that_was_killed_is_made_up_for_and_changes_no_weight(command, run_tool, tmp_path, monkeypatch):
    def run(name, *flags):
        return run_tool(command(name, *flags, options=["TEST.EVAL_PERIOD", "4"]))

    def rows_with_results(name):
        lines = (tmp_path / name / "metrics.json").read_text().splitlines()
        return [row["iteration"] for row in map(json.loads, lines) if "bbox/AP" in row]

    run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "inference_on_dataset", _killed)
        with pytest.raises(KilledError):
            run("killed")
    assert (tmp_path / "killed" / "last_checkpoint").read_text() == "model_0000003.pth"
    assert rows_with_results("killed") == []
    results = run("killed", "--resume")
    assert rows_with_results("killed") == rows_with_results("whole") == [3, NUM_ITERS]
    assert_same(saved_weights(tmp_path / "whole"), saved_weights(tmp_path / "killed"))

    metrics = (tmp_path / "killed" / "metrics.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "inference_on_dataset", _killed)
        # It is finished, and has its results.
        assert json.dumps(run("killed", "--resume")) == json.dumps(results)
        (tmp_path / "killed" / "last_evaluation.json").unlink()
        with pytest.raises(KilledError):
            run("killed", "--resume")
    assert json.dumps(run("killed", "--resume")) == json.dumps(results)
    assert (tmp_path / "killed" / "metrics.json").read_text() == metrics


class KilledError(Exception):
    """Stands for a signal."""


def _killed(*args):
    raise KilledError


def test_results_of_the_training_are_left_by_an_evaluation_of_other_weights(command, run_tool, tmp_path):
    run_tool(command("a"))
    predictions = tmp_path / "a" / "inference" / "coco_instances_results.json"
    before = predictions.stat().st_mtime_ns
    weights = str(tmp_path / "a" / "model_0000001.pth")
    run_tool(command("a", "--eval-only", options=["MODEL.WEIGHTS", weights]))
    assert predictions.stat().st_mtime_ns == before
    assert (tmp_path / "a" / "eval_model_0000001" / "inference" / predictions.name).exists()


def test_a_run_resumed_with_another_number_of_classes_is_refused_before_any_step(command, run_tool, tmp_path):
    run_tool(command("a", options=["DATASETS.TEST", "()"]))
    more = ["DATASETS.TEST", "()", "MODEL.ROI_HEADS.NUM_CLASSES", "7", "SOLVER.MAX_ITER", "9"]
    with pytest.raises(
        ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES 5 -> 7: .*momentum_buffer of .*roi_heads.*shape"
    ):
        run_tool(command("a", "--resume", options=more))
    log = (tmp_path / "a" / "log.txt").read_text()
    assert re.search(r"\| MODEL\.ROI_HEADS\.NUM_CLASSES +\| +5 +\| +7 ", log)
    assert (tmp_path / "a" / "iterations.txt").read_text().split() == [str(i) for i in range(NUM_ITERS)]


def test_the_plain_loop_ends_with_the_same_weights_and_resumes(command, run_tool, tmp_path):
    options = ["DATASETS.TEST", "()"]
    run_tool(command("hooks", options=options))
    run_tool(command("plain", options=options), tool="plain_train_net")
    assert_same(saved_weights(tmp_path / "hooks"), saved_weights(tmp_path / "plain"))

    (tmp_path / "plain" / "last_checkpoint").write_text("model_0000003.pth")
    run_tool(command("plain", "--resume", options=[*options, "SEED", "55"]), tool="plain_train_net")
    assert_same(saved_weights(tmp_path / "hooks"), saved_weights(tmp_path / "plain"))


def test_the_plain_loop_over_a_finite_loader_goes_on_to_its_end(command, run_tool, tmp_path, monkeypatch):
    tool = load_tool("plain_train_net")
    build = tool.build_detection_train_loader
    monkeypatch.setattr(tool, "build_detection_train_loader", lambda cfg: list(itertools.islice(build(cfg), 4)))
    monkeypatch.setattr(tool, "DetectionCheckpointer", _without_loader(tool.DetectionCheckpointer))
    tool.main(default_argument_parser().parse_args(command("plain", options=["DATASETS.TEST", "()"])))
    assert (tmp_path / "plain" / "last_checkpoint").read_text() == "model_final.pth"


def _without_loader(checkpointer_class):
    """A plain list has no state to be saved."""
    return lambda *args, data_loader=None, **states: checkpointer_class(*args, **states)


def test_the_plain_loop_stops_by_a_signal_and_resumes(command, run_tool, tmp_path, monkeypatch):
    options = ["DATASETS.TEST", "()"]
    run_tool(command("whole", options=options), tool="plain_train_net")
    stopped = load_tool("plain_train_net")
    seed_step = stopped.seed_step

    def seed_and_signal(seed, iteration):
        seed_step(seed, iteration)
        if iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(stopped, "seed_step", seed_and_signal)
    with pytest.raises(SystemExit, match="143"):
        stopped.main(default_argument_parser().parse_args(command("stopped", options=options)))
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000002.pth"
    run_tool(command("stopped", "--resume", options=[*options, "SEED", "55"]), tool="plain_train_net")
    assert_same(saved_weights(tmp_path / "whole"), saved_weights(tmp_path / "stopped"))


def test_python_configs_train_resume_and_are_evaluated(command, run_tool, project_root, tmp_path):
    config = str(project_root / "tests" / "engine" / "lazy_tiny.py")

    def run(*flags, options=()):
        arguments = ["--config-file", config, "--import", USER_MODULE, *flags]
        return run_tool([*arguments, f"train.output_dir={tmp_path}/lazy", *options], tool="lazyconfig_train_net")

    run()
    folder = tmp_path / "lazy"
    whole = saved_weights(folder)
    assert {"model_0000003.pth", "model_0000005.pth", "config.yaml"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "model_0000001.pth").exists()
    results = (folder / "results.txt").read_text()
    assert results != "None"

    (folder / "last_checkpoint").write_text("model_0000003.pth")
    run("--resume", options=["train.seed=55"])
    assert (folder / "iterations.txt").read_text().split() == list("01234545")
    assert_same(whole, saved_weights(folder))
    evaluated = run("--eval-only", options=[f"train.init_checkpoint={folder}/model_final.pth"])
    assert str(evaluated["bbox"]["AP"]) == results


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ("dataloader.test.dataset.names=user_vla", KeyError, "user_vla.*user_val"),
        ("dataloader.evaluator.tasks=[boxes]", ValueError, "boxes"),
        ("train.device=gpu", ValueError, r"train\.device is 'gpu'.*'cuda'"),
    ],
)
def test_what_is_wrong_with_a_python_config_is_said_before_training(
    command, run_tool, project_root, tmp_path, option, error, message
):
    config = str(project_root / "tests" / "engine" / "lazy_tiny.py")
    options = [f"train.output_dir={tmp_path}/lazy", option]
    with pytest.raises(error, match=f"(?s){message}"):
        run_tool(["--config-file", config, "--import", USER_MODULE, *options], tool="lazyconfig_train_net")
    assert not (tmp_path / "lazy" / "iterations.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config-file", "configs/quick_start/shapes_mask_rcnn.yaml"],
            r"shapes_mask_rcnn\.yaml .*tools/train_net\.py",
        ),
        ([], "name a Python config with --config-file"),
    ],
)
def test_what_is_no_python_config_is_sent_to_the_program_that_takes_it(
    run_tool, project_root, monkeypatch, arguments, message
):
    monkeypatch.chdir(project_root)
    with pytest.raises(ValueError, match=message):
        run_tool(arguments, tool="lazyconfig_train_net")


def test_a_python_config_without_a_part_is_refused_with_its_name(run_tool, tmp_path):
    (tmp_path / "part.py").write_text("model = dict()\ntrain = dict()\n")
    with pytest.raises(ValueError, match=r"part\.py has no optimizer, lr_multiplier, dataloader"):
        run_tool(["--config-file", str(tmp_path / "part.py")], tool="lazyconfig_train_net")


def test_two_processes_on_the_cpu_train_and_evaluate(command, tmp_path):
    args = default_argument_parser().parse_args(command("two", "--num-gpus", "2"))
    launch_from_args(run_train_net, args, device="cpu")
    assert (tmp_path / "two" / "log.txt.rank1").exists()
    assert (tmp_path / "two" / "model_final.pth").exists()
    assert (tmp_path / "two" / "results.txt").read_text() != "None"


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["DATASETS.TRAIN", "['user_trian']"], KeyError, "user_trian.*user_train"),
        (["DATASETS.TEST", "['user_vla']"], KeyError, "user_vla.*user_val"),
        (["TEST.EXPECTED_RESULTS", "[['bbox', 'AP']]"], ValueError, "TEST.EXPECTED_RESULTS.*tolerance"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "2"], ValueError, "NUM_CLASSES"),
        (["DATASETS.TRAIN", "[]"], ValueError, "DATASETS.TRAIN|empty|no "),
        (["MODEL.DEVICE", "cuda"], ValueError, "MODEL.DEVICE cpu"),
        (["MODEL.BACKBONE.NAME", "ThreeMaps"], KeyError, "TwoMaps"),
        (["SOLVER.BASE_LRR", "1"], KeyError, "SOLVER.BASE_LR"),
        (["FLOAT32_PRECISION", "best"], ValueError, "highest"),
        (["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "fp16"], ValueError, "float16"),
        (["SOLVER.IMS_PER_BATCH", "3", "SOLVER.REFERENCE_WORLD_SIZE", "2"], ValueError, "IMS_PER_BATCH 3"),
    ],
)
def test_bad_settings_are_refused_with_value_and_cure(command, run_tool, tmp_path, options, error, message):
    if options[:2] == ["MODEL.DEVICE", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(error, match=f"(?s){message}"):
        run_tool(command("bad", options=options))
    assert not (tmp_path / "bad" / "iterations.txt").exists()


def test_an_output_directory_that_cannot_be_written_is_refused_before_training(command, run_tool, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"(?s)cannot write to .*file/out.*OUTPUT_DIR"):
        run_tool(command("a", options=["OUTPUT_DIR", str(tmp_path / "file" / "out")]))


def test_evaluating_on_nothing_is_refused(command, run_tool):
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        run_tool(command("a", "--eval-only", options=["DATASETS.TEST", "[]"]))


def test_a_module_that_is_not_there_is_refused(command, run_tool):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py"):
        run_tool(["--import", "nowhere.py", *command("a")])


def test_a_setting_without_a_value_is_refused_also_behind_flags(command, run_tool):
    with pytest.raises(ValueError, match="'SEED' has no value"):
        run_tool([*command("a"), "--resume", "SEED"])


def test_a_run_whose_last_checkpoint_is_not_named_is_not_begun_anew(command, run_tool):
    run_tool(command("run"))
    folder = Path(command("run")[command("run").index("OUTPUT_DIR") + 1])
    (folder / "last_checkpoint").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth")}
    with pytest.raises(FileNotFoundError, match=r"has checkpoints .*model_final.* but no last_checkpoint"):
        run_tool(command("run", "--resume"))
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth")} == before
