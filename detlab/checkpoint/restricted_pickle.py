"""Arrays and plain containers out of pickles, without running what a stranger put into them.

:mod:`detlab.checkpoint.pickle_reader` reads the file; here is what the names in it mean. Nothing of numpy's is among
them: an array is first a description, and is made of a shape, a type out of a fixed list, and as many bytes as the two
ask for.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from detlab.checkpoint.pickle_reader import Chunk, Name, PickleReader, UnsafePickleError, plain
from detlab.utils.garbage import no_garbage_collection

__all__ = ["PLAIN_VOCABULARY", "Record", "build_values", "check_shape", "is_known_dtype", "load_arrays"]

# Numbers, and texts of a fixed length. Not among them: Python objects, structures, dates, platforms' own types.
KNOWN_DTYPES = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,3}")
MAX_DIMENSIONS, MAX_SIZE = 64, 2**63
# Of an array's object, and of the record that it is made from.
ARRAY_BYTES = 256
# Of an OrderedDict: empty, and more for each item.
DICT_BYTES = 256
MAX_DEPTH = 100
# Values count at each place where they stand: so many are free, and so many more for each that there is.
FREE_VALUES, VALUES_PER_VALUE = 2**20, 8
ATOMS = {type(None), bool, int, float, complex, str, bytes, bytearray, set, frozenset}


class Record:
    """The description of a value that is made when everything has been read."""

    __slots__ = ()

    def build(self) -> Any:
        """The value.

        Raises:
            UnpicklingError: the parts of the description do not fit each other. The text goes on from the name of the
                place where the record stands: "claims 8 bytes, and has 4".
        """
        raise pickle.UnpicklingError(f"is a {type(self).__name__} by itself")


def is_known_dtype(dtype: np.dtype) -> bool:
    """Whether arrays of this type can be read."""
    return KNOWN_DTYPES.fullmatch(dtype.str[1:]) is not None


class DtypeRecord(Record):
    """The type of an array's elements: ``"f4"``, and its order of bytes."""

    __slots__ = ("code", "order")

    def __init__(self, reader: PickleReader, code: Any, align: Any = False, copy: Any = True):
        reader.charge(ARRAY_BYTES)
        if type(code) is bytes:
            code = str(code, "latin-1")
        self.code: Any = code
        self.order = "="
        if type(code) is str and code[:1] in ("<", ">", "|", "="):
            self.order, self.code = code[0], code[1:]
        if type(code) is not str or not KNOWN_DTYPES.fullmatch(self.code):
            # Only of a text: that of nested lists could go on for ever.
            kind = repr(code[:50]) if type(code) is str else type(code).__name__
            what = f"{kind} (Python objects)" if kind[1:].lstrip("|=<>")[:1] == "O" else kind
            raise UnsafePickleError(f"it holds an array of the type {what}, which is no type of numbers")

    def set_state(self, reader: PickleReader, state: Any) -> None:
        """(version, byte order, sub-type, names, fields, ...), of which only the order says something here."""
        if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise UnsafePickleError("it holds an array of structures, which are no numbers")
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("a type without an order of bytes")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


def check_shape(shape: Any) -> None:
    """Refuses what is no tuple of sizes that an array could have.

    Raises:
        TypeError: it is none.
    """
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
        raise TypeError("a shape that is no tuple of sizes")
    if not all(type(size) is int and 0 <= size < MAX_SIZE for size in shape):
        raise TypeError("a shape with a size that is no count")


class ArrayRecord(Record):
    """An array: what is said about it, and its bytes as they lie in the file."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, reader: PickleReader, data: Any, dtype: Any, shape: Any, fortran: bool):
        reader.charge(ARRAY_BYTES)
        if type(data) is str:
            # Python 2's bytes come out of the file as text.
            data = data.encode("latin-1")
        if type(dtype) is not DtypeRecord or type(data) not in (Chunk, bytes, bytearray):
            raise TypeError("an array without a type or without bytes")
        check_shape(shape)
        self.data, self.dtype, self.shape, self.fortran = data, dtype, shape, fortran
        if type(data) is not Chunk:
            reader.charge(len(data))

    def build(self) -> np.ndarray:
        dtype = self.dtype.dtype
        raw = self._bytes()
        claimed = math.prod(self.shape) * dtype.itemsize
        if claimed != len(raw):
            raise pickle.UnpicklingError(
                f"claims {claimed} bytes (shape {self.shape}, type {dtype}), and has {len(raw)}"
            )
        return raw.view(dtype).reshape(self.shape, order="F" if self.fortran else "C")

    def _bytes(self) -> np.ndarray:
        if type(self.data) is Chunk:
            return self.data.array()
        raw = np.frombuffer(self.data, np.uint8)
        return raw if raw.flags.writeable else raw.copy()


class PendingArray(Record):
    """An array of which the file has only announced that it comes; replaced by :meth:`set_state`."""

    __slots__ = ("array",)

    def __init__(self, reader: PickleReader, kind: Any, shape: Any, code: Any):
        if type(kind) is not Name or kind.text != "numpy.ndarray":
            raise UnsafePickleError("it holds an array of a kind that is not numpy.ndarray")
        reader.charge(ARRAY_BYTES)
        self.array: ArrayRecord | None = None

    def set_state(self, reader: PickleReader, state: Any) -> None:
        """(version, shape, type, is Fortran's order, bytes); the earliest numpy left the version out."""
        shape, dtype, fortran, data = state[-4:]
        if type(data) is list:
            raise UnsafePickleError("it holds an array of Python objects, which is no array of numbers")
        self.array = ArrayRecord(reader, data, dtype, shape, bool(fortran))

    def build(self) -> np.ndarray:
        if self.array is None:
            raise pickle.UnpicklingError("is an array without content")
        return self.array.build()


class ScalarRecord(ArrayRecord):
    """A number with a numpy type."""

    __slots__ = ()

    def __init__(self, reader: PickleReader, dtype: Any, data: Any):
        super().__init__(reader, data, dtype, (), False)

    def build(self) -> Any:
        return super().build()[()]


# ----------------------------------------------------------------------------------------------------------- names


def _array_from_buffer(reader: PickleReader, data: Any, dtype: Any, shape: Any, order: Any) -> ArrayRecord:
    return ArrayRecord(reader, data, dtype, shape, order == "F")


def _encode(reader: PickleReader, text: Any, encoding: Any) -> bytes | Chunk:
    """How old pickle protocols write bytes; other codecs than this one could decompress without bounds."""
    if type(encoding) is not str or type(text) not in (str, Chunk):
        raise TypeError("encoding of what is no text")
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"it holds bytes written with the codec {encoding[:50]!r}")
    if type(text) is Chunk:
        return text.as_bytes()
    reader.charge(len(text))
    return text.encode("latin-1")


def _bytes(kind: Callable[[bytes], Any]) -> Callable[..., Any]:
    def make(reader: PickleReader, data: Any = b"", encoding: Any = None) -> Any:
        data = plain(data if encoding is None else _encode(reader, data, encoding))
        if type(data) is not bytes:
            # A number would ask for so many zeros.
            raise UnsafePickleError(f"it makes bytes of a {type(data).__name__}")
        reader.charge(len(data))
        return kind(data)

    return make


def _set(kind: type) -> Callable[..., Any]:
    def make(reader: PickleReader, items: Any = ()) -> Any:
        if type(items) not in (list, tuple):
            raise TypeError("a set of what is no list")
        return reader.make_set(kind, items)

    return make


def _dict(kind: type) -> Callable[..., Any]:
    def make(reader: PickleReader, content: Any = ()) -> Any:
        """Of nothing, a dict, or (in Python 2) a list of pairs."""
        pairs = list(content.items()) if type(content) is dict else content
        if type(pairs) not in (list, tuple) or any(type(pair) not in (list, tuple) for pair in pairs):
            raise TypeError(f"a {kind.__name__} of what is neither a dict nor a list of pairs")
        reader.charge(DICT_BYTES * (1 + len(pairs)))
        made = kind()
        for key, value in pairs:
            made[reader.key(key, len(made))] = value
        return made

    return make


def _complex(reader: PickleReader, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError("a complex number of what is no float")
    return complex(real, imaginary)


def _refuse_call(reader: PickleReader, *arguments: Any) -> Any:
    raise UnsafePickleError("it calls numpy.ndarray")


# What the pickles of numpy, torch and Python name; numpy._core is called numpy.core up to numpy 1.
_BUILTINS: dict[str, Callable[..., Any]] = {
    "set": _set(set),
    "frozenset": _set(frozenset),
    "bytes": _bytes(bytes),
    "bytearray": _bytes(bytearray),
    "complex": _complex,
}
_ARRAY_MAKERS: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": PendingArray,
    "multiarray.scalar": ScalarRecord,
    "numeric._frombuffer": _array_from_buffer,
}
PLAIN_VOCABULARY: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict(OrderedDict),
    "collections.Counter": _dict(Counter),
    "_codecs.encode": _encode,
    "numpy.dtype": DtypeRecord,
    "numpy.ndarray": _refuse_call,
    **{f"{module}.{name}": make for module in ("builtins", "__builtin__") for name, make in _BUILTINS.items()},
    **{f"numpy.{core}.{name}": make for core in ("core", "_core") for name, make in _ARRAY_MAKERS.items()},
}


# ---------------------------------------------------------------------------------------------------------- values


def build_values(value: Any) -> Any:
    """What a :class:`PickleReader` gave, with every record in it made into its value; containers change in place.

    Raises:
        UnpicklingError: a record is wrong, or containers nest too deeply, as those do that contain themselves, or hold
            each other so often that to go through them would take for ever.
    """
    with no_garbage_collection():
        return _Builder().build(value)


class _Builder:
    def __init__(self) -> None:
        # By id; with the record, which must live as long as its id is used.
        self._built: dict[int, tuple[Any, Any, int]] = {}
        # All values, and those among them that are not repetitions.
        self._num_values = self._num_own = 0
        # Joined only for messages: keys may be long.
        self._place: list[Any] = []

    def build(self, value: Any) -> Any:
        kind = type(value)
        if kind in ATOMS:
            return value
        known = self._built.get(id(value))
        if known is not None:
            self._count(known[2], repeated=True)
            return known[1]
        if len(self._place) > MAX_DEPTH:
            raise pickle.UnpicklingError(f"it nests containers more than {MAX_DEPTH} deep, or one contains itself")
        before = self._num_values
        if kind in (dict, OrderedDict, Counter):
            built: Any = self._build_dict(value)
        elif kind is list:
            built = self._build_list(value)
        elif kind is tuple:
            built = tuple(self._build_list(list(value)))
        else:
            built = self._build_leaf(value)
        self._built[id(value)] = value, built, self._num_values - before
        return built

    def _count(self, num_values: int, repeated: bool = False) -> None:
        self._num_values += num_values
        self._num_own += 0 if repeated else num_values
        if self._num_values > FREE_VALUES + VALUES_PER_VALUE * self._num_own:
            raise pickle.UnpicklingError(
                f"{self._describe_place()} holds containers that hold each other: {self._num_own} values that are read "
                f"as more than {FREE_VALUES}"
            )

    def _build_dict(self, value: dict) -> dict:
        self._count(len(value))
        for key, item in value.items():
            if type(item) not in ATOMS:
                value[key] = self._build_at(key, item)
        if hasattr(value, "_metadata"):
            value._metadata = self._build_at("_metadata", value._metadata)
        return value

    def _build_list(self, value: list) -> list:
        self._count(len(value))
        for index, item in enumerate(value):
            if type(item) not in ATOMS:
                value[index] = self._build_at(index, item)
        return value

    def _build_at(self, key: Any, value: Any) -> Any:
        self._place.append(key)
        built = self.build(value)
        self._place.pop()
        return built

    def _build_leaf(self, value: Any) -> Any:
        try:
            if type(value) is Chunk:
                return value.value()
            if isinstance(value, Record):
                return value.build()
        except pickle.UnpicklingError as error:
            raise type(error)(f"{self._describe_place()} {error}") from None
        except (ValueError, TypeError, RuntimeError, SystemError, OverflowError) as error:
            # numpy and torch have limits of their own.
            raise pickle.UnpicklingError(f"{self._describe_place()} cannot be made: {error}") from None
        if type(value) is Name:
            raise UnsafePickleError(f"it holds {value.text} itself")
        return value

    def _describe_place(self) -> str:
        return ".".join(str(key)[:100] for key in self._place) or "it"


def load_arrays(file: IO[bytes]) -> Any:
    """Reads a pickle of arrays, numbers, texts and plain containers; also what Python 2 wrote.

    Args:
        file: opened for reading bytes.

    Raises:
        UnsafePickleError: the file asks for anything else; nothing of it was called.
        UnpicklingError: it is damaged, or claims more than it holds.
    """
    return build_values(PickleReader(file.read(), PLAIN_VOCABULARY).load())
