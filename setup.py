"""The wheel holds what a checkout has beside the package: configs and scripts (``ldm/project.py`` finds them)."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BESIDE = ("configs", "scripts")


class WithConfigsAndScripts(build_py):
    """Copies the folders beside the package into it; an editable install finds them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in BESIDE:
                target = Path(self.build_lib) / "ldm" / name
                shutil.copytree(name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": WithConfigsAndScripts})
