"""A wheel built from the repository: nothing but `mmvl` lands in site-packages, and nothing is forgotten."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
IGNORED = shutil.ignore_patterns(".venv", ".git", ".whl", "build", "dist", "*.egg-info", "__pycache__", "out", "runs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that no build folder appears in the working tree."""
    copy = tmp_path_factory.mktemp("wheel") / "mmvl"
    shutil.copytree(REPOSITORY, copy, ignore=IGNORED)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "wheels", "."]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (copy / "wheels").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_names(wheel) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_nothing_but_mmvl_goes_into_site_packages(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert len(tops) == 2
    assert {top.split("-")[0] for top in tops} == {"mmvl"}
    assert not [name for name in wheel_names if "tests/" in name or "__pycache__" in name]


def test_every_module_and_every_asset_is_in_the_wheel(wheel_names):
    wanted = set()
    for folder in ("kernels", "text_backbone", "vision", "data", "app", "mmvl"):
        for file in (REPOSITORY / folder).rglob("*"):
            folders = {"assets", "recipes", "models", "sets", "tables"} & set(file.parts)
            shipped = file.suffix in (".py", ".tsv") or folders
            evidence = "models" in file.parts and {"results", "training"} & set(file.parts)  # for the repository only
            if file.is_file() and shipped and not evidence and "__pycache__" not in file.parts:
                inside = file.relative_to(REPOSITORY).as_posix()
                wanted.add(inside if folder == "mmvl" else f"mmvl/{inside}")
    assert wanted <= set(wheel_names), sorted(wanted - set(wheel_names))
    for kind in ("mmvl/recipes/", "mmvl/models/mmvl-tiny/", "mmvl/app/assets/examples/"):
        assert [name for name in wheel_names if name.startswith(kind)], f"nothing in {kind}"


def test_the_model_that_is_shipped_is_at_most_32_mb(wheel):
    with zipfile.ZipFile(wheel) as archive:
        sizes = {i.filename: i.file_size for i in archive.infolist() if i.filename.startswith("mmvl/models/mmvl-tiny/")}
    assert sizes["mmvl/models/mmvl-tiny/model.safetensors"] > 10**6
    assert sum(sizes.values()) <= 32 * 10**6, sizes


def test_the_rooms_find_each_other_once_installed(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
import mmvl, mmvl.data, mmvl.kernels, mmvl.text_backbone, mmvl.vision, mmvl.app.cli
from mmvl.app.doctor import examine
from mmvl.app.examples import load_examples
files = [room.__file__ for room in (mmvl, mmvl.data, mmvl.kernels, mmvl.text_backbone, mmvl.vision, mmvl.app.cli)]
files += [str(example.file) for example in load_examples()]
assert all(file.startswith(SITE) for file in files), files
assert any(name == "mmvl-tiny" and SITE in value for name, value in examine().rows)
"""
    code = f"import sys; SITE = {str(tmp_path / 'site')!r}; sys.path.insert(0, SITE)\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
