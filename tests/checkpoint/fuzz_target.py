"""Files of weights for ``tests/fuzz.py``."""

import io
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from detlab.checkpoint.detection_checkpoint import DetectionCheckpointer
from tests.fuzz import Target


def read(path: str) -> None:
    """As a user loads it, into a model that has one of the weights."""
    model = torch.nn.Linear(3, 2)
    DetectionCheckpointer(model).load(path)


def write_seeds(folder: Path) -> list[Path]:
    """Good files of each kind."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    run = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": np.float64(0.5), "iteration": 7}
    arrays = OrderedDict(weight=np.ones((2, 3), np.float32), bias=np.zeros(2), count=np.int64(3), note=b"x" * 2000)
    paths = [folder / name for name in ("run.pth", "old.pth", "zoo.pkl", "blobs.pkl", "text.pkl", "w.safetensors")]
    torch.save(run, paths[0])
    torch.save(run, paths[1], _use_new_zipfile_serialization=False)
    paths[2].write_bytes(pickle.dumps({"model": dict(list(arrays.items())[:3]), "__author__": "x"}, 5))
    paths[3].write_bytes(pickle.dumps({"blobs": arrays, "cfg": "A: 1"}, 2))
    paths[4].write_bytes(pickle.dumps({"model": {"weight": arrays["weight"]}, "set": {1, 2}}, 0))
    save_file({name: value.clone() for name, value in model.state_dict().items()}, paths[5])
    return paths


def change_opcodes(data: bytes, rng: random.Random) -> bytes:
    """Puts instructions of pickles in the place of some bytes; in archives, where no checksum gives it away."""
    if not data.startswith(b"PK"):
        return _with_opcodes(data, rng)
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            is_pickle = entry.filename.endswith("/data.pkl")
            new.writestr(entry.filename, _with_opcodes(content, rng) if is_pickle else content)
    return changed.getvalue()


OPCODES = [code[0] for name, code in vars(pickle).items() if name.isupper() and isinstance(code, bytes) and code]


def _with_opcodes(data: bytes, rng: random.Random) -> bytes:
    content = bytearray(data)
    for _ in range(rng.choice((1, 2, 5))):
        content[rng.randrange(len(content))] = rng.choice(OPCODES)
    return bytes(content)


TARGET = Target(read, write_seeds, ("ValueError", "UnsafePickleError"), change_opcodes)
