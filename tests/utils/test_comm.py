"""Processes agree; one process alone works too."""

import json
import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist

from detlab.utils import comm

WORLD_SIZE = 2


def test_one_process_alone_talks_to_itself():
    value = torch.ones(2, requires_grad=True)
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process() and comm.get_local_process_group() is None
    assert comm.all_gather("a") == comm.gather("a") == ["a"]
    assert comm.broadcast(5) == 5
    assert comm.all_reduce_mean(value) is value
    losses = {"a": value}
    assert comm.reduce_dict(losses) is losses
    comm.synchronize()
    comm.create_local_process_group(1)


def test_the_shared_seed_comes_from_the_seeded_generator():
    np.random.seed(3)
    first = comm.shared_random_seed()
    np.random.seed(3)
    assert comm.shared_random_seed() == first


def test_machines_of_unequal_size_are_refused():
    with pytest.raises(ValueError, match="1 processes cannot be divided into machines of 2"):
        comm.create_local_process_group(2)


def _work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    np.random.seed(100 + rank)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=WORLD_SIZE, rank=rank)
    results = _exchange(rank)
    dist.destroy_process_group()
    # A second world must not see the groups of the first.
    results["after"] = [comm.get_world_size(), comm.get_local_size(), comm.all_gather(rank)]
    with open(os.path.join(folder, f"{rank}.json"), "w") as file:
        json.dump(results, file)


def _exchange(rank: int) -> dict:
    results: dict = {"rank": comm.get_rank(), "world": comm.get_world_size(), "main": comm.is_main_process()}
    try:
        comm.get_local_process_group()
    except RuntimeError as error:
        results["no_local_group"] = str(error)
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    results["torchrun"] = [comm.get_local_rank(), comm.get_local_size()]
    comm.create_local_process_group(1)
    results["local"] = [comm.get_local_rank(), comm.get_local_size()]
    # Of different sizes on each rank, and not tensors.
    results["all_gather"] = comm.all_gather({"rank": rank, "text": "x" * (rank * 1000)})[1]["rank"]
    results["own_group"] = comm.all_gather(rank, group=comm.get_local_process_group())
    results["gather"] = comm.gather([rank] * (rank + 1))
    results["gather_to_1"] = comm.gather(rank, dst=1)
    results["broadcast"] = comm.broadcast(f"from {rank}")
    results["seed"] = comm.shared_random_seed()
    # In different orders on each rank.
    names = ["a", "b"] if rank == 0 else ["b", "a"]
    losses = {name: torch.tensor(float(ord(name) + rank), requires_grad=True) for name in names}
    results["sum"] = {name: value.item() for name, value in comm.reduce_dict(losses, average=False).items()}
    results["mean"] = {name: value.item() for name, value in comm.reduce_dict(losses).items()}
    value = torch.tensor([1.0 + rank, 4.0], requires_grad=True)
    mean = comm.all_reduce_mean(value)
    results["all_reduce_mean"] = [mean.tolist(), mean.requires_grad, value.tolist()]
    results["mean_of_integers"] = comm.all_reduce_mean(torch.tensor(rank)).item()
    comm.synchronize()
    return results


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_work, args=(port, str(folder)), nprocs=WORLD_SIZE)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


def test_two_processes_know_their_places(exchanged):
    assert [r["rank"] for r in exchanged] == [0, 1]
    assert all(r["world"] == 2 for r in exchanged)
    assert [r["main"] for r in exchanged] == [True, False]


def test_the_place_on_the_machine_comes_from_torchrun_or_the_group(exchanged):
    assert [r["torchrun"] for r in exchanged] == [[0, 2], [1, 2]]
    assert [r["local"] for r in exchanged] == [[0, 1], [0, 1]]
    assert "create_local_process_group" in exchanged[0]["no_local_group"]


def test_objects_are_gathered_in_order_of_rank(exchanged):
    assert [r["all_gather"] for r in exchanged] == [1, 1]
    assert [r["own_group"] for r in exchanged] == [[0], [1]]
    assert [r["gather"] for r in exchanged] == [[[0], [1, 1]], []]
    assert [r["gather_to_1"] for r in exchanged] == [[], [0, 1]]
    assert [r["broadcast"] for r in exchanged] == ["from 0", "from 0"]


def test_the_shared_seed_is_shared(exchanged):
    assert exchanged[0]["seed"] == exchanged[1]["seed"]


def test_losses_are_reduced_by_name_to_the_main_process(exchanged):
    assert exchanged[0]["sum"] == {"a": 195.0, "b": 197.0}
    assert exchanged[0]["mean"] == {"a": 97.5, "b": 98.5}


def test_the_mean_is_on_all_ranks_and_leaves_its_input_alone(exchanged):
    assert exchanged[0]["all_reduce_mean"] == [[1.5, 4.0], False, [1.0, 4.0]]
    assert exchanged[1]["all_reduce_mean"] == [[1.5, 4.0], False, [2.0, 4.0]]
    assert [r["mean_of_integers"] for r in exchanged] == [0.5, 0.5]


def test_a_world_that_ended_leaves_one_process_alone(exchanged):
    assert [r["after"] for r in exchanged] == [[1, 1, [0]], [1, 1, [1]]]
