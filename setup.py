"""Builds the extension; all metadata is in pyproject.toml.

XCFAST_NATIVE=1              compile for this host's CPU (-march=native)
XCFAST_SANITIZE=address,undefined   instrument the extension
XCFAST_BUILD_JOBS=4          compile that many files at once
"""

import os
import sys
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

ParallelCompile("XCFAST_BUILD_JOBS").install()

compile_args = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
link_args: list[str] = []
if os.environ.get("XCFAST_NATIVE") == "1":
    compile_args.append("-march=native")
if sanitizers := os.environ.get("XCFAST_SANITIZE"):
    compile_args += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g", "-O1"]
    link_args.append(f"-fsanitize={sanitizers}")
if sys.platform.startswith("linux"):
    link_args.append("-pthread")

build_flags = " ".join(compile_args)
core = Pybind11Extension(
    "xcfast._core",
    sources=sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/**/*.hpp", recursive=True)),
    include_dirs=["csrc"],
    define_macros=[("XCFAST_BUILD_FLAGS", f'"{build_flags}"')],
    cxx_std=17,
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)

setup(ext_modules=[core])
