"""The files that say what is installed agree."""

import re

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ldm.config import with_shipped_paths
from tests.config_nodes import ROOT, requirements


@pytest.fixture(scope="module")
def project() -> dict:
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    here = [line for line in lines if line and ((marker := Requirement(line).marker) is None or marker.evaluate())]
    found = requirements(here)
    assert all(re.fullmatch(r"==[^*,]+", str(r.specifier)) for r in found.values()), "constraints pin exactly"
    return {name: next(iter(r.specifier)).version for name, r in found.items()}


def test_every_dependency_is_pinned_inside_its_range(project, pins):
    base = requirements(project["dependencies"])
    needed = {"torch", "pytorch-lightning", "omegaconf", "transformers", "einops", "kornia", "pillow", "numpy"}
    assert needed | {"safetensors", "instant-clip-tokenizer", "tqdm"} <= set(base)
    for name, requirement in {**base, **requirements(project["optional-dependencies"]["dev"])}.items():
        assert name in pins, f"{name} is not pinned in constraints.txt"
        assert pins[name] in requirement.specifier, f"{name}=={pins[name]} is outside {requirement.specifier}"
    for extra in project["optional-dependencies"].values():
        for name, requirement in requirements(extra).items():
            assert name not in pins or pins[name] in requirement.specifier
    assert pins["torch"] == "2.13.0"
    assert not {"torchvision", "gradio", "peft", "bitsandbytes", "wandb"} & set(base)


def test_pins_for_every_python_can_be_installed_on_the_oldest(project):
    """Without a marker a pin must run on the oldest Python; with one, that one must have a pin of its own."""
    from importlib.metadata import PackageNotFoundError, metadata

    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = [Requirement(line) for line in lines if line]
    oldest = {"python_version": "3.10"}
    assert "3.10" in SpecifierSet(project["requires-python"])
    for pin in pinned:
        elsewhere = pin.marker is not None and not pin.marker.evaluate(oldest)
        assert not elsewhere or any(p.name == pin.name and p.marker.evaluate(oldest) for p in pinned if p.marker)
        if pin.marker is None:
            try:
                wants = metadata(pin.name)["Requires-Python"]
            except PackageNotFoundError:  # optional, like taming
                continue
            assert wants is None or SpecifierSet(wants).contains("3.10"), f"{pin} does not run on Python 3.10"


def test_the_conda_environment_installs_the_same_project(project):
    environment = OmegaConf.to_container(OmegaConf.load(ROOT / "environment.yaml"))
    assert environment["name"] == project["name"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert "-c constraints.txt" in pip
    assert any(re.fullmatch(r"-e \.(\[.*\])?", line) for line in pip)
    assert len(pip) == 2, "what is installed is said in pyproject.toml alone"
    (python,) = (entry for entry in conda if entry.startswith("python="))
    version = python.partition("=")[2].strip("=")
    assert SpecifierSet(project["requires-python"]).contains(version)
    assert {entry.split("=")[0] for entry in conda} == {"python", "pip"}
    assert project["requires-python"] == ">=3.10,<3.13"


def test_the_installed_versions_are_the_pinned_ones(pins):
    from importlib.metadata import PackageNotFoundError, version

    for name in ("torch", "transformers", "omegaconf", "safetensors", "pillow"):
        try:
            found = version(name)
        except PackageNotFoundError:  # pragma: no cover
            pytest.fail(f"{name} is not installed")
        assert found.split("+")[0] == pins[name], name


def test_shipped_files_are_found_from_any_directory(tmp_path, monkeypatch):
    (tmp_path / "root" / "data").mkdir(parents=True)
    (tmp_path / "root" / "data" / "w.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.create(
        {"dataset": {"root": "gone"}, "model": {"ckpt_path": "data/w.ckpt", "params": {"x": "${dataset.root}/a"}}}
    )
    found = with_shipped_paths(config, tmp_path / "root")
    assert found.model.ckpt_path == str(tmp_path / "root" / "data" / "w.ckpt")
    assert found.model.params.x == "gone/a"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.ckpt").touch()
    assert with_shipped_paths(config, tmp_path / "root").model.ckpt_path == "data/w.ckpt"  # the user's own comes first
