import pytest
from torch.utils.data import SequentialSampler

from detlab.data.samplers.grouped_batch_sampler import GroupedBatchSampler


def test_batches_are_given_when_their_group_is_full():
    sampler = GroupedBatchSampler(SequentialSampler(range(9)), [0, 1, 0, 0, 1, 0, 1, 1, 0], 2)
    assert list(sampler) == [[0, 2], [1, 4], [3, 5], [6, 7]]
    assert list(sampler) == list(sampler)


def test_the_number_of_batches_is_not_known():
    with pytest.raises(TypeError, match="not known"):
        len(GroupedBatchSampler(SequentialSampler(range(2)), [0, 1], 2))


def test_what_is_no_sampler_or_no_group_is_refused():
    with pytest.raises(TypeError, match="got list"):
        GroupedBatchSampler([1, 2], [0, 1], 2)
    with pytest.raises(ValueError, match="batch_size=0"):
        GroupedBatchSampler(SequentialSampler(range(2)), [0, 1], 0)
    with pytest.raises(ValueError, match="shape"):
        GroupedBatchSampler(SequentialSampler(range(2)), [[0, 1]], 1)
