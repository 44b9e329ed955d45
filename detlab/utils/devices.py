"""Names of devices as settings give them."""

import torch

__all__ = ["device_kind"]


def device_kind(device: str, setting: str = "MODEL.DEVICE") -> str:
    """``"cuda"`` of ``"cuda:1"``, ``"cpu"`` of ``"cpu"``.

    Args:
        device: as ``torch.device`` takes it.
        setting: where the name comes from, for the message.

    Raises:
        ValueError: torch knows no such device.
    """
    try:
        return torch.device(device).type
    except RuntimeError:
        raise ValueError(f"{setting} is {device!r}; it is 'cuda', one GPU such as 'cuda:0', or 'cpu'") from None
