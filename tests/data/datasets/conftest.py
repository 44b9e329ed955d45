"""What tests of registration share."""

import pytest

from detlab.data.catalog import DatasetCatalog, MetadataCatalog


@pytest.fixture
def empty_catalogs():
    """Catalogs without any dataset; the usual ones are back after the test."""
    saved = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    for catalog, _ in saved:
        catalog.data.clear()
    yield
    for catalog, data in saved:
        catalog.data.clear()
        catalog.data.update(data)
