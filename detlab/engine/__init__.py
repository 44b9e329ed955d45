"""Training and inference programs: the loop, its hooks, trainers made from configs, starting of processes."""

__all__: list[str] = []
