"""Configs: yaml settings (``CfgNode``, ``get_cfg``) and Python ones (``LazyCall``, ``LazyConfig``, ``instantiate``)."""

from detlab.config.compat import downgrade_config, upgrade_config
from detlab.config.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg
from detlab.config.constraints import check_config
from detlab.config.instantiate import instantiate
from detlab.config.lazy import LazyCall, LazyConfig

__all__ = [
    "CfgNode",
    "LazyCall",
    "LazyConfig",
    "check_config",
    "configurable",
    "downgrade_config",
    "get_cfg",
    "global_cfg",
    "instantiate",
    "set_global_cfg",
    "upgrade_config",
]
