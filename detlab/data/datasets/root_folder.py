"""Where the built-in datasets lie."""

import os

__all__ = ["datasets_root"]


def datasets_root() -> str:
    """The folder that the environment variable ``DETLAB_DATASETS`` names; ``datasets`` where it is unset or empty."""
    return os.path.expanduser(os.environ.get("DETLAB_DATASETS", "").strip() or "datasets")
