#!/usr/bin/env python
"""Draw saved predictions beside their ground truth.

    python tools/visualize_json_results.py --input output/inference/coco_instances_results.json \\
        --dataset shapes_val --montage output/predictions.png --num 8
"""

from detlab.utils.threads import wait_asleep

wait_asleep()

import argparse
import os

import detlab.data.datasets.builtin  # noqa: F401 (registers the built-in data sets)
from detlab.engine.command_line import add_import_flag
from detlab.evaluation.prediction_pictures import pictures_of_results, write_montage, write_picture
from detlab.utils.user_modules import import_user_modules


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, metavar="JSON", help="predictions in COCO's results format")
    parser.add_argument("--dataset", default="coco_2017_val", metavar="NAME", help="what was predicted on")
    parser.add_argument("--output", metavar="DIR", help="write one picture for each image into this directory")
    parser.add_argument("--montage", metavar="FILE", help="write one sheet of --num images, .png or .jpg")
    parser.add_argument("--num", type=int, help="number of images, spread over the data set: all, in a montage 8")
    parser.add_argument("--conf-threshold", type=float, default=0.5, help="leave out predictions scored lower")
    add_import_flag(parser, "Python code to load first, such as one that registers the data set")
    arguments = parser.parse_args()
    if not arguments.output and not arguments.montage:
        parser.error("say where to draw: --output DIR, --montage FILE, or both")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    import_user_modules(arguments.imports)
    source = (arguments.dataset, arguments.input)
    if arguments.montage:
        write_montage(*source, arguments.montage, num=arguments.num or 8, score_thresh=arguments.conf_threshold)
        print(f"wrote {arguments.montage}")
    if arguments.output:
        pairs = pictures_of_results(*source, num=arguments.num, score_thresh=arguments.conf_threshold)
        count = 0
        for file_name, picture in pairs:
            name = os.path.splitext(os.path.basename(file_name))[0]
            write_picture(picture, os.path.join(arguments.output, f"{name}.jpg"))
            count += 1
        print(f"wrote {count} pictures into {arguments.output}")


if __name__ == "__main__":
    main()
