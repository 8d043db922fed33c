"""The texts generated during training: their metrics, for the curves, and a table of samples."""

from eval_utils.metrics import METRICS, exact_match, score, summarize
from eval_utils.outputs import Output, Task

MARK = "▸"  # before the first difference
# As entities, characters with a meaning in Markdown, in its tables and in HTML are themselves.
ENTITIES = str.maketrans({character: f"&#{ord(character)};" for character in "&<>|*_`~[]\\"})


def curve_figures(rows, answers, prompt_format):
    """`{metric: figure}` of the headline metrics and over_call.

    answers: `(text, finish)` of each row, see Generation. A metric without rows is left out.
    """
    scores = [
        score(Output(Task(row), text, prompt_format, finish)) for row, (text, finish) in zip(rows, answers, strict=True)
    ]
    figures = summarize(scores)
    names = [name for name, metric in METRICS.items() if metric.headline or name == "over_call"]
    return {name: figures[name][METRICS[name].kind] for name in names if name in figures}


def samples_table(rows, answers, prompt_format, count=5):
    """A Markdown table of up to `count` queries, outputs and gold answers, wrong rows first. In a
    wrong row, output and gold are bold after their first difference."""
    lines = {True: [], False: []}  # by exact match
    for row, (text, finish) in zip(rows, answers, strict=True):
        is_right = exact_match(Output(Task(row), text, prompt_format, finish))
        output, gold = text.strip(), row.answers.strip()
        pairs = zip(output + "\0", gold + "\0", strict=False)
        start = next((index for index, pair in enumerate(pairs) if len(set(pair)) > 1), len(gold))
        shown = [escape(text) if is_right else mark(text, start) for text in (output, gold)]
        lines[is_right].append(f"| {'✓' if is_right else '✗'} | {escape(row.query)} | {' | '.join(shown)} |")
    return "\n".join(["| | query | output | gold |", "|-|-|-|-|", *(lines[False] + lines[True])[:count]])


def mark(text, start):
    return f"{escape(text[:start])}**{MARK}{escape(text[start:])}**"


def escape(text):
    """The text in one cell of a Markdown table: it shows all characters, and line breaks as ↵."""
    return "↵".join(text.splitlines()).translate(ENTITIES)
