"""The one import rule, `jobs -> actors -> engine`, no circle, small folders: read in the sources and seen in clean interpreters."""

import ast
import json
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEUTRAL = ROOT / "notebooks"  # holds no package: beside a checkout named raysift that folder would be imported
HEAVY = {"ray", "torch", "transformers", "peft", "vllm", "accelerate", "faiss"}
# Maths on tensors: these engine files, and no others, load torch when they are imported.
TENSOR_MATHS = (
    "raysift.gradients",
    "raysift.policy.device_picking",
    "raysift.policy.learning",
    "raysift.policy.network",
    "raysift.policy.picking",
    "raysift.store.packing",
    "raysift.store.projection",
    "raysift.store.rotation",
    "raysift.store.sign_products",
)
LIGHT_MATHS = ("raysift.gradients.agreement", "raysift.gradients.influence", "raysift.gradients.moments")
# What runs before a command's settings are checked: no heavy library may be loaded by then.
LIGHT_JOBS = [
    "raysift.jobs.api",
    "raysift.jobs.commands.cli",
    "raysift.jobs.commands.submit",
    "raysift.jobs.runs.run",
]
MAY_NOT_IMPORT = {
    "engine": {"ray", "transformers", "peft", "vllm", "accelerate", "raysift.actors", "raysift.jobs"},
    "actors": {"ray", "raysift.jobs"},
    "jobs": set(),
}
# `raysift/__init__.py` offers the whole API by name; what it names is imported when it is first used.
LAZY_API = ROOT / "engine" / "__init__.py"
MOST_AT_A_ROOT, MOST_LINES = 12, 400
LOADED_BY = """
import importlib, json, sys
seen, loaded_by = set(), {}
for name in sys.argv[2:]:
    importlib.import_module(name)
    new = {root for root in json.loads(sys.argv[1]) if root in sys.modules} - seen
    seen |= new
    if new:
        loaded_by[name] = sorted(new)
print(json.dumps(loaded_by))
"""


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    parts = ["raysift", *parts[1:]] if parts[0] == "engine" else ["raysift", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(folder: str) -> list[str]:
    return [name for name in map(module_name, sources(folder)) if not name.endswith("__main__")]


def is_tensor_maths(name: str) -> bool:
    return name.startswith(TENSOR_MATHS) and not name.startswith(LIGHT_MATHS)


def heavy_loaded_by(names: list[str]) -> dict[str, list[str]]:
    """Heavy libraries by the module that loaded them, when `names` are imported in order in a clean interpreter."""
    command = [sys.executable, "-c", LOADED_BY, json.dumps(sorted(HEAVY)), *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=NEUTRAL, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def imported_names(file: Path, for_types: bool = False, modules: Collection[str] = ()) -> set[str]:
    """Every module a file imports when it runs, inside functions too; those for type checkers only where asked.

    `from a import b` gives `a` and `a.b`, but the latter alone where it is one of `modules`.
    """
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names.update(inner)
            if not inner <= set(modules):
                names.add(str(node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return names


def import_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which of the modules each of them imports, anywhere. What the public names are is told to type checkers alone."""
    return {
        name: (imported_names(file, file != LAZY_API, files) & files.keys()) - {name} for name, file in files.items()
    }


def circle_in(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Some circle of the graph, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def package_of(name: str) -> str:
    """The folder at the root of its layer that a module lies in; a module at the root is its own."""
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[1:2] in (["actors"], ["jobs"]) else 2])


def all_modules() -> dict[str, Path]:
    return {module_name(file): file for folder in MAY_NOT_IMPORT for file in sources(folder)}


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("folder", ["engine", "actors", "jobs"])
def test_no_layer_imports_to_the_left(folder):
    offences = {
        str(file.relative_to(ROOT)): sorted(found)
        for file in sources(folder)
        if file != LAZY_API and (found := {n for n in imported_names(file) if within(n, MAY_NOT_IMPORT[folder])})
    }
    assert offences == {}


def test_no_module_imports_itself_round_a_circle():
    assert circle_in(import_graph(all_modules())) == []


def test_no_folder_imports_itself_round_a_circle():
    graph: dict[str, set[str]] = {}
    for name, imported in import_graph(all_modules()).items():
        graph.setdefault(package_of(name), set()).update(map(package_of, imported))
    assert circle_in({name: imported - {name} for name, imported in graph.items()}) == []


@pytest.mark.parametrize(
    "way_back",
    [
        "from raysift.planted.a import f",
        "import raysift.planted.a",
        "def g():\n    from raysift.planted import a",
        "if TYPE_CHECKING:\n    from raysift.planted.a import f",
    ],
)
def test_a_planted_circle_is_found(tmp_path, way_back):
    (tmp_path / "a.py").write_text("from raysift.planted.b import h")
    (tmp_path / "b.py").write_text("from raysift.planted.c import i")
    (tmp_path / "c.py").write_text(way_back)
    planted = {f"raysift.planted.{name}": tmp_path / f"{name}.py" for name in "abc"}
    assert set(circle_in(import_graph(planted | {"raysift.planted": LAZY_API}))) == planted.keys()
    (tmp_path / "c.py").write_text("from raysift.planted import d")
    assert circle_in(import_graph(planted)) == []


@pytest.mark.parametrize("folder", ["engine", "jobs"])
def test_a_root_holds_few_modules(folder):
    found = {file.name for file in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert len(found) <= MOST_AT_A_ROOT, sorted(found)


@pytest.mark.parametrize("folder", ["engine", "actors", "jobs"])
def test_files_are_short(folder):
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in sources(folder)}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("folder", ["engine", "actors", "jobs", "tests"])
def test_folders_are_not_import_names(folder):
    wrong = [str(f.relative_to(ROOT)) for f in sources(folder) if within_folders(imported_names(f))]
    assert wrong == []


def within_folders(names: set[str]) -> bool:
    return any(within(name, {"engine", "actors", "jobs"}) for name in names)


@pytest.mark.parametrize("folder", ["engine", "actors", "jobs"])
def test_no_module_is_named_like_one_of_the_standard_library(folder):
    assert [file.name for file in sources(folder) if file.stem in sys.stdlib_module_names] == []


def test_engine_modules_load_nothing_heavy_but_torch_in_the_tensor_maths():
    light = [name for name in modules("engine") if not is_tensor_maths(name)]
    maths = [name for name in modules("engine") if is_tensor_maths(name)]
    loaded_by = heavy_loaded_by(light + maths)
    assert {name: heavy for name, heavy in loaded_by.items() if name in light} == {}
    assert {library for heavy in loaded_by.values() for library in heavy} <= {"torch"}


def test_actor_modules_load_no_model_library_and_never_ray():
    assert heavy_loaded_by(modules("actors")) == {}


def test_job_modules_that_check_a_command_load_nothing_heavy():
    assert heavy_loaded_by(["raysift", "raysift.config", *LIGHT_JOBS]) == {}


def test_a_module_that_loads_ray_is_seen_to_do_so():
    """The tests above would also pass if the interpreter saw nothing."""
    assert "ray" in heavy_loaded_by(["raysift.jobs.on_ray.raydata"])["raysift.jobs.on_ray.raydata"]


def test_job_modules_load_no_model_library():
    """Models belong to actors; a driver need not pay for them. Ray brings what it brings."""
    loaded = {library for heavy in heavy_loaded_by(modules("jobs")).values() for library in heavy}
    assert loaded <= {"ray", "faiss"}


def test_every_public_name_is_there():
    code = "import raysift\nfor name in raysift.__all__: assert getattr(raysift, name) is not None, name"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=NEUTRAL, timeout=120)
    assert done.returncode == 0, done.stderr


def test_import_raysift_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import raysift; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=NEUTRAL, timeout=60)
    assert {name.split(".")[0] for name in ast.literal_eval(done.stdout)} - sys.stdlib_module_names == {"raysift"}


@pytest.mark.parametrize("arguments", [["--help"], ["rose", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = "import sys; from raysift.jobs.commands.cli import app; app(sys.argv[2:], standalone_mode=False);"
    code += "print([name for name in sys.argv[1].split() if name in sys.modules])"
    command = [sys.executable, "-c", code, " ".join(HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=NEUTRAL, timeout=60)
    assert "--help" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
