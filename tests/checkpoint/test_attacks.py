"""What a hostile file of weights can do: be refused, in a moment, in little memory, with nothing run.

``python -m tests.checkpoint.test_attacks`` prints what each attack came to, and what it took.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from detlab.checkpoint.restricted_pickle import load_arrays
from tests.limits import MEBIBYTE, Outcome, run_limited

MARKER = "pwned"
COMMAND = f"touch {MARKER}"

# ------------------------------------------------------------------------------------------------- making pickles


def op(name: str) -> bytes:
    return getattr(pickle, name)


def text(value: str) -> bytes:
    data = value.encode()
    return op("BINUNICODE") + struct.pack("<I", len(data)) + data


def raw(value: bytes) -> bytes:
    return op("BINBYTES") + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return op("LONG1") + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return op("GLOBAL") + f"{module}\n{attribute}\n".encode()


def many(*values: bytes) -> bytes:
    return op("MARK") + b"".join(values) + op("TUPLE")


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + many(*arguments) + op("REDUCE")


def new(function: bytes, *arguments: bytes) -> bytes:
    return function + many(*arguments) + op("NEWOBJ")


def build(target: bytes, state: bytes) -> bytes:
    return target + state + op("BUILD")


def weights(value: bytes) -> bytes:
    """A whole pickle: ``{"model": {"w": value}}``."""
    inner = op("EMPTY_DICT") + text("w") + value + op("SETITEM")
    return op("PROTO") + b"\x03" + op("EMPTY_DICT") + text("model") + inner + op("SETITEM") + op("STOP")


NDARRAY, DTYPE = name("numpy", "ndarray"), name("numpy", "dtype")
FLOAT = call(DTYPE, text("f4"))
OBJECT = call(DTYPE, text("O8"))
PLAIN_STATE = many(number(3), text("<"), op("NONE"), op("NONE"), op("NONE"), number(-1), number(-1), number(0))


def array(dtype: bytes, shape: bytes, data: bytes) -> bytes:
    empty = call(name("numpy.core.multiarray", "_reconstruct"), NDARRAY, many(number(0)), raw(b"b"))
    return build(empty, many(number(1), shape, dtype, op("NEWFALSE"), data))


def doubled(start: bytes, wrap: Callable[[bytes], bytes], depth: int) -> bytes:
    """A value that holds itself twice, that twice, and so on."""
    data = start
    for _ in range(depth):
        twice = (op("BINGET") + b"\0") * 2
        data += op("BINPUT") + b"\0" + op("POP") + wrap(twice)
    return data


def repeated(value: bytes, use: Callable[[bytes], bytes], times: int) -> bytes:
    """A list of uses of one value."""
    uses = b"".join(use(op("BINGET") + b"\1") for _ in range(times))
    return value + op("BINPUT") + b"\1" + op("POP") + op("EMPTY_LIST") + op("MARK") + uses + op("APPENDS")


# --------------------------------------------------------------------------------------------- attacks that run code

SHELL = {
    "a function of the system": call(name("posix", "system"), text(COMMAND)),
    "a function made by getattr": call(call(name("builtins", "getattr"), name("os", "system")), text(COMMAND)),
    "eval": call(name("builtins", "eval"), text(f"__import__('os').system({COMMAND!r})")),
    "a name with dots": call(
        op("PROTO") + b"\4" + text("numpy") + text("ndarray.tofile") + op("STACK_GLOBAL"), text(MARKER)
    ),
    "an instance by its old opcode": op("MARK") + text(COMMAND) + op("INST") + b"posix\nsystem\n",
    "an object by its old opcode": op("MARK") + name("posix", "system") + text(COMMAND) + op("OBJ"),
    "an object with keywords": name("posix", "system") + many(text(COMMAND)) + op("EMPTY_DICT") + op("NEWOBJ_EX"),
    "a name by its number": op("EXT1") + b"\1",
    "numpy's own loader": call(name("numpy", "load"), text("x")),
    "torch's own loader": call(name("torch.storage", "_load_from_bytes"), raw(b"x")),
}
POINTERS = {
    "an array of pointers": call(NDARRAY, many(number(1)), OBJECT, raw(b"\x41" * 8)),
    "an array of pointers, as a new object": new(NDARRAY, many(number(1)), OBJECT, raw(b"\x41" * 8)),
    "an array of pointers, by its state": array(OBJECT, many(number(1)), raw(b"\x41" * 8)),
    "a number that is a pointer": call(name("numpy.core.multiarray", "scalar"), OBJECT, raw(b"\x41" * 8)),
    "a buffer of pointers": call(
        name("numpy._core.numeric", "_frombuffer"), raw(b"\x41" * 8), OBJECT, many(number(1)), text("C")
    ),
    "a type of objects whose mark is cleared": array(build(OBJECT, PLAIN_STATE), many(number(1)), raw(b"\x41" * 8)),
    "a type of numbers that becomes one of objects": array(
        build(FLOAT, many(number(3), text("|"), many(OBJECT, many()), op("NONE"), op("NONE"), number(8), number(8))),
        many(number(1)),
        raw(b"\x41" * 8),
    ),
    "a type of structures of objects": array(
        build(FLOAT, many(number(3), text("|"), op("NONE"), many(text("a")), op("EMPTY_DICT"), number(8), number(8))),
        many(number(1)),
        raw(b"\x41" * 8),
    ),
    "an array of another kind": call(
        name("numpy.core.multiarray", "_reconstruct"), name("builtins", "bytearray"), many(number(0)), raw(b"b")
    ),
    "an array whose content is a list": array(OBJECT, many(number(1)), op("EMPTY_LIST")),
    "the state of a function of the loader": build(
        name("_codecs", "encode"), op("EMPTY_DICT") + text("__defaults__") + many(text("x")) + op("SETITEM")
    ),
    "the state of a class of the loader": build(
        name("collections", "OrderedDict"), op("EMPTY_DICT") + text("update") + number(1) + op("SETITEM")
    ),
    "a function as a weight": name("_codecs", "encode"),
    "a buffer that the file does not have": op("PROTO") + b"\5" + op("NEXT_BUFFER"),
    "an object outside of the file": text("x") + op("BINPERSID"),
    "a codec that unpacks": call(name("_codecs", "encode"), text("x" * 99), text("bz2_codec")),
}

# ------------------------------------------------------------------------------------------- attacks on memory, time

BIG = 6 * 10**9


def probed(count: int) -> list[int]:
    """Numbers that lie where a dict of 2**18 places looks for 0, one after the other, in vain."""
    found = [2**18, 1]
    while len(found) < count:
        found.append((5 * found[-1] + 1) % 2**18)
    return found


BOMBS = {
    "zeros by the number, as bytearray": call(name("builtins", "bytearray"), number(BIG)),
    "zeros by the number, as bytes": call(name("builtins", "bytes"), number(BIG)),
    "an array larger than its bytes": array(FLOAT, many(number(BIG)), raw(b"1234")),
    "an array of texts without length": array(call(DTYPE, text("S0")), many(number(BIG)), raw(b"")),
    "an array of huge texts": array(call(DTYPE, text("U999999999")), many(number(1)), raw(b"1234")),
    "an array by ndarray, with stride 0": call(
        NDARRAY, many(number(BIG)), FLOAT, raw(b"1234"), number(0), many(number(0))
    ),
    "a size that is too large for numpy": array(FLOAT, many(number(0), number(2**62)), raw(b"")),
    "a shape of many sizes": array(FLOAT, many(*[number(2**62)] * 5000), raw(b"1234")),
    "bytes that the file does not have": op("BINBYTES8") + struct.pack("<Q", BIG) + b"x",
    "a text that the file does not have": op("BINUNICODE8") + struct.pack("<Q", 2**63) + b"x",
    "a bytearray that the file does not have": op("BYTEARRAY8") + struct.pack("<Q", BIG) + b"x",
    "an integer that the file does not have": op("LONG4") + struct.pack("<i", 2**31 - 1) + b"x",
    "an integer of many digits": op("LONG") + b"9" * 10**6 + b"L\n",
    "a value remembered under a huge number": op("NONE") + op("LONG_BINPUT") + struct.pack("<I", 2**32 - 1),
    "gaps in what is remembered": op("NONE") + b"".join(b"p%d\n" % (1000 * i) for i in range(100_000)),
    "frozensets in frozensets": doubled(op("MARK") + op("FROZENSET"), lambda v: op("MARK") + v + op("FROZENSET"), 200),
    "tuples in tuples as a key": op("EMPTY_DICT")
    + doubled(many(), lambda v: op("MARK") + v + op("TUPLE"), 200)
    + op("NONE")
    + op("SETITEM"),
    "lists in lists": doubled(op("EMPTY_LIST"), lambda v: op("MARK") + v + op("LIST"), 90),
    "lists in lists, deep": op("EMPTY_LIST")
    + (op("BINPUT") + b"\0" + op("POP") + op("MARK") + op("BINGET") + b"\0" + op("LIST")) * 100_000,
    "a list that contains itself": op("EMPTY_LIST") + op("MEMOIZE") + op("BINGET") + b"\0" + op("APPEND"),
    "a long array used many times": repeated(
        raw(b"x" * MEBIBYTE), lambda v: array(FLOAT, many(number(MEBIBYTE // 4)), v), 5000
    ),
    "a short array used many times": repeated(raw(b"x" * 1000), lambda v: array(FLOAT, many(number(250)), v), 50_000),
    "a long text encoded many times": repeated(
        text("x" * MEBIBYTE), lambda v: call(name("_codecs", "encode"), v, text("latin1")), 20_000
    ),
    "a long text made into bytearrays": repeated(
        text("x" * MEBIBYTE), lambda v: call(name("builtins", "bytearray"), v, text("latin1")), 20_000
    ),
    "a long list made into sets": repeated(
        op("MARK") + b"".join(number(i) for i in range(30_000)) + op("LIST"),
        lambda v: call(name("builtins", "set"), v),
        20_000,
    ),
    "a long dict made into others": repeated(
        op("EMPTY_DICT") + op("MARK") + b"".join(number(i) + op("NONE") for i in range(30_000)) + op("SETITEMS"),
        lambda v: call(name("collections", "OrderedDict"), v),
        20_000,
    ),
    "keys whose hashes collide": op("EMPTY_DICT")
    + op("MARK")
    + b"".join(number(i * (2**61 - 1)) + op("NONE") for i in range(200_000))
    + op("SETITEMS"),
    "one number that is looked for in many places": op("EMPTY_DICT")
    + op("MARK")
    + b"".join(number(i) + op("NONE") for i in probed(2**17))
    + (number(0) + op("NONE")) * 200_000
    + op("SETITEMS"),
    "millions of empty sets": op("EMPTY_SET") * (2 * MEBIBYTE),
    "millions of empty lists": op("EMPTY_LIST") * (2 * MEBIBYTE),
    "millions of empty dicts": op("EMPTY_LIST") + op("MARK") + op("EMPTY_DICT") * (2 * MEBIBYTE) + op("APPENDS"),
    "millions of marks": op("MARK") * (2 * MEBIBYTE),
    "millions of tuples": op("NONE") + op("TUPLE1") * (2 * MEBIBYTE),
    "millions of copies": op("EMPTY_LIST") + op("MARK") + op("NONE") + op("DUP") * (2 * MEBIBYTE) + op("APPENDS"),
    "millions of memories": op("NONE") + op("MEMOIZE") * (2 * MEBIBYTE),
    "many names": op("EMPTY_LIST") + op("MARK") + name("numpy", "ndarray") * 100_000 + op("APPENDS"),
    "a long key around many values": op("EMPTY_DICT")
    + text("k" * MEBIBYTE)
    + op("MARK")
    + (op("NONE") + op("TUPLE1")) * 200_000
    + op("LIST")
    + op("SETITEM"),
}

# ------------------------------------------------------------------------------------------------- torch's archives


def archive(data: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for record, content in {"a/data.pkl": data, "a/byteorder": b"little", "a/version": b"3\n"}.items():
            file.writestr(record, content)
        for record, content in (records or {}).items():
            file.writestr(record, content)
    return stream.getvalue()


def storage(numel: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return many(text("storage"), name("torch", kind), text(key), text("cpu"), number(numel)) + op("BINPERSID")


def tensor(storage: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    sizes = [many(*[number(size) for size in sizes]) for sizes in (shape, strides)]
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), storage, number(offset), *sizes, op("NEWFALSE"), hooks)


def of_one_number(value: bytes) -> bytes:
    return archive(weights(value), {"a/data/0": b"1234"})


def overlapping() -> bytes:
    """A thousand records that all lie on the same bytes."""
    data = archive(weights(op("NONE")), {"a/data/000": b"x" * MEBIBYTE})
    start = struct.unpack("<L", data[-6:-2])[0]
    last = data.rindex(b"PK\x01\x02")
    copies = [data[last:-22].replace(b"a/data/000", b"a/data/%03d" % index) for index in range(1000)]
    directory = data[start:last] + b"".join(copies)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1003, 1003, len(directory), start, 0)
    return data[:start] + directory + end


def claiming_a_huge_record() -> bytes:
    data = bytearray(archive(weights(tensor(storage(BIG // 4), 0, (BIG // 4,), (1,))), {"a/data/0": b"1234"}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<2L", 4 * 10**9, 4 * 10**9)
    return bytes(data)


def legacy(value: bytes, keys: bytes, rest: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    return head + weights(value) + keys + rest


ARCHIVES = {
    "an archive that runs code": archive(weights(SHELL["a function of the system"])),
    "an archive with an array of pointers": archive(weights(POINTERS["an array of pointers"])),
    "an archive with a changed type": archive(weights(POINTERS["a type of objects whose mark is cleared"])),
    "an archive that was compressed": archive(
        weights(tensor(storage(10**7), 0, (10**7,), (1,))), {"a/data/0": bytes(4 * 10**7)}, zipfile.ZIP_DEFLATED
    ),
    "records on the same bytes": overlapping(),
    "a record that claims gigabytes": claiming_a_huge_record(),
    "a storage that claims gigabytes": of_one_number(tensor(storage(BIG), 0, (BIG,), (1,))),
    "a tensor of stride 0": of_one_number(tensor(storage(1), 0, (BIG,), (0,))),
    "a tensor beyond its storage": of_one_number(tensor(storage(1), 0, (2,), (1,))),
    "a tensor that begins beyond its storage": of_one_number(tensor(storage(1), 10**6, (1,), (1,))),
    "a tensor with a stride below zero": of_one_number(tensor(storage(1), 0, (1,), (-1,))),
    "a tensor with a size below zero": of_one_number(tensor(storage(1), 0, (-1,), (1,))),
    "a tensor whose size overflows": of_one_number(tensor(storage(1), 0, (2**62, 2**62), (2**62, 1))),
    "an empty tensor of impossible size": of_one_number(tensor(storage(1), 0, (0, 2**62, 2**62), (1, 1, 1))),
    "a tensor without a storage": of_one_number(tensor(number(1), 0, (1,), (1,))),
    "a tensor of a missing record": of_one_number(tensor(storage(1, "7"), 0, (1,), (1,))),
    "a tensor of a record outside": of_one_number(tensor(storage(1, "../../etc/passwd"), 0, (1,), (1,))),
    "a tensor by another function": of_one_number(
        call(name("torch._tensor", "_rebuild_from_type_v2"), name("posix", "system"), NDARRAY, many(), op("NONE"))
    ),
    "a script of torch": archive(weights(call(name("__torch__", "Model")))),
    "a chain of pickles that claims gigabytes": legacy(
        tensor(storage(BIG // 4), 0, (BIG // 4,), (1,)), pickle.dumps(["0"], 2), struct.pack("<q", BIG // 4) + b"1234"
    ),
    "a chain of pickles that runs code": legacy(SHELL["a function of the system"], pickle.dumps([], 2), b""),
    "a chain of pickles without its storages": legacy(tensor(storage(1), 0, (1,), (1,)), pickle.dumps([], 2), b""),
}


# -------------------------------------------------------------------------------------------------- safetensors


def safetensors(header: bytes, data: bytes = b"", claims: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if claims is None else claims) + header + data


def one_tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> bytes:
    return json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


SAFETENSORS = {
    "a header that claims gigabytes": safetensors(b"{}", claims=BIG),
    "a header that claims everything": safetensors(b"{}", claims=2**64 - 1),
    "a header nested deeply": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a tensor that claims gigabytes": safetensors(one_tensor([BIG // 4], [0, BIG]), b"1234"),
    "a tensor larger than its bytes": safetensors(one_tensor([BIG // 4], [0, 4]), b"1234"),
    "a tensor whose sizes overflow": safetensors(one_tensor([2**63, 2**63], [0, 4]), b"1234"),
    "a tensor before the beginning": safetensors(one_tensor([1], [-4, 0]), b"1234"),
    "a tensor that ends before it begins": safetensors(one_tensor([1], [4, 0]), b"1234"),
    "tensors on the same bytes": safetensors(
        json.dumps({f"w{i}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for i in range(10**4)}).encode(),
        b"1234",
    ),
    "a tensor of an unknown type": safetensors(one_tensor([1], [0, 4], "OBJECT"), b"1234"),
}

ATTACKS = {
    **{f"{key} (.pkl)": ("w.pkl", weights(value)) for key, value in (SHELL | POINTERS | BOMBS).items()},
    **{f"{key} (.pth)": ("w.pth", data) for key, data in ARCHIVES.items()},
    **{f"{key} (.safetensors)": ("w.safetensors", data) for key, data in SAFETENSORS.items()},
}
# Beside the file itself and what is made of it.
FREE_BYTES = 64 * MEBIBYTE
# It has no elements, whatever it claims.
HARMLESS = "an empty tensor of impossible size (.pth)"


def attack(folder: Path, file_name: str, data: bytes) -> Outcome:
    """Loads the file as a user would, in ``folder``."""
    path = folder / file_name
    path.write_bytes(data)

    def load() -> None:
        os.chdir(folder)
        DetectionCheckpointer(torch.nn.Module()).load(str(path))

    return run_limited(load, seconds=60, more_bytes=FREE_BYTES + 10 * len(data))


@pytest.mark.parametrize("what", ATTACKS)
def test_a_hostile_file_is_refused_in_bounded_memory(tmp_path, what):
    file_name, data = ATTACKS[what]
    outcome = attack(tmp_path, file_name, data)
    assert not outcome.died, outcome
    assert outcome.peak_bytes < FREE_BYTES + 10 * len(data), outcome
    assert sorted(os.listdir(tmp_path)) == [file_name]
    if what != HARMLESS:
        kind = outcome.error.partition(":")[0]
        assert kind in ("ValueError", "UnsafePickleError") and file_name in outcome.error, outcome


@pytest.mark.parametrize("what", SHELL | POINTERS)
def test_hostile_proposals_are_refused(what):
    """Proposals have weights' form of file, and the same reader."""
    with pytest.raises(pickle.UnpicklingError):
        load_arrays(io.BytesIO(weights((SHELL | POINTERS)[what])))


def test_nothing_of_the_reader_is_changed_by_what_it_reads():
    before = OrderedDict.update, np.dtype("O").hasobject
    for attack_data in POINTERS.values():
        with pytest.raises(pickle.UnpicklingError):
            load_arrays(io.BytesIO(weights(attack_data)))
    assert (OrderedDict.update, np.dtype("O").hasobject) == before
    good = {"x": np.arange(3.0)}
    assert np.array_equal(load_arrays(io.BytesIO(pickle.dumps(good)))["x"], good["x"])


def test_the_attack_of_the_shell_works_where_nothing_guards_against_it(tmp_path):
    """So that the attacks above are known to be attacks."""
    data = weights(SHELL["a function of the system"])
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.loads({data!r})"], cwd=tmp_path, check=True)
    assert os.listdir(tmp_path) == [MARKER]


def main() -> None:
    """Prints a line for each attack."""
    print(f"{'attack':62} {'file MiB':>9} {'peak MiB':>9} {'seconds':>8}  outcome")
    for what, (file_name, data) in ATTACKS.items():
        with tempfile.TemporaryDirectory() as folder:
            outcome = attack(Path(folder), file_name, data)
            ran = "RAN, " if os.listdir(folder) != [file_name] else ""
        error = outcome.error.replace(folder + os.sep, "") or "loaded"
        sizes = f"{len(data) / MEBIBYTE:9.1f} {outcome.peak_bytes / MEBIBYTE:9.1f} {outcome.seconds:8.2f}"
        print(f"{what:62} {sizes}  {ran}{error[:150]}")


if __name__ == "__main__":
    main()
