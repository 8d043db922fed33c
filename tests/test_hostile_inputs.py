"""Hostile inputs through the four scripts' own `main`: damaged files of every kind, flags, recipes,
servers, output folders.

Hypothesis draws the same inputs every time. They run in forks of a process that has loaded the
scripts (hostile/forks.py), with limits of time and memory and without a network; some are real
launches. No input may end in a traceback, hang, take gigabytes, ask the network, or leave
half-written files. The modules' own tests check the words of the errors. To repeat input 17:

    HOSTILE_INPUT=train:17 python -m pytest -m slow tests/test_hostile_inputs.py -k train
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import typing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from conftest import ROOT, command_line
from hypothesis import HealthCheck, Phase
from safetensors.torch import load_file, save_file

import evaluate
import export
import infer
import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc"),
]

SEED = int(os.environ.get("HOSTILE_SEED", 30))
EVERY = 18  # the first input and each 18th after it are real launches: 22 in all
SECONDS = 25
LAUNCH_SECONDS = 90  # imports included, on a busy machine
SCRIPTS = {
    "train": train.TrainingArguments,
    "evaluate": evaluate.EvaluationArguments,
    "infer": infer.InferenceArguments,
    "export": export.ExportArguments,
}
INPUTS = {  # how many of each kind
    "train": {"rows": 20, "base": 16, "checkpoint": 24, "recipe": 12, "flags": 16, "output": 12},
    "evaluate": {
        **{"rows": 8, "adapter": 16, "base": 6, "rescore": 16, "compare": 8, "continued": 8, "endpoint": 16},
        **{"recipe": 8, "flags": 8, "output": 6},
    },
    "infer": {
        **{"rows": 14, "adapter": 14, "base": 10, "tools": 24, "python": 16, "recipe": 8, "flags": 8, "output": 6},
    },
    "export": {"adapter": 20, "base": 14, "evaluation": 14, "recipe": 8, "flags": 8, "output": 8},
}

# ---------------------------------- values and contents ----------------------------------

DEEP, DIGITS = "@deep@", "@digits@"  # placeholders: written out when a file is written
ODD = [
    *(None, True, False, 0, -1, 0.5, 10**30, 2**63, 1e308, float("nan"), float("inf"), DEEP, DIGITS),
    *("", " ", ".", "..", "/", "/dev/null", "\ud800", "a\0b", "a\nb", "x" * 5000, "<b>|`", "1e999", "int3"),
    *([], [[]], [None], ["\ud800"], {}, {"a": 1}, {"": {"": None}}, [{"name": 5}], {"$ref": "#"}, [1, "a", {}]),
]
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)
WORDS = ["", " ", "\udc80", "x" * 5000, "a\nb", "null", "[]", "..", "/", ".", "<b>|`", "--help", "demo", "1:2", "3:1"]
NUMBERS = [
    *("nan", "inf", "-1", "0", "1", "0.5", "0.999999", "1e-300", "1e300", "1e999", str(2**31), str(2**63)),
    *("9" * 30, "9" * 400, "9" * 5000),
]
BYTES = {
    "nothing": lambda content: b"",
    "a NUL byte": lambda content: b"\0" * 100,
    "a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "bytes that are no UTF-8": lambda content: content[:20] + b"\xff\xfe\x80" + content[20:],
    "nested lists": lambda content: b"[" * 100_000,
    "nested objects": lambda content: b'{"a":' * 100_000,
    "closed nested lists": lambda content: b"[" * 2000 + b"]" * 2000,
    "null": lambda content: b"null",
    "a list": lambda content: b"[]",
    "a number": lambda content: b"5",
    "a text": lambda content: b'"x"',
    "an object": lambda content: b"{}",
    "an alias in itself": lambda content: b"a: &a [*a]\n" + content,
    "a tag": lambda content: content + b'\n"tag": !!python/object/apply:os.system ["true"]\n',
    "a key twice": lambda content: content.replace(b"{", b'{"id": 1, "id": 2, ', 1),
    "a date that is none": lambda content: content + b"\nseed: 2026-99-99\n",
    "twice": lambda content: content + content,
    "half": lambda content: content[: len(content) // 2],
    "all but the end": lambda content: content[:-3],
    "a header beyond the end": lambda content: (2**60).to_bytes(8, "little") + content[8:],
    "a header of nested lists": lambda content: (50_000).to_bytes(8, "little") + b"[" * 50_000,
}
PLACES = ("absent", "folder", "pipe", "loop", "dangling", "null")
TENSORS = {
    "other names": lambda tensors: {f"x.{name}": tensor for name, tensor in tensors.items()},
    "one fewer": lambda tensors: dict([*tensors.items()][1:]),
    "one more": lambda tensors: tensors | {"x": torch.zeros(1)},
    "none": lambda tensors: {},
    "NaN": lambda tensors: {name: tensor * float("nan") for name, tensor in tensors.items()},
    "infinity": lambda tensors: {name: torch.full_like(tensor, float("inf")) for name, tensor in tensors.items()},
    "integers": lambda tensors: {name: tensor.long() for name, tensor in tensors.items()},
    "halves": lambda tensors: {name: tensor[: len(tensor) // 2].contiguous() for name, tensor in tensors.items()},
    "flat": lambda tensors: {name: tensor.flatten() for name, tensor in tensors.items()},
    "scalars": lambda tensors: {name: tensor.flatten()[0].clone() for name, tensor in tensors.items()},
    "empty": lambda tensors: {name: tensor.flatten()[:0].clone() for name, tensor in tensors.items()},
    "another rank": lambda tensors: {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()},
    "float16": lambda tensors: {name: tensor.half() for name, tensor in tensors.items()},
    "float8": lambda tensors: {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()},
    "booleans": lambda tensors: {name: tensor > 0 for name, tensor in tensors.items()},
}
PARQUET = {
    "no rows": {"query": pyarrow.array([], pyarrow.string())},
    "numbers": {"query": [1, 2], "tools": [1, 2], "answers": [1, 2]},
    "nulls": {"query": [None], "tools": [None], "answers": [None]},
    "objects": {
        "query": ["x"],
        "tools": [[{"name": "f", "parameters": {"a": {"type": "str"}}}]],
        "answers": [[{"name": "f"}]],
    },
    "bytes that are no text": {"query": [b"\xff"], "tools": [b"\xff"], "answers": [b"\xff"]},
    "texts that are none": {
        "query": pyarrow.array([b"\xff"]).view(pyarrow.string()),
        "tools": ["[]"],
        "answers": ["[]"],
    },
    "messages": {"messages": [[{"role": "user", "content": None}], None, []], "tools": ["[" * 10_000, "5", None]},
    "maps": {
        "query": pyarrow.array([[("a", "b"), ("a", "c")]], pyarrow.map_(pyarrow.string(), pyarrow.string())),
        "tools": ["[]"],
    },
    "other columns": {"x": ["y"]},
}
PYTHON = {
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "SystemExit": "import sys\nsys.exit(0)",
    "GeneratorExit": "raise GeneratorExit",
    "an exception without a text": "class Silent(BaseException): pass\nraise Silent",
    "no syntax": "def f(:",
    "a NUL byte": "a = 1\0",
    "nested too deep": "x = " + "(" * 3000,
    "a sum without end": "x = " + "1+" * 50_000 + "1",
    "recursion": "def f(): return f()\nf()",
    "no function": "x = 1",
    "an unknown type": 'def f(x: "Unknown"):\n    """F.\n\n    Args:\n        x: X.\n    """',
    "a type that raises": 'class T:\n    def __class_getitem__(cls, k): raise KeyboardInterrupt\ndef f(x: "T[int]"):\n    """F.\n\n    Args:\n        x: X.\n    """',
    "a type in itself": 'import typing\nT = typing.List["T"]\ndef f(x: T):\n    """F.\n\n    Args:\n        x: X.\n    """',
    "a model in itself": 'import pydantic\nclass M(pydantic.BaseModel):\n    a: "M | None" = None\ndef f(x: M):\n    """F.\n\n    Args:\n        x: X.\n    """',
    "an object that answers everything": "class Any:\n    def __getattr__(self, name): return Any()\n    def __call__(self): pass\nf = Any()",
    "an object that answers nothing": "class No:\n    def __getattr__(self, name): raise SystemExit\n    def __call__(self): pass\nf = No()",
    "a class of another name": "class C:\n    @property\n    def __class__(self): raise KeyboardInterrupt\n    def __call__(self): pass\nf = C()",
    "a docstring of megabytes": 'def f(x: int):\n    """' + "x" * 3_000_000 + '"""',
    "a description that is no text": 'def f(x: int):\n    """F.\n\n    Args:\n        x: X.\n    """\nf.__doc__ = 5',
    "half a surrogate pair": 'def f(x: str = "\\ud800"):\n    """\\ud800.\n\n    Args:\n        x: X.\n    """',
    "defaults that are no JSON": 'def f(x: float = float("nan"), y: int = 10**5000):\n    """F.\n\n    Args:\n        x: X.\n        y: Y.\n    """',
    "a choice of anything": 'import typing\ndef f(x: typing.Literal[b"a", None, 1.5]):\n    """F.\n\n    Args:\n        x: X.\n    """',
    "an import that is not there": "import nothing_of_this_name",
    "print": 'print("[]")\nimport os\nos.write(1, b"")\ndef f():\n    """F."""',
    "another folder": 'import os\nos.chdir("/")\ndef f():\n    """F."""',
}
FORKS = {
    f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}, "b": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(40)
}
TOOLS = {
    "flat": [
        {"name": "f", "description": "F", "parameters": {"x": {"description": "X", "type": "str", "default": "a"}}}
    ],
    "openai": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "F",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "x": {"type": ["string", "null"], "enum": ["a", None], "description": "X"},
                        "y": {
                            "type": "array",
                            "items": {"anyOf": [{"type": "integer", "minimum": 0}, {"$ref": "#/$defs/d"}]},
                        },
                    },
                    "required": ["x"],
                    "$defs": {"d": {"type": "object", "properties": {"z": {"type": "number"}}}},
                },
            },
        }
    ],
    "mcp": {
        "tools": [
            {"name": "f", "inputSchema": {"type": "object", "properties": {"x": {"type": "boolean", "const": True}}}}
        ]
    },
    "forks": [
        {"name": "f", "inputSchema": {"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": FORKS | {"d40": {}}}}
    ],
    "cycle": [
        {
            "name": "f",
            "inputSchema": {
                "properties": {"x": {"$ref": "#/$defs/a"}},
                "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}},
            },
        }
    ],
    "elsewhere": [{"name": "f", "inputSchema": {"properties": {"x": {"$ref": "http://192.0.2.1/x.json"}}}}],
}
MESSAGE = {"choices": [{"text": "[]", "finish_reason": "stop", "message": {"role": "assistant", "content": "[]", "tool_calls": [
    {"type": "function", "function": {"name": "f", "arguments": "{}"}}]}}], "usage": {"completion_tokens": 1}}  # fmt: skip
STATUS = [*[200] * 12, 204, 400, 401, 404, 418, 422]  # those that are sent again take seconds
SENT = {
    "as it is": lambda body: body,
    "closed early": lambda body: body,  # with the length of more
    "of megabytes": lambda body: body.replace(b"[]", b"[" + b" " * 5_000_000 + b"]", 1),
    "of nested lists": lambda body: b'{"choices":' + b"[" * 100_000,
    "cut": lambda body: body[: len(body) // 2],
    "nothing": lambda body: b"",
    "no text": lambda body: b"\xff\xfe\0" * 100,
    "said to be compressed": lambda body: body,
    "a page": lambda body: b"<html><script>alert(1)</script>",
}


def write_out(text):
    return text.replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000).replace(f'"{DIGITS}"', "9" * 5000)


def encoded(value):
    """A value as JSON, which YAML is too."""
    return write_out(json.dumps(value)).encode()


def decoded(value):
    """A row or a record with the JSON in its strings as values, which are read all the same."""
    if isinstance(value, dict):
        return {
            key: json.loads(inner) if key in ("tools", "answers") and isinstance(inner, str) else decoded(inner)
            for key, inner in value.items()
        }
    return value


def read_value(path):
    """The value in a JSON or YAML file, the first record of JSON lines; None of a file of another
    kind."""
    if path.suffix == ".jsonl":
        return json.loads(path.read_text().split("\n")[0])
    if path.suffix in (".json", ".yaml"):
        return yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())
    return None


def key_paths(value, path=()):
    """The paths of all values in a JSON value; of a list the first two elements', of an object with
    hundreds of keys three's."""
    yield path
    if isinstance(value, dict | list):
        items = [*(value.items() if isinstance(value, dict) else enumerate(value[:2]))]
        for key, inner in items[: 3 if len(items) > 100 else None]:
            yield from key_paths(inner, (*path, key))


def edit(value, path, change):
    """The value with another at a path, or without it if that is "remove"."""
    if not path:
        return {} if change == "remove" else change[1]
    copy = value.copy()
    if len(path) == 1 and change == "remove":
        copy.pop(path[0])
    else:
        copy[path[0]] = edit(copy[path[0]], path[1:], change)
    return copy


@st.composite
def changes(draw, path):
    """What becomes of a file: `(kind, what)`."""
    kinds = ["bytes", "place"]
    value = read_value(path)
    if isinstance(value, dict | list):
        kinds += ["value", "value", "value", "value", "laughs"] if path.suffix == ".yaml" else ["value"] * 4
    if path.suffix == ".safetensors":
        kinds += ["tensors"] * 2
    kind = draw(st.sampled_from(kinds))
    if kind == "value":
        where = draw(st.sampled_from([*key_paths(value)]))
        return kind, where, draw(st.just("remove") | st.tuples(st.just("to"), VALUES))
    if kind == "laughs":
        return kind, draw(st.sampled_from(sorted(value)))
    return kind, draw(st.sampled_from(sorted({"bytes": BYTES, "place": PLACES, "tensors": TENSORS}[kind])))


def change_file(path, kind, what, *more):
    if kind == "place":
        path.unlink()
        put(path, what)
    elif kind == "bytes":
        path.write_bytes(BYTES[what](path.read_bytes()))
    elif kind == "tensors":
        save_file(TENSORS[what](load_file(path)), path, {"format": "pt"})
    elif kind == "laughs":  # nine lists of the one before: a billion values, if all are visited
        value = read_value(path)
        value.pop(what)
        levels = ["&a0 [x, x]", *(f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]
        path.write_text(yaml.safe_dump(value) + f"{what}: [{', '.join(levels)}]\n")
    else:
        value = edit(read_value(path), what, *more)
        if path.suffix == ".jsonl":
            _, *others = path.read_text().splitlines(keepends=True)
            path.write_bytes(encoded(value) + b"\n" + "".join(others).encode())
        else:
            path.write_bytes(encoded(value))


def put(path, place):
    """Something else than a file at a path."""
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    elif place in ("loop", "dangling", "null"):
        path.symlink_to({"loop": path, "dangling": "nowhere", "null": "/dev/null"}[place])


# ---------------------------------- inputs of each kind ----------------------------------


class Valid(NamedTuple):
    """A base, rows, and a run with an evaluation, all valid."""

    base: Path
    rows: Path
    run: Path

    def flags(self, script):
        adapter = {"adapter": self.run / "adapter"}
        return {
            "train": {
                "model_name_or_path": self.base,
                "dataset_name": self.rows,
                "output_dir": "out",
                "max_train_steps": 2,
                "quantization": "none",
                "gradient_checkpointing": "false",
                "lora_r": 4,
                "lora_dropout": 0,
                "max_seq_length": 2048,
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 1,
            },
            "evaluate": adapter
            | {"systems": ["prompted", "adapter"], "num_examples": 2, "max_new_tokens": 4, "output_dir": "out"},
            "infer": adapter | {"query": "Is it raining?", "tools": "tools.json", "max_new_tokens": 4},
            "export": adapter | {"output_dir": "out", "dtype": "fp32"},
        }[script]


class Input(NamedTuple):
    """A hostile input: files copied to where the script runs, one of them changed, and the
    flags."""

    kind: str
    flags: dict
    copies: tuple = ()  # (name, path of a file or folder)
    texts: tuple = ()  # (name, content)
    changed: tuple = ()  # (name, *change)
    place: tuple = ()  # (name, place)
    answer: tuple = ()  # (status, JSON, sent) of a server


@st.composite
def inputs(draw, script, kind, valid):
    """An Input of a script, of a kind."""
    flags = valid.flags(script)
    copies, texts, changed, place, answer = {}, {}, (), (), ()

    def change_one_of(paths):
        """Draw a file of `copies` and a change, the names relative to the folder in which the
        script runs."""
        name, path = draw(st.sampled_from(paths))
        return (name, *draw(changes(path)))

    def files_in(name, folder):
        return [
            (f"{name}/{path.name}", path)
            for path in sorted(folder.iterdir())
            if path.is_file() and "tfevents" not in path.name
        ]

    if kind == "rows":
        flag = {"train": "dataset_name", "evaluate": "dataset_name", "infer": "input"}[script]
        if script == "infer":
            flags = {name: value for name, value in flags.items() if name not in ("query", "tools")} | {
                "output": "calls.jsonl"
            }
        name = draw(st.sampled_from(["rows.jsonl", "rows.jsonl", "rows.json", "rows.parquet", "place"]))
        if name == "rows.parquet":
            texts[name] = draw(st.sampled_from(sorted(PARQUET)))
        elif name == "place":
            name = draw(st.sampled_from(["..", "/", ".", "", "~", "/dev/null", "demo/", "rows.json", "x" * 300]))
        else:
            copies[name] = valid.rows.with_name(name)
            changed = change_one_of([(name, copies[name])])
        flags[flag] = name
    elif kind in ("adapter", "base", "evaluation", "checkpoint", "rescore", "compare", "continued"):
        source = {"adapter": valid.run / "adapter", "base": valid.base}.get(kind, valid.run)
        if kind in ("rescore", "compare", "continued"):
            source = valid.run / "evaluation"
        copies[kind] = source
        files = files_in(kind, source)
        if kind == "evaluation":
            flags["adapter"] = "evaluation/adapter"
            found = files_in("evaluation/evaluation", source / "evaluation")
            files = [(name, path) for name, path in found if path.suffix in (".json", ".yaml")]
        elif kind == "checkpoint":
            flags |= {
                "output_dir": kind,
                "resume_from_checkpoint": draw(st.sampled_from(["latest", "checkpoint/checkpoint-1"])),
            }
            files += files_in("checkpoint/checkpoint-1", source / "checkpoint-1")
        else:
            flags |= {
                "adapter": {"adapter": "adapter"},
                "base": {"model_name_or_path": "base"},
                "rescore": {"rescore": "rescore"},
                "compare": {"compare": [valid.run / "evaluation", "compare"]},
                "continued": {"output_dir": "continued"},
            }[kind]
        changed = change_one_of(files)
    elif kind == "tools":
        texts["tools.json"] = encoded(TOOLS[draw(st.sampled_from(sorted(TOOLS)))])
    elif kind == "python":
        texts["tools.py"] = PYTHON[draw(st.sampled_from(sorted(PYTHON)))].encode("utf-8", "surrogatepass")
        flags["tools"] = "tools.py"
    elif kind == "endpoint":
        answer = (
            draw(st.sampled_from(STATUS)),
            draw(edits_of(MESSAGE)),
            draw(st.sampled_from(["as it is"] * 10 + sorted(SENT))),
        )
        flags |= {
            "systems": ["endpoint"],
            "endpoint_model": "m",
            "endpoint_api": draw(st.sampled_from(["completions", "chat"])),
        }
    elif kind == "recipe":
        recipe = {name: value if isinstance(value, int | list) else str(value) for name, value in flags.items()}
        field = draw(st.sampled_from(free_fields(script)))
        texts["recipe.yaml"] = encoded(
            recipe | {field.name: draw(VALUES.filter(lambda value: value is not None) | words_for(field))}
        )
        flags = {"config": "recipe.yaml"}
    elif kind == "flags":
        field = draw(st.sampled_from(free_fields(script)))
        flags[field.name] = draw(words_for(field))
    else:
        name = draw(
            st.sampled_from(
                ["out", "out/in/it", "incomplete-out", "/dev/null", "/proc/x", "", ".", "x" * 300, "adapter"]
            )
        )
        flag = "output" if script == "infer" else "output_dir"
        if script == "infer":
            flags |= {"input": valid.rows}
        flags[flag] = name
        copies["adapter"] = valid.run / "adapter"
        if name in ("out", "incomplete-out"):
            place = "out" if script == "infer" else name, draw(st.sampled_from(["file", "full", *PLACES]))
            flags[flag] = "out"
    if script == "infer" and flags.get("tools") == "tools.json" and kind != "tools":
        texts["tools.json"] = encoded(TOOLS["flat"])
    if kind == "tools":
        more = {}, {"constrained": "true", "max_new_tokens": 64}, {"format": "openai", "strict": "true"}
        flags |= draw(st.sampled_from(more))
    if kind == "tools" and draw(st.booleans()):
        texts["tools.json"] = draw(st.sampled_from(sorted(BYTES)).map(lambda name: BYTES[name](texts["tools.json"])))
    elif kind == "tools":
        texts["tools.json"] = encoded(draw(edits_of(json.loads(texts["tools.json"]))))
    return Input(kind, flags, tuple(copies.items()), tuple(texts.items()), changed, place, answer)


def free_fields(script):
    """The flags that may have any value: none that trains or generates for ever as told, writes
    elsewhere or runs a stranger's code."""
    others = {"max_train_steps", "num_train_epochs", "stop_after_steps", "max_new_tokens", "output_dir", "output"}
    others |= {
        "trust_remote_code",
        "interactive",
        "endpoint",
        "num_examples",
        "torch_compile",
        "liger_kernel",
        "config",
    }
    others |= {"push_to_hub"}
    return [field for field in dataclasses.fields(SCRIPTS[script]) if field.name not in others]


def words_for(field):
    """Words for a flag, most of them of its type."""
    kinds = {field.type, *typing.get_args(field.type)}
    choices = sorted({word for kind in kinds for word in typing.get_args(kind) if isinstance(word, str)})
    words = ["true", "false"] if field.type is bool else choices or (NUMBERS if kinds & {int, float} else WORDS)
    return st.sampled_from(words) | st.sampled_from(words) | st.sampled_from(WORDS + NUMBERS)


@st.composite
def edits_of(draw, value):
    path = draw(st.sampled_from([*key_paths(value)]))
    return edit(value, path, draw(st.just("remove") | st.tuples(st.just("to"), VALUES)))


def draw_inputs(script, kind, valid, count):
    """`count` different ones, the same every time."""
    found = {}

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=4 * count, phases=[Phase.generate], database=None, suppress_health_check=[*HealthCheck]
    )
    @hypothesis.given(inputs(script, kind, valid))
    def collect(drawn):
        found.setdefault(repr(drawn), drawn)

    collect()
    assert len(found) >= count
    # Hypothesis begins with the simplest and then varies what it has found: some from everywhere.
    return [*found.values()][:: len(found) // count][:count]


def write_input(hostile, folder):
    """Make the files of an Input in a new folder."""
    folder.mkdir(parents=True)
    for name, path in hostile.copies:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / name)
    for name, content in hostile.texts:
        if name.endswith(".parquet"):
            table = PARQUET[content]
            rows = max(map(len, table.values()))
            columns = {
                key: column if len(column) == rows else [*column, *[None] * rows][:rows]
                for key, column in table.items()
            }
            pyarrow.parquet.write_table(pyarrow.table(columns), folder / name)
        else:
            (folder / name).write_bytes(content)
    if hostile.changed:
        name, *change = hostile.changed
        change_file(folder / name, *change)
    if hostile.place:
        name, place = hostile.place
        if place == "file":
            (folder / name).write_text("another's")
        elif place == "full":
            (folder / name).mkdir()
            (folder / name / "another's").write_text("another's")
        else:
            put(folder / name, place)


# ---------------------------------- the machinery ----------------------------------


@pytest.fixture(scope="module")
def run_jobs():
    """`run_jobs([job])`: their results; see hostile/forks.py."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "tests" / "hostile"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NETWORK_LOG": os.devnull,
    }
    environment.pop("HF_HUB_OFFLINE", None)  # so that whoever asks the hub is seen
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "hostile" / "forks.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )

    def run(jobs):
        process.stdin.write(json.dumps(jobs) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait()


def job(script, flags, folder, command=None):
    seconds = LAUNCH_SECONDS if command else SECONDS
    return {
        "script": f"{script}.py",
        "argv": command_line(flags),
        "folder": str(folder),
        "seconds": seconds,
        "command": command,
    }


@pytest.fixture(scope="module")
def valid(tiny_model, rows_file, run_jobs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid")
    records = [decoded(json.loads(line)) for line in rows_file.read_text().splitlines()[:40]]
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows.with_suffix(".json").write_text(json.dumps(records))
    valid = Valid(tiny_model, rows, folder / "run")
    flags = valid.flags("train") | {"output_dir": valid.run, "stop_after_steps": 1}
    evaluation = valid.flags("evaluate") | {"output_dir": valid.run / "evaluation"}
    for script, given in (("train", flags), ("evaluate", evaluation)):
        (result,) = run_jobs([job(script, given, folder)])
        assert result["code"] == 0, (folder / "stderr").read_text()
    return valid


class Answers(BaseHTTPRequestHandler):
    """A server that answers /<number>/v1/... with the answer of that number."""

    answers: dict = {}  # noqa: RUF012

    def do_POST(self):
        status, value, sent = self.answers[self.path.split("/")[1]]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = SENT[sent](encoded(value))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) + 100 * (sent == "closed early")))
        if sent == "said to be compressed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # another answer has ended the script
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def sizes(folder):
    return {path: path.lstat().st_size for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink()}


def problems(script, result, folder, before):
    """What is wrong with how a job ended, in words; nothing if all is well."""
    out, err = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    code = result["code"]
    if result["timed_out"]:
        yield f"not done in {result['seconds']} s: {err[-1500:]}"
    elif code not in (0, 1, 2):
        yield f"exit code {code}: {err[-1500:]}"
    if "Traceback" in out + err:
        yield (out + err)[(out + err).index("Traceback") :][-1500:]
    elif code in (1, 2) and not re.search(rf"^{script}\.py: error: .+\Z", err.strip().split("\n")[-1]):
        yield f"exit code {code}, and no line with the reason: {err[-500:]}"
    if result["peak"] > 8:
        yield f"{result['peak']} GiB of memory"
    if (folder / "network").exists():
        yield f"network: {(folder / 'network').read_text()[:300]}"
    after = sizes(folder)
    if left := [
        str(path) for path in after.keys() - before.keys() if "incomplete" in path.name or "incomplete-" in str(path)
    ]:
        yield f"left behind: {', '.join(left)}"
    if (
        script == "export"
        and code
        and (new := [path for path in after.keys() - before.keys() if path.parent != folder])
    ):
        yield f"an export that failed left {new[0]}"
    if lost := [str(path) for path in before.keys() - after.keys()]:
        yield f"deleted: {', '.join(lost)}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_hostile_input_is_more_than_a_line_of_refusal(script, valid, server, run_jobs, tmp_path):
    jobs, before, described = [], [], []
    drawn = [hostile for kind, count in INPUTS[script].items() for hostile in draw_inputs(script, kind, valid, count)]
    for number, hostile in enumerate(drawn):
        name = f"{script}:{number}"
        if os.environ.get("HOSTILE_INPUT", name) != name:
            continue
        folder = tmp_path / str(number)
        write_input(hostile, folder)
        if hostile.answer:
            Answers.answers[name] = hostile.answer
            hostile.flags["endpoint"] = f"{server}/{name}/v1"
        command = None
        if number % EVERY == 0:
            launcher = [sys.executable]
            if script in ("train", "evaluate") and number % (2 * EVERY) == 0:
                launcher += ["-m", "accelerate.commands.launch", "-q", "--num_processes=1", "--config_file"]
                launcher += [str(ROOT / "accelerate_configs" / "cpu.yaml")]
            command = [*launcher, str(ROOT / f"{script}.py"), *command_line(hostile.flags)]
        jobs.append(job(script, hostile.flags, folder, command))
        before.append(sizes(folder))
        described.append(f"{name} ({hostile.kind}) {repr(hostile)[:400]}\n    in {folder}")
    results = run_jobs(jobs)
    found = [
        f"{text}\n    {problem}"
        for text, one, result, files in zip(described, jobs, results, before, strict=True)
        for problem in problems(script, result, Path(one["folder"]), files)
    ]
    launched = sum(bool(one["command"]) for one in jobs)
    most = {name: max((result[name] for result in results), default=0) for name in ("seconds", "peak")}
    print(
        f"{script}: {len(jobs)} inputs, {launched} by real launches; at most {most['seconds']} s and {most['peak']} GiB"
    )
    assert not found, f"{len(found)} of {len(jobs)} (HOSTILE_INPUT=script:number repeats one):\n" + "\n".join(found)
