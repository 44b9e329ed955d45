"""detlab: train, evaluate, extend and ship object detectors on PyTorch."""

__all__ = ["__version__"]

__version__ = "0.1.0"
