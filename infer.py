"""Turn queries and tools into calls. stdout has calls alone, stderr has the rest.

    python infer.py                                           # the embedded demo, after train.py
    python infer.py --adapter runs/demo/adapter --query "Is it raining in Rome?" --tools tools.json
    curl ... | python infer.py --adapter ... --query "..." --tools -          # tools from stdin
    python infer.py --adapter ... --input rows.jsonl --output calls.jsonl
    python infer.py --adapter ... --tools my_functions.py --interactive
    python infer.py --adapter ... --query "..." --tools tools.json --compare  # the base's answers

Tools are JSON (xLAM's flat form, OpenAI's functions, MCP's tools/list) or a Python file of typed,
documented functions. An output that is not a list of calls ends with exit code 1. stderr has a line
for each call that misfits its tools and each unreadable tool, which is left out; --strict turns
these into exit code 1 too.
"""

from run_utils.clock import lap, table_of_parts
from run_utils.signals import exit_at_once, handle_signals

if __name__ == "__main__":
    handle_signals(exit_at_once)  # until run_script has its own

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_utils.prompt import PROMPT_FORMATS, format_hash, to_json
from run_utils.arguments import argument, check_limits, number_or_auto, parse_arguments
from run_utils.errors import UserError, require, run_script, say
from run_utils.files import encodes
from run_utils.libraries import load_libraries


@dataclass
class InferenceArguments:
    config: str | None = argument(None, "YAML file of these arguments; flags override it")
    query: str | None = argument(None, "The request in words")
    tools: str | None = argument(None, "JSON or Python file with the tools, or - for JSON on stdin")
    input: str | None = argument(None, "Rows with queries and, unless --tools has them, tools")
    output: str | None = argument(None, "JSON lines: calls, or the error, of each row of --input")
    interactive: bool = argument(False, "Ask many queries; the model is loaded once")
    verbose: bool = argument(False, "Seconds by part, on stderr")
    compare: bool = argument(False, "Show the base's answers on both prompts too")
    constrained: bool = argument(False, "Hold answers to a grammar of the tools, by xgrammar")
    strict: bool = argument(False, "Exit code 1 if calls misfit the tools, or a tool is left out")
    format: Literal["xlam", "openai"] = argument("xlam", "A list of calls, or OpenAI's tool_calls")
    max_new_tokens: int = argument(512, above=0)
    batch_tokens: str = argument(
        "auto", "For --input: tokens in the cache of keys and values; auto: by free GPU memory", above=0
    )

    adapter: str | None = argument(None, "Folder that train.py saved: adapter/, model/ or a checkpoint", group="Model")
    system: Literal["raw", "prompted", "adapter"] | None = argument(None, "adapter if given, else prompted")
    model_name_or_path: str | None = argument(None, "By default the adapter's base")
    model_revision: str | None = argument(None)
    trust_remote_code: bool = argument(False, "Run Python code that comes with the model")
    prompt_format: Literal[*PROMPT_FORMATS] | None = argument(None, "For the base alone; an adapter has its own")
    quantization: Literal["none", "nf4", "int8"] | None = argument(None, "By default the adapter's, or none")
    merge_adapter: bool = argument(True, "Into weights neither quantised nor shared: faster, checked")
    dtype: Literal["auto", "bf16", "fp32"] = argument("auto", "auto: bf16 on CUDA, fp32 on a CPU")

    def __post_init__(self):
        self.batch_tokens = number_or_auto("batch_tokens", self.batch_tokens)
        check_limits(self)
        if self.input or self.output:
            self.query = None  # the demo recipe has one
            require(self.input and self.output, "--input and --output go together")
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
        require(not (self.compare and self.constrained), "--compare is for free answers: leave out --constrained")


def parse():
    return parse_arguments(InferenceArguments, __doc__, "demo_infer.yaml")


if __name__ == "__main__":
    args = run_script(parse)  # --help and a wrong flag end here: the imports below take seconds
    load_libraries()

import contextlib
import dataclasses
import itertools
import signal
import sys

from data_utils.chat_format import NO_GRAMMAR, find_format
from data_utils.requests import read_requests
from data_utils.rows import Row
from data_utils.tool_files import read_tools_and_say
from model_utils.adapter_files import read_adapter
from model_utils.answer_file import answer_file
from model_utils.cache_size import cache_tokens
from model_utils.loading import base_fingerprint, load_base_model, load_tokenizer, model_source
from model_utils.replies import as_text, replies
from model_utils.systems import open_systems
from model_utils.token_masks import import_xgrammar
from run_utils.launch import start_accelerator


def main(args):
    try:
        answer(args)
    finally:
        if args.verbose:
            say(table_of_parts())


def answer(args):
    library_seconds = lap("other imports")
    tools = read_tools_and_say(args.tools, args.strict) if args.tools else None
    requests = read_requests(args.input, tools) if args.input else None
    if args.constrained:
        import_xgrammar()
    adapter = read_adapter(args.adapter) if args.adapter else None
    lap("tools and adapter's record")
    systems = load_systems(args, adapter)
    name, system = next(systems)
    say(f"Loaded in {lap('the rest'):.1f} s, of which libraries took {library_seconds:.1f}")
    if args.compare:
        compare(args, itertools.chain([(name, system)], systems), tools)
    elif args.input:
        identity = {
            "base_fingerprint": base_fingerprint(system.model),
            "prompt": format_hash(system.prompt_format),
            "adapter": adapter.sha256 if adapter else None,
        }
        answer_file(args, system, requests, identity)
    elif args.interactive:
        converse(args, system, tools)
    else:
        reply = reply_to(system, args.query, tools)
        if reply.calls is None:
            print(reply.text, file=sys.stderr)
            raise UserError(f"the output above is not a list of calls to these tools: {reply.problem}")
        print(as_text(reply.calls, args.format))
        for sentence in reply.remarks:
            say(sentence)
        if args.strict and reply.misfits:
            raise UserError("the calls do not fit the tools, and --strict is set")


def load_systems(args, adapter):
    """Yields `(name, System)` of --system, or of all systems with --compare. The base is loaded
    first, the adapter with its system."""
    own_format = adapter.prompt_format if adapter else args.prompt_format or "tags-1"
    require(args.prompt_format in (None, own_format), f"{args.adapter} was trained with --prompt_format {own_format}")
    require(own_format != "chat" or not args.constrained, NO_GRAMMAR)
    accelerator = start_accelerator(args.dtype, alone=True)
    lap("device")
    source = model_source(args, adapter)
    tokenizer = load_tokenizer(source)
    prompt_format = find_format(own_format, tokenizer, adapter.prompt_hash if adapter else None)
    lap("tokenizer")
    base = load_base_model(source, accelerator)
    for name, system in open_systems(
        ["raw", "prompted"] + ["adapter"] * bool(adapter) if args.compare else [args.system],
        base,
        tokenizer,
        prompt_format=prompt_format,
        adapter=adapter,
        merge=args.merge_adapter,
        max_new_tokens=args.max_new_tokens,
        batch_tokens=cache_tokens(base, args.batch_tokens) if args.input else 1,
    ):
        yield name, dataclasses.replace(system, grammar=args.constrained)


def reply_to(system, query, tools, on_token=None):
    ((_, reply),) = replies(system, [Row("", query, to_json(tools), "[]")], on_token)
    return reply


def compare(args, systems, tools):
    """Print each system's answer under its name."""
    for name, system in systems:
        reply = reply_to(system, args.query, tools)
        print(f"{name}:")
        print(f"  {reply.text.strip()}" if reply.calls is None else f"  {as_text(reply.calls, args.format)}")
        for sentence in reply.remarks:
            print(f"  ({sentence})")


def converse(args, system, tools):
    """Answer queries from the terminal until Ctrl-D. Ctrl-C stops an answer."""
    with contextlib.suppress(ImportError):  # on Windows
        import readline  # noqa: F401  history and editing, in input()
    say(f"{list_names(tools)}. /tools FILE changes the tools; Ctrl-C stops an answer, Ctrl-D ends.")
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
                say(list_names(tools))
            except UserError as error:
                say(str(error))
        elif line.startswith("/"):
            say("the only command is /tools FILE; Ctrl-D ends")
        elif line and not encodes(line):
            say("half a surrogate pair is not text")
        elif line:
            try:
                answer_and_show(args, system, line, tools)
            except KeyboardInterrupt:
                print("\n(stopped)")


def list_names(tools):
    return f"{len(tools)} tools: {', '.join(tool['name'] for tool in tools)}"


def answer_and_show(args, system, query, tools):
    num_shown = 0

    def show(answer):
        nonlocal num_shown
        text = answer.text()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # otherwise the last letter is incomplete
            print(text[num_shown:], end="", flush=True)
            num_shown = len(text)

    reply = reply_to(system, query, tools, show)
    print()
    if args.format == "openai" and reply.calls is not None:
        print(as_text(reply.calls, args.format))
    for sentence in reply.remarks:
        say(f"({sentence})")


if __name__ == "__main__":
    run_script(lambda: main(args))
