"""The table of an Evaluation on the terminal, and the lines below it.

Names of folders, servers and tools are untrusted: they are printed literally, never read as markup.
"""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_utils.chat_turns import KINDS
from eval_utils.metrics import METRICS
from eval_utils.retention import PERPLEXITY, describe_retention
from eval_utils.row_sets import call_columns, call_lines, perturbed_lines
from eval_utils.slices import describe_near_repeats


def print_table(evaluation):
    figures, published = evaluation.figures, evaluation.published
    headline = {name: metric for name, metric in METRICS.items() if metric.headline}
    headline |= {"perplexity": PERPLEXITY} if "retention" in figures else {}
    caption = (
        f"{len(evaluation.rows)} rows; {evaluation.subtitle}. Below each rate: its 95% Wilson interval and, "
        "in brackets, an upper bound: the first calls anywhere in the text, even without a name."
    )
    if gold := figures["gold"].get("no_hallucination"):
        caption += f" By the same rule, {100 * gold['rate']:.2f} % of gold has no hallucination."
    if published:
        caption += " Published: parser not stated; the figures fit 101 rows."
    table = Table(title=Text(evaluation.title), caption=Text(caption), caption_justify="left")
    table.add_column("system")
    for metric in headline.values():
        longest = max(map(len, metric.title.split()))  # with perplexity, 80 characters would cut words
        table.add_column(metric.title + " %" * (metric.kind == "rate"), justify="right", min_width=longest)
    for system, of_system in figures["systems"].items():
        cells = [cell(name, metric, of_system) for name, metric in headline.items()]
        table.add_row(Text(system), *cells, end_section=True)
    for name, rates in published.items():
        cells = [f"{rates[metric]:.2f}" if metric in rates else "" for metric in headline]
        table.add_row(name, *cells, style="dim")
    console = Console(width=None if sys.stdout.isatty() else 80)
    console.print(table)
    for others in (call_table(figures), perturbed_table(figures)):
        if others.rows:
            console.print(others)
    for pair in pairs_to_print(evaluation):
        gained, lost = len(pair["b_only"]), len(pair["a_only"])
        print(f"{pair['b']} against {pair['a']}: {gained} rows gained, {lost} lost (p = {pair['p']:.2g})")
    for system, of_system in figures["systems"].items():
        stops = ", ".join(f"{count} {name}" for name, count in of_system["finish"].items() if count)
        speed = f"{of_system['rows_per_second']:.2f} rows/s; " if of_system["rows_per_second"] else ""
        beyond = of_system["golds_beyond_grammar"]
        limit = f"; its grammar excludes {beyond} of {of_system['num_examples']} golds" if beyond else ""
        print(f"{system}: {speed}stopped by {stops}{limit}")
        for line in turn_lines(system, of_system["turn_table"]):
            print(line)
    for line in (describe_near_repeats(evaluation), *describe_retention(figures), *figures["warnings"]):
        if line:
            print(line)


def turn_lines(system, table):
    """The lines of outcomes.turn_table, without gold's kinds that no row has."""
    width = max(map(len, KINDS))
    for gold, counts in table.items():
        if sum(counts.values()):
            cells = ", ".join(f"{kind} {count}" for kind, count in counts.items())
            yield f"{system}: gold {gold:<{width}}: {cells}"


def pairs_to_print(evaluation):
    """The verdict's pair, then the pairs with the prompted or fewshot base or of the same system.
    The report has all pairs."""
    kinds = {key.name: key.system for key in evaluation.systems}
    first, *rest = evaluation.figures["pairs"] or [None]

    def is_of_interest(pair):
        a, b = kinds[pair["a"]], kinds[pair["b"]]
        return "raw" not in (a, b) and ({a, b} & {"prompted", "fewshot"} or a == b)

    return [*filter(None, [first]), *filter(is_of_interest, rest)]


def call_table(figures):
    table = Table(
        title="When not to call",
        caption="Right tool off the list: rows made from the data set's own. Broken answers are no calls.",
        caption_justify="left",
    )
    lines = call_lines(figures)
    columns = call_columns(lines)
    table.add_column("system")
    for title in columns.values():
        table.add_column(f"{title} %", justify="right")
    for line in lines:
        cells = [share(line[name], line["notes"][name]) for name in columns]
        table.add_row(Text(line["system"]), *cells, end_section=True)
    return table


def perturbed_table(figures):
    table = Table(
        title="Exact match on perturbed rows",
        caption="Before: the same rows unperturbed. p by McNemar's test (mid-p).",
        caption_justify="left",
    )
    table.add_column("rows")
    for title in ("system", "before %", "after %", "lost", "gained", "p"):
        table.add_column(title, justify="left" if title == "system" else "right")
    for line in perturbed_lines(figures):
        left_out = f"\n{line['left_out']} cannot be" * bool(line["left_out"])
        rows = f"{line['made'].replace('_', ' ')}\n{line['num_rows']} rows{left_out}"
        for place, (system, of_system) in enumerate(line["systems"].items(), start=1):
            flips = of_system["flips"]
            table.add_row(
                Text(rows if place == 1 else ""),
                Text(system),
                f"{100 * of_system['exact_match_before']['rate']:.2f}",
                share(of_system["exact_match"], with_n=False),
                str(len(flips["a_only"])),
                str(len(flips["b_only"])),
                f"{flips['p']:.2g}",
                end_section=place == len(line["systems"]),
            )
    return table


def share(figure, notes=(), with_n=True):
    """A rate, and below it its interval, its number of rows, and notes."""
    if figure is None:
        return ""
    interval = f"{100 * figure['low']:.1f}–{100 * figure['high']:.1f}" + f", n = {figure['n']}" * with_n
    return Text.assemble(f"{100 * figure['rate']:.2f}", ("".join(f"\n{line}" for line in [interval, *notes]), "dim"))


def cell(name, metric, figures):
    figure, bound = figures.get(name), figures.get(f"lenient_{name}")
    if figure is None:  # no row applies
        return ""
    if metric.kind != "rate":
        interval = f"\n{figure['low']:.3g}–{figure['high']:.3g}" if "low" in figure else ""
        return Text.assemble(f"{figure[metric.kind]:.4g}", (interval, "dim"))
    interval = f"\n{100 * figure['low']:.1f}–{100 * figure['high']:.1f}"
    lenient = f"\n({100 * bound['rate']:.2f})" if bound else ""
    return Text.assemble(f"{100 * figure['rate']:.2f}", (interval + lenient, "dim"))
