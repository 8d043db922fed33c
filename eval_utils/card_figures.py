"""The figures of a model card: an adapter's evaluation and its run's losses, as Markdown. No
torch."""

import html
import re
from pathlib import Path

from huggingface_hub import EvalResult

from data_utils.made_rows import NO_CALL
from data_utils.systems import SYSTEMS
from run_utils.arguments import read_yaml
from run_utils.errors import UserError, one_line, say
from run_utils.files import no_pipe, read_json, weights_hash, write_text
from run_utils.metrics_file import read_metrics
from run_utils.redaction import published_name, published_names

# The lines around an evaluation in a card. evaluate.py replaces the text between them.
SECTION = ("<!-- evaluate.py replaces the lines from here -->", "<!-- to here -->")
NOT_EVALUATED = "Not evaluated on the rows that training held out: `python evaluate.py --adapter DIR` evaluates them."
HEADLINE = {
    "json_valid": "JSON valid",
    "exact_match": "exact match",
    "tools_exist": "tools exist",
    "no_hallucination": "no hallucination",
}


def rows_name(args):
    """The rows of an evaluation in words, from its args.yaml or a training's: "held-out rows of
    rows.jsonl", or "rows of other.jsonl" if they are another file's or all of a file's."""
    if args.get("eval_dataset_name"):
        return f"rows of {published_name(str(args['eval_dataset_name']))}"
    held_out = "" if args.get("eval_fraction") == 1 else "held-out "
    return f"{held_out}rows of {published_names(args.get('dataset_name', 'unknown'))}"


def escaped(value):
    """A value as Markdown that shows it literally, on one line and in one cell. Names come from
    other people's files."""
    return html.escape(re.sub(r"[\\`*\[\]|]", r"\\\g<0>", one_line(value)), quote=False)


def precision(quantization, mixed_precision):
    dtype = "float32" if mixed_precision == "no" else mixed_precision
    return f"a base in {dtype}" if quantization in (None, "none") else f"a base in {quantization}, computing in {dtype}"


def evaluation_results(evaluation):
    """The adapter's figures in the form of the hub's leaderboards."""
    figures = (evaluation or {}).get("systems", {}).get("adapter", {})
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=evaluation["data"],
            dataset_name=evaluation["rows"],
            metric_type=name,
            metric_name=title,
            metric_value=round(100 * figures[name]["rate"], 2),
        )
        for name, title in HEADLINE.items()
        if figures.get(name)
    ]


def evaluation_section(evaluation):
    """The SECTION of a card. evaluation: from read_evaluation."""
    start, end = SECTION
    return f"{start}\n\n{describe_evaluation(evaluation) if evaluation else NOT_EVALUATED}\n\n{end}"


def describe_evaluation(evaluation):
    lines = [
        f"| {escaped(evaluation['rows'])}, % (95 % interval) | {' | '.join(HEADLINE.values())} |",
        "|---" * (len(HEADLINE) + 1) + "|",
    ]
    for system, figures in evaluation["systems"].items():
        cells = [
            f"{100 * figures[name]['rate']:.1f} ({100 * figures[name]['low']:.1f}–{100 * figures[name]['high']:.1f})"
            if figures.get(name)
            else ""
            for name in HEADLINE
        ]
        lines.append(f"| {escaped(system)}, {escaped(figures['num_examples'])} rows | {' | '.join(cells)} |")
    rates = [
        f"{escaped(system)} in {100 * figure['rate']:.1f} % ({100 * figure['low']:.1f}–{100 * figure['high']:.1f})"
        for system, figure in over_calls(evaluation)
    ]
    if rates:
        n = over_calls(evaluation)[0][1]["n"]
        lines += ["", f"With the right tool off the list of {escaped(n)} of these rows, a tool is still called:"]
        lines += [f"{', '.join(rates)}."]
    systems = [f"- {name}: {SYSTEMS[name].help}" for name in evaluation["systems"] if name in SYSTEMS]
    measured_on = precision(evaluation.get("quantization"), evaluation.get("mixed_precision"))
    examples = f"; {escaped(evaluation.get('shots'))} examples in fewshot" * ("fewshot" in evaluation["systems"])
    return "\n".join([*lines, "", *systems, "", f"Greedy decoding; measured on {escaped(measured_on)}{examples}."])


def describe_curves(curves, loss, rows):
    """Markdown about read_curves's losses or, without curves, about the adapter's loss. rows: from
    rows_name."""
    if not curves:
        return f"Loss on {escaped(rows)} at this step: {loss:.4f}." if loss is not None else ""
    lines = [f"| step | training loss | loss on {escaped(rows)} |", "|---|---|---|"]
    for step, *losses in curves:
        cells = ["" if loss is None else f"{loss:.4f}" for loss in losses]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_curves(run, environment, most=8):
    """`(step, training loss, held-out loss)` of some of a run's evaluations up to an adapter's
    step, from its metrics.jsonl. An unknown loss is None. Empty without the file, as in runs of
    older versions.

    environment: the adapter's environment.json, parsed, with its step and held-out loss.
    """
    last_step, file = environment.get("global_step"), Path(run) / "metrics.jsonl"
    if not isinstance(last_step, int) or not file.exists():
        return []
    try:
        entries = read_metrics(file)
        train, held_out = (
            {entry["step"]: float(entry[name]) for entry in entries if name in entry}
            for name in ("train/loss", "eval/loss")
        )
    except (UserError, TypeError, ValueError, OverflowError) as error:
        say(f"The card has no curves: {error}")
        return []
    if not train:
        return []
    held_out = {step: loss for step, loss in held_out.items() if step < last_step}
    held_out[last_step] = environment.get("eval_loss")
    steps = sorted(held_out)
    chosen = sorted({round(i * (len(steps) - 1) / max(1, most - 1)) for i in range(most)})
    return [(step, latest(train, step), held_out[step]) for step in (steps[place] for place in chosen)]


def latest(losses, step):
    """The newest loss up to a step, from a dict by step: a later loss is of other weights."""
    earlier = [logged for logged in losses if logged <= step]
    return losses[max(earlier)] if earlier else None


def over_calls(metrics):
    """`(system, figure)` of the calls on the rows made without the right tool. Older evaluations
    have none."""
    of_systems = metrics.get("made", {}).get(NO_CALL, {"systems": {}})["systems"]
    return [(system, figures["over_call"]) for system, figures in of_systems.items()]


def check_figures(metrics):
    """For read_json: raises unless a metrics.json has the card's figures."""
    for figures in dict(metrics["systems"]).values():
        for name in HEADLINE:
            if figures.get(name):
                _ = [100 * figures[name][key] + 0.0 for key in ("rate", "low", "high")]
        _ = figures["num_examples"]
    for _, figure in over_calls(metrics):
        _ = [100 * figure[key] + 0.0 for key in ("rate", "low", "high", "n")]


def read_evaluation(adapter, training_args):
    """The figures in evaluation/ beside an adapter, evaluate.py's default folder, if they are of
    this adapter on its held-out rows. Otherwise None."""
    folder = Path(adapter).parent / "evaluation"
    if not folder.exists():
        return None
    try:
        environment = read_json(folder / "environment.json")
        metrics = read_json(folder / "metrics.json", check_figures)
        args = read_yaml(no_pipe(folder / "args.yaml"))
    except UserError as error:
        say(f"The card has no evaluation: {error}")
        return None
    rows = ("dataset_name", "dataset_config_name", "dataset_revision", "eval_dataset_name")
    if any(args.get(name) != training_args.get(name) for name in rows):
        return None
    if environment.get("adapter_sha256") != weights_hash(Path(adapter)):
        return None
    origin = {name: environment.get(name) for name in ("quantization", "mixed_precision")}
    data = published_names(args.get("eval_dataset_name") or args.get("dataset_name"))
    return metrics | origin | {"rows": rows_name(args), "data": data, "shots": args.get("shots")}


def update_card(folder, adapter):
    """Write the figures of a scored evaluation into the README.md of its adapter, if `folder` is
    evaluation/ beside the adapter's folder. The text outside the SECTION stays as it is; a card
    without a SECTION stays whole. A card that cannot be written is one line on stderr.

    adapter: the path in the evaluation's args.yaml; the folder may have been moved with its run."""
    card = folder.parent / Path(str(adapter)).name / "README.md"
    # A link leads elsewhere, for example into the hub's cache.
    if not adapter or folder.name != "evaluation" or not card.is_file() or card.is_symlink():
        return
    try:
        with card.open(encoding="utf-8", newline="") as file:  # the user's line ends
            text = file.read()
        evaluation = read_evaluation(card.parent, read_yaml(no_pipe(card.parent / "args.yaml")))
        if SECTION[0] not in text:  # the card of an older adapter
            text = text.replace(NOT_EVALUATED, evaluation_section(None))
        before, _, rest = text.partition(SECTION[0])
        _, end, after = rest.partition(SECTION[1])
        if evaluation and end:
            write_text(card, before + evaluation_section(evaluation) + after)
            print(f"The adapter's card has the figures: {card}")
    except (OSError, ValueError, UserError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        say(f"The figures are not in {card}: {reason}")
