"""Published weights by short names: ``catalog://ImageNetPretrained/MSRA/R-50``, ``torchvision://resnet50``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from http.client import HTTPException

from detlab.utils.file_io import PathManager, RedirectHandler, address_of

__all__ = ["ModelCatalog", "ModelCatalogHandler", "TorchvisionHandler", "fetch"]

URL_PREFIX = "https://dl.fbaipublicfiles.com/detectron"
IMAGENET_PREFIX = "ImageNetPretrained/"
DETECTRON_PREFIX = "Caffe2Detectron/COCO/"

IMAGENET_MODELS = {
    "MSRA/R-50": "MSRA/R-50.pkl",
    "MSRA/R-101": "MSRA/R-101.pkl",
    "FAIR/R-50-GN": "47261647/R-50-GN.pkl",
    "FAIR/R-101-GN": "47592356/R-101-GN.pkl",
    "FAIR/X-101-32x8d": "20171220/X-101-32x8d.pkl",
    "FAIR/X-101-64x4d": "FBResNeXt/X-101-64x4d.pkl",
    "FAIR/X-152-32x8d-IN5k": "25093814/X-152-32x8d-IN5k.pkl",
}

# Names to training runs, as listed in the model zoo of Caffe2's Detectron.
BASELINES = "12_2017_baselines"
DETECTRON_RUNS = {
    "35857197/e2e_faster_rcnn_R-50-C4_1x": f"35857197/{BASELINES}/e2e_faster_rcnn_R-50-C4_1x.yaml.01_33_49.iAX0mXvW",
    "35857345/e2e_faster_rcnn_R-50-FPN_1x": f"35857345/{BASELINES}/e2e_faster_rcnn_R-50-FPN_1x.yaml.01_36_30.cUF7QR7I",
    "35857890/e2e_faster_rcnn_R-101-FPN_1x": (
        f"35857890/{BASELINES}/e2e_faster_rcnn_R-101-FPN_1x.yaml.01_38_50.sNxI7sX7"
    ),
    "36761737/e2e_faster_rcnn_X-101-32x8d-FPN_1x": (
        f"36761737/{BASELINES}/e2e_faster_rcnn_X-101-32x8d-FPN_1x.yaml.06_31_39.5MIHi1fZ"
    ),
    "35858791/e2e_mask_rcnn_R-50-C4_1x": f"35858791/{BASELINES}/e2e_mask_rcnn_R-50-C4_1x.yaml.01_45_57.ZgkA7hPB",
    "35858933/e2e_mask_rcnn_R-50-FPN_1x": f"35858933/{BASELINES}/e2e_mask_rcnn_R-50-FPN_1x.yaml.01_48_14.DzEQe4wC",
    "35861795/e2e_mask_rcnn_R-101-FPN_1x": f"35861795/{BASELINES}/e2e_mask_rcnn_R-101-FPN_1x.yaml.02_31_37.KqyEK4tT",
    "36761843/e2e_mask_rcnn_X-101-32x8d-FPN_1x": (
        f"36761843/{BASELINES}/e2e_mask_rcnn_X-101-32x8d-FPN_1x.yaml.06_35_59.RZotkLKI"
    ),
    "48616381/e2e_mask_rcnn_R-50-FPN_2x_gn": (
        "GN/48616381/04_2018_gn_baselines/e2e_mask_rcnn_R-50-FPN_2x_gn_0416.13_23_38.bTlTI97Q"
    ),
    "37697547/e2e_keypoint_rcnn_R-50-FPN_1x": (
        f"37697547/{BASELINES}/e2e_keypoint_rcnn_R-50-FPN_1x.yaml.08_42_54.kdzV35ao"
    ),
    "35998355/rpn_R-50-C4_1x": f"35998355/{BASELINES}/rpn_R-50-C4_1x.yaml.08_00_43.njH5oD9L",
    "35998814/rpn_R-50-FPN_1x": f"35998814/{BASELINES}/rpn_R-50-FPN_1x.yaml.08_06_03.Axg0r179",
    "36225147/fast_R-50-FPN_1x": f"36225147/{BASELINES}/fast_rcnn_R-50-FPN_1x.yaml.08_39_09.L3obSdQ2",
}


class ModelCatalog:
    """Names of published weights, and where they lie."""

    @staticmethod
    def get(name: str) -> str:
        """The address of the weights.

        Args:
            name: ``"ImageNetPretrained/MSRA/R-50"`` or ``"Caffe2Detectron/COCO/35857345/e2e_faster_rcnn_R-50-FPN_1x"``.

        Raises:
            ValueError: the name is unknown; the message lists the nearest.
        """
        known = _known_names()
        if name not in known:
            raise ValueError(f"the catalog has no model {name!r}; the nearest are {_nearest(name, known)}")
        return known[name]


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    return ", ".join(difflib.get_close_matches(name, known, cutoff=0.4) or known)


def _known_names() -> dict[str, str]:
    imagenet = {IMAGENET_PREFIX + k: f"{URL_PREFIX}/{IMAGENET_PREFIX}{v}" for k, v in IMAGENET_MODELS.items()}
    return imagenet | {DETECTRON_PREFIX + name: _detectron_url(name, run) for name, run in DETECTRON_RUNS.items()}


def _detectron_url(name: str, run: str) -> str:
    dataset_prefix = "keypoints_" if "keypoint" in name else ""
    dataset = "%3A".join(dataset_prefix + split for split in ("coco_2014_train", "coco_2014_valminusminival"))
    kind = "rpn" if "rpn_R-50-C4" in name else "generalized_rcnn"
    return f"{URL_PREFIX}/{run}/output/train/{dataset}/{kind}/model_final.pkl"


class ModelCatalogHandler(RedirectHandler):
    """Opens ``catalog://name`` as the address that :class:`ModelCatalog` gives for the name."""

    PREFIX = "catalog://"

    def __init__(self, async_executor: object = None):
        # Files are read here and downloaded by the handler of the address, never written: the executor has no use.
        super().__init__(self.PREFIX, "")

    def _resolve(self, path: str) -> str:
        return ModelCatalog.get(path[len(self.PREFIX) :])


class TorchvisionHandler(RedirectHandler):
    """Opens ``torchvision://resnet50`` as the file of weights that torchvision publishes for the model.

    A bare name means ``IMAGENET1K_V1``, the weights that it has always meant; ``torchvision://resnet50/IMAGENET1K_V2``
    asks for others. The models are those whose names are converted here: ResNets, ResNeXts and Wide ResNets.
    """

    PREFIX = "torchvision://"
    FIRST_WEIGHTS = "IMAGENET1K_V1"
    CONVERTED_MODELS = re.compile(r"(wide_)?res(net|next)\d+(_\w+)?")

    def __init__(self) -> None:
        super().__init__(self.PREFIX, "")

    def _resolve(self, path: str) -> str:
        # It takes a second to import, which nobody should pay who does not ask for its weights.
        import torchvision

        name, _, asked_for = path[len(self.PREFIX) :].partition("/")
        models = {m for m in torchvision.models.list_models(torchvision.models) if self.CONVERTED_MODELS.fullmatch(m)}
        if name not in models:
            raise ValueError(f"there is no model {path!r}; the nearest are {_nearest(name, models)}")
        published = torchvision.models.get_model_weights(name).__members__
        weights = asked_for or self.FIRST_WEIGHTS
        if weights not in published:
            raise ValueError(f"{path!r}: torchvision has the weights {', '.join(published)} of {name}")
        return published[weights].url


for _handler in (ModelCatalogHandler(), TorchvisionHandler()):
    PathManager.register_handler(_handler, allow_override=True)


def fetch(path: str) -> str:
    """The local path of a file of weights, which is downloaded if it must be.

    Args:
        path: local, an address, or a short name with its prefix.

    Raises:
        FileNotFoundError: there is no such file, or it could not be fetched.
        ValueError: the short name is unknown.
    """
    address = address_of(path)
    try:
        local_path = PathManager.get_local_path(path)
    except (OSError, HTTPException) as error:
        if "://" not in address:
            raise
        stands_for = f", which stands for {address}," if address != path else ""
        raise FileNotFoundError(
            f"{path}{stands_for} could not be fetched ({error}); download {address} by hand, where there is a "
            "connection, and set MODEL.WEIGHTS to the path of the file"
        ) from None
    if os.path.isdir(local_path):
        raise FileNotFoundError(f"{path!r} is a directory; set MODEL.WEIGHTS to one of the files in it")
    if not os.path.isfile(local_path):
        raise FileNotFoundError(f"checkpoint {path!r} does not exist; check MODEL.WEIGHTS or OUTPUT_DIR")
    return local_path
