"""An inspection on the terminal. Texts of rows are untrusted: they are never read as markup."""

import itertools
import math
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_utils.batching import cut_middle

MOST_IDS = 5
BAR = 40  # characters of the longest bar
MOST_BARS = 16
MOST_SHOWN = 700  # characters of the example's prompt
BORDER = "|"
STYLES = {"error": "red", "warning": "yellow", "note": "dim"}


def print_inspection(inspection, page):
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    print_counts(inspection, console)
    print_distributions(inspection, console)
    if inspection["lengths"]:
        print_lengths(inspection, console)
        print_example(inspection, console)
    print_findings(inspection, console)
    for line in (inspection.get("estimate") or {}).get("lines", []):
        console.print(Text(line), soft_wrap=True)
    then = (
        "run train.py with the same arguments"
        if inspection["verdict"]["go_on"]
        else "correct the rows or the arguments"
    )
    console.print(Text(f"Next: open {page} in a browser, then {then}"), soft_wrap=True)
    console.print(Text(inspection["verdict"]["line"]), soft_wrap=True)


def print_counts(inspection, console):
    counts, tools, overlap = inspection["counts"], inspection["tools"], inspection["overlap"]
    layouts = ", ".join(f"{count:,} in {name} layout" for name, count in inspection["layouts"].items())
    lines = [
        f"{inspection['title']}: {counts['records']:,} records ({layouts}), {counts['valid']:,} valid rows, "
        f"{counts['bad']:,} bad, {counts['repeats']:,} repeats left out",
        f"{counts['train']:,} rows to train on, {counts['eval']:,} to evaluate; {counts['without_calls']:,} of them "
        f"without calls; {counts['in_neither']:,} in neither split, {counts['refused']:,} refused by the template, "
        f"{counts['too_long']:,} too long",
        f"{tools['offered']:,} tools, {tools['called']:,} of them called, {tools['in_one_row']:,} in a single row, "
        f"{tools['unseen_in_training']:,} only in evaluation rows",
    ]
    if overlap:
        lines.append(
            f"Evaluation against training: of {overlap['eval_rows']:,} queries {overlap['same_query']:,} are the same, "
            f"{overlap['near_repeats']:,} nearly; training has all tools of {overlap['tools_all_seen']:,} rows, "
            f"some of {overlap['tools_some_unseen']:,}, none of {overlap['tools_none_seen']:,}"
        )
    lines += [f"{note}: {count:,}" for note, count in inspection["notes"].items()] + inspection["made"]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def print_distributions(inspection, console):
    for table in inspection["distributions"]:
        shown = ", ".join(f"{label}: {count:,}" for label, count in table["values"][:12])
        more = len(table["values"]) - 12
        console.print(Text(f"{table['title']}: {shown or 'none'}" + f", {more} more" * (more > 0)), soft_wrap=True)


def print_lengths(inspection, console):
    lengths, training = inspection["lengths"], inspection["training"]
    quantiles = ", ".join(f"{name} {tokens:,}" for name, tokens in lengths["quantiles"])
    table = Table(title=Text("Tokens a row"), title_justify="left", box=None, show_header=False)
    for start, end, count, bar in bars(lengths["histogram"]):
        table.add_row(f"{start:,}-{end - 1:,}", f"{count:,}", "█" * bar)
    console.print(table)
    completion = lengths["completion"]
    console.print(
        Text(f"Share of the rows, and their most tokens: {quantiles}; answers {completion['mean']:.0f} on average"),
        soft_wrap=True,
    )
    table = Table(title=Text("Rows lost by each length"), title_justify="left", box=None)
    for column in ("--max_seq_length", "rows", "share"):
        table.add_column(column, justify="right")
    for limit in lengths["limits"]:
        size = f"{limit['max_seq_length']:,}{' (set)' * limit['is_set']}"
        table.add_row(size, f"{limit['lost']:,}", f"{limit['share']:.1%}")
    console.print(table)
    if training:
        console.print(
            Text(
                f"{training['steps_per_epoch']:,} steps an epoch of {training['global_batch']} rows on one GPU, "
                f"{training['steps']:,} in all; {training['tokens_per_epoch']:,} tokens an epoch, "
                f"{training['supervised_per_epoch']:,} of them with a loss"
            )
        )
    proof = inspection["proof"]
    faults = f"; not: {', '.join(proof['ids'][:MOST_IDS])}" if proof["changed"] else ""
    console.print(
        Text(
            f"The supervised tokens decode to exactly the answer and {proof['end_token']}: {proof['exact']:,} of "
            f"{proof['rows']:,} rows{faults}"
        )
    )


def bars(histogram):
    """At most MOST_BARS bars of a histogram of both parts: (first length, the next bar's, rows,
    characters)."""
    edges = histogram["edges"]
    counts = [sum(pair) for pair in zip(histogram["train"], histogram["eval"], strict=True)]
    first = next(place for place, count in enumerate(counts) if count)
    step = math.ceil((len(counts) - first) / MOST_BARS)
    places = range(first, len(counts), step)
    sums = [sum(counts[place : place + step]) for place in places]
    for place, total in zip(places, sums, strict=True):
        end = edges[min(place + step, len(counts))]
        yield edges[place], end, total, round(BAR * total / max(sums))


def print_example(inspection, console):
    for example in inspection["examples"][:1]:
        text = Text(f"One example, {example['id']}; the loss is on the tokens, parted by |, between ⟦ and ⟧:\n")
        for has_loss, part in itertools.groupby(example["tokens"], key=lambda token: token[1] > 0):
            tokens = [token for token, _ in part]
            text.append(f"⟦{BORDER.join(tokens)}⟧" if has_loss else cut_middle("".join(tokens), MOST_SHOWN))
        console.print(text, soft_wrap=True)


def print_findings(inspection, console):
    table = Table(title=Text("Findings"), title_justify="left")
    table.add_column("finding", ratio=2)
    table.add_column("count", justify="right")
    table.add_column("rows and values", ratio=5)
    for finding in inspection["findings"]:
        items = [f"{item['id']}: {item['detail']}" for item in finding["items"][:MOST_IDS]]
        name = Text(f"{finding['severity']} {finding['name']}\n", style=STYLES[finding["severity"]])
        name.append(finding["title"], style="default")
        table.add_row(name, f"{finding['count']:,}", Text("\n".join([*items, finding["advice"]])), end_section=True)
    console.print(table if inspection["findings"] else Text("No findings."))
