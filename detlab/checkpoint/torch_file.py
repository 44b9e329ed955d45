"""What ``torch.save`` wrote, read as data: nothing in the file is called, and damage is noticed.

Such a file is a zip archive: a pickle of the containers, in which each tensor is a description (of its type, shape and
strides) that refers to a record of raw bytes. Every record has a checksum, which torch itself writes and does not
look at. Here it is compared while a record is read (at about 1 to 3 GB/s), so that no changed byte of a weight goes
unnoticed; this is also why files written here need no digest of their own. Before torch 1.6 a file was a chain of
pickles with the raw bytes behind them, without checksums.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch

from detlab.checkpoint.pickle_reader import Name, PickleReader, UnsafePickleError
from detlab.checkpoint.restricted_pickle import PLAIN_VOCABULARY, Record, build_values, check_shape

__all__ = ["RefusedTensorError", "is_torch_archive", "read_pickle", "read_torch_archive"]

ZIP_MAGIC = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # magic, ..., lengths of the name and of the extra field
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
TENSOR_BYTES = 256
# Of tensors that repeat elements of their storage, as expand() makes them: larger than the file explains.
MAX_EXPANDED_BYTES = 64 * 2**20


def is_torch_archive(file: IO[bytes]) -> bool:
    """Whether a file, which is at its start and stays there, is a zip archive."""
    head = file.read(len(ZIP_MAGIC))
    file.seek(0)
    return head == ZIP_MAGIC


def read_torch_archive(file: IO[bytes]) -> Any:
    """The value that was given to ``torch.save``; parameters become tensors.

    Args:
        file: a local file, opened for reading bytes.

    Raises:
        UnsafePickleError: the file asks for something that is neither a tensor, an array nor a plain container.
        UnpicklingError: it is damaged, claims more than it holds, or holds tensors without plain storage.
        BadZipFile: it is no archive.
    """
    archive = _Archive(file)
    storages = _ArchiveStorages(archive)
    data = archive.read("data.pkl").tobytes()
    return build_values(_reader(data, storages).load())


def read_pickle(data: bytes) -> Any:
    """The value of a pickle, or of what ``torch.save`` wrote before torch 1.6.

    Raises:
        UnsafePickleError, UnpicklingError: as :func:`read_torch_archive`.
    """
    storages = _StreamStorages(data)
    reader = _reader(data, storages)
    value = reader.load()
    if value == LEGACY_MAGIC:
        if reader.load() != LEGACY_PROTOCOL:
            raise pickle.UnpicklingError("it is of an unknown version of torch's old format")
        system = reader.load()
        storages.swaps_bytes = type(system) is dict and system.get("little_endian") is (sys.byteorder == "big")
        value = reader.load()
        storages.find(reader.load(), reader.at)
    return build_values(value)


class RefusedTensorError(pickle.UnpicklingError):
    """A file is whole and harmless, but holds a tensor without plain storage."""


# -------------------------------------------------------------------------------------------------------- storages


class StorageKind(Record):
    """The type that a storage has in a file."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


class StorageReference(Record):
    """A storage, as a tensor's description refers to it."""

    __slots__ = ("dtype", "key", "num_bytes", "storages")

    def __init__(self, storages: _Storages, dtype: torch.dtype, key: str, num_bytes: int):
        self.storages, self.dtype, self.key, self.num_bytes = storages, dtype, key, num_bytes


class _Storages:
    """Raw bytes of tensors, each read once, when a tensor first wants them."""

    def __init__(self) -> None:
        self.swaps_bytes = False
        self.references: dict[str, StorageReference] = {}
        self._loaded: dict[str, torch.Tensor] = {}
        self._expanded_bytes_left = MAX_EXPANDED_BYTES

    def refer(self, reference: Any) -> StorageReference:
        """``("storage", type, key, device, number of elements)``, and None in the old format."""
        if type(reference) is not tuple or len(reference) < 5 or reference[0] != "storage":
            raise UnsafePickleError("it refers to objects outside of the file")
        kind, key, _, numel = reference[1:5]
        if type(kind) is not StorageKind or type(key) is not str or type(numel) is not int or numel < 0:
            raise TypeError("a storage without type, name or size")
        if any(view is not None for view in reference[5:]):
            raise pickle.UnpicklingError("it is of a torch older than 0.4; load and save it again with a newer one")
        found = StorageReference(self, kind.dtype, key, numel * kind.dtype.itemsize)
        return self.references.setdefault(key, found)

    def load(self, reference: StorageReference) -> torch.Tensor:
        """The bytes: (number of bytes,), uint8."""
        loaded = self._loaded.get(reference.key)
        if loaded is None:
            loaded = self._loaded[reference.key] = torch.from_numpy(self._read(reference))
        return loaded

    def charge_expanded(self, num_bytes: int) -> None:
        """Refuses tensors that would be far larger than what is stored of them."""
        self._expanded_bytes_left -= num_bytes
        if self._expanded_bytes_left < 0:
            raise pickle.UnpicklingError(f"repeats a few stored numbers until they are {num_bytes} bytes")

    def _read(self, reference: StorageReference) -> np.ndarray:
        raw = self._read_raw(reference.key)
        if len(raw) != reference.num_bytes:
            raise pickle.UnpicklingError(
                f"claims a storage of {reference.num_bytes} bytes, whose record has {len(raw)}"
            )
        if self.swaps_bytes:
            element = reference.dtype.itemsize // (2 if reference.dtype.is_complex else 1)
            raw.view(f"u{element}").byteswap(inplace=True)
        return raw

    def _read_raw(self, key: str) -> np.ndarray:
        """(number of bytes,), uint8, that may be written to."""
        raise NotImplementedError


class _Archive:
    """The records of a zip archive whose sizes are true and whose checksums are compared.

    Raises:
        BadZipFile: it is no archive, or says of its records what cannot be.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        entries = zipfile.ZipFile(file).infolist()
        self._entries = {entry.filename: entry for entry in entries}
        self._prefix = self._find_prefix()
        self._has_checksums = any(entry.CRC for entry in entries)
        if len(self._entries) != len(entries):
            raise zipfile.BadZipFile("two records have the same name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise zipfile.BadZipFile("its records are compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > self._size:
            raise zipfile.BadZipFile("its records claim to be larger than the file")

    def _find_prefix(self) -> str:
        prefixes = [
            name[: -len("data.pkl")] for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(prefixes) != 1:
            raise zipfile.BadZipFile("it is an archive, but not one of torch.save: it has no record data.pkl")
        return prefixes[0]

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._entries

    def read(self, name: str) -> np.ndarray:
        """A record: (number of bytes,), uint8."""
        if name not in self:
            raise zipfile.BadZipFile(f"the record {name[:100]!r} is missing")
        entry = self._entries[self._prefix + name]
        self._file.seek(entry.header_offset)
        header = self._file.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or header[:4] != ZIP_MAGIC:
            raise zipfile.BadZipFile(f"the record {name[:100]!r} is not where the archive says")
        _, name_length, extra_length = LOCAL_HEADER.unpack(header)
        self._file.seek(name_length + extra_length, os.SEEK_CUR)
        if self._file.tell() + entry.file_size > self._size:
            raise zipfile.BadZipFile(f"the record {name[:100]!r} reaches beyond the end of the file")
        content = np.empty(entry.file_size, np.uint8)
        if self._file.readinto(content) != entry.file_size:  # type: ignore[attr-defined]
            raise zipfile.BadZipFile(f"the record {name[:100]!r} could not be read to its end")
        if self._has_checksums and zlib.crc32(content.data) != entry.CRC:
            raise zipfile.BadZipFile(f"the bytes of the record {name[:100]!r} were changed: their checksum is another")
        return content


class _ArchiveStorages(_Storages):
    def __init__(self, archive: _Archive):
        super().__init__()
        self._archive = archive
        if "byteorder" in archive:
            self.swaps_bytes = archive.read("byteorder").tobytes().strip() != sys.byteorder.encode()

    def _read_raw(self, key: str) -> np.ndarray:
        return self._archive.read(f"data/{key}")


class _StreamStorages(_Storages):
    def __init__(self, data: bytes):
        super().__init__()
        self._data = data
        self._places: dict[str, tuple[int, int]] = {}  # first byte, number of bytes

    def find(self, keys: Any, start: int) -> None:
        """Notes where the storages lie: one after the other, each behind the number of its elements."""
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise pickle.UnpicklingError("it has no list of storages")
        for key in keys:
            if key not in self.references or start + 8 > len(self._data):
                raise pickle.UnpicklingError(f"the storage {key[:100]!r} is missing, or no tensor's")
            numel = int.from_bytes(self._data[start : start + 8], sys.byteorder)
            num_bytes = numel * self.references[key].dtype.itemsize
            if start + 8 + num_bytes > len(self._data):
                raise pickle.UnpicklingError(f"the storage {key[:100]!r} reaches beyond the end of the file")
            self._places[key] = start + 8, num_bytes
            start += 8 + num_bytes

    def _read_raw(self, key: str) -> np.ndarray:
        if key not in self._places:
            raise pickle.UnpicklingError(f"the storage {key[:100]!r} is missing")
        start, num_bytes = self._places[key]
        return np.frombuffer(self._data, np.uint8, num_bytes, start).copy()


# ----------------------------------------------------------------------------------------------------------- names


class TensorRecord(Record):
    """A tensor: its storage, and how its elements lie there."""

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype | None = None):
        if type(storage) is not StorageReference:
            raise TypeError("a tensor without a storage")
        check_shape(shape)
        check_shape(strides)
        check_shape((offset,))
        if len(shape) != len(strides):
            raise TypeError("a tensor with more sizes than strides, or fewer")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.dtype = dtype or storage.dtype

    def build(self) -> torch.Tensor:
        elements = self.storage.storages.load(self.storage).view(self.dtype)
        if 0 in self.shape:
            return elements[:0].reshape(self.shape)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        if last >= len(elements):
            raise pickle.UnpicklingError(f"refers to element {last} of a storage that has {len(elements)}")
        num_bytes = torch.Size(self.shape).numel() * self.dtype.itemsize
        if num_bytes > self.storage.num_bytes:
            self.storage.storages.charge_expanded(num_bytes)
        return elements.as_strided(self.shape, self.strides, self.offset)


class RefusedTensor(Record):
    """A tensor without plain storage."""

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = kind

    def build(self) -> Any:
        raise RefusedTensorError(f"is a {self.kind} tensor, and only dense tensors that have values are read")


def _tensor(reader: PickleReader, *arguments: Any) -> Record:
    """(storage, offset, shape, strides, requires grad, hooks, marks)"""
    reader.charge(TENSOR_BYTES)
    if len(arguments) > 6 and arguments[6]:
        return RefusedTensor("conjugated or negated")
    return TensorRecord(*arguments[:4])


def _tensor_with_dtype(reader: PickleReader, *arguments: Any) -> Record:
    """The same with the type of the elements after the hooks, for types that are younger than typed storages."""
    reader.charge(TENSOR_BYTES)
    if type(arguments[6]) is not torch.dtype:
        raise TypeError("a tensor without a type")
    if arguments[6] in QUANTIZED_DTYPES or (len(arguments) > 7 and arguments[7]):
        return RefusedTensor("quantized, conjugated or negated")
    storage, offset, shape, strides = arguments[:4]
    return TensorRecord(storage, offset, shape, strides, arguments[6])


def _refused(kind: str) -> Callable[..., Record]:
    def make(reader: PickleReader, *arguments: Any) -> Record:
        reader.charge(TENSOR_BYTES)
        return RefusedTensor(kind)

    return make


def _parameter(reader: PickleReader, tensor: Any, *arguments: Any) -> Record:
    if not isinstance(tensor, TensorRecord | RefusedTensor):
        raise TypeError("a parameter of what is no tensor")
    return tensor


def _tensor_with_attributes(reader: PickleReader, function: Any, kind: Any, arguments: Any, state: Any) -> Record:
    """A tensor that somebody has hung attributes on, which are dropped."""
    if type(function) is not Name or type(kind) is not Name or function.text not in TENSOR_MAKERS:
        raise UnsafePickleError("it makes a tensor by another way than torch's own")
    return TENSOR_MAKERS[function.text](reader, *arguments)


def _size(reader: PickleReader, sizes: Any = ()) -> torch.Size:
    check_shape(sizes)
    reader.charge(TENSOR_BYTES)
    return torch.Size(sizes)


def _device(reader: PickleReader, kind: Any, index: Any = None) -> torch.device:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise TypeError("a device without a name")
    reader.charge(TENSOR_BYTES)
    return torch.device(kind) if index is None else torch.device(kind, index)


def _only_a_name(reader: PickleReader, *arguments: Any) -> Any:
    raise UnsafePickleError("it makes a tensor by another way than torch's own")


QUANTIZED_DTYPES = (torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4)
TENSOR_MAKERS: dict[str, Callable[..., Record]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_sparse_tensor": _refused("sparse"),
    "torch._utils._rebuild_qtensor": _refused("quantized"),
    "torch._utils._rebuild_meta_tensor_no_storage": _refused("meta"),
    "torch._utils._rebuild_nested_tensor": _refused("nested"),
}
TORCH_VOCABULARY: dict[str, Callable[..., Any]] = {
    **PLAIN_VOCABULARY,
    **TENSOR_MAKERS,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.Tensor": _only_a_name,
    "torch.nn.parameter.Parameter": _only_a_name,
    "torch.Size": _size,
    "torch.device": _device,
    # How the layouts of sparse tensors are named, which are refused with their places.
    "torch.serialization._get_layout": lambda reader, layout: layout,
}
STORAGE_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QUInt8": torch.quint8,
    "QInt8": torch.qint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}
TORCH_CONSTANTS: dict[str, Any] = {
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **{f"torch.{name}": name for name, value in vars(torch).items() if isinstance(value, torch.qscheme)},
    **{f"torch.{name}Storage": StorageKind(dtype) for name, dtype in STORAGE_DTYPES.items()},
    "torch.storage.UntypedStorage": StorageKind(torch.uint8),
}


def _reader(data: bytes, storages: _Storages) -> PickleReader:
    return PickleReader(data, TORCH_VOCABULARY, TORCH_CONSTANTS, storages.refer)
