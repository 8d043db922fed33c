"""TensorBoard's files, read back as TensorBoard reads them."""

import re

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, metadata

from run_utils.tensorboard import TensorBoard

ARGUMENTS = {"weight_decay": 0.1, "learning_rate": 1e-3, "lora_r": 16, "torch_compile": True, "dtype": "fp32"}


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def plugin_data(events, tag):
    return events.summary_metadata[tag].plugin_data.content


def write(folder, first_step, steps, is_finished, arguments=ARGUMENTS):
    board = TensorBoard(folder, first_step, arguments, {"weight_decay", "lora_r"})
    for step in steps:
        board.scalars(step, {"train/loss": 1 / (step + 1)})
        board.scalars(step, {"eval/loss": 2.0, "eval/best_loss": 2.0})
    if is_finished is not None:
        board.close(is_finished)


def test_the_table_of_runs_has_numbers_booleans_and_texts_and_begins_with_what_is_changed(tmp_path):
    write(tmp_path, 1, [1], is_finished=True)
    events = read(tmp_path / "logs")
    start = metadata.parse_session_start_info_plugin_data(plugin_data(events, metadata.SESSION_START_INFO_TAG))
    experiment = metadata.parse_experiment_plugin_data(plugin_data(events, metadata.EXPERIMENT_TAG))
    names = {info.name: info.display_name for info in experiment.hparam_infos}
    values = {names[key]: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}
    assert values == ARGUMENTS and values["torch_compile"] is True
    types = {info.display_name: info.type for info in experiment.hparam_infos}
    assert (types["learning_rate"], types["torch_compile"], types["dtype"]) == (
        api_pb2.DATA_TYPE_FLOAT64, api_pb2.DATA_TYPE_BOOL, api_pb2.DATA_TYPE_STRING,
    )  # fmt: skip
    shown = sorted(experiment.hparam_infos, key=lambda info: (not info.differs, info.name))  # as TensorBoard's backend
    assert [info.display_name for info in shown] == [
        "lora_r", "weight_decay", "learning_rate", "dtype", "torch_compile",
    ]  # fmt: skip
    metrics = [(metric.name.group, metric.name.tag) for metric in experiment.metric_infos]
    assert metrics == [("eval", "eval/best_loss"), ("eval", "eval/best_exact_match")]
    assert read(tmp_path / "logs" / "eval").Scalars("eval/best_loss")[-1].value == 2.0


def test_a_killed_run_is_in_the_table_and_a_resume_completes_the_same_session(tmp_path):
    write(tmp_path, 1, [1, 2, 3], is_finished=None)
    events = read(tmp_path / "logs")
    assert metadata.SESSION_START_INFO_TAG in events.summary_metadata
    assert metadata.SESSION_END_INFO_TAG not in events.summary_metadata
    write(tmp_path, 3, [3, 4], is_finished=True, arguments=ARGUMENTS | {"dtype": "bf16"})
    events = read(tmp_path / "logs")
    for tag in (metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG):
        assert tag in events.summary_metadata
    end = metadata.parse_session_end_info_plugin_data(plugin_data(events, metadata.SESSION_END_INFO_TAG))
    assert end.status == api_pb2.STATUS_SUCCESS
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in read(tmp_path / "logs" / "eval").Scalars("eval/loss")] == [1, 2, 3, 4]
    assert {path.name for path in (tmp_path / "logs").iterdir() if path.is_dir()} == {"eval"}  # no run of its own


def test_each_chart_s_curves_differ_by_run_which_is_what_tensorboard_colours_by(tmp_path):
    write(tmp_path, 0, [0, 1], is_finished=True)
    events, evaluation = read(tmp_path / "logs"), read(tmp_path / "logs" / "eval")
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for group in layout.category for chart in group.chart}
    assert len(layout.category) == 5 and len(charts) == 9
    names = ["train/loss", "train/learning_rate", "train/learning_rate_1", "train/grad_norm", "train/loss_of_mine"]
    names += [
        "eval/loss",
        "eval/loss_names",
        "eval/loss_end",
        "eval/best_loss",
        "eval/exact_match",
        "eval/json_valid",
        "eval/tools_exist",
        "eval/no_hallucination",
    ]
    shown = {title: [tag for tag in names if any(re.match(one, tag) for one in tags)] for title, tags in charts.items()}
    assert shown["training and held-out rows"] == ["train/loss", "eval/loss"]
    assert ["eval/loss_names", "eval/loss_end"] in shown.values()
    assert shown["learning rate"] == ["train/learning_rate", "train/learning_rate_1"]
    assert [event.step for event in evaluation.Scalars("eval/loss")] == [0, 1]
    assert "eval/loss" not in events.Tags()["scalars"]
