"""The wheel holds what the tree holds and works without a checkout: what pyproject forgets is missed only there."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SMALL_DEMO = """
from raysift.jobs.commands import demo
from raysift.jobs.runs.console import Console

demo.POOL_ROWS, demo.BUDGET, demo.TARGET_ROWS, demo.TEST_ROWS = 240, 12, 8, 16
demo.run_demo("runs/demo", 1, Console("plain"))
"""
SOURCES = {"engine": "raysift", "actors": "raysift/actors", "jobs": "raysift/jobs"}


def tree_files() -> set[str]:
    """Names in a wheel of all that belongs to the package."""
    names = set()
    for folder, package in SOURCES.items():
        for file in (ROOT / folder).rglob("*"):
            inside = file.relative_to(ROOT / folder)
            carried = "weights" in inside.parts or inside.parts[:2] == ("report", "page")
            wanted = file.suffix == ".py" or file.name == "py.typed" or carried
            if file.is_file() and wanted and "__pycache__" not in inside.parts:
                names.add(f"{package}/{inside.as_posix()}")
    return names


def files_of(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build folder left in the tree would put deleted files into the wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--quiet", "--wheel-dir", str(out)]
    if importlib.util.find_spec("setuptools") and int(version("setuptools").split(".")[0]) >= 77:
        command.append("--no-build-isolation")
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    [built] = out.glob("raysift-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel, laid out as pip would; found before the checkout when on PYTHONPATH."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_every_module_and_every_weight(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = tree_files()
    assert expected - packed == set(), "in the tree, not in the wheel: list the sub-package in pyproject.toml"
    assert packed - expected == set(), "in the wheel, not in the tree"
    assert "raysift/nano/weights/foundation/model.safetensors" in packed


def test_the_wheel_brings_the_command_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
        assert b"raysift = raysift.jobs.commands.cli:main" in archive.read(entry_points)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for library in ("d3", "plot"):
        assert any(name.endswith(f"vendor/LICENSE-{library}") and "licenses" in name for name in names)


def test_what_is_shipped_to_a_cluster_from_a_wheel_is_the_wheel(installed, tmp_path):
    """Staging finds the folders by import, so it need not know how raysift was installed."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "raysift.jobs.commands.submit", "--stage", str(tmp_path)]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True, timeout=60)
    staged = {
        Path(parent, name).relative_to(tmp_path).as_posix()
        for parent, _, names in os.walk(tmp_path / "raysift", followlinks=True)
        for name in names
        if not name.endswith(".pyc")
    }
    assert staged == {file.relative_to(installed).as_posix() for file in files_of(installed / "raysift")}
    assert (tmp_path / "raysift" / "records.py").resolve().is_relative_to(installed)


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel, and with the dependencies of this one by path, so without its editable packages."""
    place = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, timeout=60)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(pip, check=True, timeout=120)
    [site] = place.glob("lib/*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in dependencies))
    return place


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_in_a_clean_environment_runs_the_demo(clean, tmp_path):
    """A small one, of one seed; with all methods, so every model and every module that a method needs is in the wheel."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "120"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(clean / "bin" / command[0]), *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    place = run("python", "-c", "import raysift; print(raysift.__file__)").strip()
    assert Path(place).is_relative_to(clean)
    assert run("raysift", "--version") == f"raysift {version_of_project()}\n"
    run("raysift", "nano", "pool", "pool.jsonl", "--rows", "50")
    assert "exact duplicates" in run("raysift", "look", "pool.jsonl")
    shown = run("python", "-c", SMALL_DEMO)
    assert all(name in shown for name in ("less", "rose", "mods", "raise", "oracle"))


def version_of_project() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def test_the_citation_is_of_this_version_and_names_the_methods_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["version"], cited["license"]) == (version_of_project(), "Apache-2.0")
    pages = "".join(file.read_text() for file in (ROOT / "docs" / "methods").glob("*.md"))
    for paper in cited["references"]:
        assert f"[{paper['title']}]({paper['url']})" in pages


def test_versions_are_written_once_and_agree():
    import raysift
    from raysift.jobs.commands.submit import PYTHON_VERSIONS, RAY_VERSIONS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == raysift.__version__
    assert project["requires-python"] == PYTHON_VERSIONS
    assert next(d for d in project["dependencies"] if d.startswith("ray[")).endswith(RAY_VERSIONS)
