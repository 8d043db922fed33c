"""An inspection on the terminal. Ids, names and texts of rows are untrusted: never read as markup."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

MOST_IDS = 5
BAR = 40  # characters of the longest bar
STYLES = {"error": "red", "warning": "yellow", "note": "dim"}


def print_inspection(inspection):
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    print_counts(inspection, console)
    print_distributions(inspection, console)
    if inspection["lengths"]:
        print_lengths(inspection, console)
        print_example(inspection, console)
    print_findings(inspection, console)
    for line in (inspection.get("estimate") or {}).get("lines", []):
        console.print(Text(line))
    console.print(Text(inspection["verdict"]["line"]))


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
            f"{overlap['near_repeats']:,} nearly the same; of the tools offered {overlap['tools_all_seen']:,} rows have "
            f"seen all, {overlap['tools_some_unseen']:,} some, {overlap['tools_none_seen']:,} none"
        )
    lines += [f"{note}: {count:,}" for note, count in inspection["notes"].items()]
    for line in lines:
        console.print(Text(line))


def print_distributions(inspection, console):
    for table in inspection["distributions"]:
        shown = ", ".join(f"{label}: {count:,}" for label, count in table["values"][:12])
        more = len(table["values"]) - 12
        console.print(Text(f"{table['title']}: {shown or 'none'}" + f", {more} more" * (more > 0)))


def print_lengths(inspection, console):
    lengths, training = inspection["lengths"], inspection["training"]
    quantiles = ", ".join(f"{name} {tokens:,}" for name, tokens in lengths["quantiles"])
    table = Table(title=Text("Tokens a row"), title_justify="left", box=None, show_header=False)
    edges, counts = lengths["histogram"]["edges"], [map(sum, zip(*bars(lengths), strict=True))]
    counts = list(counts[0])
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        table.add_row(f"{start:,}-{end - 1:,}", f"{count:,}", "█" * round(BAR * count / max(counts)))
    console.print(table)
    completion = lengths["completion"]
    console.print(Text(f"Rows of at most so many tokens: {quantiles}; answers {completion['mean']:.0f} on average"))
    table = Table(title=Text("Rows lost by --max_seq_length"), title_justify="left", box=None)
    for column in ("tokens", "rows", "share"):
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


def bars(lengths):
    return [lengths["histogram"][part] for part in ("train", "eval")]


def print_example(inspection, console):
    for example in inspection["examples"][:1]:
        text = Text(f"One example, {example['id']}; the loss is on the marked tokens:\n")
        for token, weight in example["tokens"]:
            text.append(token, style="reverse" if weight else "")
        console.print(text)


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
