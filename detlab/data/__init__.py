"""Datasets, from their names to batches of training samples. Importing this registers the built-in names."""

from detlab.data import datasets
from detlab.data.catalog import DatasetCatalog, Metadata, MetadataCatalog

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog", "datasets"]
