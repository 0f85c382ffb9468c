"""Calibrations in memory and in files: what they find, refuse and merge."""

import json

import attrs
import numpy as np
import pytest

from mlopt.errors import ConfigError, DestinationError
from mlopt.palette.moments import Arrangement
from mlopt.statistics import Calibration, MomentArrays, WeightStatistics, content_of, merge

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(6, 5)), RNG.normal(size=(3, 5)).astype(np.float16)


def moments_of(rows):
    """The moments of inputs [positions, columns]."""
    second = (rows.T @ rows / len(rows)).astype(np.float32)[None]
    return MomentArrays(
        second=second,
        diagonal=np.einsum("bii->bi", second).copy(),
        mean=rows.mean(0).astype(np.float32)[None],
        count=len(rows),
    )


def weight_of(name, value, key="0"):
    rows, columns = value.shape
    return WeightStatistics(
        name=name,
        names=(name, f"{name}_again"),
        shape=value.shape,
        content=content_of(value),
        moments=key,
        arrangement=Arrangement(
            shape=value.shape,
            split=value.shape,
            order=(0, 1),
            blocks=1,
            rows=rows,
            columns=columns,
        ),
    )


def calibration_of(rows, **changes):
    return Calibration(
        **{
            "statistics": "hessian",
            "samples": len(rows),
            "weights": (weight_of("first", FIRST), weight_of("second", SECOND)),
            "moments": {"0": moments_of(rows)},
            "without": {"bias": "linear 'y' reads it as bias, which multiplies no inputs"},
            "remarks": ("a remark",),
            **changes,
        }
    )


ROWS = RNG.normal(size=(40, 5))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.calibration"
    calibration_of(ROWS).save(path)
    return path


def test_a_file_gives_back_what_was_saved(saved):
    before, after = calibration_of(ROWS), Calibration.load(saved)
    assert after.weights == before.weights
    assert (after.samples, after.statistics, after.notes) == (40, "hessian", ("a remark",))
    assert after.without == before.without
    assert after.identity == before.identity
    for field in ("second", "diagonal", "mean"):
        one, other = (getattr(each.moments["0"], field) for each in (before, after))
        assert np.array_equal(one, other)
        assert not other.flags.writeable


def test_the_layout_is_that_of_safetensors(saved):
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"]["format"] == "mlopt.calibration"
    first, last = header["0.second"]["data_offsets"]
    second = np.frombuffer(content[8 + length :][first:last], "<f4").reshape(1, 5, 5)
    assert np.array_equal(second, calibration_of(ROWS).moments["0"].second)
    assert max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__") == (
        len(content) - 8 - length
    )


def test_weights_are_found_by_content_or_else_by_name():
    calibration = calibration_of(ROWS)
    exact = calibration.find("other name", FIRST.shape, content_of(FIRST))
    assert exact.is_exact
    assert np.array_equal(exact.moments.second, calibration.moments["0"].second)
    tuned = calibration.find("second_again", SECOND.shape, content_of(SECOND + 1))
    assert not tuned.is_exact
    assert tuned.moments.arrangement.shape == SECOND.shape
    assert calibration.find("second", (5, 3), content_of(SECOND.T)) is None
    assert calibration.find("third", (3, 5), "") is None
    unread = calibration_of(ROWS, moments={"0": attrs.evolve(moments_of(ROWS), count=0)})
    assert unread.find("first", FIRST.shape, content_of(FIRST)) is None
    assert "no sample reached 2 weights: 'first', 'second'" in unread.notes


def test_content_tells_dtypes_shapes_and_orders_apart():
    values = np.arange(6, dtype=np.float32)
    contents = {
        content_of(values),
        content_of(values.reshape(2, 3)),
        content_of(values.view(np.int32)),
        content_of(values + 1),
    }
    assert len(contents) == 4
    turned = np.asfortranarray(values.reshape(2, 3))
    assert content_of(turned) == content_of(values.reshape(2, 3))


def test_few_samples_are_noted():
    notes = calibration_of(ROWS[:3]).notes
    assert any(note.startswith("3 samples: 8 or more are useful") for note in notes)
    assert any(note.startswith("fewer positions than columns for 2 weights") for note in notes)


def test_merged_parts_are_the_whole(tmp_path):
    parts = [
        calibration_of(ROWS[:25], marks=("01", "02")),
        calibration_of(ROWS[25:], remarks=("another",), marks=("02", "03")),
    ]
    whole = calibration_of(ROWS).moments["0"]
    in_memory = merge(parts)
    parts[0].save(tmp_path / "part")
    in_file = merge([tmp_path / "part", parts[1]], tmp_path / "merged")
    assert in_memory.samples == in_file.samples == 40
    assert in_file.remarks == ("a remark", "another")
    assert in_memory.marks == in_file.marks == ("01", "02", "03")
    for field in ("second", "diagonal", "mean"):
        one, other = (getattr(each.moments["0"], field) for each in (in_memory, in_file))
        assert np.array_equal(one, other)
        assert np.allclose(one, getattr(whole, field), rtol=1e-5, atol=1e-6)
    assert in_file.moments["0"].count == 40


def guided_of(rows, sensitivity):
    given = np.array([sensitivity], np.float32)
    moments = attrs.evolve(moments_of(rows), sensitivity=given)
    return calibration_of(rows, statistics="guided", moments={"0": moments})


def test_guided_parts_count_by_their_sensitivities(tmp_path):
    parts = [guided_of(ROWS[:25], 3.0), guided_of(ROWS[25:], 1.0)]
    merged = merge(parts, tmp_path / "merged")
    for field in ("second", "diagonal", "mean"):
        one, other = (getattr(part.moments["0"], field) for part in parts)
        assert np.allclose(getattr(merged.moments["0"], field), 0.75 * one + 0.25 * other)
    assert merged.moments["0"].sensitivity == 4
    assert merged.moments["0"].count == 40
    assert merged.find("first", FIRST.shape, content_of(FIRST)).is_guided


def test_parts_that_no_gradient_reached_count_nothing_beside_others():
    parts = [guided_of(ROWS[:25], 0.0), guided_of(ROWS[25:], 1.0)]
    merged = merge(parts)
    assert np.array_equal(merged.moments["0"].second, parts[1].moments["0"].second)
    none = merge([parts[0], guided_of(ROWS[25:], 0.0)])
    whole = calibration_of(ROWS).moments["0"]
    assert np.allclose(none.moments["0"].second, whole.second, rtol=1e-5, atol=1e-6)
    assert any(note.startswith("no gradient reached 2 weights") for note in none.notes)
    assert not none.find("first", FIRST.shape, content_of(FIRST)).is_guided


@pytest.mark.parametrize("sensitivity", [None, [1.0, 1.0], [np.nan]])
def test_a_damaged_sensitivity_is_refused(tmp_path, sensitivity):
    given = None if sensitivity is None else np.array(sensitivity, np.float32)
    moments = {"0": attrs.evolve(moments_of(ROWS), sensitivity=given)}
    calibration_of(ROWS, statistics="guided", moments=moments).save(tmp_path / "a")
    with pytest.raises(ConfigError, match="the calibration is damaged"):
        Calibration.load(tmp_path / "a")


def test_parts_of_different_models_are_refused():
    with pytest.raises(ConfigError, match=r"different models cannot be merged: .* number 2"):
        merge([calibration_of(ROWS), calibration_of(ROWS, weights=(weight_of("x", FIRST),))])
    diagonal = calibration_of(ROWS, statistics="diagonal")
    with pytest.raises(ConfigError, match="'hessian', number 2 'diagonal'"):
        merge([calibration_of(ROWS), diagonal])
    with pytest.raises(ConfigError, match="one calibration or more, got none"):
        merge([])


def edited(path, change):
    """Change the header of a file, its metadata and content as dictionaries."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    inner = json.loads(header["__metadata__"]["content"])
    change(header, inner)
    header["__metadata__"]["content"] = json.dumps(inner)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def refused(path, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Calibration.load(path)
    assert str(path) in str(caught.value)


def test_a_cut_file_is_refused_at_any_length(saved):
    content = saved.read_bytes()
    for size in [*range(0, 64, 7), 500, len(content) - 100, len(content) - 1]:
        saved.write_bytes(content[:size])
        refused(saved, "is not a calibration|cut short")
    saved.write_bytes(content + b"x")
    refused(saved, "cut short or damaged")


def test_other_files_are_refused(tmp_path, saved):
    refused(tmp_path / "missing", "cannot be read")
    refused(tmp_path, "cannot be read")
    other = tmp_path / "other"
    other.write_bytes(b"PK\x03\x04" + bytes(1000))
    refused(other, "is not a calibration")
    edited(saved, lambda header, content: header["__metadata__"].update(format="pt"))
    refused(saved, "holds other tensors")
    edited(saved, lambda header, content: header["__metadata__"].update(format="mlopt.calibration"))
    edited(saved, lambda header, content: header["__metadata__"].update(version="7"))
    refused(saved, "has version '7', and this mlopt reads version '1'; calibrate again")


DAMAGE = {
    "no weights": lambda header, content: content.pop("weights"),
    "other statistics": lambda header, content: content.update(statistics="x"),
    "another shape": lambda header, content: content["weights"][0].update(shape=[5, 6]),
    "another arrangement": lambda header, content: content["weights"][0]["arrangement"].update(
        order=[0, 0]
    ),
    "counts of others": lambda header, content: content.update(counts={"1": 3}),
    "weights of another type": lambda header, content: content.update(weights=3),
    "an array less": lambda header, content: header.pop("0.mean"),
    "another dtype": lambda header, content: header["0.mean"].update(dtype="F33"),
    "a negative length": lambda header, content: header["0.mean"].update(shape=[-1, -5]),
    "a place before": lambda header, content: header["0.mean"].update(data_offsets=[-20, 0]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_header_is_refused(saved, damage):
    edited(saved, DAMAGE[damage])
    refused(saved, "damaged|cut short|is not a calibration")


def test_nan_is_refused(tmp_path):
    path = tmp_path / "nan"
    moments = moments_of(ROWS)
    moments.mean[0, 1] = np.nan
    calibration_of(ROWS, moments={"0": moments}).save(path)
    refused(path, "NaN or infinite numbers for 'first', 'second'; calibrate again")
    moments = moments_of(ROWS)
    moments.second[0, 1, 2] = np.inf
    calibration_of(ROWS, moments={"0": moments}).save(path)
    with pytest.raises(ConfigError, match="calibration of weight 'first' is damaged"):
        Calibration.load(path).find("first", FIRST.shape, content_of(FIRST))


def test_a_file_appears_complete_or_not_at_all(tmp_path, saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DestinationError, match="disk full"):
        calibration_of(ROWS[:9]).save(saved)
    assert saved.read_bytes() == before
    assert list(tmp_path.iterdir()) == [saved]
    with pytest.raises(DestinationError, match="cannot be written"):
        calibration_of(ROWS).save(tmp_path / "missing" / "a")
