"""Measuring models: evaluators of datasets, and the loop that feeds them."""

from detlab.evaluation.build import build_evaluator
from detlab.evaluation.coco_evaluation import COCOEvaluator
from detlab.evaluation.evaluator import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from detlab.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detlab.evaluation.sem_seg_evaluation import SemSegEvaluator
from detlab.evaluation.testing import flatten_results_dict, print_csv_format, verify_results

__all__ = [
    "COCOEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "PascalVOCDetectionEvaluator",
    "SemSegEvaluator",
    "build_evaluator",
    "flatten_results_dict",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]
