"""Made folders of a sweep's runs, with the figures of train.py and evaluate.py."""

import json


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_run(folder, answers, *, loss=0.1, step=75, fingerprints=None, figures=None):
    """A finished run. answers: `{measure: {row id: bool}}` of the adapter; a measure may be "set:
    metric". fingerprints: of rows that differ from the other runs'. figures: of
    metrics.json."""
    (folder / "adapter").mkdir(parents=True)
    environment = {"global_step": step, "eval_loss": loss}
    (folder / "adapter" / "environment.json").write_text(json.dumps(environment))
    write_lines(folder / "metrics.jsonl", [{"step": step, "train/num_tokens": 1000 * step, "eval/loss": loss}])
    write_evaluation(folder / "evaluation", {"adapter": answers}, fingerprints)
    systems = {"systems": {"adapter": figures or {}}}
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(systems))


def write_evaluation(folder, systems, fingerprints=None):
    rows = dict.fromkeys(
        row for of in systems.values() for name, found in of.items() if ": " not in name for row in found
    )
    write_lines(folder / "rows.jsonl", [{"id": row, "fingerprint": (fingerprints or {}).get(row, row)} for row in rows])
    scores = []
    for system, measures in systems.items():
        lines = {}
        for name, found in measures.items():
            of_set, _, metric = name.rpartition(": ")
            for row, value in found.items():
                key = {"id": row, "system": system, **({"set": of_set} if of_set else {})}
                lines.setdefault(json.dumps(key), key)[metric] = value
        scores += lines.values()
    write_lines(folder / "scores.jsonl", scores)
    (folder / "metrics.json").write_text(json.dumps({"scoring": "6", "systems": {}}))
