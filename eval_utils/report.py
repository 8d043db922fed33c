"""report.html: one file with several systems' answers to the same rows, and whether training
helped.

The page makes no network requests: styles, script, drawings and data are inside it. Texts of models
and data sets are untrusted: the template escapes them, the script inserts them as text, never as
markup, and a content security policy forbids the rest. For the form of a report, see render_report.
"""

import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup

from eval_utils.report_rows import row_data
from eval_utils.row_sets import call_columns
from run_utils.files import write_text

SIGNIFICANT = 0.05  # a difference with a smaller p is called clear
# Fill and ink by tone: Okabe and Ito's colours, which colour-blind readers can tell apart. There
# are more outcomes than such colours, so a tone's second and third round are hatched and dotted.
PALETTE = {
    "good": [("#0072b2", "#fff"), ("#56b4e9", "#000")],
    "bad": [("#d55e00", "#000"), ("#e69f00", "#000"), ("#cc79a7", "#000"), ("#f0e442", "#000"), ("#8c4a6b", "#fff")],
    "neutral": [("#999999", "#000"), ("#c4c4c4", "#000"), ("#6b6b6b", "#fff")],
}
TEXTURES = ["", "hatch", "dots"]
_SURROGATE = re.compile("[\ud800-\udfff]")


def write_report(path, report):
    """Write the page. report: see render_report."""
    write_text(path, render_report(report))


def render_report(report):
    """The page, as text that UTF-8 can encode.

    report: JSON values. All keys are present, any list or dict may be empty, and figures may lack a
    metric:
      title, subtitle: str; systems: [name], the order of columns; system_help: {name: text}
      record: {name: value}; warnings: [str], at the top; notes: [str], below the table
      metrics: [{"name", "title", "kind": "rate" | "ratio" | "mean" | "count", "help"[, "headline":
        bool]}]
      figures: {system: {metric or "lenient_" + metric: figure, "num_examples", "finish": {reason:
        count}, "rows_per_second"}}, a figure as in metrics.summarize
      gold: {metric: figure}, of gold as an output; published: {label: {metric: percent}}
      outcomes: [{"name", "title", "tone": "good" | "bad" | "neutral"[, "help"]}]
      outcome_counts: {system: {name: count}}
      call_table: {system: {"gold_calls" | "gold_none": {"calls", "abstains", "broken": count}}}
        its "gold_made", if present, counts the rows made without the right tool
      when_not_to_call: [line], see row_sets.call_lines; perturbed: [line], see
        row_sets.perturbed_lines, the flips by row ids
      sets: {name: title} of the rows' sets, "" for the data set's own
      turn_table: {system: {} or {gold's kind: {"called", "answered", "asked", "neither": count}}}
      pairs: [{"a", "b": systems, "metric", "title", "both", "neither": count, "a_only", "b_only":
        [row id], "p"}], first the pair of the verdict
      slices: [{"title", "values": [{"value", "n", "figures": {system: figure}}]}]
      worst_tools: {} or a slice
      commands: {label: command line}, the label of a single evaluation is ""
      rows: [{"id", "query", "tools", "gold": [call], "category": str or None, "set": str,
        "outputs": {system: {"text", "value", "fault", "outcome", "finish", "num_tokens",
        "num_prompt_tokens", "scores": {metric: value}}}}]; a ratio's value is [numerator,
        denominator]; None if the metric does not apply to the row, or the number of tokens is
        unknown. fault: see find_fault; None if the text parses. With a fault, the value is the
        forgiving parser's
      rows_left_out: the number of rows that are not in `rows`

    Raises ValueError if a number is not finite: neither JSON nor a browser has such numbers.
    """
    environment = page_templates(
        figure=show_figure, p=show_p, integer=show_integer, plain=show_json, zeros=zero_systems, address=address
    )
    outcomes = style_outcomes(report)
    judged = report["pairs"][0]["b"] if report["pairs"] else (report["systems"] or [None])[-1]
    counts = report["outcome_counts"].get(judged, {})
    prompt_tokens = [row["outputs"].get(judged, {}).get("num_prompt_tokens") for row in report["rows"]]
    page = environment.get_template("report.html.jinja").render(
        report,
        outcomes=outcomes,
        bars={system: outcome_bar(outcomes, report["outcome_counts"].get(system, {})) for system in report["systems"]},
        verdict=verdict(report["pairs"]),
        judged=judged,
        num_wrong=sum(counts.get(outcome["name"], 0) for outcome in outcomes if outcome["tone"] != "good"),
        prompt_tokens_known=any(tokens is not None for tokens in prompt_tokens),
        headline_zeros=zero_systems(headline_lines(report), report["systems"]),
        all_broken=all_broken(report["call_table"]),
        metric_lines=metric_lines(report),
        call_columns=call_columns(report["when_not_to_call"]),
        perturbed_options=[
            (f"{line['title']}: {system}", of_system["flips"])
            for line in report["perturbed"]
            for system, of_system in line["systems"].items()
        ],
        significant=SIGNIFICANT,
        data=embed_json(row_data(report, outcomes, judged)),
    )
    return _SURROGATE.sub("\ufffd", page)  # lone surrogates: Python's strings hold no pairs


def page_templates(*folders, **filters):
    """The templates of page/, and of more folders before it. They escape all texts. filters: more
    functions for the templates, by name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent / "page"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment


def embed_json(value):
    """JSON for inside a <script>. No `<` is left that could end the script, and lone surrogates are
    escaped, so the script reads exactly `value`. Other non-ASCII characters stay unescaped:
    escapes would take three to six times the size."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


# ---- figures as words ----------------------------------------------------------------------------


def show_figure(figure):
    """A figure's texts {"text", "interval", "of"}, and for a bar its "rate", "low" and "high" in
    percent. None for None."""
    if figure is None:
        return None
    if "rate" in figure or "ratio" in figure:
        share = figure["rate" if "rate" in figure else "ratio"]
        rate, low, high = (100 * number for number in (share, figure["low"], figure["high"]))
        of = f"{show_integer(figure['k'])} of {show_integer(figure['n'])}"
        words = {"text": f"{rate:.1f}%", "interval": f"{low:.1f} – {high:.1f}", "of": of}
        return words | {"rate": rate, "low": low, "high": high}
    if "mean" in figure:
        interval = f"{show_number(figure['low'])} – {show_number(figure['high'])}" if "low" in figure else ""
        return {"text": show_number(figure["mean"]), "interval": interval, "of": f"n = {show_integer(figure['n'])}"}
    return {"text": show_integer(figure["count"]), "interval": "", "of": f"in {show_integer(figure['n'])} rows"}


def show_number(number):
    """Three decimals for a small number, one for a large number."""
    return f"{number:.3f}" if abs(number) < 10 else f"{number:,.1f}"


def show_integer(number):
    return f"{number:,}"


def show_p(p):
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}" if p < 0.1 else f"= {p:.2f}"


def show_json(value):
    """A value of the record: a string unchanged, other values as indented JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def address(filters):
    """Filters of the rows, as the page's script reads them from the address."""
    return urlencode({name: _SURROGATE.sub("\ufffd", str(value)) for name, value in filters.items()})


def zero_systems(lines, systems):
    """The systems whose figure is 0 in all lines. Empty if all systems are at 0.

    lines: `[{system: figure}]` of rates. A line may lack a system."""
    zeros = [
        system
        for system in systems
        if any(system in line for line in lines) and not any(line[system]["rate"] for line in lines if system in line)
    ]
    return zeros if len(zeros) < len(systems) else []


def headline_lines(report):
    """For each rate of the headline the systems' figures, as zero_systems reads them."""
    names = [metric["name"] for metric in report["metrics"] if metric.get("headline") and metric["kind"] == "rate"]
    return [
        {system: of_system[name] for system, of_system in report["figures"].items() if of_system.get(name)}
        for name in names
    ]


def all_broken(call_table):
    """The systems without an output that is a list of calls. Empty if no system has one."""
    broken = [
        system
        for system, table in call_table.items()
        if not any(counts[kind] for counts in table.values() for kind in ("calls", "abstains"))
    ]
    return broken if len(broken) < len(call_table) else []


def metric_lines(report):
    """(name, title, help) of all metrics, with each measured upper bound below its metric."""
    measured = {name for figures in report["figures"].values() for name in figures}
    lines = []
    for metric in report["metrics"]:
        name, title = metric["name"], metric["title"]
        lines.append((name, title, metric["help"]))
        if f"lenient_{name}" in measured:
            lines.append((f"lenient_{name}", f"{title}, leniently", "Upper bound, with a forgiving parser."))
    return lines


def verdict(pairs):
    """The page's first sentence: whether the first pair's second system beats its first. None
    without pairs."""
    if not pairs:
        return None
    pair = pairs[0]
    lost, gained = len(pair["a_only"]), len(pair["b_only"])
    n = pair["both"] + pair["neither"] + lost + gained
    if pair["p"] >= SIGNIFICANT or gained == lost:
        answer, tone = "No clear difference.", "neutral"
    else:
        answer, tone = ("Yes, it helped.", "good") if gained > lost else ("No, it did harm.", "bad")
    rates = [100 * (pair["both"] + only) / max(n, 1) for only in (lost, gained)]
    return pair | {"answer": answer, "tone": tone, "n": n, "lost": lost, "gained": gained, "rates": rates}


# ---- outcomes ------------------------------------------------------------------------------------


def style_outcomes(report):
    """The outcomes in order, with "fill", "ink" and "texture". Outcomes that only the rows have are
    appended.

    The look depends on an outcome's place in the list alone, so reports can be compared side by
    side.
    """
    known = {outcome["name"]: outcome for outcome in report["outcomes"]}
    counted = [name for counts in report["outcome_counts"].values() for name in counts]
    shown = [output["outcome"] for row in report["rows"] for output in row["outputs"].values()]
    for name in [*counted, *shown]:
        known.setdefault(name, {"name": name, "title": str(name), "tone": "neutral"})
    used = Counter()
    styled = []
    for outcome in known.values():
        colours = PALETTE[outcome["tone"]]
        lap, place = divmod(used[outcome["tone"]], len(colours))
        used[outcome["tone"]] += 1
        fill, ink = colours[place]
        total = sum(counts.get(outcome["name"], 0) for counts in report["outcome_counts"].values())
        styled.append(outcome | {"fill": fill, "ink": ink, "texture": TEXTURES[lap % len(TEXTURES)], "total": total})
    return styled


def outcome_bar(outcomes, counts):
    """One system's bar: for each outcome that occurs, its "index", "count", and "x" and "width" in
    percent of the bar."""
    total = sum(counts.values())
    segments, x = [], 0.0
    for index, outcome in enumerate(outcomes):
        if count := counts.get(outcome["name"], 0):
            width = 100 * count / total
            # A label is shown if it fits its segment of the narrowest bar: 300 px, 6.5 px per
            # character.
            fitting = [
                words
                for words in (f"{outcome['title']} {width:.0f}%", f"{width:.0f}%")
                if len(words) * 6.5 < width * 3 - 6
            ]
            segments.append(
                {"index": index, "count": count, "x": x, "width": width, "label": fitting[0] if fitting else ""}
            )
            x += width
    return segments
