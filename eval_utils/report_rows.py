"""The rows of report.html, as data for its script."""

import json

from eval_utils.call_diff import compare_calls, show_call


def row_data(report, outcomes, judged):
    """The data of the page's script. Values are compared here: a browser's numbers are doubles, in
    which two different account numbers may be equal."""
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    outcome_index = {outcome["name"]: index for index, outcome in enumerate(outcomes)}
    row_index = {row["id"]: index for index, row in enumerate(report["rows"])}
    scored = dict.fromkeys(
        name for row in report["rows"] for output in row["outputs"].values() for name in output["scores"]
    )
    tools, values = {}, {}  # by their JSON: rows share tools and scores, the page holds each once

    def output_data(row, system):
        output = row["outputs"].get(system)
        return output and {
            "text": output["text"],
            "outcome": outcome_index[output["outcome"]],
            "finish": output["finish"],
            "tokens": output["num_tokens"],
            "prompt": output["num_prompt_tokens"],
            "scores": values.setdefault(json.dumps([output["scores"].get(name) for name in scored]), len(values)),
            "fault": output["fault"],
            "calls": compare_calls(row["gold"], output["value"]),
        }

    rows = [
        {
            "id": row["id"],
            "query": row["query"],
            "category": row["category"],
            "set": row["set"],
            "tools": [tools.setdefault(json.dumps(tool), len(tools)) for tool in row["tools"]],
            "gold": [show_call("gold", call) for call in row["gold"]],
            "outputs": [output_data(row, system) for system in report["systems"]],
        }
        for row in report["rows"]
    ]
    return {
        "systems": report["systems"],
        "judged": report["systems"].index(judged) if judged in report["systems"] else None,
        "outcomes": [{key: outcome[key] for key in ("name", "title", "tone", "texture")} for outcome in outcomes],
        "scores": [_score_title(name, metrics) for name in scored],
        "flips": [
            [row_index[row] for row in pair[side] if row in row_index]
            for pair in [*report["pairs"], *perturbed_flips(report)]
            for side in ("b_only", "a_only")
        ],
        "tools": [json.loads(tool) for tool in tools],
        "values": [json.loads(scores) for scores in values],
        "rows": rows,
    }


def perturbed_flips(report):
    """The flips of each line and system of the table of perturbed rows, in the table's order."""
    return [of_system["flips"] for line in report["perturbed"] for of_system in line["systems"].values()]


def _score_title(name, metrics):
    strict = name if name in metrics else name.removeprefix("lenient_")
    metric = metrics.get(strict, {"title": strict, "kind": "mean"})
    return {"title": metric["title"] + ("" if strict == name else ", leniently"), "rate": metric["kind"] == "rate"}
