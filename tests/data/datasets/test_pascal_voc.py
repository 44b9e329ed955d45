import os
from pathlib import Path

import pytest

from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances, register_pascal_voc
from detlab.structures.boxes import BoxMode

OBJECT = (
    "<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>"
    "<bndbox><xmin>{x}</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path):
    """Writes a dataset of one image; gives its folder."""

    def write(*objects, size="<size><width>9</width><height>8</height><depth>3</depth></size>"):
        for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets/Main/train.txt").write_text("0001 1\n\n")
        (tmp_path / "Annotations/0001.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
        return str(tmp_path)

    return write


def test_every_field_of_an_object_is_read(voc):
    folder = voc(OBJECT.format(name="cat", x=1))
    (image,) = load_voc_instances(folder, "train", CLASS_NAMES)
    assert image == {
        "file_name": os.path.join(folder, "JPEGImages", "0001.jpg"),
        "image_id": "0001",
        "height": 8,
        "width": 9,
        "annotations": [
            {
                "category_id": CLASS_NAMES.index("cat"),
                "bbox": [0.0, 1.0, 4.0, 6.0],
                "bbox_mode": BoxMode.XYXY_ABS,
                "difficult": 0,
                "truncated": 1,
                "pose": "Left",
            }
        ],
    }


def test_boxes_without_area_are_left_out_and_mentioned(voc, caplog):
    (image,) = load_voc_instances(voc(OBJECT.format(name="cat", x=7), OBJECT.format(name="cat", x=1)), "train", ["cat"])
    assert len(image["annotations"]) == 1 and "boxes without area in 1 images" in caplog.text


def test_what_is_wrong_names_the_file(voc):
    with pytest.raises(ValueError, match=r"0001\.xml: an object is a 'cow', but the classes are cat"):
        load_voc_instances(voc(OBJECT.format(name="cow", x=1)), "train", ["cat"])
    with pytest.raises(ValueError, match=r"0001\.xml: <annotation> has no <size/height>"):
        load_voc_instances(voc(size=""), "train", ["cat"])
    with pytest.raises(ValueError, match=r"0001\.xml: .*mismatched"):
        load_voc_instances(voc("<object>"), "train", ["cat"])
    with pytest.raises(FileNotFoundError, match=r"val\.txt"):
        load_voc_instances(voc(), "val", ["cat"])
    folder = voc()
    os.remove(os.path.join(folder, "Annotations", "0001.xml"))
    with pytest.raises(FileNotFoundError, match=r"0001\.xml does not exist"):
        load_voc_instances(folder, "train", ["cat"])


@pytest.mark.parametrize(
    ("objects", "size", "message"),
    [
        ("<object><name>cat</name></object>", None, "<object> has no <bndbox/xmin>"),
        (OBJECT.format(name="cat", x="left"), None, "<bndbox/xmin> of <object> is 'left', which is not a number"),
        (OBJECT.format(name="cat", x="nan"), None, "'nan', which is not a number"),
        (OBJECT.format(name="cat", x="1e999"), None, "'1e999', which is not a number"),
        (
            OBJECT.replace("<truncated>1", "<truncated>perhaps").format(name="cat", x=1),
            None,
            "<truncated> .* 'perhaps'",
        ),
        (OBJECT.format(name="cat", x="1e300"), None, "<bndbox/xmin> of <object> is 1e[+]300; coordinates are pixels"),
        (OBJECT.format(name="cat", x="-1e300"), None, "<bndbox/xmin> of <object> is -1e[+]300"),
        *(
            (OBJECT.replace("<difficult>0", f"<difficult>{flag}").format(name="cat", x=1), None, "<difficult> .*0 or 1")
            for flag in ("7", "0.5", "-1", "1e300")
        ),
        ("", "<size><width>1e300</width><height>8</height></size>", "<size/width> is 1e[+]300; it is a whole number"),
        ("", "<size><width>0</width><height>8</height></size>", "<size/width> is 0; it is a whole number"),
        ("", "<size><width>9</width><height>8.5</height></size>", "<size/height> is 8.5"),
    ],
)
def test_what_an_object_lacks_is_told_with_the_file(voc, objects, size, message):
    folder = voc(objects) if size is None else voc(objects, size=size)
    with pytest.raises(ValueError, match=rf"0001\.xml: .*{message}"):
        load_voc_instances(folder, "train", ["cat"])


def test_an_image_that_is_listed_twice_is_refused_with_the_list(voc):
    folder = voc(OBJECT.format(name="cat", x=1))
    (Path(folder) / "ImageSets/Main/train.txt").write_text("0001\n0001 1\n")
    with pytest.raises(ValueError, match=r"train\.txt has 1 images more than once, such as '0001'"):
        load_voc_instances(folder, "train", ["cat"])


def test_entities_that_unfold_to_gigabytes_are_refused(voc):
    folder = voc()
    entities = '<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefgh", "bcdefghi")
    )
    with open(os.path.join(folder, "Annotations", "0001.xml"), "w") as stream:
        stream.write(f"<?xml version='1.0'?><!DOCTYPE annotation [{entities}]><annotation>&i;</annotation>")
    with pytest.raises(ValueError, match=r"0001\.xml: it has a document type"):
        load_voc_instances(folder, "train", ["cat"])


def test_an_encoding_that_there_is_not_is_told_with_the_file(voc):
    folder = voc()
    with open(os.path.join(folder, "Annotations", "0001.xml"), "w") as stream:
        stream.write("<?xml version='1.0' encoding='no-such'?><annotation></annotation>")
    with pytest.raises(ValueError, match=r"0001\.xml: "):
        load_voc_instances(folder, "train", ["cat"])


@pytest.mark.parametrize(("split", "images", "objects"), [("train", 60, 174), ("val", 40, 99), ("trainval", 100, 273)])
def test_real_annotations_are_all_there(shared_dir, split, images, objects):
    dicts = load_voc_instances(str(shared_dir / "datasets" / "VOC2007"), split, CLASS_NAMES)
    assert len(dicts) == images and sum(len(d["annotations"]) for d in dicts) == objects
    assert all(os.path.isfile(d["file_name"]) for d in dicts)


def test_a_registered_dataset_of_ones_own_classes_is_loaded(shared_dir):
    name = "test_voc_cells"
    try:
        for _ in range(2):
            register_pascal_voc(name, str(shared_dir / "datasets" / "bccd"), "val", 2012, ["RBC", "WBC", "Platelets"])
        assert len(DatasetCatalog.get(name)) == 87
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == ["RBC", "WBC", "Platelets"] and metadata.year == 2012
        # Whoever registers decides how to evaluate.
        metadata.evaluator_type = "coco"
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
