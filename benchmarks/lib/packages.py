"""The source packages of the benchmarks by name, each built once and cached."""

from __future__ import annotations

import hashlib
import importlib
from importlib import metadata
from pathlib import Path

from benchmarks.lib import child
from benchmarks.lib.cache import build_once, cache_folder
from benchmarks.lib.progress import say
from benchmarks.models.efficientnet_weights import weights_file
from benchmarks.models.minilm_weights import model_folder
from benchmarks.models.smollm2_weights import model_file

BUILDERS = {
    "minilm": "benchmarks.models.minilm:build",
    "minilm-ios16": "benchmarks.models.minilm:build_ios16",
    "smollm2": "benchmarks.models.smollm2:build",
    "efficientnet-lite0": "benchmarks.models.efficientnet_lite:build",
    "resnet50": "benchmarks.models.resnet:build_resnet50",
    "mobilenet-v2": "benchmarks.models.mobilenet_v2:build",
    "mobilenet-v3-small": "benchmarks.models.mobilenet_v3:build",
    "centernet-resnet34": "benchmarks.models.centernet:build",
    "unet": "benchmarks.models.unet:build",
    "decoder": "benchmarks.models.stateful_decoder:build",
    "lstm": "benchmarks.models.lstm:build",
    "speech-encoder": "benchmarks.models.speech_encoder:build",
    "gpt2": "benchmarks.models.decoder:build_gpt2",
    "large": "benchmarks.models.decoder:build_large",
    "warmup": "benchmarks.models.decoder:build_warmup",
    "warmup-ios16": "benchmarks.models.decoder:build_warmup_ios16",
}

# Made of another package: its name, and a form of benchmarks.models.compressed.
COMPRESSED = {
    "minilm-lut8": ("minilm", "lut8"),
    "minilm-int8": ("minilm", "int8"),
    "minilm-int4-block32": ("minilm", "int4-block32"),
    "minilm-sparse": ("minilm", "sparse"),
    "minilm-sparse-lut4": ("minilm-sparse", "joint-lut4"),
    "minilm-ios16-lut8": ("minilm-ios16", "lut8"),
    "gpt2-lut4": ("gpt2", "lut4"),
    "warmup-lut8": ("warmup", "lut8"),
    "warmup-int8": ("warmup", "int8"),
    "warmup-int4-block32": ("warmup", "int4-block32"),
    "warmup-lut4": ("warmup", "lut4"),
    "warmup-sparse": ("warmup", "sparse"),
    "warmup-sparse-lut4": ("warmup-sparse", "joint-lut4"),
    "warmup-ios16-lut8": ("warmup-ios16", "lut8"),
}


def missing(name: str) -> str | None:
    """What has to be installed before ``name`` can be built; None where nothing is."""
    try:
        if name.startswith("minilm"):
            model_folder()
        if name.startswith("smollm2"):
            model_file()
        if name.startswith("efficientnet"):
            weights_file()
    except FileNotFoundError as error:
        return str(error)
    return None


def located(name: str) -> str:
    """The path of the package ``name``, or ``name`` itself where that is a task's."""
    return str(package(name)) if name in BUILDERS or name in COMPRESSED else name


def package(name: str) -> Path:
    """Path of the package ``name``, built in a process of its own where the cache lacks it."""
    cached = cache_folder() / f"{_versioned(name)}.mlpackage"
    if not cached.exists():
        say(f"building {name}")
        child.call("benchmarks.lib.packages:build_here", name=name)
    return cached


def build_here(name: str) -> str:
    """Build and cache ``name`` in this process; its path."""
    return str(build_once(_versioned(name), lambda path: _build(name, path)))


def _build(name: str, path: Path) -> None:
    if name in COMPRESSED:
        source, form = COMPRESSED[name]
        # Here, since it needs coremltools, which the parent process does without.
        from benchmarks.models.compressed import compress

        compress(build_here(source), form, path)
        return
    module, _, function = BUILDERS[name].partition(":")
    getattr(importlib.import_module(module), function)(path)


def _versioned(name: str) -> str:
    """``name`` with a digest of what made it: the files of the models, coremltools' version."""
    digest = hashlib.sha256(metadata.version("coremltools").encode())
    for file in sorted((Path(__file__).parents[1] / "models").glob("*.py")):
        digest.update(file.read_bytes())
    return f"{name}-{digest.hexdigest()[:8]}"
