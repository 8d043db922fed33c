"""inspection.html: one file with an inspection, and the rows behind its findings.

The page makes no network requests: styles, script, drawings and data are inside it. Texts of data
sets are untrusted: the template escapes them, the script inserts them as text, never as markup, and
a content security policy forbids the rest."""

import json
from collections import defaultdict
from pathlib import Path

from eval_utils.report import address, embed_json, page_templates, show_integer
from run_utils.files import write_text

MOST_BYTES = 8_000_000  # of the rows, as JSON
MOST_CHARACTERS = 20_000  # of a text of a row
MOST_TOKENS = 4_000  # of an example
LABEL_WIDTH = 12  # of a limit's label, in percent of the narrowest histogram
MEMORY_PARTS = {  # by its name in the estimate: title
    "base": "base",
    "trained": "adapter, its gradients and moments",
    "activations": "activations",
    "logits": "logits of supervised tokens",
}


def write_page(path, inspection):
    """Write the page. inspection: a result of inspect_rows, with an "estimate" or None."""
    write_text(path, render_page(inspection))


def render_page(inspection):
    """The page, as text for UTF-8."""
    environment = page_templates(Path(__file__).parent / "page", integer=show_integer, address=address)
    data = row_data(inspection)
    page = environment.get_template("inspection.html.jinja").render(
        inspection,
        histogram=inspection["lengths"] and draw_histogram(inspection["lengths"]),
        memory=draw_memory(inspection["estimate"]),
        most_tokens=MOST_TOKENS,
        num_shown=len(data["rows"]),
        num_shown_by_finding=data.pop("counts"),
        num_not_shown=inspection["rows_left_out"] + len(inspection["rows"]) - len(data["rows"]),
        data=embed_json(data),
    )
    return page.encode("utf-8", "replace").decode()  # lone surrogates become ?


# ---- drawings ------------------------------------------------------------------------------------


def draw_histogram(lengths):
    """The bars and the lines of the limits: "x" and "width" in percent of the picture's width, "y"
    and heights in percent of its height. A limit's "level" keeps labels apart."""
    edges, parts = lengths["histogram"]["edges"], [lengths["histogram"][part] for part in ("train", "eval")]
    most, end = max(map(sum, zip(*parts, strict=True))) or 1, edges[-1]
    bars = []
    for start, stop, train, held_out in zip(edges[:-1], edges[1:], *parts, strict=True):
        height, top = 100 * train / most, 100 * held_out / most
        bars.append(
            {
                "x": 100 * start / end, "width": 100 * (stop - start) / end, "from": start, "to": stop - 1,
                "train": train, "eval": held_out, "train_height": height, "eval_height": top, "top": 100 - height - top,
            }
        )  # fmt: skip
    lines, ends = [], []  # ends: the last label's end, by level
    for limit in lengths["limits"]:
        x = 100 * limit["max_seq_length"] / end
        if x > 100:
            continue
        level = next((level for level, taken in enumerate(ends) if taken < x - LABEL_WIDTH / 2), len(ends))
        ends[level : level + 1] = [x + LABEL_WIDTH / 2]
        lines.append(limit | {"x": x, "level": level, "anchor": "start" if x < 6 else "end" if x > 94 else "middle"})
    return {"bars": bars, "lines": lines, "levels": len(ends), "most": most, "end": end}


def draw_memory(estimate):
    """The parts of the memory as a bar, in percent. None without an estimate."""
    if not (estimate and "memory" in estimate):
        return None
    segments, x = [], 0.0
    for name, title in MEMORY_PARTS.items():
        width = 100 * estimate["memory"][name] / estimate["memory"]["peak"]
        segments.append({"title": title, "gib": estimate["memory"][name], "x": x, "width": width})
        x += width
    return segments


# ---- rows ----------------------------------------------------------------------------------------


def row_data(inspection):
    """The data of the page's script, and "counts", its rows by finding. Rows that a finding names
    come first; rows beyond MOST_BYTES are left out."""
    details = defaultdict(list)  # by row
    for finding in inspection["findings"]:
        for item in finding["items"]:
            details[item["id"]].append([finding["name"], item["detail"]])
    tools, rows, size, counts = {}, [], 0, defaultdict(int)
    for row in sorted(inspection["rows"], key=lambda row: not row["findings"]):
        new = {tool: None for tool in split_tools(row["tools"]) if tool not in tools}
        entry = {
            **{key: row[key] for key in ("id", "part", "tokens", "findings")},
            **{key: cut(row[key]) for key in ("query", "answers", "words")},
            "details": [[name, cut(detail)] for name, detail in details[row["id"]]],
        }
        size += len(json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace"))
        size += sum(len(tool.encode("utf-8", "replace")) for tool in new)
        if size > MOST_BYTES:
            break
        for tool in new:
            tools[tool] = len(tools)
        rows.append(entry | {"tools": [tools[tool] for tool in split_tools(row["tools"])]})
        for name in row["findings"]:
            counts[name] += 1
    titles = {finding["name"]: [finding["title"], finding["severity"]] for finding in inspection["findings"]}
    return {"findings": titles, "tools": list(tools), "rows": rows, "counts": counts}


def split_tools(text):
    """Each tool of a row as JSON text: rows share tools, the page holds each once."""
    try:
        tools = json.loads(text)
    except ValueError:
        tools = text
    return [
        cut(json.dumps(tool, ensure_ascii=False, indent=1)) for tool in (tools if isinstance(tools, list) else [tools])
    ]


def cut(text):
    left_out = len(text) - MOST_CHARACTERS
    return text if left_out <= 0 else f"{text[:MOST_CHARACTERS]} ... {left_out:,} more characters"
