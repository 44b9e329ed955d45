"""Arrays and containers are read; everything that could run code is refused."""

import collections
import io
import os
import pickle
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from detlab.checkpoint.pickle_reader import UnsafePickleError
from detlab.checkpoint.restricted_pickle import load_arrays

PLAIN = {
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 4), dtype=np.int64),
    "scalar": np.float64(2.5),
    "integer": np.int64(7),
    "big_endian": np.arange(3, dtype=">f4"),
    "half": np.float16(0.5),
    "bools": np.array([True, False]),
    "text": np.array(["a", "bc"]),
    "containers": [1, (2.5, None, True), {"x": "text", "y": b"bytes"}, {1, 2}, frozenset([3]), bytearray(b"abc")],
    # Longer ones than what is copied out of the file at once.
    "large": np.arange(3000, dtype=np.float32).reshape(30, 100),
    "large_fortran": np.asfortranarray(np.arange(3000.0).reshape(30, 100)),
    "large_big_endian": np.arange(3000, dtype=">i8"),
    "large_text": "\u00e4" * 3000,
    "large_bytes": [b"\xff" * 3000, bytearray(b"\xfe" * 3000)],
    "long_key": {"k" * 3000: 1},
    "counted": collections.Counter("aab"),
    "complex": [1 + 2j, np.complex64(1 + 2j)],
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
}


def read(data):
    return load_arrays(io.BytesIO(data))


def assert_same(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, np.ndarray | np.generic):
        # numpy itself changes the byte order when it writes older protocols.
        assert got.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=") and np.array_equal(got, expected)
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        for key in expected:
            assert_same(got[key], expected[key])
    else:
        assert got == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_of_every_protocol(protocol):
    assert_same(read(pickle.dumps(PLAIN, protocol=protocol)), PLAIN)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_may_be_written_to(protocol):
    arrays = read(pickle.dumps([np.zeros(3), np.zeros(3000)], protocol=protocol))
    for array in arrays:
        array += 1
        assert array.sum() == len(array)


def test_a_long_text_of_python_2_is_an_arrays_bytes():
    values = np.arange(3000, dtype="<f4")
    text = b"T" + struct.pack("<i", values.nbytes) + values.tobytes()
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01M\xb8\x0b\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text
        + b"tb."
    )
    assert_same(read(data), values)


def test_an_array_that_claims_more_than_it_has_is_named_with_its_place():
    data = pickle.dumps({"model": {"w": np.zeros(3, np.float32)}}, protocol=2)
    assert data.count(b"K\x03\x85") == 1
    with pytest.raises(pickle.UnpicklingError, match=r"model\.w claims 16 bytes \(shape \(4,\), .*and has 12"):
        read(data.replace(b"K\x03\x85", b"K\x04\x85"))


def test_what_numpy_1_called_its_modules_is_known():
    data = pickle.dumps(PLAIN["array"], protocol=2)
    assert b"numpy._core" in data or b"numpy.core" in data
    for other in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        old = data.replace(b"numpy._core.multiarray", other)
        assert_same(read(old), PLAIN["array"])


def test_what_python_2_wrote_is_read():
    """``{'blobs': {'conv1_w': array([1., 2.], dtype=float32)}}`` as Python 2 and numpy 1 wrote it, protocol 0."""
    raw = np.array([1.0, 2.0], dtype="<f4").tobytes()
    text = "".join(f"\\x{byte:02x}" for byte in raw)
    data = (
        "(dp0\nS'blobs'\np1\n(dp2\nS'conv1_w'\np3\ncnumpy.core.multiarray\n_reconstruct\np4\n(cnumpy\nndarray\np5\n"
        "(I0\ntp6\nS'b'\np7\ntp8\nRp9\n(I1\n(I2\ntp10\ncnumpy\ndtype\np11\n(S'f4'\np12\nI0\nI1\ntp13\nRp14\n"
        "(I3\nS'<'\np15\nNNNI-1\nI-1\nI0\ntp16\nbI00\n"
        f"S'{text}'\np17\ntp18\nbss."
    ).encode("ascii")
    assert_same(read(data), {"blobs": {"conv1_w": np.array([1.0, 2.0], dtype=np.float32)}})


class Malicious:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (Malicious(os.system, "touch pwned"), r"(posix|nt)\.system"),
        (Malicious(eval, "1 + 1"), r"(builtins|__builtin__)\.eval"),
        (Malicious(getattr, np.ndarray, "tofile"), r"(builtins|__builtin__)\.getattr"),
        (Malicious(np.load, "file"), r"numpy.*load"),
        (Malicious(torch.load, "file"), r"torch\.serialization\.load"),
        (Fraction(1, 2), r"fractions\.Fraction"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, payload, name, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError, match=f"asks for {name}"):
        read(pickle.dumps({"model": {"w": payload}}, protocol=protocol))
    assert not os.listdir(tmp_path)


def test_attributes_of_allowed_objects_are_out_of_reach():
    data = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(UnsafePickleError, match=r"numpy\.ndarray\.tofile"):
        read(data)


def test_references_to_the_outside_are_refused():
    with pytest.raises(UnsafePickleError, match="outside"):
        read(b"Psomewhere\n.")


def test_unpickled_bytes_use_no_other_codec():
    data = b"c_codecs\nencode\n(Vabc\nVutf-16\ntR."
    with pytest.raises(UnsafePickleError, match="utf-16"):
        read(data)


def test_scalars_of_objects_are_refused():
    data = pickle.dumps(np.dtype(object), protocol=2)[2:-1]
    with pytest.raises(UnsafePickleError, match="Python objects"):
        read(b"\x80\x02cnumpy.core.multiarray\nscalar\n(" + data + b"X\x01\x00\x00\x00atR.")


def test_what_repeats_itself_without_end_is_refused_and_a_little_is_read():
    value = [1.0]
    for _ in range(30):
        value = [value, value]
    with pytest.raises(pickle.UnpicklingError, match=r"a\.b.* holds containers that hold each other"):
        load_arrays(io.BytesIO(pickle.dumps({"a": {"b": value}})))
    shared = [1, 2, 3]
    assert load_arrays(io.BytesIO(pickle.dumps([shared] * 100_000)))[-1] == shared
