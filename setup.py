"""Compile the kernels on the way into a wheel or an editable install; pyproject.toml has everything else.

Where there is no compiler the package is installed without them, and the wheel is a pure one.
"""

import importlib.util
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel as BdistWheel
from setuptools.command.build import build as Build

ROOT = Path(__file__).resolve().parent
PLACE = Path("sparsify", "cpu", "native")

# By its path: `import sparsify.cpu.native.build` would import torch, which a build environment does not have.
spec = importlib.util.spec_from_file_location("kernels", ROOT / PLACE / "build.py")
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)


class BuildKernels(Command):
    """A step of `build`: the library, in the build folder or, for an editable install, beside its sources."""

    user_options: ClassVar = []
    editable_mode = False  # set by setuptools

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    @property
    def in_place(self):
        return ROOT / PLACE / kernels.LIBRARY

    @property
    def built(self):
        return Path(self.build_lib) / PLACE / kernels.LIBRARY

    def run(self):
        library = self.in_place if self.editable_mode else self.built
        if self.editable_mode and kernels.is_current():
            return
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            kernels.build(library)
        except kernels.BuildError as error:
            if not self.editable_mode:
                library.unlink(missing_ok=True)  # of an earlier build in this folder
            print(f"sparsify is installed without its compiled kernels: {error}", file=sys.stderr)

    # What setuptools asks of a step of `build`.
    def get_source_files(self):
        return []  # package-data in pyproject.toml lists them

    def get_outputs(self):
        return [str(self.built)] if (self.in_place if self.editable_mode else self.built).is_file() else []

    def get_output_mapping(self):
        return {output: str(self.in_place) for output in self.get_outputs()} if self.editable_mode else {}


class BuildWithKernels(Build):
    sub_commands = (*Build.sub_commands, ("build_kernels", None))


class WheelWithKernels(BdistWheel):
    """py3-none-PLATFORM with the library, py3-none-any without."""

    def run(self):
        self.run_command("build")
        if self.get_finalized_command("build_kernels").get_outputs():
            self.distribution.has_ext_modules = lambda: True  # so that everything is installed as platform-dependent
            self.root_is_pure = False
        super().run()

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform  # plain C functions: any Python 3 can call them


setup(cmdclass={"build": BuildWithKernels, "build_kernels": BuildKernels, "bdist_wheel": WheelWithKernels})
