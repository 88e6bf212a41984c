"""The packages are reached as `tierstore.x`, through links, and in no other way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ringbuf", "cache", "shuffle", "service", "engines", "emulation")

FIND = """
import importlib.util, sys
print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is not None])
"""


def run_elsewhere(cwd: Path, *arguments: str) -> str:
    """What a fresh interpreter prints that starts outside the checkout and does not look into its own folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONSAFEPATH"] = "1"
    command = [sys.executable, "-c", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", PACKAGES)
def test_package_is_a_relative_link(name: str) -> None:
    link = ROOT / "src/tierstore" / name
    assert link.is_symlink() and os.readlink(link) == f"../../{name}", f"ln -sfn ../../{name} src/tierstore/{name}"


def test_no_other_link_and_a_real_face() -> None:
    folder = ROOT / "src/tierstore"
    assert {path.name for path in folder.iterdir() if path.is_symlink()} == set(PACKAGES)
    assert (folder / "__init__.py").is_file() and not (folder / "__init__.py").is_symlink()


def test_nothing_is_importable_by_its_folder_name(tmp_path: Path) -> None:
    assert run_elsewhere(tmp_path, FIND, *PACKAGES, "bench").split() == []


def test_everything_is_importable_below_tierstore(tmp_path: Path) -> None:
    names = [f"tierstore.{name}" for name in PACKAGES]
    assert run_elsewhere(tmp_path, FIND, *names).split() == names


def test_face_exports_what_it_says() -> None:
    import tierstore

    if not hasattr(tierstore, "__all__"):
        pytest.skip("tierstore has no __all__ yet")
    missing = [name for name in tierstore.__all__ if not hasattr(tierstore, name)]
    assert not missing, f"{missing}: in __all__ but not there: define or remove them"
    ours = {
        name
        for name, value in vars(tierstore).items()
        if not name.startswith("_") and str(getattr(value, "__module__", "")).partition(".")[0] == "tierstore"
    }
    unsaid = sorted(ours - set(tierstore.__all__))
    assert not unsaid, f"{unsaid}: public but not in __all__: add them, or give them an underscore"
