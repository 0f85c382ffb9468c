"""A run of all benchmarks is kept, and the next one is compared with it."""

import json
from types import SimpleNamespace

import pytest

import benchmarks.__main__ as everything
from benchmarks.lib.cache import ENVIRONMENT_VARIABLE
from benchmarks.lib.kept_run import kept_run


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """Samples of the only benchmark; its status under ``status``."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "cache"))
    given = {"wall_s": [1.0, 1.01], "status": 0}

    def main(arguments):
        file = arguments[arguments.index("--json") + 1]
        variants = {"mlopt": {"wall_s": given["wall_s"]}}
        with open(file, "w") as stream:
            json.dump({"rows": [{"name": "row", "variants": variants}]}, stream)
        return given["status"]

    scripts = [name for name in vars(everything) if hasattr(getattr(everything, name), "main")]
    assert "coreml_jobs" in scripts
    for name in scripts:
        monkeypatch.setattr(everything, name, SimpleNamespace(__name__=name, main=main))
    return given


def test_the_next_run_says_what_moved_and_is_kept_in_turn(samples, capsys):
    assert everything.main([]) == 0
    assert "moved since" not in capsys.readouterr().out
    first = json.loads(kept_run().read_text())
    samples["wall_s"] = [2.0, 2.02]
    assert everything.main([]) == 0
    printed = capsys.readouterr().out
    assert "moved since last-run.json" in printed
    assert "coreml_jobs / row / mlopt" in printed
    assert "slower" in printed
    second = json.loads(kept_run().read_text())
    assert first["coreml_jobs"] != second["coreml_jobs"]
    assert [path.name for path in kept_run().parent.iterdir()] == ["last-run.json"]


@pytest.mark.parametrize(("status", "arguments"), [(1, []), (0, ["--skip-reference"])])
def test_a_run_that_failed_or_is_not_whole_is_compared_but_not_kept(
    samples, status, arguments, capsys
):
    assert everything.main([]) == 0
    before = kept_run().read_text()
    samples.update(wall_s=[3.0, 3.0], status=status)
    assert everything.main(arguments) == status
    assert "slower" in capsys.readouterr().out
    assert kept_run().read_text() == before


def test_a_run_that_is_not_there_is_refused_before_an_hour_of_work(samples, capsys):
    with pytest.raises(SystemExit):
        everything.main(["--against", "nowhere.json"])
    assert "nowhere.json does not exist" in capsys.readouterr().err
    assert not kept_run().exists()


def test_a_damaged_run_does_not_lose_the_next_one(samples):
    assert everything.main([]) == 0
    kept_run().write_text("{")
    with pytest.raises(json.JSONDecodeError):
        everything.main([])
    assert "coreml_jobs" in json.loads(kept_run().read_text())
