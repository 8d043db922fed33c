"""Look at the rows of a training before it starts: no weights, no GPU.

    python inspect_data.py                                    # the embedded demo
    python inspect_data.py --config recipes/qwen3_4b_qlora.yaml
    python inspect_data.py --dataset_name rows.jsonl --model_name_or_path Qwen/Qwen3-4B-Base

The arguments are train.py's; those about rows, prompts, lengths and steps are read here. Reads,
splits and tokenises the rows as train.py does, and names each fault with the row's id and the
value. The last line says whether to go on. Writes inspection.html into --output_dir.
"""

from run_utils.signals import exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own

from dataclasses import dataclass
from typing import Literal

from model_utils.gpus import GPUS
from run_utils.arguments import argument, arguments_of, parse_arguments
from run_utils.errors import UserError, run_script, say
from run_utils.libraries import load_libraries


@dataclass
class InspectionArguments(arguments_of("train.py")):
    """train.py's arguments, with its defaults."""

    gpu: Literal[*GPUS, "cpu"] | None = argument(
        None, "Compute memory and time for it; by default this machine's", group="Inspection"
    )


def parse():
    return parse_arguments(InspectionArguments, __doc__, "demo.yaml")


if __name__ == "__main__":
    args = run_script(parse)  # --help and a wrong flag end here: the imports below take seconds
    load_libraries()

import math
from pathlib import Path

from demo.rows import GENERATORS
from inspect_utils.inspection import inspect_rows
from inspect_utils.page import write_page
from inspect_utils.reading import read_data
from inspect_utils.terminal import print_inspection
from model_utils.estimate import estimate
from model_utils.loading import load_config, load_tokenizer, model_source
from model_utils.model_facts import num_positions
from run_utils.files import write_json


def main(args):
    tokenizer, config = load_base(args)
    data = read_data(args, tokenizer, num_positions(config) if config else math.inf, GENERATORS)
    inspection = inspect_rows(args, data, tokenizer)
    inspection["estimate"] = estimate(args, config, *data.fitting, args.gpu) if data.tokens else None
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "inspection.json", inspection)
    write_page(folder / "inspection.html", inspection)
    print_inspection(inspection, folder / "inspection.html")


def load_base(args):
    """The base's tokenizer and configuration. None and None, after a line, if they are out of reach
    and the prompts need no tokenizer."""
    try:
        source = model_source(args)
        return load_tokenizer(source), load_config(source)
    except UserError as error:
        if args.prompt_format == "chat":  # its prompts come from the tokenizer's template
            raise
        say(f"{error}. Going on without lengths")
        return None, None


if __name__ == "__main__":
    run_script(lambda: main(args))
