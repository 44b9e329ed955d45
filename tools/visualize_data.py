#!/usr/bin/env python
"""Draw the annotations of the training data, or what the training loader makes of them.

python tools/visualize_data.py --source annotation --output-dir drawn DATASETS.TRAIN "('coco_2017_train',)"
python tools/visualize_data.py --source dataloader --config-file cfg.yaml --output-dir drawn --num 50
"""

from detlab.utils.threads import wait_asleep

wait_asleep()

import argparse
import itertools
import os
from collections.abc import Iterator

import numpy as np

from detlab.config.config import CfgNode
from detlab.data.build import build_detection_train_loader
from detlab.data.catalog import DatasetCatalog, MetadataCatalog
from detlab.engine.command_line import SettingsParser, add_import_flag, config_from_args
from detlab.evaluation.prediction_pictures import write_picture
from detlab.utils.image import convert_image_to_rgb, read_image
from detlab.utils.visualizer import Visualizer


def parse_arguments() -> argparse.Namespace:
    parser = SettingsParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=["annotation", "dataloader"], default="annotation")
    parser.add_argument("--config-file", default="", metavar="FILE", help="names the data sets in DATASETS.TRAIN")
    parser.add_argument("--output-dir", default="visualized", metavar="DIR")
    parser.add_argument("--num", type=int, help="number of pictures; all annotated images, or 100 from the loader")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the pictures relative to the images")
    add_import_flag(parser, "Python code to load before the config is read")
    return parser.parse_args()


def annotated_images(cfg: CfgNode, scale: float) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture of each image of ``DATASETS.TRAIN``, as it is on the disk."""
    for dataset_name in cfg.DATASETS.TRAIN:
        metadata = MetadataCatalog.get(dataset_name)
        for dataset_dict in DatasetCatalog.get(dataset_name):
            image = read_image(dataset_dict["file_name"], "RGB")
            picture = Visualizer(image, metadata, scale).draw_dataset_dict(dataset_dict)
            yield os.path.basename(dataset_dict["file_name"]), picture.get_image()


def loaded_images(cfg: CfgNode, scale: float) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture of each sample of the training loader, augmented; without end."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    samples = itertools.chain.from_iterable(build_detection_train_loader(cfg))
    for number, sample in enumerate(samples):
        image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
        visualizer = Visualizer(image, metadata, scale)
        if "instances" in sample:
            visualizer.draw_target_instances(sample["instances"])
        if "sem_seg" in sample:
            visualizer.draw_sem_seg(sample["sem_seg"], alpha=0.5)
        yield f"{number:05d}_{os.path.basename(sample['file_name'])}", visualizer.get_output().get_image()


def main() -> None:
    arguments = parse_arguments()
    cfg = config_from_args(arguments)
    if not cfg.DATASETS.TRAIN:
        raise SystemExit("DATASETS.TRAIN is empty; give --config-file, or name data sets after the other arguments")
    if arguments.source == "dataloader":
        pictures, limit = loaded_images(cfg, arguments.scale), arguments.num or 100
    else:
        pictures, limit = annotated_images(cfg, arguments.scale), arguments.num
    count = 0
    for name, picture in itertools.islice(pictures, limit):
        write_picture(picture, os.path.join(arguments.output_dir, os.path.splitext(name)[0] + ".jpg"))
        count += 1
    print(f"wrote {count} pictures into {arguments.output_dir}")


if __name__ == "__main__":
    main()
