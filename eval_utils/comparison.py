"""Scores finished evaluations: scores.jsonl, metrics.json, report.html and the table."""

import itertools
from pathlib import Path
from typing import NamedTuple

from data_utils.chat_turns import Markers
from data_utils.prompt import PROMPT_FORMATS
from data_utils.systems import SYSTEMS, SystemKey
from eval_utils.card_figures import rows_name, update_card
from eval_utils.folder import TRAINING_FACTS, check_comparison_folder, read_predictions, read_rows
from eval_utils.report import write_report
from eval_utils.results import Evaluation, compare_systems, report_of, write_results
from eval_utils.retention import add_retention, read_losses
from eval_utils.table import print_table
from run_utils.arguments import read_yaml
from run_utils.errors import UserError, require
from run_utils.files import lock_folder, no_pipe, read_json
from run_utils.redaction import published_name, redact, redact_command

# The reference article's figures in %, on its own model and data. Its parser and its prompt are
# unknown.
PUBLISHED_FOR = ("Qwen/Qwen3-4B-Base", "Salesforce/xlam-function-calling-60k")
PUBLISHED = {
    "published: base": {"json_valid": 63.37, "exact_match": 0.0, "tools_exist": 63.37},
    "published: LoRA": {"json_valid": 100.0, "exact_match": 80.2, "tools_exist": 100.0},
}


class Finished(NamedTuple):
    """A finished evaluation, read from its folder."""

    rows: list
    in_training: dict  # see folder.write_rows
    made: dict  # {set: [Row]}
    answers: dict  # {system: {row id: prediction}}, in the order of the tables
    settings: dict  # args.yaml
    environment: dict
    retention: dict  # see retention.read_losses

    def prompt_format(self, system):
        name = SYSTEMS[system].prompt or self.settings["prompt_format"]
        return PROMPT_FORMATS[name] or Markers(**self.environment["chat_markers"])


def read_folder(folder):
    rows, in_training, made = read_rows(folder)
    all_rows = [*rows, *itertools.chain(*made.values())]
    environment = redact(read_json(folder / "environment.json"))
    settings = redact(read_yaml(no_pipe(folder / "args.yaml")))
    if not isinstance(settings.get("systems"), list) or settings.get("prompt_format") not in [*PROMPT_FORMATS]:
        raise UserError(f"{folder / 'args.yaml'} names no systems or an unknown prompt format")
    if settings["prompt_format"] == "chat":
        check_markers(folder, environment.get("chat_markers"))
    answers = {}
    for prediction in read_predictions(folder / "predictions.jsonl"):
        prediction.pop("gold", None)  # rows.jsonl has it
        answers.setdefault(prediction["system"], {})[prediction["id"]] = prediction
    wanted = [system for system in SYSTEMS if system in settings["systems"]]
    for system in wanted:
        if missing := [row.id for row in all_rows if row.id not in answers.get(system, {})]:
            raise UserError(f"{folder} is not finished: {len(missing)} of {len(all_rows)} rows of {system} are missing")
    answers = {system: answers[system] for system in wanted}
    return Finished(rows, in_training, made, answers, settings, environment, read_losses(folder))


def check_markers(folder, markers):
    """Raise UserError unless a chat's Markers can be read."""
    names = Markers.__annotations__
    if not isinstance(markers, dict) or {name: type(value) for name, value in markers.items()} != names:
        raise UserError(f"{folder / 'environment.json'} has no chat_markers, which the scores of a chat need")


def score_folder(folder, baseline=None):
    """Score a finished evaluation: scores.jsonl, metrics.json, report.html, the table, and the
    adapter's card."""
    if folder.is_dir():
        lock_folder(folder)
    finished = read_folder(folder)
    settings, step = finished.settings, finished.environment.get("adapter_step")
    model = settings.get("model_name_or_path") or settings.get("endpoint_model")
    data = settings.get("eval_dataset_name") or settings.get("dataset_name")
    facts = [
        f"prompt format {settings['prompt_format']}",
        *[f"adapter of step {step}"] * (step is not None),
        *[f"{settings.get('shots')} examples in fewshot"] * ("fewshot" in finished.answers),
    ]
    evaluation = score_systems(
        {"": finished},
        baseline or settings.get("baseline"),
        title=f"{published_name(str(model))} on {rows_name(settings)}",
        subtitle="; ".join(facts),
        published=PUBLISHED if (model, data) == PUBLISHED_FOR else {},
        record=finished.environment,
        commands=commands_of({"": finished}),
    )
    write_evaluation(folder, evaluation, settings.get("adapter"))


def compare_folders(folders, output_dir, baseline=None):
    """Compare the systems of several finished evaluations of the same rows. A base with the same
    answers in two evaluations is shown once."""
    folders, output_dir = list(map(Path, folders)), Path(output_dir)
    require(len({folder.resolve() for folder in folders}) == len(folders), "--compare names a folder twice")
    output_dir.mkdir(parents=True, exist_ok=True)
    lock_folder(output_dir)
    check_comparison_folder(output_dir)
    evaluations = dict(zip(short_names(folders), map(read_folder, folders), strict=True))
    first, *rest = evaluations.values()
    for folder, finished in zip(folders[1:], rest, strict=True):
        if finished.rows != first.rows:
            pairs = itertools.zip_longest(first.rows, finished.rows)
            differing = next((a.id for a, b in pairs if a != b and a), finished.rows[-1].id)
            raise UserError(f"{folder} has other rows than {folders[0]}, from row {differing} on")
    labels = {folder.resolve(): label for folder, label in zip(folders, evaluations, strict=True)}
    evaluation = score_systems(
        evaluations,
        labels.get(Path(baseline).resolve(), baseline) if baseline else None,
        title=f"{len(folders)} evaluations of the same rows",
        subtitle=", ".join(evaluations),
        published={},
        record={"evaluations": {label: finished.environment for label, finished in evaluations.items()}},
        commands=commands_of(evaluations),
    )
    write_evaluation(output_dir, evaluation)


def commands_of(evaluations):
    """`{label: the words of its command line}`, without credentials. environment.json may be
    damaged: a command that is no list of words is left out."""
    found = {label: finished.environment.get("command") for label, finished in evaluations.items()}
    return {
        label: redact_command(words)
        for label, words in found.items()
        if words and isinstance(words, list) and all(isinstance(word, str) for word in words)
    }


def short_names(folders):
    """The part of each path that differs: runs/a/evaluation and runs/b/evaluation are a and b."""
    paths = [list(folder.resolve().parts) for folder in folders]
    for end in (0, -1):
        while all(len(path) > 1 for path in paths) and len({path[end] for path in paths}) == 1:
            for path in paths:
                path.pop(end)
    return ["/".join(path) for path in paths]


def shared_sets(evaluations):
    """The made rows of all evaluations alike, as `{set: [Row]}`. Older evaluations have none."""
    first, *rest = (evaluation.made for evaluation in evaluations)
    others = [{name: set(rows) for name, rows in made.items()} for made in rest]
    shared = {
        name: [row for row in rows if all(row in made.get(name, ()) for made in others)] for name, rows in first.items()
    }
    return {name: rows for name, rows in shared.items() if rows}


def score_systems(evaluations, baseline, **fields):
    """One Evaluation of the systems of `{label: Finished}`, all on the same rows. baseline: as in
    --baseline. fields: the Evaluation's other fields."""
    rows = next(iter(evaluations.values())).rows
    answers = {
        SystemKey(label, system): by_id
        for label, finished in evaluations.items()
        for system, by_id in finished.answers.items()
    }
    formats = {key: evaluations[key.label].prompt_format(key.system) for key in answers}
    named = [key for key in answers if key.name == baseline] or [key for key in answers if key.label == baseline]
    require(named or not baseline, f"--baseline names {', '.join(key.name for key in answers)}, not {baseline}")
    # Adapters may have different training rows, so a fact about one may not hold for another.
    adapted = [finished.in_training for finished in evaluations.values() if finished.settings.get("adapter")]
    in_training = {
        fact: adapted[0][fact] if adapted and all(facts[fact] == adapted[0][fact] for facts in adapted) else None
        for fact in TRAINING_FACTS
    }
    made = shared_sets(evaluations.values())
    own, made, figures = compare_systems(rows, answers, formats, in_training, named, made=made)
    add_retention(figures, list(own.outputs), {label: each.retention for label, each in evaluations.items()})
    return Evaluation(answers, own, made, figures, **fields)


def write_evaluation(folder, evaluation, adapter=None):
    """adapter: the folder whose card gets the figures."""
    write_results(folder, evaluation)
    report = report_of(evaluation)
    write_report(folder / "report.html", report)
    print_table(evaluation)
    print(f"Figures: {folder / 'metrics.json'}")
    update_card(folder, adapter)
    rows = f"{len(report['rows']):,} of the rows" if report["rows_left_out"] else "every row"
    print(f"Next: open {folder / 'report.html'} in a browser: the report with {rows}")
