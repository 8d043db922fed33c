"""comparison/report.html: one file with a sweep's table, tests and pictures. It makes no network
requests; the template escapes all texts."""

from eval_utils import sweep_pictures
from eval_utils.report import page_templates, show_p
from eval_utils.sweep_results import MAIN, is_clear, measure_title
from eval_utils.sweep_table import shown_measures
from run_utils.files import write_text


def write_sweep_report(path, comparison):
    """Write the page. comparison: from compare_runs, with `halving` (lines), `parts` and `failed`
    (`{run: message}`)."""
    environment = page_templates(p=show_p, title_of=measure_title)
    page = environment.get_template("sweep.html.jinja").render(
        comparison,
        main=MAIN,
        measures=shown_measures(comparison),
        means=list(dict.fromkeys(name for found in comparison["configurations"] for name in found["means"])),
        pictures=sweep_pictures.pictures(comparison),
        differences=sweep_pictures.differences(comparison),
        size=sweep_pictures,
        verdict=verdict(comparison),
        has_seeds=any(len(found["seeds"]) > 1 for found in comparison["configurations"]),
    )
    write_text(path, page.encode("utf-8", "replace").decode())


def verdict(comparison):
    """The page's first sentences, `{"tone", "answer", "best", "first", "test", "num_tests"}`: the
    configuration with the highest exact match against the first. None without two."""
    found = [one for one in comparison["configurations"] if MAIN in one["rates"]]
    if len(found) < 2:
        return None
    tests = [one for one in found if one.get("against_first")]
    first, best = found[0], max(found, key=lambda one: one["rates"][MAIN]["mean"])
    test = best.get("against_first")
    is_better = test and test["difference"] > 0 and is_clear(test, len(tests))
    return {
        "tone": "good" if is_better else "neutral",
        "answer": f"{best['name']} is better." if is_better else "No clear difference.",
        "best": best,
        "first": first,
        "test": test,
        "num_tests": len(tests),
    }
