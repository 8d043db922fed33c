"""A near path is proposed for a path that does not exist, or for a run instead of its adapter."""

import pytest

from run_utils.paths import did_you_mean


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("adapter", "checkpoint-50", "checkpoint-150"):
        folder = tmp_path / "runs" / "demo" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").touch()
        if name != "adapter":
            (folder / "state.json").touch()
    (tmp_path / "runs" / "demo" / "evaluation").mkdir()
    (tmp_path / "runs" / "demo" / "evaluation" / "rows.jsonl").touch()
    (tmp_path / "runs" / "demo" / "checkpoint-best").touch()
    (tmp_path / "rows.jsonl").touch()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("path", "marker", "near"),
    [
        ("runs/demo", "adapter_config.json", "runs/demo/adapter"),
        ("runs/dmeo/adaptor", "adapter_config.json", "runs/demo/adapter"),
        ("rnus/demo/", "adapter_config.json", "runs/demo/adapter"),
        ("runs/demo", "state.json", "runs/demo/checkpoint-150"),
        ("runs/demo/checkpoint-15", "state.json", "runs/demo/checkpoint-150"),
        ("runs/demo", "rows.jsonl", "runs/demo/evaluation"),
        ("row.jsonl", None, "rows.jsonl"),
    ],
)
def test_a_near_path_is_proposed(runs, path, marker, near):
    assert did_you_mean(path, marker) == f": did you mean {near}?"


@pytest.mark.parametrize(
    ("path", "marker"),
    [
        ("nowhere/at/all", None),
        ("runs/demo/adapter", "adapter_config.json"),
        ("runs", "adapter_config.json"),
        ("rows.jsonl/row", None),
        ("", None),
        ("x" * 5000, None),
        ("nul\0", None),
    ],
)
def test_without_a_near_path_nothing_is_proposed(runs, path, marker):
    assert did_you_mean(path, marker) == ""


def test_an_absolute_path_stays_absolute(runs):
    assert did_you_mean(runs / "dem", "adapter_config.json") == f": did you mean {runs / 'demo' / 'adapter'}?"


def test_a_name_with_control_characters_is_not_proposed(runs):
    (runs / "named\x1b[31m").touch()
    assert did_you_mean(runs / "named", None) == ""
