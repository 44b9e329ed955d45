"""Opcodes become plain values; damage becomes a sentence."""

import pickle
import random

import numpy as np
import pytest

from detlab.checkpoint.pickle_reader import Chunk, PickleReader, UnsafePickleError, check_key, plain

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    255,
    65535,
    -(2**31),
    2**31,
    2**63,
    -(2**200),
    0.5,
    float("inf"),
    "",
    "text",
    "\u00e4\u4e2d\U0001f600",
    "line\nbreak \\u0041 'quoted'",
    (),
    (1,),
    (1, 2),
    (1, 2, 3),
    (1, 2, 3, 4),
    [],
    [1, [2, [3]]],
    {},
    {"a": {1: "x", None: 2.5, (1, "y"): b""}},
    list(range(3000)),
    {str(index): index for index in range(3000)},
]


def read(data):
    return PickleReader(data, {}).load()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_what_python_makes_of_them(protocol):
    values = VALUES if protocol >= 3 else VALUES[:-3] + [{"a": {1: "x"}}]
    assert read(pickle.dumps(values, protocol)) == values


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_long_pieces_stay_in_the_file_until_they_are_wanted(protocol):
    values = [b"x" * 5000, "\u00e4" * 5000, bytearray(b"y" * 5000) if protocol == 5 else None]
    got = read(pickle.dumps(values, protocol))
    assert isinstance(got[0], Chunk) and isinstance(got[1], Chunk)
    assert [plain(value) for value in got] == values


def test_a_long_key_is_a_text():
    assert read(pickle.dumps({"k" * 5000: 1})) == {"k" * 5000: 1}


def test_shared_values_are_shared():
    shared = [1]
    got = read(pickle.dumps([shared, shared]))
    assert got[0] is got[1]


def test_pickles_that_lie_one_after_the_other_are_read_in_turn():
    reader = PickleReader(pickle.dumps("a") + pickle.dumps([2]) + b"rest", {})
    assert [reader.load(), reader.load()] == ["a", [2]] and reader.data[reader.at :] == b"rest"


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_truncation_is_a_sentence(protocol):
    data = pickle.dumps(VALUES[:-2] if protocol >= 3 else VALUES[:25], protocol)
    for end in range(len(data)):
        with pytest.raises(pickle.UnpicklingError):
            read(data[:end])


def test_no_change_of_bytes_gives_another_error():
    rng = random.Random(0)
    for protocol in (0, 2, 4, 5):
        data = pickle.dumps([VALUES[:25], np.arange(4.0)], protocol)
        for _ in range(1000):
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 3))):
                changed[rng.randrange(len(data))] = rng.randrange(256)
            try:
                read(bytes(changed))
            except pickle.UnpicklingError as error:
                assert str(error)


def test_an_unknown_instruction_is_named():
    with pytest.raises(pickle.UnpicklingError, match=r"byte 0 \(0x3c\) is no instruction"):
        read(b"<html>")


def test_a_newer_protocol_is_named():
    with pytest.raises(pickle.UnpicklingError, match="protocol 9"):
        read(b"\x80\x09N.")


def test_a_name_that_is_not_in_the_vocabulary_is_refused_and_one_that_is_gets_the_arguments():
    data = b"\x80\x02ca\nb\n(K\x01K\x02tR."
    with pytest.raises(UnsafePickleError, match=r"asks for a\.b"):
        read(data)
    assert PickleReader(data, {"a.b": lambda reader, *arguments: arguments}).load() == (1, 2)


@pytest.mark.parametrize("key", [1j, 2**64, ((1,),), (1,) * 1000, frozenset(), []])
def test_what_could_take_for_ever_to_hash_is_no_key(key):
    with pytest.raises(pickle.UnpicklingError, match="key"):
        check_key(key)


def test_keys_that_are_tuples_are_counted():
    with pytest.raises(pickle.UnpicklingError, match="10000 keys"):
        read(pickle.dumps({(index,): None for index in range(10_001)}))
