"""The house keeps its order: who may import whom, no cycles, shop-window packages.

The level of a package or file is the number of its rung; a file imports only from rungs below, or from its own
package. Everything is read from the source by ``ast``: nothing is imported.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "detlab"

LEVELS = {
    "utils": 0,
    "config": 1,
    "layers": 1,
    "checkpoint": 1,
    "structures": 2,
    "solver": 2,
    "data": 3,
    "tracking": 3,
    "modeling": 4,
    "evaluation": 4,
    "engine": 5,
    "export": 5,
    "model_zoo": 5,
}
RAISED_FILES = {
    "detlab.utils.visualizer": 3,
    "detlab.utils.video_visualizer": 3,
    "detlab.utils.analysis": 5,
    "detlab.utils.testing": 5,
}
FORBIDDEN_IMPORTS = ("fvcore.nn", "torch.jit", "torch.cuda.amp", "torchvision.io", "pkg_resources", "detectron2")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py")) if "configs" not in p.relative_to(PACKAGE).parts}


def level_of(module: str) -> int:
    if module in RAISED_FILES:
        return RAISED_FILES[module]
    parts = module.split(".")
    return LEVELS[parts[1]] if len(parts) > 1 else -1


def imported_names(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute module or module member that a file imports, with its line; type-checking blocks count too."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join(base + ([node.module] if node.module else []))
            yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)


def own_targets(path: Path) -> Iterator[tuple[str, int]]:
    """The package's own modules that a file imports: ``detlab.a.b.c`` names the longest prefix that is a module."""
    for name, line in imported_names(path):
        if name.split(".")[0] != "detlab":
            continue
        while name not in MODULES and "." in name:
            name = name.rsplit(".", 1)[0]
        yield name, line


def test_every_package_has_a_level():
    packages = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(LEVELS), f"give {sorted(packages - set(LEVELS))} a rung in LEVELS"


def test_imports_only_go_down_the_ladder():
    wrong = []
    for module, path in MODULES.items():
        for target, line in own_targets(path):
            same_package = module.split(".")[1:2] == target.split(".")[1:2]
            is_peer = same_package and level_of(target) <= level_of(module)
            if not is_peer and level_of(target) >= level_of(module):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_own_imports_name_the_defining_file():
    wrong = []
    for path in MODULES.values():
        if path.name == "__init__.py":
            continue
        for target, line in own_targets(path):
            if MODULES[target].name == "__init__.py" and target != "detlab":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports from the shop window {target}")
    assert not wrong, f"{len(wrong)} imports:\n" + "\n".join(wrong)


def test_no_file_imports_itself_in_a_circle():
    graph = {m: {t for t, _ in own_targets(p) if t != m} for m, p in MODULES.items() if p.name != "__init__.py"}
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        for target in sorted(graph.get(module, ())):
            visit(target, [*trail, module])
        done.add(module)

    for module in graph:
        visit(module, [])


@pytest.mark.parametrize("path", [p for p in MODULES.values() if p.name == "__init__.py"], ids=module_name)
def test_packages_are_shop_windows(path):
    """An ``__init__.py`` holds a docstring, imports and a literal ``__all__``; the root may add ``__version__``."""
    names = None
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            assert target == "__all__" or (path.parent == PACKAGE and target == "__version__"), f"{target} is code"
            names = ast.literal_eval(node.value) if target == "__all__" else names
        else:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert is_docstring or isinstance(node, ast.Import | ast.ImportFrom), f"line {node.lineno} is code"
    assert names is not None, f"{path.relative_to(ROOT)} has no literal __all__"


def test_packages_that_break_or_warn_are_not_used():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES.values()
        for name, line in imported_names(path)
        if any(name == bad or name.startswith(bad + ".") for bad in FORBIDDEN_IMPORTS)
    ]
    assert not wrong, "\n".join(wrong)
