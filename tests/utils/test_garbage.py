import gc

from detlab.utils.garbage import no_garbage_collection


def test_garbage_collection_goes_on_afterwards():
    with no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
