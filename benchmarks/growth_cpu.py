"""What benchmarks/growth.py measures on a CPU: rows of three kinds, and works on a file of them.

python -m benchmarks.growth_cpu GROUP SIZE WORK LOG      # as growth.py calls it
"""

import json
import os
import random
import resource
import shutil
import sys
import time
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from data_utils.batching import TrainingData, tokenize_rows
from data_utils.prompt import PROMPT_FORMATS, check_format, to_json
from data_utils.sources import load_rows
from data_utils.split import near_repeats, split_rows
from demo import world
from demo.rows import make_row
from eval_utils.comparison import compare_folders, read_folder, score_systems
from eval_utils.folder import write_rows
from eval_utils.report import write_report
from eval_utils.results import report_of, write_results
from inspect_utils.across_rows import find_near_repeats
from inspect_utils.findings import Findings
from inspect_utils.inspection import inspect_rows
from inspect_utils.page import write_page
from inspect_utils.reading import read_data
from inspect_utils.row_checks import faults_of, prompt_marks
from model_utils.loading import load_tokenizer, model_source
from model_utils.token_masks import compiled, compiler
from run_utils import journal
from run_utils.files import write_json, write_json_lines, write_text
from train import TrainingArguments

TAGS = PROMPT_FORMATS["tags-1"]
CHARACTERS_PER_TOKEN = 3.4  # of such rows, with the demo's tokenizer
ROWS_PER_TOOL = 16  # xLAM: 60,000 rows, 3,673 tools
FEW_ROWS = 200  # of many tokens or many tools
LONGEST = 2**15  # tokens
EVALUATIONS = {"evaluation": 0.8, "other": 0.75}  # and the adapter's share of right answers


# ---- rows ----------------------------------------------------------------------------------------


def rows_by_count(count):
    """`count` rows of 366 tokens on average (half of them 279 to 445), with 3.3 tools on offer. The
    number of different tools grows with the rows, as in xLAM's."""
    families = max(1, count // (ROWS_PER_TOOL * len(world.seen_tools())))
    for index in range(count):
        yield in_family(make_row(index, 0, False), index % families)


def in_family(row, family):
    tools, answers = json.loads(row["tools"]), json.loads(row["answers"])
    for tool in tools:
        tool |= {"name": f"{tool['name']}_{family}", "description": f"{tool['description']} Service {family}."}
    answers = [call | {"name": f"{call['name']}_{family}"} for call in answers]
    return row | {"tools": to_json(tools), "answers": to_json(answers)}


def rows_by_tokens(tokens):
    """FEW_ROWS rows of about so many tokens: the queries, tools and calls of several in one."""
    index = 0
    for number in range(FEW_ROWS):
        query, tools, answers, size = [], {}, [], 200  # the prompt's own text
        while size < 0.9 * tokens * CHARACTERS_PER_TOKEN:
            row, index = make_row(index, 1, False), index + 1
            new = {tool["name"]: tool for tool in json.loads(row["tools"]) if tool["name"] not in tools}
            added = len(row["query"]) + len(row["answers"]) + len(to_json(list(new.values())))
            if size + added > 1.1 * tokens * CHARACTERS_PER_TOKEN:
                continue
            query.append(row["query"])
            tools |= new
            answers += json.loads(row["answers"])
            size += added
        yield {
            "id": f"long-{number}", "query": " ".join(query), "tools": to_json(list(tools.values())), "answers": to_json(answers),
        }  # fmt: skip


def rows_by_tools(count):
    """FEW_ROWS rows that call one tool, with `count` tools on offer."""
    offered = [tool.schema() for tool in world.seen_tools()]
    index = 0
    for number in range(FEW_ROWS):
        called = {}
        while len(called) != 1:
            row, index = make_row(index, 2, False), index + 1
            called = {call["name"] for call in json.loads(row["answers"])}
        rng = random.Random(number)
        others = rng.sample([tool for tool in offered if tool["name"] not in called], count - 1)
        tools = [*(tool for tool in offered if tool["name"] in called), *others]
        yield row | {"id": f"tools-{number}", "tools": to_json(rng.sample(tools, count))}


# ---- an evaluation of these rows -----------------------------------------------------------------


def write_evaluation_folder(folder, rows, skill):
    """A finished evaluation: answers of a base and of an adapter that is right in a share `skill`
    of the rows."""
    folder.mkdir(parents=True)
    facts = {
        "tools_seen": {row.id: True for row in rows},
        "near_repeat": {row.id: place % 10 == 0 for place, row in enumerate(rows)},
    }
    write_rows(folder, rows, facts, {})
    write_json(folder / "environment.json", {"rows_sha256": ""})
    settings = {
        "systems": ["prompted", "adapter"],
        "prompt_format": "tags-1",
        "adapter": "adapter",
        "dataset_name": "rows",
    }
    write_text(folder / "args.yaml", "".join(f"{key}: {to_json(value)}\n" for key, value in settings.items()))
    write_json_lines(
        folder / "predictions.jsonl",
        (
            {
                "id": row.id, "system": system, "text": answer(row, random.Random(f"{system} {share} {row.id}"), share),
                "num_tokens": 60, "num_prompt_tokens": len(row.tools) // 4, "finish": "closed", "seconds": 0.01,
            }
            for system, share in (("prompted", 0.1), ("adapter", skill))
            for row in rows
        ),
    )  # fmt: skip


def answer(row, rng, share):
    """Gold, or gold with a fault: another value, one call less, an undeclared tool, prose around
    it."""
    calls = json.loads(row.answers)
    if rng.random() < share or not calls:
        return row.answers
    call = calls[rng.randrange(len(calls))]
    fault = rng.choice(["value", "missing", "tool", "prose"])
    if fault == "value" and call["arguments"]:
        call["arguments"][rng.choice(list(call["arguments"]))] = rng.choice(["Rome", 12, "2024-05-01", "made up by me"])
    elif fault == "missing":
        calls.remove(call)
    elif fault == "tool":
        call["name"] = "another_tool"
    return f"Here are the calls: {to_json(calls)} I hope they help." if fault == "prose" else to_json(calls)


# ---- measures ------------------------------------------------------------------------------------


class Place:
    """Where a measure finds its rows. file: the rows as JSON lines."""

    def __init__(self, file):
        self.file = Path(file)
        self.args = TrainingArguments(model_name_or_path="demo", dataset_name=str(self.file), max_seq_length=LONGEST)

    def evaluation(self, name):
        return self.file.parent / f"{self.file.stem}_{name}"


# A work runs in a process of its own, and yields a line's name at the end of each part. A pair adds
# figures, `(name, {"page_mib": 3.5})`.


def load(place):
    shutil.rmtree(Path(HF_HOME) / "tool_call_cache", ignore_errors=True)
    rows = load_rows(place.args.dataset_name)[0]
    yield "read and validate"
    train, held_out, _ = split_rows(rows, 0.05, 0)
    yield "split at random"
    split_rows(rows, 0.05, 0, "tools")
    yield "split by tools"
    near_repeats(train, held_out)
    yield "near-repeats across the split"
    for row in rows[:100]:
        check_format("tags-1", TAGS, row)
    yield "check the prompt format on 100 rows"
    tokenizer = load_tokenizer(model_source(place.args))
    yield "load the tokenizer"
    examples = tokenize_rows(tokenizer, TAGS, rows, LONGEST).examples
    yield "tokenise"
    TrainingData(examples, 0, 8, 1).fingerprints  # noqa: B018
    yield "hash the tokens and their order"


def load_again(place):
    rows = load_rows(place.args.dataset_name)[0]
    yield "read from the cache"
    tokenizer = load_tokenizer(model_source(place.args))
    yield "load the tokenizer again"
    tokenize_rows(tokenizer, TAGS, rows, LONGEST)
    yield "tokenise from the cache"


def inspect(place):
    tokenizer = load_tokenizer(model_source(place.args))
    yield ""
    data = read_data(place.args, tokenizer, LONGEST, {})
    yield "inspect_data.py: read, split and tokenise"
    find_near_repeats(data.chosen.train, data.chosen.evaluation, Findings())
    yield "inspect_data.py: near-repeats"
    for _ in faults_of(data.chosen.rows, prompt_marks(TAGS, tokenizer)):
        pass
    yield "inspect_data.py: faults"
    inspection = inspect_rows(place.args, data, tokenizer)
    yield "inspect_data.py: all, with these faults"
    page = place.file.with_suffix(".html")
    write_page(page, inspection | {"estimate": None})
    yield "inspect_data.py: page", {"page_mib": page.stat().st_size / 2**20}


def rescore(place):
    finished = read_folder(place.evaluation("evaluation"))
    yield "read an evaluation"
    evaluation = score_systems({"": finished}, None, title="", subtitle="", published={}, record={}, commands={})
    yield "score"
    write_results(place.evaluation("evaluation"), evaluation)
    yield "write the scores"
    page = place.file.with_suffix(".report.html")
    write_report(page, report_of(evaluation))
    yield "report", {"page_mib": page.stat().st_size / 2**20}


def compare(place):
    compare_folders(map(place.evaluation, EVALUATIONS), place.evaluation("comparison"))
    yield "evaluate.py --compare, all"


def compile_grammars(place):
    tokenizer = load_tokenizer(model_source(place.args))
    compiler(tokenizer, len(tokenizer))
    rows = load_rows(place.args.dataset_name)[0][:50]
    yield ""
    for row in rows:
        compiled(tokenizer, len(tokenizer), row.tools)
    yield "compile grammars of 50 rows"


def measured(work, group, size, place):
    """A line of the log for each part of a work. seconds: CPU time of all cores, which other
    processes on the machine change less than the clock. gib: the process's peak so far."""
    start, clock, cpu = gib_now(), time.perf_counter(), time.process_time()
    for part in work(place):
        part, figures = part if isinstance(part, tuple) else (part, {})
        if part:
            yield {
                "group": group,
                "part": part,
                "size": size,
                "rows": size if group == "rows" else FEW_ROWS,
                "seconds": time.process_time() - cpu,
                "clock_seconds": time.perf_counter() - clock,
                "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "start_gib": start,
                **figures,
            }
        clock, cpu = time.perf_counter(), time.process_time()


def gib_now():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def main():
    group, size, work, log = sys.argv[1:]
    place = Place(Path(log).parent / f"{group}_{size}.jsonl")
    make = {"rows": rows_by_count, "tokens": rows_by_tokens, "tools": rows_by_tools}[group]
    if work != "make":
        journal.append(Path(log), measured(globals()[work], group, int(size), place))
    elif not place.file.exists():
        write_json_lines(place.file, make(int(size)))
        for name, skill in EVALUATIONS.items():
            write_evaluation_folder(place.evaluation(name), load_rows(str(place.file))[0], skill)


if __name__ == "__main__":
    main()
