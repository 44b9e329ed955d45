"""Missing packages are named with the command that brings them."""

import sys

import pytest

from detlab.utils.optional import available, require


def test_an_installed_package_is_given():
    assert require("json") is sys.modules["json"]
    assert available("json") and available("json.decoder")


def test_a_missing_package_names_the_command():
    with pytest.raises(ImportError, match=r'no_such_package is needed for drawing: pip install "detlab\[draw\]"'):
        require("no_such_package.part", extra="draw", purpose="drawing")
    with pytest.raises(ImportError, match="pip install no_such_package"):
        require("no_such_package")
    assert not available("no_such_package") and not available("no_such_package.part")
