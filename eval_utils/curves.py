"""The metrics of texts generated during training, for its curves."""

from eval_utils.metrics import METRICS, score, summarize
from eval_utils.outputs import Output, Task


def curve_figures(rows, answers, prompt_format):
    """`{metric: figure}` of the headline metrics and over_call.

    answers: `(text, finish)` of each row, see Generation. A metric without rows is left out.
    """
    scores = [
        score(Output(Task(row), text, prompt_format, finish)) for row, (text, finish) in zip(rows, answers, strict=True)
    ]
    figures = summarize(scores)
    names = [name for name, metric in METRICS.items() if metric.headline or name == "over_call"]
    return {name: figures[name][METRICS[name].kind] for name in names if name in figures}
