"""The import rules of the design, read off the source, and what a bare import costs."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import sirius_rec

SOURCE = Path(sirius_rec.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
TORCH_FREE = ("data", "prompts", "theory", "evaluation", "audit", "report", "serving")
HEAVY = ("torch", "transformers", "polars", "pydantic", "matplotlib", "scipy", "fastapi", "uvicorn")


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Absolute names of all modules that a file imports, anywhere in it, type checking included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                here = path.relative_to(SOURCE.parent).with_suffix("").parts
                base = ".".join(here[: len(here) - node.level])
                module = f"{base}.{node.module}" if node.module else base
            else:
                module = node.module or ""
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def part(path: Path) -> str:
    """The package (`data`) or module (`cli`) that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def users_of(module: str) -> set[str]:
    """Parts of the package with a file that imports `module` or anything inside it."""
    return {
        part(path) for path in FILES if any(name == module or name.startswith(module + ".") for name in imported(path))
    }


def test_the_reader_of_imports_sees_them() -> None:
    assert "torch" in imported(SOURCE / "objectives" / "losses.py") | imported(SOURCE / "objectives" / "evidence.py")
    assert len(FILES) > 40
    assert {"training", "scoring", "objectives"} <= users_of("torch")


@pytest.mark.parametrize("package", TORCH_FREE)
def test_torch_free_packages(package: str) -> None:
    assert (SOURCE / package).is_dir()
    for library in ("torch", "transformers", "peft", "accelerate"):
        assert package not in users_of(library)


def test_torch_free_packages_do_not_get_it_through_others() -> None:
    """A walk over the package's own imports: nothing reachable from them imports torch."""
    modules = {}
    for path in FILES:
        name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = imported(path)
    for start in [m for m in modules if m.split(".")[1:2] and m.split(".")[1] in TORCH_FREE]:
        seen, todo = set(), [start]
        while todo:
            name = todo.pop()
            if name in seen or name not in modules or name == "sirius_rec":
                continue
            seen.add(name)
            assert not any(n.split(".")[0] == "torch" for n in modules[name]), (start, name)
            todo += list(modules[name])


@pytest.mark.parametrize("package", ["theory", "objectives"])
def test_pure_packages_never_import_transformers(package: str) -> None:
    for library in ("transformers", "peft", "accelerate"):
        assert package not in users_of(library)


def test_theory_is_numpy_alone() -> None:
    outside = {n.split(".")[0] for p in (SOURCE / "theory").rglob("*.py") for n in imported(p)}
    assert outside <= {"__future__", "numpy", "scipy", "sirius_rec", "collections", "dataclasses", "math", "typing"}


def test_only_recipes_and_cli_see_the_config() -> None:
    assert users_of("sirius_rec.config") <= {"recipes", "commands", "config"}


def test_the_service_knows_no_run() -> None:
    """It is given rankers; recipes make them. The web's libraries stay in it."""
    for module in ("recipes", "commands", "config", "training", "scoring"):
        assert "serving" not in users_of(f"sirius_rec.{module}")
    assert users_of("sirius_rec.serving") <= {"serving", "recipes", "commands"}
    for library in ("fastapi", "starlette", "uvicorn", "prometheus_client"):
        assert users_of(library) <= {"serving"}


def test_nothing_imports_the_cli() -> None:
    assert users_of("sirius_rec.cli") <= {"cli", "__main__"}
    assert users_of("sirius_rec.commands") <= {"commands", "cli"}


def loaded_after(code: str) -> set[str]:
    """Heavy libraries in sys.modules after running `code` in a fresh interpreter."""
    show = f"import sys; print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True)
    last = done.stdout.strip().splitlines()[-1].split()
    assert last[0] == "LOADED"
    return set(last[1:])


def test_bare_import_is_light() -> None:
    assert loaded_after("import sirius_rec") == set()


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['sirius', '--help']\n"
        "from sirius_rec.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert loaded_after(code) == set()


@pytest.mark.parametrize(
    "package", [*TORCH_FREE, "objectives", "scoring", "training", "rankers", "report", "diagnostics"]
)
def test_package_inits_are_light(package: str) -> None:
    assert {name.split(".")[0] for name in imported(SOURCE / package / "__init__.py")} <= {"__future__"}


def test_public_names_are_loaded_when_asked_for() -> None:
    from sirius_rec.training.config import SiriusConfig
    from sirius_rec.training.trainer import SiriusTrainer

    assert sirius_rec.SiriusConfig is SiriusConfig
    assert sirius_rec.SiriusTrainer is SiriusTrainer
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = sirius_rec.Nonsense


def test_no_import_circles() -> None:
    """Of files, imports inside functions and for type checking included."""
    names = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in FILES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    del names["sirius_rec"]  # the front door, which every file lies behind
    needs = {
        name: {other for other in imported(path) if other in names and other != name} for name, path in names.items()
    }
    left = set(needs)
    while free := {name for name in left if not needs[name] & left}:
        left -= free
    # What is left lies on a circle or leads to one.
    on_circle = sorted(name for name in left if any(name in needs[other] for other in left))
    assert not on_circle, on_circle


def test_recipes_know_no_methods_name() -> None:
    """A method is compared with nothing by its name outside its own file; recipes loop over objects."""
    from sirius_rec.recipes.methods import METHODS, reserved_keys

    known = {*METHODS, *reserved_keys()}
    for path in FILES:
        if "recipes" not in path.parts or path.parent.name == "methods":
            continue
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Compare):
                literals = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                assert not literals & (known - {"sft"}), f"{path.name}, line {node.lineno}: {literals & known}"


def test_a_configuration_with_methods_is_read_without_torch() -> None:
    """`sirius prepare` needs no extra."""
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from sirius_rec.recipes.configuration import parse_config\n"
        "parse_config({'methods': ['sasrec', 'llara', 'ease'], 'arms': ['dpo']}, 'c')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
