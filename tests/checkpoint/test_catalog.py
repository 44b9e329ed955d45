"""Short names lead to addresses."""

import pytest

from detlab.checkpoint.catalog import ModelCatalog, ModelCatalogHandler
from detlab.utils.file_io import PathManager


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
