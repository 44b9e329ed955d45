import pytest
import torch

from detlab.modeling import loss_normalizer
from detlab.modeling.loss_normalizer import exchange_normalizers, mean_over_ranks, normalizer_of
from detlab.structures.object_batch import StepNotes


@pytest.fixture
def exchanges(monkeypatch):
    """What was sent, as if another rank had three times as many."""
    sent = []

    def exchange(count):
        sent.append(count.tolist())
        return count * 2.0

    monkeypatch.setattr(loss_normalizer, "all_reduce_mean", exchange)
    return sent


def test_one_process_divides_by_its_own_count_or_by_one():
    assert mean_over_ranks(torch.tensor(7)) == 7 and mean_over_ranks(torch.tensor(0)) == 1


def test_the_mean_of_the_ranks_is_at_least_one_and_not_rounded(exchanges):
    assert mean_over_ranks(torch.tensor([0.25, 0.75])).tolist() == [1.0, 1.5]


def test_several_counts_go_in_one_exchange(exchanges):
    found = exchange_normalizers({"proposals": torch.tensor(512), "objects": torch.tensor(0)})
    assert exchanges == [[512, 0]]
    assert {name: value.item() for name, value in found.items()} == {"proposals": 1024, "objects": 1}
    assert all(value.dim() == 0 for value in found.values())


def test_what_was_exchanged_for_the_step_is_not_exchanged_again(exchanges):
    notes = StepNotes()
    notes.normalizers["proposals"] = torch.tensor(40.0)
    assert normalizer_of(notes, "proposals", torch.tensor(3)) == 40 and exchanges == []
    assert normalizer_of(notes, "objects", torch.tensor(3)) == 6 and exchanges == [3]
    assert normalizer_of(notes, "objects", torch.tensor(3)) == 6 and exchanges == [3]
