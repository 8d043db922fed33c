"""Turn queries and tools into tool calls: calls alone on stdout or in --output, everything else on stderr.

    python infer.py                                                   # the embedded demo's adapter, after train.py
    python infer.py --adapter runs/qwen3_4b_qlora/adapter --query "Is it raining in Rome?" --tools tools.json
    curl ... | python infer.py --adapter ... --query "..." --tools -   # the tools from stdin
    python infer.py --adapter ... --input rows.jsonl --output calls.jsonl
    python infer.py --adapter ... --tools my_functions.py --interactive
    python infer.py --adapter ... --query "..." --tools tools.json --compare    # beside the base, raw and prompted

Tools are JSON in xLAM's flat form, OpenAI's functions, MCP's tools/list, or a Python file with typed, documented functions.
An output that is not a list of calls ends with exit code 1. Calls that do not fit the tools, and tools that cannot be read and are
left out, have a line on stderr each; with --strict they end with exit code 1 too.
"""

import os
import sys
import time

STARTED = time.perf_counter()

from run_utils.signals import Stopped, exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own
    if os.environ.get("RANK", "0") == "0":
        print("Loading PyTorch and transformers ...", file=sys.stderr)

import codecs
import contextlib
import hashlib
import json
import math
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from data_utils.batching import encode_prompts
from data_utils.conversations import as_request
from data_utils.prompt import PROMPT_FORMATS, format_hash, to_json
from data_utils.readers import read_file
from data_utils.rows import Row, validate
from data_utils.tool_calls import check_calls, parse_json
from data_utils.tool_files import none_left, read_tools
from data_utils.tool_formats import flat_tools, openai_calls
from data_utils.tool_schema import call_problems
from model_utils.adapter_files import naming_adapter, read_adapter
from model_utils.adapters import load_adapter
from model_utils.generation import generate
from model_utils.loading import base_fingerprint, load_base_model, load_tokenizer, resolve_model
from model_utils.model_facts import num_positions
from model_utils.token_masks import import_xgrammar
from run_utils.arguments import argument, check_limits, parse_arguments
from run_utils.errors import UserError, require, run_script, say
from run_utils.files import describe_free, file_hash, is_full_disk, lock_folder, write_text
from run_utils.launch import start_accelerator


@dataclass
class InferenceArguments:
    config: str | None = argument(None, "YAML file of these arguments; flags override it")
    query: str | None = argument(None, "What the tools should be called for")
    tools: str | None = argument(None, "JSON or Python file with the tools, or - for JSON on stdin")
    input: str | None = argument(
        None, "File of rows with queries and, unless --tools has them, tools: see docs/formats.md"
    )
    output: str | None = argument(None, "JSON lines: the calls, or the error, of each row of --input")
    interactive: bool = argument(False, "Ask again and again; the model is loaded once")
    compare: bool = argument(False, "Answer by the base on both prompts too, and show all")
    constrained: bool = argument(False, "Hold answers to a grammar of the tools, by xgrammar")
    strict: bool = argument(False, "Exit code 1 if calls do not fit the tools, or a tool is left out")
    format: Literal["xlam", "openai"] = argument("xlam", "A list of calls, or OpenAI's tool_calls")
    max_new_tokens: int = argument(512, above=0)
    batch_tokens: int = argument(65536, "Of --input: tokens in the cache", above=0)

    adapter: str | None = argument(None, "Folder that train.py saved: adapter/ or a checkpoint", group="Model")
    system: Literal["raw", "prompted", "adapter"] | None = argument(None, "adapter where one is given, else prompted")
    model_name_or_path: str | None = argument(None, "By default the adapter's base")
    model_revision: str | None = argument(None)
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model")
    prompt_format: Literal[*PROMPT_FORMATS] | None = argument(
        None, "Of the base alone: tags-1 by default. An adapter knows its own"
    )
    quantization: Literal["none", "nf4", "int8"] | None = argument(None, "By default the adapter's, or none")
    merge_adapter: bool = argument(True, "Into weights that are neither quantised nor shared: faster, and checked")
    dtype: Literal["auto", "bf16", "fp32"] = argument("auto", "auto: bf16 on CUDA, fp32 on a CPU")

    def __post_init__(self):
        check_limits(self)
        if self.input or self.output:
            self.query = None  # the default recipe's, too
            require(self.input and self.output, "--input and --output belong together")
            require(not (self.interactive or self.compare), "--input does not go with --interactive or --compare")
            require(Path(self.output).parent.is_dir(), f"--output {self.output}: there is no such folder")
        elif not self.interactive:
            require(self.query and self.query.strip(), "--query is missing: what should the tools be called for?")
            require(encodes(self.query), "--query holds half a surrogate pair, which is not text")
        require(not (self.interactive and self.compare), "--interactive and --compare do not go together")
        require(self.tools or self.input, "--tools is missing: a JSON or Python file with the tools, or - for stdin")
        require(
            not (self.interactive and self.tools == "-"), "--interactive reads stdin itself: --tools must be a file"
        )
        require(self.adapter or self.model_name_or_path, "name an --adapter or a --model_name_or_path")
        self.system = self.system or ("adapter" if self.adapter else "prompted")
        require(self.adapter or self.system != "adapter", "the system 'adapter' needs --adapter")
        require(not (self.compare and self.constrained), "--compare shows what is said freely: leave out --constrained")


def main():
    args = parse_arguments(InferenceArguments, __doc__, "demo_infer.yaml")
    tools = read_tools_and_say(args.tools, args.strict) if args.tools else None
    requests = read_requests(args.input, tools) if args.input else None
    if args.constrained:
        import_xgrammar()
    libraries = time.perf_counter() - STARTED
    system = load_system(args)
    say(f"Loaded in {time.perf_counter() - STARTED:.1f} s, of which libraries took {libraries:.1f}")
    if args.input:
        answer_file(args, system, requests)
    elif args.interactive:
        converse(args, system, tools)
    elif args.compare:
        compare(args, system, tools)
    else:
        reply = system.reply(args.query, tools)
        if reply.calls is None:
            print(reply.text, file=sys.stderr)
            raise UserError(f"the output above is not a list of calls to these tools: {reply.problem}")
        print(as_text(reply.calls, args.format))
        report_misfits(reply, args.strict)


class Reply(NamedTuple):
    text: str  # as generated
    calls: list | None  # None if the text is no list of calls
    problem: str  # the reason if it is none
    misfits: list  # a sentence for each misfit of calls and tools


class System:
    """A loaded model with its prompt format: it answers."""

    def __init__(self, args, model, tokenizer, prompt_format):
        self.args, self.model, self.tokenizer, self.prompt_format = args, model, tokenizer, prompt_format
        self.positions = num_positions(model.config)

    def prompt(self, query, tools):
        return self.prompt_format.render(query, to_json(tools))

    def answer(self, requests, batch_tokens=1, on_token=None):
        """`(index, Reply)` of each `(query, tools)`, in the order in which they finish."""
        prompts = [self.prompt(query, tools) for query, tools in requests]
        settings = (self.tokenizer, self.prompt_format, prompts, self.args.max_new_tokens)
        decoding = {
            "batch_tokens": batch_tokens,
            "tools": [tools for _, tools in requests] if self.args.constrained else None,
            "on_token": on_token,
        }
        for index, generation in generate(self.model, *settings, **decoding):
            yield index, self.read(generation, prompts[index], requests[index][1])

    def reply(self, query, tools, on_token=None):
        ((_, reply),) = self.answer([(query, tools)], on_token=on_token)
        return reply

    def read(self, generation, prompt, tools):
        if generation.finish == "too_long":
            (ids,) = encode_prompts(self.tokenizer, [prompt])
            problem = f"the prompt has {len(ids)} tokens and the model {self.positions} positions: offer fewer tools"
            return Reply("", None, problem, [])
        try:
            calls = self.prompt_format.parse(generation.text)
            check_calls(calls)
        except ValueError as error:
            problem = str(error)
            if generation.finish == "length":
                by_budget = generation.num_tokens == self.args.max_new_tokens
                limit = (
                    f"--max_new_tokens {self.args.max_new_tokens}"
                    if by_budget
                    else f"the model's {self.positions} positions"
                )
                problem = f"cut off at {limit}"
            return Reply(generation.text, None, problem, [])
        return Reply(generation.text, calls, "", call_problems(calls, tools))


def load_system(args):
    """The System of --system; with --compare the adapter's base (see `compare`)."""
    training_args = read_adapter(args.adapter)[0] if args.adapter else {}
    model_name = args.model_name_or_path or training_args["model_name_or_path"]
    own_base = model_name == training_args.get("model_name_or_path")
    from_adapter = args.adapter if not args.model_name_or_path else None
    revision = args.model_revision or (training_args.get("model_revision") if own_base else None)
    quantization = args.quantization or training_args.get("quantization", "none")
    name = training_args.get("prompt_format", args.prompt_format or "tags-1")
    require(args.prompt_format in (None, name), f"{args.adapter} was trained with --prompt_format {name}")
    prompt_format = PROMPT_FORMATS["raw" if args.system == "raw" and not args.compare else name]

    accelerator = start_accelerator(args.dtype, alone=True)
    with naming_adapter(from_adapter, "--model_name_or_path"):
        model_path = resolve_model(model_name)
    tokenizer = load_tokenizer(model_path, revision, args.trust_remote_code)
    model = load_base_model(model_path, accelerator, revision, quantization, args.trust_remote_code)
    if args.system == "adapter" and not args.compare:
        model = put_on_adapter(args, model, tokenizer, prompt_format)
    return System(args, model, tokenizer, prompt_format)


def put_on_adapter(args, model, tokenizer, prompt_format):
    # A merged adapter must answer as the unmerged one: compared on a text that needs no query.
    text = prompt_format.render("Which tools are there?", "[]") + prompt_format.completion("[]")
    return load_adapter(model, args.adapter, encode_prompts(tokenizer, [text]) if args.merge_adapter else ())


def compare(args, base, tools):
    """The answers of the base on the raw prompt and on the trained one, and of the adapter, each under its name on stdout."""
    systems = ["raw", "prompted"] + ["adapter"] * bool(args.adapter)
    for name in systems:
        system = base
        if name == "raw":
            system = System(args, base.model, base.tokenizer, PROMPT_FORMATS["raw"])
        elif name == "adapter":
            model = put_on_adapter(args, base.model, base.tokenizer, base.prompt_format)
            system = System(args, model, base.tokenizer, base.prompt_format)
        reply = system.reply(args.query, tools)
        print(f"{name}:")
        print(f"  {reply.text.strip()}" if reply.calls is None else f"  {as_text(reply.calls, args.format)}")
        for sentence in [f"no list of calls: {reply.problem}"] if reply.calls is None else reply.misfits:
            print(f"  ({sentence})")


def converse(args, system, tools):
    """A prompt that answers queries until Ctrl-D. Ctrl-C stops the answer."""
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  history and editing, in input()
    say(
        f"{len(tools)} tools: {', '.join(tool['name'] for tool in tools)}. /tools FILE takes others; Ctrl-C stops an answer, Ctrl-D ends."
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if line.startswith("/tools"):
            try:
                tools = read_tools_and_say(line.removeprefix("/tools").strip() or args.tools, args.strict)
                say(f"{len(tools)} tools: {', '.join(tool['name'] for tool in tools)}")
            except UserError as error:
                say(str(error))
        elif line.startswith("/"):
            say("/tools FILE is the one command; Ctrl-D ends")
        elif line and not encodes(line):
            say("half a surrogate pair is not text")
        elif line:
            try:
                answer_and_show(args, system, line, tools)
            except KeyboardInterrupt:
                print("\n(stopped)")


def answer_and_show(args, system, query, tools):
    shown = 0

    def show(answer):
        nonlocal shown
        text = answer.text()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else a letter is not complete yet
            print(text[shown:], end="", flush=True)
            shown = len(text)

    reply = system.reply(query, tools, on_token=show)
    print()
    if args.format == "openai" and reply.calls is not None:
        print(as_text(reply.calls, args.format))
    for sentence in [f"no list of calls: {reply.problem}"] if reply.calls is None else reply.misfits:
        say(f"({sentence})")


def answer_file(args, system, requests):
    """Answer the rows of --input: a line in --output each, in their order. A kill loses no answer: the same command goes on.

    requests: a Request for each row. A line of --output names those of its tools that were left out.
    """
    output, partial = Path(args.output), Path(f"{args.output}.partial")
    identity = {
        "input": hashlib.sha256(repr(requests).encode()).hexdigest(),
        "base_fingerprint": base_fingerprint(system.model),
        "prompt": format_hash(system.prompt_format),
        "adapter": file_hash(Path(args.adapter) / "adapter_model.safetensors") if args.adapter else None,
        **{name: getattr(args, name) for name in ("system", "constrained", "format", "max_new_tokens", "quantization")},
    }
    done = open_partial(output, partial, identity, len(requests))
    todo = [index for index, request in enumerate(requests) if index not in done and request.row]
    results = done | {
        index: {"id": request.id, "error": request.error} for index, request in enumerate(requests) if not request.row
    }
    asked = [(requests[index].row.query, json.loads(requests[index].row.tools)) for index in todo]
    try:
        with partial.open("a", encoding="utf-8") as file:
            progress = tqdm(system.answer(asked, args.batch_tokens), total=len(todo), unit="row")
            for place, reply in progress:
                index = todo[place]
                left_out = {"left_out": requests[index].left_out} if requests[index].left_out else {}
                results[index] = {"id": requests[index].id} | as_result(reply, args.format) | left_out
                file.write(json.dumps([index, results[index]]) + "\n")
                file.flush()
        write_text(output, "".join(as_line(results[index]) for index in sorted(results)))
    except Stopped as stopped:
        raise Stopped(
            stopped.number, f"{len(results)} of {len(requests)} rows are answered: the same command goes on"
        ) from None
    except OSError as error:
        if not is_full_disk(error):
            raise
        characters = sum(len(as_line(result)) for result in results.values()) / max(1, len(results))
        free = describe_free(output.parent, 2 * len(requests) * characters)  # both files are there for a moment
        raise UserError(
            f"--output {output} could not be written: it needs {free}; {len(results)} of {len(requests)} rows are answered: make "
            "room, and the same command goes on"
        ) from None
    partial.unlink()
    errors = sum("error" in result for result in results.values())
    misfits = sum("misfits" in result for result in results.values())
    say(
        f"{len(results)} rows in {output}: {len(results) - errors} with calls, {misfits} of which do not fit their tools; {errors} errors"
    )
    faulty = sum(bool({"error", "misfits", "left_out"} & result.keys()) for result in results.values())
    if args.strict and faulty:
        raise UserError(
            f"{faulty} of the {len(results)} rows have errors, calls that do not fit or tools left out, and --strict is set"
        )


def open_partial(output, partial, identity, num_rows):
    """The answers of a run that was cut off, `{index: result}`. Raises UserError if the files are of another run."""
    try:
        if output.exists():
            raise UserError(f"--output {output} is there already: remove it, or choose another")
        if not partial.exists() or partial.stat().st_size == 0:
            partial.write_text(json.dumps(identity) + "\n", encoding="utf-8")
        lock_folder(partial)
        first, *lines = partial.read_text(encoding="utf-8").split("\n")
        if lines and lines[-1]:  # cut short: what comes next is a line of its own
            with partial.open("a", encoding="utf-8") as file:
                file.write("\n")
        if json.loads(first) != identity:
            raise UserError(
                f"{partial} has answers to other rows, or of another model or settings: remove it, or choose another --output"
            )
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{partial} cannot be read: remove it") from None
    done = {}
    for line in lines:
        try:
            index, result = json.loads(line)
        except (ValueError, TypeError, RecursionError):  # cut short, or not ours
            continue
        if type(index) is int and 0 <= index < num_rows and isinstance(result, dict):
            done[index] = result
    return done


class Request(NamedTuple):
    """A record of --input."""

    id: object  # its own, or its number in the file
    row: Row | None
    error: str  # the reason if there is no row
    left_out: list[str]  # a line for each of its tools that cannot be read


def read_requests(path, tools):
    """A Request for each record of a file in any of the layouts of rows, with or without answers; on stderr a line for each tool that
    is read in part or not at all, with the number of its rows."""
    requests, notes = [], Counter()
    for number, (_, record) in enumerate(read_file(path), start=1):
        row_id = record.get("id") if isinstance(record, dict) else None
        if row_id is None or (isinstance(row_id, float) and not math.isfinite(row_id)):  # which is no JSON
            row_id = number
        left_out = []
        try:
            request = as_request(record, tools)
            with contextlib.suppress(ValueError, TypeError):  # of no list of tools: `validate` names the reason
                read = flat_tools(parse_json(request["tools"]), keep_going=True)
                request["tools"], left_out = to_json(read.tools), read.left_out
                notes.update(set(read.notes))
            if left_out and not read.tools:
                raise ValueError(none_left(left_out))
            requests.append(Request(row_id, validate(request), "", left_out))
        except ValueError as error:
            requests.append(Request(row_id, None, str(error), left_out))
        notes.update({f"left out: {reason}" for reason in left_out})
    if not requests:
        raise UserError(f"--input {path} has no rows")
    for note, rows in notes.most_common(MAX_NOTES):
        say(f"{path}: {note} ({rows} row{'s' * (rows > 1)})")
    if len(notes) > MAX_NOTES:
        say(f"{path}: {len(notes) - MAX_NOTES} more such lines")
    return requests


MAX_NOTES = 20


def as_result(reply, form):
    if reply.calls is None:
        return {"error": reply.problem, "text": reply.text}
    calls = {"tool_calls": openai_calls(reply.calls)} if form == "openai" else {"calls": reply.calls}
    return calls | ({"misfits": reply.misfits} if reply.misfits else {})


def as_line(result):
    """A line of --output: in UTF-8, or with escapes if there is half a surrogate pair."""
    text = to_json(result)
    return (text if encodes(text) else json.dumps(result)) + "\n"


def report_misfits(reply, strict):
    for sentence in reply.misfits:
        say(sentence)
    if strict and reply.misfits:
        raise UserError("the calls do not fit the tools, and --strict is set")


def as_text(calls, form):
    """The calls as JSON in UTF-8 or, if stdout cannot hold it, in ASCII."""
    value = openai_calls(calls) if form == "openai" else calls
    utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    return to_json(value) if utf8 and encodes(to_json(value)) else json.dumps(value)


def encodes(text):
    """Whether a text can be written: half a surrogate pair, alone in a string, cannot."""
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False


def read_tools_and_say(path, strict):
    """The tools of a file, in the flat form; on stderr their format, and a line for each that is read in part or not at all."""
    read = read_tools(path)
    if read.format != "xLAM":
        say(f"{path}: {len(read.tools)} tools, read as {read.format}'s")
    for note in read.notes:
        say(f"{path}: {note}")
    for reason in read.left_out:
        say(f"{path}: left out: {reason}")
    if strict and read.left_out:
        raise UserError(f"--tools {path}: {len(read.left_out)} tools are left out, and --strict is set")
    return read.tools


if __name__ == "__main__":
    run_script(main)
