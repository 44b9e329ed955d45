"""What the training tool itself reads."""

train = {
    "output_dir": "./output",
    # A path, a URL, "detectron2://..." or "torchvision://..."; "" starts from random numbers.
    "init_checkpoint": "",
    "max_iter": 90000,
    "amp": {"enabled": False},
    # Arguments of DistributedDataParallel; fp16_compression halves what it sends.
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    # Iterations between checkpoints, and how many of them stay.
    "checkpointer": {"period": 5000, "max_to_keep": 100},
    # Iterations between evaluations, and between lines of the log.
    "eval_period": 5000,
    "log_period": 20,
    "device": "cuda",
    # Of the weights and feature maps: "auto", "channels_last" or "contiguous"; see place_model.
    "layout": "auto",
    # "bfloat16" or "float16" runs the backbone in half precision, in training and inference; "" as the rest.
    "backbone_dtype": "",
    # Negative draws a seed.
    "seed": -1,
    "cudnn_benchmark": False,
    # "highest", "high" or "medium"; "" leaves torch's setting.
    "float32_precision": "",
}
