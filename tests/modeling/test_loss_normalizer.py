import pytest
import torch

from detlab.modeling import loss_normalizer
from detlab.modeling.loss_normalizer import Exchanged, exchange_normalizers, mean_over_ranks, normalizer_of
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
    assert {name: (x.mean.item(), x.own.item()) for name, x in found.items()} == {"proposals": (1024, 512),
                                                                                   "objects": (1, 0)}  # fmt: skip
    assert all(x.mean.dim() == x.own.dim() == 0 for x in found.values())


def test_what_was_exchanged_for_the_step_is_not_exchanged_again(exchanges):
    notes = StepNotes()
    notes.normalizers["proposals"] = Exchanged(torch.tensor(40.0), torch.tensor(30))
    assert normalizer_of(notes, "proposals", torch.tensor(30)) == 40 and exchanges == []
    assert normalizer_of(notes, "objects", torch.tensor(3)) == 6 and exchanges == [[3]]
    assert normalizer_of(notes, "objects", torch.tensor(3)) == 6 and exchanges == [[3]]


def test_objects_that_were_dropped_after_the_exchange_are_not_divided_by(exchanges):
    notes = StepNotes()
    notes.normalizers |= exchange_normalizers({"proposals": torch.tensor(30), "objects": torch.tensor(0)})
    assert [normalizer_of(notes, "proposals", torch.tensor(n)).item() for n in (30, 15, 0)] == [60, 30, 1]
    assert [normalizer_of(notes, "objects", torch.tensor(n)).item() for n in (0, 5)] == [1, 5]
    assert len(exchanges) == 1


def test_one_process_divides_what_is_left_by_its_number():
    notes = StepNotes()
    notes.normalizers |= exchange_normalizers({"proposals": torch.tensor(7), "objects": torch.tensor(0)})
    assert [normalizer_of(notes, "proposals", torch.tensor(n)).item() for n in (7, 3, 0)] == [7, 3, 1]
    assert [normalizer_of(notes, "objects", torch.tensor(n)).item() for n in (0, 4)] == [1, 4]
