"""The evaluation loop: who is called when, what is logged, and in which state the model is left."""

import logging

import pytest
import torch
from torch import nn

from detlab.evaluation.evaluator import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset


class Recorder(DatasetEvaluator):
    def __init__(self, results=None):
        self.calls = []
        self.results = results

    def reset(self):
        self.calls.append("reset")

    def process(self, inputs, outputs):
        self.calls.append((inputs, outputs))

    def evaluate(self):
        self.calls.append("evaluate")
        return self.results


def double(inputs):
    return [2 * value for value in inputs]


def test_every_batch_goes_through_the_model_to_the_evaluator():
    recorder = Recorder({"task": {"AP": 1.0}})
    assert inference_on_dataset(double, [[1, 2], [3]], recorder) == {"task": {"AP": 1.0}}
    assert recorder.calls == ["reset", ([1, 2], [2, 4]), ([3], [6]), "evaluate"]


def test_several_evaluators_see_the_same_and_their_results_are_joined():
    first, second, silent = Recorder({"a": 1}), Recorder({"b": 2}), Recorder(None)
    assert inference_on_dataset(double, [[1]], [first, second, silent]) == {"a": 1, "b": 2}
    assert first.calls == second.calls == silent.calls


def test_results_under_the_same_name_are_refused():
    class Other(Recorder):
        pass

    with pytest.raises(ValueError, match="both Recorder and Other report results under 'bbox'"):
        DatasetEvaluators([Recorder({"bbox": 1}), Other({"bbox": 2})]).evaluate()


def test_without_evaluator_only_the_speed_is_measured(caplog):
    seen = []
    with caplog.at_level(logging.INFO):
        assert inference_on_dataset(lambda batch: seen.append(batch), [[1]] * 3, None) == {}
    assert seen == [[1]] * 3
    for line in ("Inference done 3/3. ", "Total inference time: ", "Total inference pure compute time: "):
        assert sum(text.startswith(line) for text in caplog.messages) == 1, line


def test_progress_names_rates_and_time_left(caplog):
    with caplog.at_level(logging.INFO):
        inference_on_dataset(double, [[1]] * 8, None)
    line = next(text for text in caplog.messages if text.startswith("Inference done"))
    for part in ("6/8", "Dataloading:", "Inference:", "Eval:", "s/iter", "ETA=0:00:0"):
        assert part in line


def test_a_stream_of_unknown_length_is_evaluated_too(caplog):
    recorder = Recorder()
    with caplog.at_level(logging.INFO):
        inference_on_dataset(double, iter([[1], [2]]), recorder)
    assert len(recorder.calls) == 4 and "Inference done 1." in caplog.text and "ETA" not in caplog.text


def test_an_empty_loader_gives_the_evaluator_nothing():
    recorder = Recorder({})
    assert inference_on_dataset(double, [], recorder) == {}
    assert recorder.calls == ["reset", "evaluate"]


def test_callbacks_come_around_every_batch():
    names = ["on_start", "before_inference", "after_inference", "on_end"]
    calls = []
    callbacks = {name: lambda name=name: calls.append(name) for name in names}
    inference_on_dataset(double, [[1], [2]], None, callbacks)
    assert calls == ["on_start", *["before_inference", "after_inference"] * 2, "on_end"]
    with pytest.raises(ValueError, match="on_finish"):
        inference_on_dataset(double, [], None, {"on_finish": print})


def test_a_model_predicts_in_evaluation_mode_without_gradients():
    states = []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, inputs):
            states.append((self.training, (self.weight * 2).requires_grad))
            return inputs

    model = Model().train()
    inference_on_dataset(model, [[1]], None)
    assert states == [(False, False)] and model.training


def test_every_submodule_gets_its_own_mode_back_even_after_an_error():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)).train()
    model[1].eval()
    with pytest.raises(RuntimeError), inference_context(model):
        assert not model.training and not model[0].training
        raise RuntimeError
    assert [model.training, model[0].training, model[1].training] == [True, True, False]


def test_a_function_has_no_mode():
    with inference_context(double):
        pass
