"""TensorBoard's view of a training run: scalars, four custom charts, samples, a table of runs."""

import threading
import time

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

# All curves of a run have one colour in TensorBoard. So the evaluations are a second run: both
# losses can share a chart. Figures of the same run have a chart each, side by side.
CHARTS = {
    "loss": {"training and held-out rows": ["train/loss", "eval/loss"]},
    "held-out loss by part": {"of tool names, argument names, values, syntax, words and the end": ["eval/loss_.*"]},
    "generated calls": {
        "exact match": ["eval/exact_match"],
        "JSON valid": ["eval/json_valid"],
        "tools exist": ["eval/tools_exist"],
        "no hallucination": ["eval/no_hallucination"],
    },
    "learning rate and gradient norm": {
        "learning rate": [r"train/learning_rate(_\d+)?"],
        "gradient norm": ["train/grad_norm"],
    },
    "speed": {"tokens a second": ["train/tokens_per_second"]},
}
# The table of runs begins with the changed arguments, then has these.
FIRST_COLUMNS = (
    *("learning_rate", "lora_r", "lora_alpha", "effective_batch", "num_train_epochs", "seed"),
    *("dataset_name", "model_name_or_path"),
)
TABLE_METRICS = ("eval/best_loss", "eval/best_exact_match")


class TensorBoard:
    """A tracker of TrainingLog: event files in logs/, and of the evaluations in logs/eval/. It
    drops entries from first_step on: a resumed run writes them again."""

    files = "TensorBoard's files"

    def __init__(self, output_dir, first_step, arguments, changed):
        threading.excepthook = leave_to_flush
        self.training = SummaryWriter(output_dir / "logs", purge_step=first_step)
        self.evaluation = SummaryWriter(output_dir / "logs" / "eval", purge_step=first_step)
        self.training.add_custom_scalars(
            {
                group: {title: ["Multiline", [f"{tag}$" for tag in tags]] for title, tags in charts.items()}
                for group, charts in CHARTS.items()
            }
        )
        # TensorBoard keeps the first start and the first end of a run: a resume adds no session.
        self.write_hparams(metadata.EXPERIMENT_TAG, experiment=describe_columns(arguments, changed))
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in arguments.items():
            field = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
            setattr(start.hparams[column_key(name)], field, value)
        self.write_hparams(metadata.SESSION_START_INFO_TAG, session_start_info=start)
        self.training.flush()

    def scalars(self, step, figures):
        for name, value in figures.items():
            self.writer(name).add_scalar(name, value, step)
        self.training.flush()
        self.evaluation.flush()

    def text(self, step, name, text):
        self.writer(name).add_text(name, text, step)

    def writer(self, name):
        return self.evaluation if name.startswith("eval/") else self.training

    def write_hparams(self, tag, **content):
        # add_hparams of torch makes booleans numbers, and writes the start with the end only.
        data = metadata.create_summary_metadata(HParamsPluginData(**content))
        value = Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)
        self.training.file_writer.add_summary(Summary(value=[value]), 0)  # at 0 no resume drops it

    def close(self, is_finished):
        if is_finished:
            end = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
            self.write_hparams(metadata.SESSION_END_INFO_TAG, session_end_info=end)
        self.training.close()
        self.evaluation.close()


def describe_columns(arguments, changed):
    """The Experiment proto: the columns of TensorBoard's table of runs."""
    types = {bool: DATA_TYPE_BOOL, str: DATA_TYPE_STRING}
    columns = [
        HParamInfo(
            name=column_key(name),
            display_name=name,
            type=types.get(type(value), DATA_TYPE_FLOAT64),
            differs=name in changed,
        )
        for name, value in arguments.items()
    ]
    metrics = [MetricInfo(name=MetricName(group="eval", tag=tag), display_name=tag) for tag in TABLE_METRICS]
    return Experiment(hparam_infos=columns, metric_infos=metrics)


def column_key(name):
    """The name that TensorBoard sorts by, after the columns with `differs`. It shows the first
    five."""
    return f"{FIRST_COLUMNS.index(name)} {name}" if name in FIRST_COLUMNS else name


def leave_to_flush(failure):
    """TensorBoard's writer thread re-raises its OSError in flush(): don't print the traceback
    twice."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)
