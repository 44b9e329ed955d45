"""Reading annotation files, which are looked for in one place."""

from __future__ import annotations

import os
from typing import Any

from detlab.data.datasets.root_folder import datasets_root
from detlab.utils.file_io import read_json

__all__ = ["read_annotations"]


def read_annotations(path: str, what: str = "annotation file") -> Any:
    """The content of a json file of a dataset.

    Args:
        path: local, or an address.
        what: what the file is, for messages.

    Raises:
        FileNotFoundError: there is no such file; the message says where datasets are looked for.
        ValueError: it is not json.
    """
    try:
        return read_json(path, what)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; built-in datasets are looked for under $DETLAB_DATASETS (now {_where()})"
        ) from None


def _where() -> str:
    root = datasets_root()
    return root if os.environ.get("DETLAB_DATASETS", "").strip() else f"not set: ./{root}"
