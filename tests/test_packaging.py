"""What the package imports is what its installation brings."""

import importlib.metadata
import re
import sys

import pytest

from tests.test_architecture import MODULES, ROOT, imported_names

tomllib = pytest.importorskip("tomllib", reason="in the standard library from Python 3.11 on")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normalized(name):
    """The name of a distribution as package indexes compare it, without versions and extras."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name).group()).lower()


REQUIRED = re.compile(r"""(?:require|available)\(\s*["'](\w+)""")


SOURCES = {path: path.read_text(encoding="utf-8") for path in MODULES.values()}
# Of these, ``tests/test_imports.py`` makes sure that nothing breaks without them.
OPTIONAL = set(REQUIRED.findall("".join(SOURCES.values())))


def importers():
    """By the name of a foreign top-level package that is not asked for as optional: the places that import it."""
    found = {}
    for path in MODULES.values():
        for name, line in imported_names(path):
            top = name.partition(".")[0]
            if top not in {*sys.stdlib_module_names, *OPTIONAL, "detlab"}:
                found.setdefault(top, []).append(f"{path.relative_to(ROOT)}:{line}")
    return found


def test_every_imported_package_is_a_declared_dependency():
    declared = {normalized(requirement) for requirement in PROJECT["dependencies"]}
    distributions = importlib.metadata.packages_distributions()
    missing = {
        package: places[0]
        for package, places in importers().items()
        if not {normalized(name) for name in distributions.get(package, [package])} & declared
    }
    assert not missing, f"declare these in pyproject.toml, or import them by detlab.utils.optional: {missing}"


def test_the_walk_over_imports_finds_what_is_known_to_be_there():
    found = importers()
    assert {"torch", "numpy", "yaml", "yacs", "cloudpickle", "portalocker", "PIL"} <= found.keys()


def test_every_declared_dependency_is_used():
    distributions = importlib.metadata.packages_distributions()
    used = {normalized(name) for package in importers() for name in distributions.get(package, [package])}
    used |= {normalized(name) for name in OPTIONAL}
    assert {normalized(requirement) for requirement in PROJECT["dependencies"]} <= used


def test_every_extra_that_a_message_names_exists():
    pattern = re.compile(r"""(?<![\w.])require\(\s*["'][\w.]+["'],\s*(?:extra=)?["'](\w+)["']""")
    named = set(pattern.findall("".join(SOURCES.values())))
    assert named and named <= PROJECT["optional-dependencies"].keys()
