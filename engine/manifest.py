"""The account of a finished stage; it is written last, marks the stage as complete and names the files that count."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pyarrow.fs import FileSelector, FileType
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from raysift.errors import DataError, StaleRunError
from raysift.fingerprint import differences
from raysift.storage import Location, open_location

MANIFEST = "manifest.json"
PACKAGES = ("raysift", "ray", "torch", "transformers", "peft", "pyarrow", "numpy", "vllm")


class Manifest(BaseModel):
    """The account of one stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    fingerprint: str
    settings: dict[str, Any] = Field(default_factory=dict)
    """The stage's settings and the seed, as far as they decide the result."""
    inputs: dict[str, Any] = Field(default_factory=dict)
    """Fingerprints of the stages, files and models that the stage read."""
    files: dict[str, list[str]] = Field(default_factory=dict)
    """Paths relative to the stage's folder, by kind. Files not named here do not count."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Bytes of each of these files, and of each file in the folders among them, to recognise truncated ones."""
    counts: dict[str, Any] = Field(default_factory=dict)
    """Rows in, kept, rejected by reason, failed, and anything else the stage counts."""
    values: dict[str, Any] = Field(default_factory=dict)
    """Numbers that later stages and the report read, such as thresholds or mean learning rates."""
    versions: dict[str, str] = Field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0
    rows_per_second: float | None = None
    peaks: dict[str, int] = Field(default_factory=dict)
    """Peak memory in bytes of the largest worker (`host`, `gpu`) and of the `driver`, `workers` that told, and `tokens` that
    they read; empty for stages of earlier versions. Shown, and part of no fingerprint."""
    reused_from: str | None = None
    """The run that computed the stage and holds its files; None if it is the run in whose folder this manifest lies."""

    _home: Location = PrivateAttr()

    @property
    def home(self) -> Location:
        """The stage's folder in the run that computed it; known once the manifest was written or read."""
        return self._home

    def locations(self, kind: str) -> list[Location]:
        """The stage's files of a kind, as places that can be opened."""
        return [self.home / name for name in self.files.get(kind, [])]

    def damage(self) -> str | None:
        """The first file that is missing or has another size, and what is wrong with it; None if the stage is complete."""
        here = read_manifest(self.home)
        if here is None or here.fingerprint != self.fingerprint:
            return f"{self.home / MANIFEST} is gone"
        names = list(dict.fromkeys([name for kind in self.files.values() for name in kind] + list(self.sizes)))
        for name, info in zip(names, self.home.infos(names), strict=True):
            if info is None:
                return f"{self.home / name} is gone"
            if info.size != self.sizes.get(name, info.size):
                return f"{self.home / name} has {info.size} bytes, the stage left {self.sizes[name]}"
        return None


def installed_versions() -> dict[str, str]:
    """Versions of the packages that can change a number."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def settle(folder: Location, files: Iterable[str]) -> dict[str, int]:
    """Flush these files, and those in the folders among them, to disk; returns the bytes of each."""
    sizes = {}
    for info in filter(None, folder.infos(list(files))):
        is_folder = info.type == FileType.Directory
        for each in folder.fs.get_file_info(FileSelector(info.path, recursive=True)) if is_folder else [info]:
            if each.type == FileType.File:
                Location(folder.fs, each.path).sync()
                sizes[each.path.removeprefix(folder.path.rstrip("/") + "/")] = each.size
    return dict(sorted(sizes.items()))


def write_manifest(folder: Location, manifest: Manifest) -> Manifest:
    """Commit a stage; returns the manifest as reading it from there would."""
    (folder / MANIFEST).write(manifest.model_dump_json(indent=2) + "\n")
    return _placed(manifest, folder)


def read_manifest(folder: Location) -> Manifest | None:
    """The manifest of a stage's folder, or None if the stage is not complete."""
    place = folder / MANIFEST
    try:
        return _placed(Manifest.model_validate_json(place.read_bytes()), folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise DataError(
            f"manifest: {place} cannot be read ({error.error_count()} problems, first: {error.errors()[0]['msg']}). "
            "It was written by another version or damaged; delete the stage's folder to compute it again."
        ) from error


def changes(old: Manifest, settings: dict[str, Any], inputs: dict[str, Any]) -> list[str]:
    """One line per field in which a finished stage differs from what is wanted now."""
    changed = differences({"settings": old.settings, "inputs": old.inputs}, {"settings": settings, "inputs": inputs})
    return changed or ["(the version of the stage)"]


def require_same(old: Manifest, settings: dict[str, Any], inputs: dict[str, Any], run: str) -> None:
    """Refuse to pass off an old result as new: raises with every field that differs, and the ways out."""
    lines = "\n".join(f"  {line}" for line in changes(old, settings, inputs))
    raise StaleRunError(
        f"{old.stage}: {run} holds results of other settings or inputs:\n{lines}\n"
        f"Give the run another name (--run, or --fresh for the next free one). With --reuse {run} its stages that are the "
        "same are not done again."
    )


def _placed(manifest: Manifest, folder: Location) -> Manifest:
    """The manifest, knowing where its files are."""
    other = manifest.reused_from
    manifest._home = open_location(other) / manifest.stage if other else folder
    return manifest
