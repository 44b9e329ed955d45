"""Reading a pickle as data: its opcodes become plain values, and nothing that it names is ever fetched or called.

A pickle is a program for a small machine with a stack, which may import any Python object by name and call it. The
machine here has no such objects. A name becomes a :class:`Name`, which is inert; a call of one looks the name up in a
vocabulary, and hands the arguments, plain values too, to a function that was written for them. What is not in the
vocabulary is refused where it is named.

What a file claims is held against what it holds. A length that reaches beyond the end is refused before anything is
allocated, and the containers that a file asks for may take a few times its size. The work is linear in the file's
size: keys are plain (to hash nested ones could take for ever), and so are the items of sets; those whose hashes can be
chosen to collide are few.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from detlab.utils.garbage import no_garbage_collection

__all__ = ["Chunk", "KeyLimits", "Name", "PickleReader", "UnsafePickleError", "check_key", "plain"]

# Containers may take so much memory in all: Python's are larger than the bytes that ask for them.
FREE_BYTES = 32 * 2**20
BYTES_PER_BYTE = 8
# About what an empty one takes, with its place on the stack.
DICT_BYTES, LIST_BYTES, SET_BYTES, TUPLE_BYTES = 72, 64, 224, 56
# Of an item, while the table that holds it grows.
DICT_ITEM_BYTES, SET_ITEM_BYTES = 96, 72

# Longer texts and bytes stay in the file's bytes until they are wanted; shorter ones are cheap.
CHUNK_BYTES = 1024
# The longest integers that anyone keeps are states of random generators. Conversion from digits is not linear.
MAX_INT_BYTES, MAX_INT_DIGITS = 256, 600
# Hashes of tuples, and of long integers, can be made to collide, which makes a dict as slow as a list.
MAX_TUPLE_KEYS, MAX_TUPLE_KEY_LENGTH = 10_000, 100
# Those of numbers are known beforehand, and so is where each of them is looked for. Counted in order they do no harm.
MAX_NUMBER_KEYS = 20_000
MAX_KEY = 2**63
# Picklers number what they remember one by one.
MAX_MEMO_GAP = 1000
MAX_PROTOCOL = 5

# Numbers of so many bytes; pickles write integers in little, floats in big endian.
UINT2, UINT4, UINT8, INT4, FLOAT8 = map(struct.Struct, ("<H", "<I", "<Q", "<i", ">d"))

_NOTHING = object()


class UnsafePickleError(pickle.UnpicklingError):
    """A file asks for something that is neither an array nor a plain container."""


class Name:
    """The name of a Python object in a pickle, and no more than that."""

    __slots__ = ("text",)

    def __init__(self, text: str):
        self.text = text


class Chunk:
    """A long text, or long bytes, as they lie in the file.

    Args:
        data: the bytes in the file.
        encoding: of the text that these are, ``"utf-8"`` or ``"latin-1"``; None if they are just bytes.
        is_bytes: the text stands for bytes, one for each character; so old protocols write them.
    """

    __slots__ = ("_array", "_bytes", "_value", "data", "encoding", "is_bytes")

    def __init__(self, data: memoryview, encoding: str | None = None, is_bytes: bool = False):
        self.data, self.encoding, self.is_bytes = data, encoding, is_bytes
        self._value: str | bytes | None = None
        self._bytes: Chunk | None = None
        self._array: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.data)

    def value(self) -> str | bytes:
        """The text or bytes; decoded once, however often the pickle refers to them."""
        if self._value is None:
            is_text = self.encoding is not None and not self.is_bytes
            self._value = str(self.data, self.encoding or "") if is_text else bytes(self._raw())
        return self._value

    def as_bytes(self) -> Chunk:
        """The bytes that the text stands for."""
        if self._bytes is None:
            self._bytes = Chunk(self.data, self.encoding, is_bytes=True)
        return self._bytes

    def array(self) -> np.ndarray:
        """The bytes as an array of uint8 that may be written to; all that refer to them share it."""
        if self._array is None:
            self._array = np.frombuffer(self._raw(), dtype=np.uint8).copy()
        return self._array

    def _raw(self) -> bytes | memoryview:
        return str(self.data, "utf-8").encode("latin-1") if self.encoding == "utf-8" else self.data


def plain(value: Any) -> Any:
    """The text or bytes of a :class:`Chunk`; anything else as it is."""
    return value.value() if type(value) is Chunk else value


def check_key(key: Any) -> None:
    """Refuses what dicts and sets here do not hold.

    Raises:
        UnpicklingError: it is no text, bytes, number, None, or flat tuple of these.
    """
    if type(key) is tuple and len(key) > MAX_TUPLE_KEY_LENGTH:
        raise pickle.UnpicklingError(f"a key is a tuple of {len(key)} items")
    for part in key if type(key) is tuple else (key,):
        if type(part) is int and not -MAX_KEY <= part < MAX_KEY:
            raise pickle.UnpicklingError("a key is an integer of more than 64 bits")
        if type(part) not in (str, int, bytes, float, bool, type(None)):
            raise pickle.UnpicklingError(f"a key is, or holds, a {type(part).__name__}; keys are texts and numbers")


class KeyLimits:
    """How many keys a file may yet have whose hashes its writer can choose."""

    def __init__(self) -> None:
        self._numbers_left, self._tuples_left = MAX_NUMBER_KEYS, MAX_TUPLE_KEYS

    def take(self, key: Any, place: int = -1) -> None:
        """Counts a key.

        Args:
            key: what :func:`check_key` takes.
            place: how many keys its dict has; a number that is the same costs nothing.

        Raises:
            UnpicklingError: there are too many.
        """
        if type(key) is tuple:
            self._tuples_left -= 1
            if self._tuples_left < 0:
                raise pickle.UnpicklingError(f"more than {MAX_TUPLE_KEYS} keys are tuples")
        elif type(key) in (int, float, bool) and not (type(key) is int and key == place):
            self._numbers_left -= 1
            if self._numbers_left < 0:
                raise pickle.UnpicklingError(
                    f"more than {MAX_NUMBER_KEYS} keys are numbers that do not count from 0 on"
                )


class PickleReader:
    """Reads pickles of protocols 0 to 5 that lie one after the other; texts of Python 2 are taken for latin-1.

    Args:
        data: the bytes.
        vocabulary: what a call of a name gives: a function of the reader and the arguments. It must return plain
            values or what its owner knows how to go on with, and charge (:meth:`charge`) for what it copies.
        constants: what a name itself stands for, for names that are never called.
        load_persistent: what a reference to the outside gives; None refuses them.
    """

    def __init__(
        self,
        data: bytes,
        vocabulary: Mapping[str, Callable[..., Any]],
        constants: Mapping[str, Any] | None = None,
        load_persistent: Callable[[Any], Any] | None = None,
    ):
        self.data = data
        self.at = 0  # the next byte to read
        self._view = memoryview(data)
        self._vocabulary = vocabulary
        self._constants = constants or {}
        self._load_persistent = load_persistent
        self._budget = FREE_BYTES + BYTES_PER_BYTE * len(data)
        self._key_limits = KeyLimits()
        self._start()

    def _start(self) -> None:
        self._stack: list[Any] = []
        self._outer_stacks: list[list[Any]] = []  # one for each mark
        self._memo: list[Any] = []

    def load(self) -> Any:
        """The next pickle's value, in which :class:`Chunk`, and what the vocabulary makes, still stand for values.

        Raises:
            UnsafePickleError: it asks for a name that is not in the vocabulary.
            UnpicklingError: it is damaged, or asks for more memory than its size explains.
        """
        self._start()
        try:
            with no_garbage_collection():
                return self._run()
        except pickle.UnpicklingError:
            raise
        except (
            LookupError,
            ValueError,
            TypeError,
            RuntimeError,
            AttributeError,
            ArithmeticError,
            struct.error,
        ) as error:
            if self.at >= len(self.data):
                raise pickle.UnpicklingError("it ends too early") from None
            why = f"{type(error).__name__}: {error}"[:100]
            raise pickle.UnpicklingError(f"what it says before byte {self.at} makes no sense ({why})") from None

    def _run(self) -> Any:
        data, handlers = self.data, _HANDLERS
        while True:
            opcode = data[self.at]
            self.at += 1
            if opcode == STOP:
                return self._stack.pop()
            handler = handlers.get(opcode)
            if handler is None:
                raise pickle.UnpicklingError(f"byte {self.at - 1} ({opcode:#x}) is no instruction of a pickle")
            handler(self)

    def charge(self, num_bytes: int) -> None:
        """Takes memory from what the file's size allows.

        Raises:
            UnpicklingError: nothing is left.
        """
        self._budget -= num_bytes
        if self._budget < 0:
            raise pickle.UnpicklingError(f"it asks for far more memory than its {len(self.data)} bytes explain")

    # ----------------------------------------------------------------------------------------------- reading bytes

    def _take(self, length: int) -> memoryview:
        start, end = self.at, self.at + length
        if length < 0 or end > len(self.data):
            raise pickle.UnpicklingError(f"it claims {length} bytes at byte {start}, and has {len(self.data) - start}")
        self.at = end
        return self._view[start:end]

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _number(self, form: struct.Struct) -> Any:
        number = form.unpack_from(self.data, self.at)[0]
        self.at += form.size
        return number

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise pickle.UnpicklingError("it ends too early")
        line = self.data[self.at : end]
        self.at = end + 1
        return line

    def _push_piece(self, length: int, encoding: str | None) -> None:
        piece = self._take(length)
        if length > CHUNK_BYTES:
            self._stack.append(Chunk(piece, encoding))
        else:
            self._stack.append(bytes(piece) if encoding is None else str(piece, encoding))

    def _push_integer(self, length: int) -> None:
        if length > MAX_INT_BYTES:
            raise pickle.UnpicklingError(f"it holds an integer of {length} bytes")
        self._stack.append(int.from_bytes(self._take(length), "little", signed=True))

    # -------------------------------------------------------------------------------------------- opcodes: values

    def _int_line(self) -> None:
        line = self._line()
        if len(line) > MAX_INT_DIGITS:
            raise pickle.UnpicklingError(f"it holds an integer of {len(line)} digits")
        # How protocol 0 writes False and True; Python 2 marks long integers.
        bools = {b"00": False, b"01": True}
        self._stack.append(bools[line] if line in bools else int(line.removesuffix(b"L")))

    def _float_line(self) -> None:
        self._stack.append(float(self._line()))

    def _quoted_line(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise pickle.UnpicklingError("a text without quotes")
        text = codecs.escape_decode(line[1:-1])[0]
        self._stack.append(Chunk(memoryview(text), "latin-1") if len(text) > CHUNK_BYTES else str(text, "latin-1"))

    def _unicode_line(self) -> None:
        self._stack.append(str(self._line(), "raw-unicode-escape"))

    # ---------------------------------------------------------------------------------------- opcodes: containers

    def _mark(self) -> None:
        self.charge(LIST_BYTES)
        self._outer_stacks.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer_stacks.pop()
        return items

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _push_tuple(self, items: list[Any]) -> None:
        self.charge(TUPLE_BYTES)
        self._stack.append(tuple(items))

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[-count:]
        del self._stack[-count:]
        self._push_tuple(items)

    def _push_list(self, items: list[Any]) -> None:
        self.charge(LIST_BYTES)
        self._stack.append(items)

    def _push_dict(self, items: list[Any]) -> None:
        self.charge(DICT_BYTES)
        self._stack.append({})
        self._set_items(items)

    def _push_set(self, kind: type, items: list[Any]) -> None:
        self._stack.append(self.make_set(kind, items))

    def make_set(self, kind: type, items: Any) -> Any:
        """A set or frozenset of what may be a key."""
        self.charge(SET_BYTES + SET_ITEM_BYTES * len(items))
        return kind([self.key(item) for item in items])

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError("no list to append to")
        self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict, Counter) or len(items) % 2:
            raise TypeError("no dict to set items of, or a key without a value")
        self.charge(DICT_ITEM_BYTES * len(items) // 2)
        for index in range(0, len(items), 2):
            target[self.key(items[index], len(target))] = items[index + 1]

    def _add_items(self) -> None:
        items = self._pop_mark()
        if type(self._stack[-1]) is not set:
            raise TypeError("no set to add to")
        self._stack[-1].update(self.make_set(set, items))

    def key(self, value: Any, place: int = -1) -> Any:
        """A key as it stands in a dict: texts decoded, and nothing that :func:`check_key` or the limits refuse.

        Args:
            value: as the file gives it.
            place: how many keys the dict has; -1 in a set.
        """
        if type(value) is str:
            return value
        key = plain(value)
        if type(key) is tuple:
            key = tuple(map(plain, key))
        check_key(key)
        self._key_limits.take(key, place)
        return key

    # ---------------------------------------------------------------------------------------------- opcodes: memo

    def _put(self, index: int) -> None:
        gap = index - len(self._memo)
        if gap > MAX_MEMO_GAP or index < 0:
            raise pickle.UnpicklingError(f"it remembers a value under the number {index}")
        if gap >= 0:
            self.charge(8 * gap)
            self._memo.extend([_NOTHING] * (gap + 1))
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        value = self._memo[index] if 0 <= index < len(self._memo) else _NOTHING
        if value is _NOTHING:
            raise pickle.UnpicklingError(f"it refers to a value {index} that it did not store")
        self._stack.append(value)

    # --------------------------------------------------------------------------------------------- opcodes: names

    def _push_name(self, module: Any, name: Any) -> None:
        text = f"{plain(module)}.{plain(name)}"
        if text in self._constants:
            self._stack.append(self._constants[text])
        elif text in self._vocabulary:
            self.charge(TUPLE_BYTES)
            self._stack.append(Name(text))
        else:
            raise UnsafePickleError(f"it asks for {text[:200]}")

    def _name_lines(self) -> None:
        module, name = self._line(), self._line()
        self._push_name(str(module, "utf-8"), str(name, "utf-8"))

    def _name_from_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a name is no text")
        self._push_name(module, name)

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise UnsafePickleError(f"it calls a {type(function).__name__}")
        self._stack.append(self._vocabulary[function.text](self, *arguments))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is OrderedDict:
            # The versions of a model's layers, which torch keeps beside its weights. Other attributes say nothing.
            metadata = state.get("_metadata") if type(state) is dict else None
            if type(metadata) in (dict, OrderedDict):
                target._metadata = metadata  # type: ignore[attr-defined]
        elif hasattr(target, "set_state"):
            target.set_state(self, state)
        else:
            what = target.text if type(target) is Name else type(target).__name__
            raise UnsafePickleError(f"it changes the state of a {what}")

    def _persistent(self, reference: Any) -> None:
        if self._load_persistent is None:
            raise UnsafePickleError("it refers to objects outside of the file")
        self._stack.append(self._load_persistent(reference))

    def _refuse_buffer(self) -> None:
        raise UnsafePickleError("it refers to buffers outside of the file")

    def _check_protocol(self) -> None:
        protocol = self._byte()
        if protocol > MAX_PROTOCOL:
            raise pickle.UnpicklingError(f"it is a pickle of protocol {protocol}; those up to {MAX_PROTOCOL} are known")


STOP = pickle.STOP[0]
Reader = PickleReader

# What each opcode does; the names are those of the standard library's module.
_HANDLERS: dict[int, Callable[[PickleReader], None]] = {
    getattr(pickle, name)[0]: handler
    for name, handler in {
        "PROTO": Reader._check_protocol,
        "FRAME": lambda r: r._number(UINT8),
        "NONE": lambda r: r._stack.append(None),
        "NEWTRUE": lambda r: r._stack.append(True),
        "NEWFALSE": lambda r: r._stack.append(False),
        "INT": Reader._int_line,
        "LONG": Reader._int_line,
        "BININT": lambda r: r._stack.append(r._number(INT4)),
        "BININT1": lambda r: r._stack.append(r._byte()),
        "BININT2": lambda r: r._stack.append(r._number(UINT2)),
        "LONG1": lambda r: r._push_integer(r._byte()),
        "LONG4": lambda r: r._push_integer(r._number(INT4)),
        "FLOAT": Reader._float_line,
        "BINFLOAT": lambda r: r._stack.append(r._number(FLOAT8)),
        "STRING": Reader._quoted_line,
        "SHORT_BINSTRING": lambda r: r._push_piece(r._byte(), "latin-1"),
        "BINSTRING": lambda r: r._push_piece(r._number(INT4), "latin-1"),
        "UNICODE": Reader._unicode_line,
        "SHORT_BINUNICODE": lambda r: r._push_piece(r._byte(), "utf-8"),
        "BINUNICODE": lambda r: r._push_piece(r._number(UINT4), "utf-8"),
        "BINUNICODE8": lambda r: r._push_piece(r._number(UINT8), "utf-8"),
        "SHORT_BINBYTES": lambda r: r._push_piece(r._byte(), None),
        "BINBYTES": lambda r: r._push_piece(r._number(UINT4), None),
        "BINBYTES8": lambda r: r._push_piece(r._number(UINT8), None),
        "BYTEARRAY8": lambda r: r._stack.append(bytearray(r._take(r._number(UINT8)))),
        "MARK": Reader._mark,
        "POP": Reader._pop,
        "POP_MARK": Reader._pop_mark,
        "DUP": lambda r: r._stack.append(r._stack[-1]),
        "EMPTY_TUPLE": lambda r: r._stack.append(()),
        "TUPLE": lambda r: r._push_tuple(r._pop_mark()),
        "TUPLE1": lambda r: r._tuple_of(1),
        "TUPLE2": lambda r: r._tuple_of(2),
        "TUPLE3": lambda r: r._tuple_of(3),
        "EMPTY_LIST": lambda r: r._push_list([]),
        "LIST": lambda r: r._push_list(r._pop_mark()),
        "APPEND": lambda r: r._append([r._stack.pop()]),
        "APPENDS": lambda r: r._append(r._pop_mark()),
        "EMPTY_DICT": lambda r: r._push_dict([]),
        "DICT": lambda r: r._push_dict(r._pop_mark()),
        "SETITEM": lambda r: r._set_items([r._stack.pop(), r._stack.pop()][::-1]),
        "SETITEMS": lambda r: r._set_items(r._pop_mark()),
        "EMPTY_SET": lambda r: r._push_set(set, []),
        "ADDITEMS": Reader._add_items,
        "FROZENSET": lambda r: r._push_set(frozenset, r._pop_mark()),
        "PUT": lambda r: r._put(int(r._line())),
        "BINPUT": lambda r: r._put(r._byte()),
        "LONG_BINPUT": lambda r: r._put(r._number(UINT4)),
        "MEMOIZE": lambda r: r._put(len(r._memo)),
        "GET": lambda r: r._get(int(r._line())),
        "BINGET": lambda r: r._get(r._byte()),
        "LONG_BINGET": lambda r: r._get(r._number(UINT4)),
        "GLOBAL": Reader._name_lines,
        "STACK_GLOBAL": Reader._name_from_stack,
        "REDUCE": Reader._call,
        "NEWOBJ": Reader._call,
        "BUILD": Reader._build,
        "PERSID": lambda r: r._persistent(str(r._line(), "ascii")),
        "BINPERSID": lambda r: r._persistent(r._stack.pop()),
        "NEXT_BUFFER": Reader._refuse_buffer,
        "READONLY_BUFFER": Reader._refuse_buffer,
    }.items()
}
