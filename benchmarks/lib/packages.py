"""The source packages of the benchmarks by name, each built once and cached."""

from __future__ import annotations

import hashlib
import importlib
from importlib import metadata
from pathlib import Path

from benchmarks.lib import child
from benchmarks.lib.cache import build_once, cache_folder
from benchmarks.lib.progress import say
from benchmarks.models.minilm_weights import model_folder

BUILDERS = {
    "minilm": "benchmarks.models.minilm:build",
    "minilm-8bit": "benchmarks.models.palettized:build_minilm",
    "resnet50": "benchmarks.models.resnet:build_resnet50",
    "mobilenet-v2": "benchmarks.models.mobilenet_v2:build",
    "mobilenet-v3-small": "benchmarks.models.mobilenet_v3:build",
    "centernet-resnet34": "benchmarks.models.centernet:build",
    "gpt2": "benchmarks.models.decoder:build_gpt2",
    "large": "benchmarks.models.decoder:build_large",
    "warmup": "benchmarks.models.decoder:build_warmup",
    "warmup-8bit": "benchmarks.models.palettized:build_warmup",
}


def missing(name: str) -> str | None:
    """What has to be installed before ``name`` can be built; None where nothing is."""
    try:
        if name.startswith("minilm"):
            model_folder()
    except FileNotFoundError as error:
        return str(error)
    return None


def package(name: str) -> Path:
    """Path of the package ``name``, built in a process of its own where the cache lacks it."""
    cached = cache_folder() / f"{_versioned(name)}.mlpackage"
    if not cached.exists():
        say(f"building {name}")
        child.call("benchmarks.lib.packages:build_here", name=name)
    return cached


def build_here(name: str) -> str:
    """Build and cache ``name`` in this process; its path."""
    module, _, function = BUILDERS[name].partition(":")
    build = getattr(importlib.import_module(module), function)
    return str(build_once(_versioned(name), build))


def _versioned(name: str) -> str:
    """``name`` with a digest of what made it: the files of the models, coremltools' version."""
    digest = hashlib.sha256(metadata.version("coremltools").encode())
    for file in sorted((Path(__file__).parents[1] / "models").glob("*.py")):
        digest.update(file.read_bytes())
    return f"{name}-{digest.hexdigest()[:8]}"
