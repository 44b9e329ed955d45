"""What torch.save writes is read without torch's loader, to the same values, and damage is noticed."""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from detlab.checkpoint.formats import read_checkpoint
from detlab.checkpoint.torch_file import RefusedTensorError, read_pickle, read_torch_archive

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
]


def saved(value, **kwargs):
    stream = io.BytesIO()
    torch.save(value, stream, **kwargs)
    return stream.getvalue()


def read(data, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(data)
    with open(path, "rb") as file:
        return read_torch_archive(file)


def both(value, tmp_path):
    """As both formats of torch give it back."""
    yield read(saved(value), tmp_path)
    yield read_pickle(saved(value, _use_new_zipfile_serialization=False))


def assert_same(got, expected):
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert torch.equal(got.reshape(-1).view(torch.uint8), expected.reshape(-1).contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_come_back(tmp_path, dtype):
    value = torch.arange(6).reshape(2, 3).to(dtype)
    for got in both({"w": value, "none": value[:0], "number": value[0, 1]}, tmp_path):
        assert_same(got["w"], value)
        assert_same(got["none"], value[:0])
        assert_same(got["number"], value[0, 1])


def test_views_share_their_memory_as_they_did(tmp_path):
    base = torch.arange(12.0)
    value = {"base": base, "part": base[3:7], "turned": base.view(3, 4).t(), "row": base[2:3].expand(5, 1)}
    for got in both(value, tmp_path):
        for name, tensor in value.items():
            assert torch.equal(got[name], tensor) and got[name].stride() == tensor.stride()
        got["base"][3] = 99
        assert got["part"][0] == 99


def test_parameters_and_attributes_become_plain_tensors(tmp_path):
    marked = torch.ones(2)
    marked.mark = "x"
    parameter = nn.Parameter(torch.ones(2))
    parameter.mark = "x"
    for got in both([nn.Parameter(torch.ones(2)), marked, parameter], tmp_path):
        assert all(type(value) is torch.Tensor and torch.equal(value, torch.ones(2)) for value in got)


def test_versions_of_layers_stay_beside_their_weights(tmp_path):
    state = nn.BatchNorm2d(2).state_dict()
    for got in both(state, tmp_path):
        assert isinstance(got, OrderedDict) and got._metadata == state._metadata


def test_values_that_are_no_tensors_come_back(tmp_path):
    value = [torch.Size([2, 3]), torch.device("cuda:1"), torch.float16, 1j, np.float32(2), np.arange(3), {"x"}, b"y"]
    for got in both(value, tmp_path):
        assert str(got) == str(value)


def test_the_other_order_of_bytes_is_turned(tmp_path):
    value = torch.arange(6.0).reshape(2, 3)
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"w": value}))) as old, zipfile.ZipFile(data, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("/data/0"):
                content = np.frombuffer(content, "u4").byteswap().tobytes()
            if entry.filename.endswith("/byteorder"):
                content = b"big" if sys.byteorder == "little" else b"little"
            new.writestr(entry.filename, content)
    assert torch.equal(read(data.getvalue(), tmp_path)["w"], value)


def test_a_changed_byte_is_noticed_or_harmless(tmp_path):
    weights = {"model": {"w": torch.arange(8.0), "b": torch.ones(2)}}
    data = saved(weights)
    path = tmp_path / "w.pth"
    noticed = 0
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 4
        path.write_bytes(changed)
        try:
            got = read_checkpoint(str(path))
        except ValueError as error:
            noticed += 1
            assert "w.pth" in str(error)
        else:
            assert torch.equal(got["model"]["w"], weights["model"]["w"])
            assert torch.equal(got["model"]["b"], weights["model"]["b"])
    assert noticed > 300


def test_a_changed_weight_is_called_that(tmp_path):
    data = bytearray(saved({"w": torch.arange(4.0)}))
    at = data.index(np.arange(4.0, dtype=np.float32).tobytes())
    data[at + 7] ^= 1
    with pytest.raises(zipfile.BadZipFile, match=r"record 'data/0' were changed"):
        read(bytes(data), tmp_path)


def test_a_file_that_was_saved_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        data = saved({"w": torch.ones(2)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read(data, tmp_path)["w"], torch.ones(2))


def special_tensors():
    yield "sparse", torch.eye(2).to_sparse()
    yield "sparse", torch.eye(2).to_sparse_csr()
    yield "meta", torch.ones(2, device="meta")
    yield "conjugated", torch.ones(2, dtype=torch.complex64).conj()
    yield "quantized", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    yield "quantized", torch.quantize_per_channel(torch.ones(2), torch.ones(2), torch.zeros(2), 0, torch.quint8)
    yield "nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_storage_are_refused_with_their_place_and_the_cure(tmp_path):
    for kind, value in special_tensors():
        torch.save({"model": {"head.weight": value}}, tmp_path / "odd.pth")
        with pytest.raises(
            ValueError, match=rf"odd\.pth is not read: model\.head\.weight is a .*{kind}.*Save it again"
        ):
            read_checkpoint(str(tmp_path / "odd.pth"))
        with pytest.raises(RefusedTensorError):
            read_pickle(saved({"w": value}, _use_new_zipfile_serialization=False))


def test_small_tensors_may_repeat_their_elements_and_large_ones_may_not(tmp_path):
    assert read(saved(torch.ones(1).expand(1000)), tmp_path).sum() == 1000
    with pytest.raises(pickle.UnpicklingError, match="repeats a few stored numbers"):
        read(saved({str(index): torch.ones(1).expand(10**7) for index in range(2)}), tmp_path)
