"""The table of a sweep on the terminal. Names of configurations come from the command line: they
are printed literally."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval_utils.sweep_results import MAIN, is_shown, measure_title

MEANS = "Means over seeds, ± the standard deviation over seeds."
TESTS = (
    " Below each rate: its 95% interval over rows (several seeds: bootstrap of the rows' means over seeds). "
    "p rows: exact paired permutation test against {first}, by row; p seeds: Welch's t-test of the seeds' "
    "rates. p rows alone says nothing about other seeds."
)


def print_comparison(comparison):
    configurations = comparison["configurations"]
    columns = shown_measures(comparison)
    width = max(len(part) for found in configurations for part in found["name"].split(",")) + 1
    table = Table()
    means = list(dict.fromkeys(name for found in configurations for name in found["means"]))
    rates = [f"{measure_title(name)} %" for name in columns]
    for title in ("settings", *rates, *means, "eval loss", "min", "p rows"):
        is_name = title == "settings"
        table.add_column(title, justify="left" if is_name else "right", min_width=min(width, 24) if is_name else None)
    has_seeds = any((found.get("against_first") or {}).get("p_seeds") is not None for found in configurations)
    if has_seeds:
        table.add_column("p seeds", justify="right")
    for found in configurations:
        test = found.get("against_first") or {}
        name = Text(found["name"].replace(",", ", "))
        cells = [rate_cell(found["rates"].get(measure)) for measure in columns]
        cells += [number(found["means"][name], 2) if name in found["means"] else "" for name in means]
        cells += [number(found["eval_loss"], 4), number(found["minutes"], 1), p_cell(test)]
        cells += [show_p(test.get("p_seeds"))] * has_seeds
        table.add_row(name, *cells, end_section=True)
    for label, systems in comparison["base"].items():
        for system, rates in systems.items():
            of_base = comparison["base_means"][label][system]
            cells = [rate_cell(rates.get(measure)) for measure in columns]
            cells += [f"{of_base[name]:.2f}" if name in of_base else "" for name in means]
            table.add_row(Text(f"{label}: {system}"), *cells, style="dim", end_section=True)
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    tests = TESTS.format(first=comparison["first"]) if columns else ""
    console.print(Text(MEANS + tests), style="dim")


def shown_measures(comparison):
    """The measures of the table: exact match, then the own rows' others, then made rows'."""
    names = dict.fromkeys(name for found in comparison["configurations"] for name in found["rates"] if is_shown(name))
    return sorted(names, key=lambda name: (name != MAIN, ": " in name))


def rate_cell(figure):
    if figure is None:
        return ""
    sd = f" ±{100 * figure['sd']:.1f}" if figure["sd"] is not None else ""
    interval = f"\n{100 * figure['low']:.1f}–{100 * figure['high']:.1f}"
    return Text.assemble(f"{100 * figure['mean']:.1f}{sd}", (interval, "dim"))


def number(figure, digits):
    if figure["mean"] is None:
        return ""
    sd = f"\n±{figure['sd']:.{digits}f}" if figure["sd"] is not None else ""
    return Text.assemble(f"{figure['mean']:.{digits}f}", (sd, "dim"))


def p_cell(test):
    if not test:
        return ""
    return Text.assemble(show_p(test["p"]), (f"\n{100 * test['difference']:+.1f}", "dim"))


def show_p(p):
    return "" if p is None else "<0.0001" if p < 0.0001 else f"{p:.2g}"
