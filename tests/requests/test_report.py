import json
import math

import pytest

from mlopt.requests.report import Report, WeightRow
from mlopt.requests.rules import UnmatchedRule


def palettized(name="conv_w", **changes):
    values = {
        "shape": (64, 48, 3, 3),
        "dtype": "float16",
        "outcome": "palettized",
        "reason": "global_config",
        "consumers": ("conv(conv1)",),
        "functions": ("main",),
        "mode": "kmeans",
        "nbits": 4,
        "granularity": "per_tensor",
        "bits_per_weight": 4.01,
        "bytes_before": 55296,
        "bytes_after": 13856,
        "snr_db": 20.25,
    }
    return WeightRow(name=name, **(values | changes))


def kept(name="embed", **changes):
    values = {
        "shape": (1000, 64),
        "dtype": "float16",
        "outcome": "kept",
        "reason": "group_size 32 does not divide 1000 channels",
        "category": "indivisible groups",
        "consumers": ("gather(g)",),
        "bits_per_weight": 16.0,
        "bytes_before": 128000,
        "bytes_after": 128000,
    }
    return WeightRow(name=name, **(values | changes))


def bias(name="bias"):
    return kept(
        name, shape=(64,), reason="rank 1", category="rank 1", bytes_before=128, bytes_after=128
    )


def test_form():
    assert palettized().form == "4-bit kmeans, per tensor"
    row = palettized(
        granularity="per_grouped_channel",
        group_size=16,
        cluster_dim=2,
        per_channel_scale=True,
        lut_dtype="int8",
    )
    assert row.form == "4-bit kmeans, groups of 16, vectors of 2, per-channel scale, int8 table"
    assert kept().form == ""


def test_outcome_is_one_of_two():
    with pytest.raises(ValueError, match="outcome"):
        palettized(outcome="skipped")


def test_category_is_the_reason_where_none_is_given():
    assert palettized().category == "global_config"


def test_totals():
    report = Report(rows=[palettized(), kept(), bias()])
    assert report.bytes_before == 55296 + 128000 + 128
    assert report.bytes_after == 13856 + 128000 + 128
    assert report.ratio == pytest.approx(report.bytes_before / report.bytes_after)
    assert [row.name for row in report.palettized] == ["conv_w"]
    assert [row.name for row in report.kept] == ["embed", "bias"]
    assert report.kept_share == pytest.approx(128128 / 183424)
    assert list(report.kept_categories.items()) == [
        ("indivisible groups", (1, 128000)),
        ("rank 1", (1, 128)),
    ]
    assert len(report) == 3
    assert report["embed"].outcome == "kept"
    with pytest.raises(KeyError):
        report["nothing"]


def test_summary_makes_a_half_skipped_model_obvious():
    report = Report(rows=[palettized(), kept(), bias("b1"), bias("b2")])
    lines = report.summary().splitlines()
    assert lines == [
        "Palettized 1 weight of 4: 183.6 kB -> 142.1 kB, 1.29 times smaller.",
        "Kept 3 of 4 weights, 70 % of the bytes. "
        "By reason: indivisible groups: 1 (128.0 kB), rank 1: 2 (256 B).",
        "Largest kept: embed, 128.0 kB: group_size 32 does not divide 1000 channels.",
    ]


def test_summary_does_not_dwell_on_biases():
    summary = Report(rows=[palettized(), bias()]).summary()
    assert "Kept 1 of 2 weights, 0.2 % of the bytes" in summary
    assert "Largest kept" not in summary


def test_summary_of_the_target_the_rules_and_the_notes():
    unmatched = UnmatchedRule("op_name_configs", "conv9", ("conv1",), "nothing has this name")
    report = Report(
        rows=[palettized()],
        target_before="iOS15",
        target_after="iOS16",
        target_reason="tables need it",
        unmatched_rules=[unmatched],
        notes=["All is well."],
    )
    assert report.summary().splitlines()[1:] == [
        "Target: raised from iOS15 to iOS16: tables need it.",
        "Unused rule: op_name_configs['conv9']: nothing has this name; did you mean 'conv1'?",
        "Note: All is well.",
    ]
    same = Report(rows=[palettized()], target_before="iOS16", target_after="iOS16")
    assert same.summary().endswith("Target: iOS16.")


def test_a_model_without_weights():
    report = Report(target_after="iOS16")
    assert str(report) == "The model has no weights.\nTarget: iOS16."
    assert (report.ratio, report.kept_share) == (1.0, 0.0)
    json.loads(report.to_json())


def test_table():
    report = Report(rows=[palettized(snr_db=math.inf), palettized("x", note="24 used"), bias()])
    assert report.to_table(110).splitlines() == [
        "weight  used by  shape       bits   before    after      SNR  result",
        "-" * len("weight  used by  shape       bits   before    after      SNR  ")
        + "-" * len("4-bit kmeans, per tensor (24 used)"),
        "conv_w  conv     64x48x3x3   4.01  55.3 kB  13.9 kB    equal  4-bit kmeans, per tensor",
        "x       conv     64x48x3x3   4.01  55.3 kB  13.9 kB  20.2 dB  "
        "4-bit kmeans, per tensor (24 used)",
        "bias    gather   64         16.00    128 B    128 B           kept: rank 1",
    ]


def test_table_keeps_the_order_and_takes_names_literally():
    rows = [palettized("z[bold]"), palettized("a :smile:"), palettized("m")]
    lines = Report(rows=rows).to_table().splitlines()[2:]
    assert [line.split("  ")[0] for line in lines] == ["z[bold]", "a :smile:", "m"]


@pytest.mark.parametrize("width", [100, 110, 120, 160])
def test_table_fits_and_is_plain(width):
    name = "model_encoder_layers_11_self_attention_output_dense_weight_to_fp16_palettized"
    rows = [
        palettized(name, consumers=(*(f"linear(l{i})" for i in range(12)), "gather(g)")),
        kept(name, shape=(12345, 67, 89, 10, 11), bytes_before=999_950, reason="long " * 30),
    ]
    table = Report(rows=rows).to_table(width)
    assert max(map(len, table.splitlines())) <= width
    assert table.isascii()
    assert "\x1b" not in table
    assert "model_" in table
    assert "ettized" in table


def test_names_stay_on_their_line_and_colour_nothing():
    strange = "a\nb\x1b[31m\u2028c"
    rows = [
        palettized(strange, consumers=("linear\n(l)",), note="also named 'x\ry'"),
        kept(strange, reason=f"left alone by op_name_configs['{strange}']"),
    ]
    report = Report(rows=rows, notes=[f"of {strange}"])
    table = report.to_table(160)
    assert len(table.splitlines()) == 4
    assert table.count(r"a\nb\x1b[31m\u2028c") == 3
    assert r"'x\ry'" in table
    for text in (table, report.summary()):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert report[strange].name == strange
    assert json.loads(report.to_json())["rows"][0]["name"] == strange


def test_rows_of_a_pipeline_name_their_model():
    rows = [palettized("w", model="first"), kept("w", model="second/inner"), kept("w")]
    report = Report(rows=rows)
    lines = [line.split()[0] for line in report.to_table(140).splitlines()[2:]]
    assert lines == ["first/w", "second/inner/w", "w"]
    assert "second/inner/w" in report.summary()
    assert [row["model"] for row in json.loads(report.to_json())["rows"]] == [
        "first",
        "second/inner",
        "",
    ]


def test_print_ends_with_the_summary():
    report = Report(rows=[palettized(), kept()])
    assert str(report) == f"{report.to_table()}\n\n{report.summary()}"


def test_json_has_no_infinities():
    report = Report(
        rows=[palettized(snr_db=math.inf), palettized("n", snr_db=math.nan), kept()],
        unmatched_rules=[UnmatchedRule("op_type_configs", "a")],
    )
    text = report.to_json()
    assert "Infinity" not in text
    assert "NaN" not in text
    values = json.loads(text)
    equal, unknown, same = values["rows"]
    assert (equal["snr_db"], equal["lossless"]) == (None, True)
    assert (unknown["snr_db"], unknown["lossless"]) == (None, False)
    assert (same["snr_db"], same["lossless"]) == (None, True)
    assert equal["shape"] == [64, 48, 3, 3]
    assert equal["form"] == "4-bit kmeans, per tensor"
    assert values["totals"]["kept_categories"] == {
        "indivisible groups": {"weights": 1, "bytes": 128000}
    }
    assert values["unmatched_rules"][0]["key"] == "a"
