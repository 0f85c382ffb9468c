"""What moved between two runs: ratios where there are some, and nothing that is noise."""

import json

import pytest

from benchmarks.lib.moved import compare, print_moved


def written(path, ours, theirs=None, more=()):
    variants = {"mlopt files": {"wall_s": ours}, "limit": {"wall_s": [0.1, 0.1]}}
    if theirs is not None:
        variants["coremltools"] = {"wall_s": theirs}
    rows = [{"name": "minilm-kmeans4", "variants": variants}, *more]
    environment = {"system": "Linux", "machine": "x86_64", "processors": 2}
    path.write_text(json.dumps({"environment": environment, "coreml_jobs": rows}))
    return path


@pytest.mark.parametrize(
    ("before", "after", "is_moved", "gain"),
    [
        (([1.0, 1.1], [10.0, 11.0]), ([0.5, 0.52], [10.0, 10.5]), True, 2.01),
        # both are slower on a busy machine
        (([1.0, 1.1], [10.0, 11.0]), ([2.0, 2.2], [20.0, 22.0]), False, 1.0),
        (([1.0, 1.5], [10.0, 11.0]), ([0.9, 1.1], [10.0, 11.0]), False, 1.25),
        (([1.0, 1.0], [10.0, 10.0]), ([0.97, 0.97], [10.0, 10.0]), False, 1.03),
        (([1.0, 1.1], None), ([2.0, 2.1], None), True, 0.51),
    ],
)
def test_ratios_tell(before, after, is_moved, gain, tmp_path):
    files = [written(tmp_path / f"{i}.json", *each) for i, each in enumerate((before, after))]
    (moved,) = compare(*files)
    assert moved.where == "coreml_jobs / minilm-kmeans4 / mlopt files"
    assert moved.is_beyond_noise == is_moved
    assert moved.gain == pytest.approx(gain, rel=0.02)
    assert moved.is_ratio == (before[1] is not None)


def test_rows_of_their_own_are_told_apart(tmp_path, capsys):
    def rows(seconds):
        named = {"name": "normal", "n": 1000}
        return [
            {**named, "tool": "mlopt", "wall_s": [seconds]},
            {**named, "tool": "coremltools", "wall_s": [8.0]},
            {"name": "no times"},
        ]

    before = written(tmp_path / "before.json", [1.0], more=rows(2.0))
    after = written(tmp_path / "after.json", [1.0], more=rows(1.0))
    print_moved(before, after)
    printed = capsys.readouterr().out
    assert "normal / 1000 / mlopt" in printed
    assert "faster" in printed
    assert "minilm" not in printed
    assert "1 of 2 results moved within" in printed
    assert "machines differ" not in printed
