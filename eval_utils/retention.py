"""The perplexity of a plain text under the base and under the adapter: the training's cost
elsewhere. An evaluation's folder has the loss of each block (data_utils/plain_text.py) in
retention.json."""

import math

import numpy as np

from eval_utils.metrics import Metric
from run_utils.files import read_json


def perplexity():
    """Of a plain text (--retention): lower is better. Training costs the rise over the base's."""


PERPLEXITY = Metric("perplexity", "mean", perplexity)


def read_losses(folder):
    """The retention.json of an evaluation, or {} without one: `{"text", "sha256", "stride",
    "losses": {"base" or "adapter": [each block's sum]}}`. Raises UserError if it is damaged."""
    path = folder / "retention.json"
    return read_json(path, check_losses) if path.exists() else {}


def check_losses(saved):
    if not (isinstance(saved["text"], str) and isinstance(saved["sha256"], str) and saved["stride"] > 0):
        raise ValueError("no text is named there")
    for losses in saved["losses"].values():
        if len(losses) != len(saved["losses"]["base"]) or not np.isfinite(losses).all():
            raise ValueError("the losses of the blocks are not numbers, or not of the same blocks")


def add_retention(figures, systems, saved):
    """Add each system's `perplexity`, and `retention` with the changes, to an evaluation's figures.

    systems: its SystemKeys. saved: `{label: read_losses(...)}`. Evaluations of different texts get
    no figures."""
    measured = {label: of_label for label, of_label in saved.items() if of_label}
    if len({of_label["sha256"] for of_label in measured.values()}) != 1:
        return
    first = next(iter(measured.values()))
    changes = []
    for key in systems:
        losses = measured.get(key.label, {}).get("losses", {})
        kind = "adapter" if key.kind.adapter else "base"
        if key.kind.server or kind not in losses:
            continue
        of_blocks = np.array(losses[kind]) / first["stride"]
        low, high = exp_interval(of_blocks)
        tokens = len(of_blocks) * first["stride"]
        figures["systems"][key.name]["perplexity"] = {
            "n": tokens,
            "mean": math.exp(of_blocks.mean()),
            "low": low,
            "high": high,
        }
        if kind == "adapter":
            change = of_blocks - np.array(losses["base"]) / first["stride"]
            low, high = exp_interval(change)
            changes.append({"system": key.name, "ratio": math.exp(change.mean()), "low": low, "high": high})
    figures["retention"] = {"text": first["text"], "stride": first["stride"], "changes": changes}


def exp_interval(values):
    """The 95% interval of the exponential of a mean."""
    from eval_utils.statistics import bootstrap_mean  # late: scipy

    return [math.exp(values.mean() if end is None else end) for end in bootstrap_mean(values)]


def describe_retention(figures):
    """Lines below the table."""
    retention = figures.get("retention")
    for change in retention["changes"] if retention else ():
        percent = [100 * (change[name] - 1) for name in ("ratio", "low", "high")]
        yield (
            f"{change['system']}: the perplexity of the text {retention['text']} changes by {percent[0]:+.1f} % "
            f"(95% interval {percent[1]:+.1f} to {percent[2]:+.1f}, by blocks of {retention['stride']} tokens)"
        )
