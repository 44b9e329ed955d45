"""Datasets, from their names to batches of training samples."""

from detlab.data.catalog import DatasetCatalog, Metadata, MetadataCatalog

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]
