"""Conversion of a palettized PyTorch model to a Core ML model with the same tables and indices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mlopt.coreml.emission import PackedPalette
from mlopt.coreml.models import as_mlmodel, destination_or_temporary
from mlopt.coreml.replacement import Replacements
from mlopt.errors import ConfigError, TargetError
from mlopt.mil.opening import open_package
from mlopt.mil.program import Node, Program
from mlopt.mil.targets import Target
from mlopt.mil.values import tensor_type_of
from mlopt.mil.writer import PackageWriter
from mlopt.palette.value.palettized import Palettized
from mlopt.requests.forms import BEFORE_IOS18, PaletteForm
from mlopt.torch.activations import quantizes_activations
from mlopt.torch.carried import CarriedPalette, carried_palettes, target_of_others
from mlopt.torch.gated_weights import GatedConstants
from mlopt.torch.gates import arranged
from mlopt.torch.stand_ins import MOST, is_untouched, stand_ins, state_with, without_folding
from mlopt.torch.tracing import described_as, input_types, state_of, traced


def convert(
    model: Any,
    example_inputs: Any = None,
    *,
    inputs: Any = None,
    minimum_deployment_target: Any = None,
    **convert_kwargs: Any,
) -> Any:
    """Convert a model with coremltools, and store its palettes exactly as they are.

    coremltools converts everything but the palettized weights, which are then replaced by the
    operations for their palettes: exactly the tables, scales and indices that the modules carry,
    without a search and with no more memory than the weights take. ``coremltools.convert`` itself
    nearly always finds the same, but tries every table entry for every element; it makes dense
    weights for ``LSTM`` and ``GRU``, and cannot convert ``LSTMCell``, ``GRUCell`` and ``Bilinear``.

    Parameters
    ----------
    model
        A ``torch.nn.Module``, in any float dtype and on any device: it is converted as in ``eval``
        mode and in float32, and stays as it is. Or the result of ``torch.jit.trace``,
        ``torch.jit.script`` or ``torch.export.export``.
    example_inputs
        For a module only: a tensor, a tuple of tensors, or a dictionary of tensors by the names
        of the arguments, to trace it with.
    inputs
        As for ``coremltools.convert``. None: the shapes and dtypes of ``example_inputs``, and the
        names in a dictionary of them.
    minimum_deployment_target
        The target of the result, such as ``"iOS18"`` or a member of ``coremltools.target``. None:
        what the palettes need, iOS16 or iOS18; without any palettes, coremltools' default.
    convert_kwargs
        Further arguments of ``coremltools.convert``: ``outputs``, ``compute_precision``,
        ``states``, ``pass_pipeline``, ``package_dir``, ...

    Returns
    -------
    A ``coremltools.models.MLModel``. In the program's float16 or float32, tables and scales
    are those of the modules, each number rounded once.

    Warns
    -----
    UserWarning
        A palettized weight is in no operation of the program: the program does not use it. Or it
        is dense there, since its palette does not fit the gates of a recurrent module.

    Raises
    ------
    TargetError
        Palettes need a newer target than ``minimum_deployment_target``; all are listed.
    ConfigError
        A weight was changed after it was palettized, a table is beyond the range of float16, or
        the arguments do not fit together.
    """
    if convert_kwargs.get("convert_to") not in (None, "mlprogram"):
        raise ConfigError(
            "only ML programs can hold palettes, got convert_to="
            f"{convert_kwargs['convert_to']!r}; leave it out, or use coremltools.convert"
        )
    asked = None if minimum_deployment_target is None else Target.parse(minimum_deployment_target)
    _check_destination(convert_kwargs.get("package_dir"))
    import coremltools

    source = traced(model, example_inputs)
    if inputs is None and example_inputs is not None:
        inputs = input_types(model, example_inputs)
    # not the palettes of the traced copy: they may have been widened for coremltools
    given = state_of(model)
    palettes = _numbered(carried_palettes(given))
    is_quantized = quantizes_activations(model)
    target = _target(palettes, given, asked, is_quantized=is_quantized)
    options = dict(convert_kwargs, inputs=inputs)
    if target is not None:
        options["minimum_deployment_target"] = getattr(coremltools.target, target.ios)
    if not palettes:
        return coremltools.convert(source, **options)

    destination = options.pop("package_dir", None)
    # for the stand-ins, which are not a model to load either
    options["pass_pipeline"] = without_folding(options.get("pass_pipeline"))
    options["skip_model_load"] = True
    state = state_of(source)
    converted = coremltools.convert(described_as(source, state_with(state, palettes)), **options)
    with destination_or_temporary(destination) as path:
        path = _with_palettes(converted, palettes, state, path)
    return as_mlmodel(
        path,
        like=converted,
        is_temporary=destination is None,
        skip_model_load=bool(convert_kwargs.get("skip_model_load", False)),
    )


def _check_destination(package_dir: Any) -> None:
    """Refuse what coremltools refuses, with or without palettes."""
    if package_dir is None:
        return
    path = Path(package_dir)
    if path.suffix != ".mlpackage":
        raise ConfigError(f"package_dir must end in .mlpackage, got {str(package_dir)!r}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"package_dir must be new, got {str(package_dir)!r}, which exists; remove it first"
        )


def _numbered(palettes: Iterator[CarriedPalette]) -> dict[int, list[CarriedPalette]]:
    """Return palettes by number; tied weights have one, which stands for all their names."""
    numbers: dict[tuple[Any, ...], int] = {}
    numbered: dict[int, list[CarriedPalette]] = {}
    for palette in palettes:
        weight = palette.weight
        place = weight.device, weight.data_ptr(), tuple(weight.shape), weight.stride()
        number = numbers.setdefault(place, len(numbers))
        numbered.setdefault(number, []).append(palette)
    if len(numbered) > MOST:
        raise ConfigError(
            f"at most {MOST} palettized weights can be converted, got {len(numbered)}"
        )
    return numbered


def _target(
    palettes: Mapping[int, list[CarriedPalette]],
    state: Mapping[str, torch.Tensor],
    asked: Target | None,
    *,
    is_quantized: bool,
) -> Target | None:
    """Return the target to convert for; None for coremltools' default.

    Every palette is read for this, so that a defect is reported before the conversion.
    ``is_quantized``: the model quantizes activations, which takes iOS17.

    Raises
    ------
    TargetError
        The requested target is too old for some palettes.
    """
    newest = asked or target_of_others(state)
    violations = []
    if is_quantized and newest is not None and newest < Target.iOS17 and asked is not None:
        violations.append("- activations: their quantization needs iOS17")
    if is_quantized:
        newest = max(newest or Target.iOS17, Target.iOS17)
    for sharing in palettes.values():
        forms = [PaletteForm.of_palettized(palettized) for palettized in _written(sharing)]
        if not forms:
            continue
        need = max(form.needed_target for form in forms)
        if asked is not None and need > asked:
            words = PaletteForm.of_palettized(sharing[0].palettized()).words()
            violations.append(f"- {sharing[0].name}: {words} needs {need.ios}")
        newest = need if newest is None else max(newest, need)
    if violations:
        assert asked is not None and newest is not None
        raise TargetError(
            f"{len(violations)} forms cannot be expressed for minimum_deployment_target="
            f"{asked.ios}:\n" + "\n".join(violations) + f"\nUse {newest.ios} ({newest.macos}), or "
            f"palettize again with what iOS16 allows: {BEFORE_IOS18}."
        )
    return newest


def _written(sharing: list[CarriedPalette]) -> list[Palettized]:
    """Return the palettes that a program may have for the weight of these."""
    palettized, gates = sharing[0].palettized(), sharing[0].gates
    if gates is None:
        return [palettized]
    gated = arranged(palettized, gates) or ()
    # modules that share it may read it as it is
    return [*gated, palettized] if len(sharing) > 1 else [*gated]


def _with_palettes(
    converted: Any,
    palettes: Mapping[int, list[CarriedPalette]],
    state: Mapping[str, torch.Tensor],
    destination: Path,
) -> Path:
    """Write a converted model with palettes instead of their stand-ins.

    ``state``: that of the model that was converted.
    """
    package = open_package(converted)
    with PackageWriter(package, destination) as writer:
        replacements = Replacements(writer)
        missing = dict(palettes)
        for program in package.programs:
            places: dict[tuple[int, str], list[Node]] = {}
            for number, node in stand_ins(program):
                dtype = _result_dtype(node)
                places.setdefault((number, dtype), []).append(node)
            for (number, dtype), nodes in places.items():
                palette = palettes[number][0]
                palettized = _rounded(palette, dtype)
                if not all(is_untouched(n, state[palette.name], number) for n in nodes):
                    raise ConfigError(
                        f"{palette.name}: a pass of coremltools changed what the palettized weight "
                        "was in the program, and its palette no longer fits; leave the pass "
                        "out of pass_pipeline, or leave the weight alone and palettize it after "
                        "the conversion"
                    )
                packed = PackedPalette.of(palettized)
                replacements.replace(program, nodes, packed, file_name=None)
                missing.pop(number, None)
            for number in _replace_gates(replacements, program, palettes, state):
                missing.pop(number, None)
        replacements.apply()
        path = writer.finish()
    _warn_of(missing)
    return path


def _replace_gates(
    replacements: Replacements,
    program: Program,
    palettes: Mapping[int, list[CarriedPalette]],
    state: Mapping[str, torch.Tensor],
) -> Iterator[int]:
    """Replace the gates of weights in a program; yield the numbers of the palettes that it has."""
    gated = [(n, sharing) for n, sharing in palettes.items() if sharing[0].gates is not None]
    constants = GatedConstants(program) if gated else None
    for number, sharing in gated:
        palette, gates = sharing[0], sharing[0].gates
        assert constants is not None and gates is not None
        can_be_whole = len(sharing) > 1
        for index, dtype, nodes in constants.take(state[palette.name], gates):
            palettized = _rounded(palette, dtype)
            forms = (palettized if can_be_whole else None, *(arranged(palettized, gates) or ()))
            form = forms[index] if index < len(forms) else None
            if form is not None:
                replacements.replace(program, nodes, PackedPalette.of(form), file_name=None)
                yield number


def _warn_of(missing: Mapping[int, list[CarriedPalette]]) -> None:
    """Warn about palettes that a converted model does not have, if any."""
    dense = [each for each in missing.values() if not _written(each)]
    unread = [each for each in missing.values() if _written(each)]
    if dense:
        names = ", ".join(sharing[0].name for sharing in dense)
        warnings.warn(
            f"palettized weights that the converted model has as dense ones: {names}; their "
            "palettes do not fit the gates of the modules. Choose a group_size that divides the "
            "rows of a gate, or fewer tables",
            stacklevel=4,
        )
    if unread:
        names = ", ".join(sharing[0].name for sharing in unread)
        warnings.warn(
            f"palettized weights that the converted model does not have: {names}; no operation "
            "of the program reads them",
            stacklevel=4,
        )


def _result_dtype(node: Node) -> str:
    """Return the element type, by numpy's name, of what a stand-in stands for."""
    declared = tensor_type_of(node.outputs[0].type)
    assert declared is not None
    return declared[0].numpy_name


def _rounded(palette: CarriedPalette, dtype: str) -> Palettized:
    try:
        return palette.palettized().astype(dtype)
    except ConfigError as error:
        raise ConfigError(f"{palette.name}: {error}") from error
