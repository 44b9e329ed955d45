"""Short names lead to addresses."""

import http.server
import threading

import pytest
import torch
import torchvision

from detlab.checkpoint.catalog import ModelCatalog, ModelCatalogHandler, TorchvisionHandler, fetch
from detlab.utils.file_io import PathManager, RedirectHandler, address_of


def test_imagenet_and_detectron_names_have_addresses():
    assert ModelCatalog.get("ImageNetPretrained/FAIR/X-101-32x8d") == (
        "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/20171220/X-101-32x8d.pkl"
    )
    assert ModelCatalog.get("Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_1x") == (
        "https://dl.fbaipublicfiles.com/detectron/35858933/12_2017_baselines/"
        "e2e_mask_rcnn_R-50-FPN_1x.yaml.01_48_14.DzEQe4wC/output/train/"
        "coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl"
    )
    keypoints = ModelCatalog.get("Caffe2Detectron/COCO/37697547/e2e_keypoint_rcnn_R-50-FPN_1x")
    assert "keypoints_coco_2014_train%3Akeypoints_coco_2014_valminusminival" in keypoints
    assert "/rpn/model_final.pkl" in ModelCatalog.get("Caffe2Detectron/COCO/35998355/rpn_R-50-C4_1x")


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="ImageNetPretrained/MSRA/R-50"):
        ModelCatalog.get("ImageNetPretrained/MSRA/R50")


def test_the_prefix_is_registered():
    handler = PathManager._PathManager__get_path_handler("catalog://ImageNetPretrained/MSRA/R-50")
    assert isinstance(handler, ModelCatalogHandler)
    assert handler._resolve("catalog://ImageNetPretrained/MSRA/R-50").endswith("/MSRA/R-50.pkl")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves ``tmp_path / "served"`` by http, with an empty cache of downloads; the address."""
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_torchvisions_names_are_those_of_its_own_weights():
    first = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url
    assert address_of("torchvision://resnet50") == address_of("torchvision://resnet50/IMAGENET1K_V1") == first
    second = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.url
    assert address_of("torchvision://resnet50/IMAGENET1K_V2") == second != first
    assert "wide_resnet50_2-" in address_of("torchvision://wide_resnet50_2")
    assert "resnext101_64x4d-" in address_of("torchvision://resnext101_64x4d")


@pytest.mark.parametrize(
    ("name", "known"),
    [("resnet5O", "resnet50"), ("vgg16", "resnet"), ("resnet50/V3", "IMAGENET1K_V1, IMAGENET1K_V2"), ("", "resnet18")],
)
def test_an_unknown_name_of_torchvision_names_those_that_are_known(name, known):
    with pytest.raises(ValueError, match=known):
        fetch(f"torchvision://{name}")


def test_weights_of_torchvision_are_downloaded_once(server, tmp_path, monkeypatch):
    torch.save({"w": torch.ones(1)}, tmp_path / "served" / "resnet50-abc.pth")
    monkeypatch.setattr(TorchvisionHandler, "_resolve", lambda self, path: f"{server}/resnet50-abc.pth")
    local = fetch("torchvision://resnet50")
    (tmp_path / "served" / "resnet50-abc.pth").unlink()
    assert fetch("torchvision://resnet50") == local
    assert torch.load(local)["w"] == 1


def test_an_address_that_cannot_be_fetched_says_what_to_download(monkeypatch, tmp_path):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(TorchvisionHandler, "_resolve", lambda self, path: "http://127.0.0.1:9/resnet50.pth")
    stands_for = r"torchvision://resnet50, which stands for http://127\.0\.0\.1:9/resnet50\.pth, could not be fetched"
    with pytest.raises(FileNotFoundError, match=rf"{stands_for} .*by hand.*MODEL\.WEIGHTS"):
        fetch("torchvision://resnet50")


def test_the_references_zoo_without_a_connection_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(RedirectHandler, "_resolve", lambda self, path: "http://127.0.0.1:9/x.pkl")
    with pytest.raises(FileNotFoundError, match=r"detectron2://x\.pkl, which stands for http.*could not be fetched"):
        fetch("detectron2://x.pkl")


def test_a_page_that_is_not_there_is_a_sentence(server):
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.pth could not be fetched \(HTTP Error 404"):
        fetch(f"{server}/nowhere.pth")


def test_a_directory_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a directory; set MODEL"):
        fetch(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*does not exist"):
        fetch(str(tmp_path / "nowhere.pth"))
