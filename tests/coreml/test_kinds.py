"""Every kind of model that a package can be: what is compressed, and that nothing else differs.

The models are those of ``tests.odd_models`` and ``tests.edited_models``. Each is palettized in two
forms, per tensor at its own target and in groups at iOS18; the outputs are made once. Judges are
coremltools where it loads the kind at all, and the messages and weight files read here.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import coremltools as ct
import numpy as np
import pytest
from coremltools.proto import MIL_pb2
from typer.testing import CliRunner

from mlopt.cli import app
from mlopt.coreml import (
    get_weights_metadata,
    lint,
    palettize,
    palettize_weights,
    preview,
)
from mlopt.coreml.decompress import decompress
from mlopt.coreml.deployment import raise_target
from mlopt.coreml.inspection import inspect_weights
from tests import judges, odd_models
from tests.coreml.conftest import by_name, global_config, quietly
from tests.edited_models import STRANGE_NAMES
from tests.reading import (
    compressed,
    constants,
    dense_weights,
    elements,
    floats,
    place_of,
    places,
    shape_of,
    tree,
)

KINDS = odd_models.KINDS
FORMS = {
    "per tensor": ({}, None),
    "groups": (
        {"granularity": "per_grouped_channel", "group_size": 8, "on_indivisible": "divisor"},
        "iOS18",
    ),
}
NEEDED = {"per tensor": 7, "groups": 9}
"""The specification version that a form needs."""

TARGETS = {6: "iOS15", 7: "iOS16", 8: "iOS17", 9: "iOS18", 10: "iOS26"}
"""Specification version to target."""

BOTH = "adapted", "base"
# Rows of palettized weights: name and functions, in any order; per tensor and in groups alike.
MAIN = ("main",)
PALETTIZED: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "flexible_ranges": [("left_weight_to_fp16", MAIN), ("right_weight_to_fp16", MAIN)],
    "flexible_shapes": [("conv_weight_to_fp16", MAIN), ("point_weight_to_fp16", MAIN)],
    "images": [("mix_weight_to_fp16", MAIN), ("body_weight_to_fp16", MAIN)],
    "integer_classifier": [("first_weight_to_fp16", MAIN)],
    "optional_inputs": [("linear_weight_to_fp16", MAIN)],
    "newest_target": [("linear_weight_to_fp16", MAIN)],
    "key_value_cache": [
        ("embedding_weight_to_fp16", MAIN),
        *(
            (f"layers_{layer}_{name}_weight_to_fp16", MAIN)
            for layer in (0, 1)
            for name in ("joint", "out")
        ),
    ],
    "nested_blocks": [(name, MAIN) for name in ("top", "middle", "deep", "loop", "carried")],
    "several_functions": [
        ("first_weight_to_fp16", ("adapted", "base", "same")),
        ("second_weight_to_fp16", ("adapted",)),
        ("second_weight_to_fp16", ("base", "same")),
        ("first_weight_to_fp16", ("other",)),
        ("second_weight_to_fp16", ("other",)),
    ],
    "small_constants": [],
    "integer_constants": [("w", MAIN)],
    "custom_layers": [("first", MAIN), ("third", MAIN)],
    "twins": [("twin", MAIN), ("twin", MAIN)],
    "shared_in_blocks": [("outside", MAIN)],
    "every_dtype": [
        ("linear_weight_to_fp16", MAIN),
        ("float16_large", MAIN),
        ("float32_large", MAIN),
    ],
    "decorated": [("linear_weight_to_fp16", MAIN)],
    "strange_names": [(name, MAIN) for name in STRANGE_NAMES],
    "empty_functions": [
        ("first_weight_to_fp16", BOTH),
        ("second_weight_to_fp16", BOTH),
        ("head_0_weight_to_fp16", ("adapted",)),
        ("head_0_weight_to_fp16", ("base",)),
    ],
    "two_weight_files": [
        (f"{name}_to_fp16", MAIN)
        for name in (
            *("const_0", "plain_weight", "grouped_weight", "depthwise_weight", "pointwise_weight"),
            *("transposed_weight", "transposed_grouped_weight", "dilated_weight", "line_weight"),
            *("wide_weight", "narrow_weight"),
        )
    ],
    "weights_in_the_message": [("linear_weight_to_fp16", MAIN)],
    "weights_in_operations": [("linear_weight_to_fp16", MAIN)],
    "mixed_pipeline": [("linear_weight_to_fp16", MAIN)] * 3,
    "shared_pipeline": [("linear_weight_to_fp16", MAIN)] * 2,  # one for each program
}
PALETTIZED["mixed_opsets"] = PALETTIZED["two_spellings"] = PALETTIZED["empty_functions"]
# Category of the reason for what has more elements than the threshold, and is kept.
KEPT = {
    # coremltools puts a copy into the branch that returns what stands outside
    "nested_blocks": {"returned": "returned by a block", "identity_0": "returned by a block"},
    "shared_in_blocks": {"returned": "returned by a block"},
    "integer_constants": {
        "mask": "infinity or NaN",
        "booleans": "not a float",
    }
    | {
        f"{name}_workaround": "not a float"
        for name in ("int8", "uint8", "int16", "uint16", "int32")
    },
    "custom_layers": {"second": "read by a custom layer"},
}


@attrs.frozen(slots=False)
class Output:
    """What one form made of a kind."""

    source: Path
    path: Path
    report: Any
    form: str

    @functools.cached_property
    def changed(self) -> set[str]:
        """Names that the report calls palettized, and those that share their place in a file."""
        names = {row.name for row in self.report.palettized}
        sharing: dict[object, set[str]] = {}
        for (program, *_, name, _), op in constants(self.source).items():
            place = place_of(elements(op))
            if place is not None:
                sharing.setdefault((program, place), set()).add(name)
        return names.union(*(group for group in sharing.values() if group & names))

    @property
    def raises(self) -> bool:
        """Whether some function belongs to an older opset than the form needs."""
        before, _ = judges.spec_and_weights(self.source)
        functions = [
            function
            for program in judges.ml_programs(before)
            for function in program.mlProgram.functions.values()
        ]
        oldest = min(int(f.opset.removeprefix("CoreML")) for f in functions)
        return oldest < NEEDED[self.form] - 1


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the package of a kind, written once; not to be changed."""
    folder = tmp_path_factory.mktemp("kinds")
    return functools.cache(lambda name: odd_models.build(name, folder))


@pytest.fixture(scope="module")
def output_of(
    package: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Output]:
    """Return a function that palettizes a kind in a form, once."""
    folder = tmp_path_factory.mktemp("outputs")

    @functools.cache
    def make(name: str, form: str) -> Output:
        options, target = FORMS[form]
        path = folder / f"{name}-{form.replace(' ', '-')}.mlpackage"
        source = package(name)
        before = contents(source)
        result = palettize(
            source,
            global_config(**options),
            output=path,
            minimum_deployment_target=target,
        )
        assert contents(source) == before
        return Output(source, result.path, result.report, form)

    return make


def contents(package: Path) -> dict[Path, bytes]:
    """Every file of a package."""
    files = (path for path in package.rglob("*") if path.is_file())
    return {path.relative_to(package): path.read_bytes() for path in files}


CASES = [(name, form) for name in KINDS for form in FORMS]


each_kind = pytest.mark.parametrize("name", list(KINDS))


def loaded(name: str, form: str) -> bool:
    """Whether coremltools can be the judge of an output."""
    return KINDS[name].loads


each_output = pytest.mark.parametrize(("name", "form"), CASES)
each_judged_output = pytest.mark.parametrize(
    ("name", "form"), [case for case in CASES if loaded(*case)]
)


def test_every_kind_is_expected_to_give_something():
    assert set(PALETTIZED) == set(KINDS)


def palettized_rows(report):
    """Name and functions of each. coremltools numbers what has no name differently each time."""
    return Counter(
        (re.sub(r"^const_\d+", "const_0", row.name), tuple(sorted(row.functions)))
        for row in report.palettized
    )


@each_output
def test_the_report_has_one_row_for_each_stored_weight(name, form, output_of):
    output = output_of(name, form)
    assert palettized_rows(output.report) == Counter(PALETTIZED[name])

    # A row for each place in a weight file or message, in the functions that it is used in.
    groups: dict[object, set[tuple[int, str]]] = {}
    names: dict[object, list[str]] = {}
    for place in places(output.source):
        if place.is_weight:
            key = (place.program, place.key, shape_of(place.value))
            groups.setdefault(key, set()).add((place.program, place.function))
            names.setdefault(key, []).append(place.name)
    expected = Counter(tuple(sorted({f for _, f in users})) for users in groups.values())
    assert Counter(tuple(sorted(row.functions)) for row in output.report) == expected
    assert len(output.report.rows) == len(groups)


@each_output
def test_what_is_kept_is_explained(name, form, output_of):
    report = output_of(name, form).report
    large = {
        row.name: row.category
        for row in report.kept
        if math.prod(row.shape) > 2048 and name != "every_dtype"
    }
    assert large == KEPT.get(name, {})
    assert all(row.reason and row.bytes_after == row.bytes_before for row in report.kept)
    assert report.summary()
    # One line for each weight, whatever it is called, below the heading.
    assert len(report.to_table(width=3000).splitlines()) == len(report.rows) + 2


@each_output
def test_nothing_else_differs(name, form, output_of):
    output = output_of(name, form)
    differences = judges.messages_equal_except(
        output.source, output.path, output.changed, raised=output.raises
    )
    assert differences == []


@each_output
def test_the_numbers_are_those_of_a_good_clustering(name, form, output_of):
    output = output_of(name, form)
    before, after = dense_weights(output.source), dense_weights(output.path)
    assert before.keys() == after.keys()
    measured = {}
    for key, value in before.items():
        if key[2] in output.changed:
            error = np.square(value.astype(float) - after[key].astype(float)).sum()
            decibels = 10 * np.log10(np.square(value.astype(float)).sum() / error)
            # 16 levels for normally distributed weights: 20.2 dB. Smaller groups have more, a
            # weight with the scales of a batch norm in it less.
            assert 18 < decibels < 26 or name == "every_dtype", key
            measured.setdefault(key[2], set()).add(round(float(decibels), 3))
        else:
            assert after[key].tobytes() == value.tobytes(), key
    reported = {}
    for row in output.report.palettized:
        reported.setdefault(row.name, set()).add(round(row.snr_db, 3))
    for key, found in reported.items():
        assert sorted(measured[key]) == pytest.approx(sorted(found), abs=2e-3)


@each_judged_output
def test_coremltools_reads_the_same_numbers(name, form, output_of):
    output = output_of(name, form)
    theirs = judges.decompressed_constants(output.path)
    assert theirs or name == "small_constants"
    several_programs = len(judges.load_programs(output.path)) > 1
    functions = {function for _, function, _, _ in dense_weights(output.path)}
    for (program, function, weight, number), value in dense_weights(output.path).items():
        prefix = f"{program}/" * several_programs
        prefix += f"{function}/" * (len(functions) > 1)
        again = f"#{number + 1}" * bool(number)
        np.testing.assert_array_equal(theirs[f"{prefix}{weight}{again}"], value)


@each_output
def test_versions_rise_only_where_they_must(name, form, output_of):
    output = output_of(name, form)
    (before, _), (after, _) = (judges.spec_and_weights(p) for p in (output.source, output.path))
    for old, new in zip(tree(before), tree(after), strict=True):
        versions = [old.specificationVersion]
        for program in (inner for inner in tree(new) if inner.WhichOneof("Type") == "mlProgram"):
            functions = program.mlProgram.functions.values()
            if any(compressed(function) for function in functions):
                versions.append(NEEDED[form])
        assert new.specificationVersion == max(versions)
        if old.WhichOneof("Type") == "mlProgram":
            for key, function in new.mlProgram.functions.items():
                opset = int(old.mlProgram.functions[key].opset.removeprefix("CoreML"))
                # The version as well: coremltools takes all operations to be of its opset.
                needed = max(versions) - 1 if compressed(function) else 0
                assert function.opset == f"CoreML{max(opset, needed)}", key
        elif not new.WhichOneof("Type").startswith("pipeline"):
            assert old.SerializeToString() == new.SerializeToString()
    report = output.report
    assert report.target_after == TARGETS[after.specificationVersion]
    rises = after.specificationVersion > before.specificationVersion
    assert (report.target_before != report.target_after) == rises


@each_output
def test_what_is_shared_stays_shared(name, form, output_of):
    output = output_of(name, form)

    before, after = constants(output.source), constants(output.path)
    moved: dict[object, set[object]] = {}
    for key, op in before.items():
        place, new = place_of(elements(op)), after[key]
        if place is not None:
            # The forms of old and new opsets have different types of indices.
            group = (place, shape_of(elements(op)), new.type, bool(new.inputs))
            moved.setdefault(group, set()).add(place_of(elements(new)))
    assert all(len(now) == 1 for now in moved.values())


@each_output
def test_decompression_gives_what_was_stored(name, form, output_of, tmp_path):
    output = output_of(name, form)
    path = decompress(output.path, tmp_path / "dense.mlpackage")
    stored, dense = dense_weights(output.path), dense_weights(path)
    assert stored.keys() == dense.keys()
    for key, value in stored.items():
        assert dense[key].dtype == value.dtype
        assert dense[key].tobytes() == value.tobytes(), key
    assert not any(place.op.type.startswith("constexpr_") for place in places(path))
    # But for the values that were compressed, the message is the one before.
    differences = judges.messages_equal_except(output.source, path, raised=output.raises)
    for line in differences:
        assert any(f"/{weight}.attributes[val]" in line for weight in output.changed), line
    assert bool(differences) == bool(output.changed)
    if loaded(name, form):
        theirs = judges.decompressed_constants(path)
        for key, value in judges.decompressed_constants(output.path).items():
            if key in theirs:
                np.testing.assert_array_equal(theirs[key], value)


@each_output
def test_a_preview_says_what_palettize_does(name, form, output_of):
    output = output_of(name, form)
    options, target = FORMS[form]
    before = contents(output.source)
    report = preview(output.source, global_config(**options), minimum_deployment_target=target)
    assert contents(output.source) == before
    strip = functools.partial(attrs.evolve, snr_db=None)
    assert [strip(row) for row in report] == [strip(row) for row in output.report]
    assert (report.target_before, report.target_after, report.target_reason) == (
        output.report.target_before,
        output.report.target_after,
        output.report.target_reason,
    )


@each_kind
def test_metadata_has_each_large_constant_with_its_values(name, package):
    source = package(name)
    _, folder = judges.spec_and_weights(source)
    metadata = get_weights_metadata(source, weight_threshold=2048)
    values = Counter(value.val.tobytes() for value in metadata.values())
    wanted = Counter()
    groups = {}
    for place in places(source):
        if math.prod(shape_of(place.value)) <= 2048 or not place.is_weight:
            continue
        groups[place.key, place.name] = place  # one for all programs that share it
    if name == "every_dtype":  # not all of them are numpy's
        assert len(metadata) == len(groups)
        return
    for place in groups.values():
        kind = place.value.type.tensorType.dataType
        if kind in (MIL_pb2.FLOAT16, MIL_pb2.FLOAT32):
            wanted[floats(place.value, folder).tobytes()] += 1
    assert {key: values[key] for key in wanted} == dict(wanted)
    assert len(metadata) == len(groups)
    assert all(value.child_ops is not None for value in metadata.values())


@each_output
def test_inspection_lists_each_stored_weight_before_and_after(name, form, output_of):
    output = output_of(name, form)
    for path, report in ((output.source, output.report), (output.path, None)):
        inventory = inspect_weights(path)
        spec, _ = judges.spec_and_weights(path)
        assert inventory.target == TARGETS[spec.specificationVersion]
        if report is not None:
            rows = [(row.name, row.functions, row.shape, row.nbytes) for row in inventory.rows]
            assert rows == [(r.name, r.functions, r.shape, r.bytes_before) for r in report]
        else:
            assert inventory.bytes_in_all <= output.report.bytes_before
        assert inventory.to_json()


@each_output
def test_a_second_run_changes_nothing(name, form, output_of, tmp_path):
    output = output_of(name, form)
    again = palettize(output.path, global_config(nbits=2), output=tmp_path / "again.mlpackage")
    assert not again.report.palettized
    assert judges.messages_equal_except(output.path, again.path) == []


@pytest.mark.short(
    "two_spellings",
    "mixed_opsets",
    "nested_blocks",
    "several_functions",
    "mixed_pipeline",
    "strange_names",
)
@each_kind
def test_vectors_in_groups_with_scales(name, package, tmp_path):
    """The form with the most parts: what else there is stays, and it decompresses to the same."""
    source = package(name)
    options = FORMS["groups"][0] | {"cluster_dim": 2, "enable_per_channel_scale": True}
    result = palettize(
        source,
        global_config(nbits=3, **options),
        output=tmp_path / "out.mlpackage",
        minimum_deployment_target="iOS18",
    )
    output = Output(source, result.path, result.report, "groups")
    # no vector reaches across the channels of a depthwise convolution
    expected = [row for row in PALETTIZED[name] if row[0] != "depthwise_weight_to_fp16"]
    assert not Counter(expected) - palettized_rows(result.report)
    differences = judges.messages_equal_except(
        source, result.path, output.changed, raised=output.raises
    )
    assert differences == []
    dense = decompress(result.path, tmp_path / "dense.mlpackage")
    assert dense_weights(dense).keys() == dense_weights(source).keys()
    if KINDS[name].loads:
        theirs, ours = (judges.decompressed_constants(p) for p in (result.path, dense))
        # const_1 and so on are what coremltools calls values without a name
        named = [key for key in ours if not re.search(r"(^|/)const_\d+$", key)]
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in named)


# --- raised, and looked at by the lint ------------------------------------------------------------


def newest(package: Path) -> str:
    """The target to raise to: iOS18, or the model's own if that is newer."""
    spec, _ = judges.spec_and_weights(package)
    return TARGETS[max(9, spec.specificationVersion)]


@each_kind
def test_raising_keeps_everything_but_versions(name, package, tmp_path):
    source = package(name)
    path = raise_target(source, tmp_path / "raised.mlpackage", newest(source))
    assert judges.messages_equal_except(source, path, raised=True) == []
    before, after = dense_weights(source), dense_weights(path)
    assert all(after[key].tobytes() == value.tobytes() for key, value in before.items())
    for program in judges.ml_programs(judges.spec_and_weights(path)[0]):
        assert program.specificationVersion >= 9
        assert {f.opset for f in program.mlProgram.functions.values()} <= {"CoreML8", "CoreML9"}
    if KINDS[name].loads:
        assert judges.load_programs(path)


@each_kind
def test_raising_a_palettized_model_keeps_its_numbers(name, output_of, tmp_path):
    output = output_of(name, "per tensor")
    path = raise_target(output.path, tmp_path / "raised.mlpackage", newest(output.path))
    before, after = dense_weights(output.path), dense_weights(path)
    assert before.keys() == after.keys()
    assert all(after[key].tobytes() == value.tobytes() for key, value in before.items())
    assert judges.messages_equal_except(output.source, path, output.changed, raised=True) == []
    if KINDS[name].loads:
        theirs = judges.decompressed_constants(path)
        assert Counter(v.tobytes() for v in after.values() if v.size > 2048) == Counter(
            v.tobytes() for v in theirs.values() if v.size > 2048 and v.dtype.kind == "f"
        )


@each_output
def test_the_lint_reads_it(name, form, output_of):
    output = output_of(name, form)
    for path in (output.source, output.path):
        before = contents(path)
        assert str(lint(path))
        assert str(lint(path, newest(path)))
        assert contents(path) == before


# --- other doors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mixed_pipeline", "several_functions", "custom_layers", "small_constants"]
)
def test_a_model_in_memory_gives_the_same(name, output_of):
    output = output_of(name, "per tensor")
    model = quietly(ct.models.MLModel, str(output.source), skip_model_load=True)
    smaller = palettize_weights(model, global_config())
    assert judges.messages_equal_except(output.path, smaller) == []


@pytest.mark.parametrize("name", ["mixed_pipeline", "strange_names"])
def test_the_command_line_handles_it(name, package, output_of, tmp_path):
    source = Path(shutil.copytree(package(name), tmp_path / "source.mlpackage"))

    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert invoke("inspect", source)
    small, dense = tmp_path / "small.mlpackage", tmp_path / "dense.mlpackage"
    assert "Palettized" in invoke("palettize", source, "--nbits", 4, "--output", small)
    assert judges.messages_equal_except(output_of(name, "per tensor").path, small) == []
    invoke("inspect", small)
    invoke("decompress", small, "--output", dense)
    assert not any(place.op.type.startswith("constexpr_") for place in places(dense))


@pytest.mark.parametrize("alias", ["outside", "inside", "also_inside"])
def test_a_rule_reaches_each_name_of_a_shared_blob(alias, package, tmp_path):
    source = package("shared_in_blocks")
    config = by_name({alias: {"nbits": 2}})
    report = palettize(source, config, output=tmp_path / "out.mlpackage", strict=True).report
    (row,) = report.palettized
    assert row.reason == f"op_name_configs['{alias}']"
    # Somebody who looks for one of the names has to find it.
    assert {"outside", "inside", "also_inside"} <= set(f"{row.name}'{row.note}".split("'"))


def test_three_bits_in_a_function_of_an_older_opset(package, tmp_path):
    """A function of CoreML7 in a model of iOS18 is raised to CoreML8, which has three bits."""
    source = Path(shutil.copytree(package("mixed_opsets"), tmp_path / "source.mlpackage"))
    _, folder = judges.spec_and_weights(source)
    for (_, _, name, _), op in constants(source).items():
        if name == "head_0_weight_to_fp16":
            values = np.resize(np.float16([-2, -1, 0, 1, 2]), shape_of(elements(op)))
            with (folder / "weight.bin").open("r+b") as file:
                file.seek(elements(op).blobFileValue.offset + 64)
                file.write(values.tobytes())
    result = palettize(source, global_config(mode="unique"), output=tmp_path / "out.mlpackage")
    tables = {
        function: shape_of(
            (op.inputs["lut"].arguments[0].value) if op.inputs else op.attributes["lut"]
        )
        for (_, function, name, _), op in constants(result.path).items()
        if name == "head_0_weight_to_fp16"
    }
    assert tables == {"base": (1, 1, 8, 1), "adapted": (1, 1, 8, 1)}
    (note,) = result.report.notes
    assert "specification version 9" in note
    assert "'base' of CoreML7" in note


def test_rules_reach_strange_names(package, tmp_path):
    source = package("strange_names")
    names = list(STRANGE_NAMES)
    bits = dict(zip(names, (1, 2, 4, 6, 8), strict=True))
    config = by_name({name: {"nbits": nbits} for name, nbits in bits.items()})
    result = palettize(source, config, output=tmp_path / "out.mlpackage", strict=True)
    assert {row.name: row.nbits for row in result.report.palettized} == bits
