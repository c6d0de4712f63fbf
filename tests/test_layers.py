"""The one import rule, `jobs -> actors -> engine`, read in the sources and seen in clean interpreters."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEUTRAL = ROOT / "notebooks"  # holds no package: beside a checkout named raysift that folder would be imported
HEAVY = {"ray", "torch", "transformers", "peft", "vllm", "accelerate", "faiss"}
# Maths on tensors: these engine files, and no others, load torch when they are imported.
TENSOR_MATHS = (
    "raysift.gradients",
    "raysift.policy.attribution",
    "raysift.policy.learning",
    "raysift.policy.network",
    "raysift.policy.picking",
    "raysift.store.projection",
    "raysift.store.rotation",
    "raysift.store.sign_products",
)
LIGHT_MATHS = ("raysift.gradients.settings", "raysift.gradients.influence", "raysift.gradients.moments")
# What runs before a command's settings are checked: no heavy library may be loaded by then.
LIGHT_JOBS = [
    "raysift.jobs.api",
    "raysift.jobs.commands.cli",
    "raysift.jobs.commands.console",
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


def imported_names(file: Path) -> set[str]:
    """Every module a file imports when it runs, inside functions too; not those for type checkers only."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return names


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
    assert heavy_loaded_by(["raysift", "raysift.settings.config", *LIGHT_JOBS]) == {}


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


def test_the_package_itself_loads_nothing_and_its_help_no_data():
    """What makes `import raysift` and `raysift --help` quick, counted in libraries, for seconds depend on the machine."""
    assert outsiders_loaded_by("import raysift") == set()
    help_text = "import sys; from raysift.jobs.commands import cli; sys.argv = ['raysift', '--help']; cli.main()"
    assert outsiders_loaded_by(help_text).isdisjoint(HEAVY | {"numpy", "pyarrow", "pydantic", "yaml"})


def outsiders_loaded_by(code: str) -> set[str]:
    """Libraries of other people that are loaded when a clean interpreter has run the code."""
    tell = "import atexit, sys; old = set(sys.modules); atexit.register(lambda: print('\\n', *set(sys.modules) - old))"
    command = [sys.executable, "-c", f"{tell}\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=NEUTRAL, timeout=240)
    assert done.returncode == 0, done.stderr
    roots = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "raysift" in roots
    return roots - sys.stdlib_module_names - {"raysift", "__editable___raysift_0_1_0_finder"}
