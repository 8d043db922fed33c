"""How many right and wrong values eval_utils/grounding.py finds grounded, and how its time grows
with a text.

    python -m benchmarks.grounding rows.jsonl [more.jsonl]

Right values are gold's. Wrong values are drawn with a seed: for each argument of gold, a different
value of the same declared type, from another row. Some of these occur in the row all the same (1,
"New York"): the figure compares two versions of the rules on the same rows. Then the seconds for
texts of n, 2n and 4n characters, for a copied text and for an absent text.
"""

import argparse
import json
import random
import time
from collections import defaultdict

from data_utils.sources import load_rows
from eval_utils.grounding import Sources, leaf_values

PIECES = (
    *("area of 1,000 m\xb2 on March 5th|1|1 |1,|1.|100 1000 |a|a-|two |\u0300\u0316|北京|00-|\ud800".split("|")),
    *(
        "minus |1/2 |1-|1:|a:|三|3万|5. März |half past |1 and a half |+1 (|74.0 W |one point one |1'000'|1.000.|May".split(
            "|"
        )
    ),
)
DRAWS = 5


def gold_arguments(rows):
    """`(index of the row, declared type, value)` of each gold argument."""
    for place, row in enumerate(rows):
        declared = {tool["name"]: tool.get("parameters", {}) for tool in json.loads(row.tools)}
        for call in json.loads(row.answers):
            for name, value in call["arguments"].items():
                spec = declared.get(call["name"], {}).get(name, {})
                yield place, str(spec.get("type")).split(",")[0], value


def other_values(arguments, seed):
    """`(index of the row, value)`: for each argument, a value of the same type from another row."""
    generator = random.Random(seed)
    by_type = defaultdict(list)
    for place, kind, value in arguments:
        by_type[kind].append((place, value))
    for place, kind, value in arguments:
        other, drawn = generator.choice(by_type[kind])
        if other != place and drawn != value:
            yield place, drawn


def print_rate(title, sources, values):
    grounded = [sources[place].is_grounded(leaf) for place, value in values for leaf in leaf_values(value)]
    print(f"{title}: {sum(grounded):,} of {len(grounded):,} values, {100 * sum(grounded) / len(grounded):.2f} %")


def seconds(text):
    start = time.process_time()
    Sources(text, []).is_grounded(text)
    Sources("y", []).is_grounded(text)
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="rows, as train.py takes them")
    parser.add_argument("--characters", type=int, default=50_000, help="n")
    args = parser.parse_args()
    if rows := [row for file in args.files for row in load_rows(file)[0]]:
        arguments = list(gold_arguments(rows))
        sources = [Sources(row.query, json.loads(row.tools)) for row in rows]
        print_rate("gold", sources, [(place, value) for place, _, value in arguments])
        print_rate("other rows'", sources, [pair for seed in range(DRAWS) for pair in other_values(arguments, seed)])
    for piece in PIECES:
        n = args.characters
        times = [seconds("x" + piece * (factor * n // len(piece))) for factor in (1, 2, 4)]
        shown = " ".join(f"{seconds:7.2f}" for seconds in times)
        print(f"{piece!r:40} {shown} s, {times[2] / times[0]:.1f} times for 4 n")


if __name__ == "__main__":
    main()
