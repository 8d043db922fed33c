"""Defaults, recipes and flags. Wrong use ends in one line with the right exit code."""

import dataclasses
import importlib
import itertools
import re
import shlex
import signal
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml
from conftest import ROOT, launch
from transformers import HfArgumentParser

import train
from evaluate import EvaluationArguments
from export import ExportArguments
from infer import InferenceArguments
from inspect_data import InspectionArguments
from run_utils.arguments import (
    ArgumentParser,
    arguments_of,
    as_yaml,
    compared_arguments,
    parse_arguments,
    value_options,
)
from run_utils.errors import UsageError, run_script
from run_utils.signals import Stopped, handle_signals
from sweep import SweepArguments
from train import TrainingArguments

SCRIPTS = {
    "train": TrainingArguments,
    "evaluate": EvaluationArguments,
    "infer": InferenceArguments,
    "export": ExportArguments,
    "sweep": SweepArguments,
    "inspect_data": InspectionArguments,
}


def parse(*argv):
    return parse_arguments(TrainingArguments, "", "demo.yaml", list(argv))


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_flags_override_the_recipe_which_overrides_the_defaults(recipe):
    path = recipe(
        "learning_rate: 2e-4\nseed: 7\nlora_target_modules: [q_proj, v_proj]\nmax_train_steps: null\ndtype: bf16\n"
    )
    args = parse("--config", path, "--seed", "8", "--no_gradient_checkpointing")
    assert (args.learning_rate, args.seed, args.lora_target_modules) == (2e-4, 8, ["q_proj", "v_proj"])
    assert (args.max_train_steps, args.dtype, args.gradient_checkpointing) == (None, "bf16", False)
    assert args.lora_r == TrainingArguments().lora_r


def test_args_yaml_has_the_order_of_the_help_and_text_as_it_is_written():
    text = as_yaml(parse("--output_dir", "läufe", "--dataset_name", "北京.jsonl"))
    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    assert "output_dir: läufe\n" in text and "dataset_name: 北京.jsonl\n" in text
    assert list(yaml.safe_load(text)) == [name for name in names if f"{name}:" in text.split()]


def test_the_reference_recipe_has_only_changed_defaults():
    """A repeated default would hide an edit of that default."""
    path = ROOT / "recipes" / "qwen3_4b_qlora.yaml"
    args, defaults = vars(parse("--config", str(path))), vars(TrainingArguments())
    assert {name for name in args if args[name] != defaults[name]} == {"config", "max_eval_examples"}
    assert set(yaml.safe_load(path.read_text())) == {"max_eval_examples"}
    assert "\n# stop_after_steps: 2900" in path.read_text()


def test_the_fast_recipe_is_the_same_experiment():
    reference, fast = (
        vars(parse("--config", str(ROOT / "recipes" / f"qwen3_4b_{name}.yaml"))) for name in ("qlora", "fast")
    )
    assert {name for name in reference if reference[name] != fast[name]} == {
        *("config", "output_dir", "quantization", "gradient_checkpointing", "torch_compile", "cuda_graphs"),
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    }
    batches = [r["per_device_train_batch_size"] * r["gradient_accumulation_steps"] for r in (reference, fast)]
    assert batches[0] == batches[1]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_parses(path):
    scripts = {
        "demo_evaluate.yaml": EvaluationArguments,
        "demo_evaluate_unseen.yaml": EvaluationArguments,
        "demo_infer.yaml": InferenceArguments,
        "demo_export.yaml": ExportArguments,
    }
    parse_arguments(scripts.get(path.name, TrainingArguments), "", "demo.yaml", ["--config", str(path)])


def test_the_arguments_of_a_script_are_read_without_its_libraries():
    of_training = as_fields(TrainingArguments)
    assert as_fields(arguments_of("train.py")) == of_training == as_fields(InspectionArguments)[: len(of_training)]
    with pytest.raises(UsageError, match="--warmup_ratio must be"):
        arguments_of("train.py")(warmup_ratio=2)


def as_fields(arguments_class):
    return [(field.name, field.type, field.default, field.metadata) for field in dataclasses.fields(arguments_class)]


def test_naming_the_default_model_and_rows_does_not_start_the_demo():
    defaults = TrainingArguments()
    args = parse(f"--model_name_or_path={defaults.model_name_or_path}", "--dataset_name", defaults.dataset_name)
    assert args == defaults


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_the_docstring_and_each_flag_once_with_its_default(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--help"])
    module = importlib.import_module(script)
    with pytest.raises(SystemExit) as stop:
        module.parse()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert module.__doc__.strip() in shown
    fields = dataclasses.fields(SCRIPTS[script])
    groups = [field.metadata["group"] for field in fields if field.metadata["group"]]
    assert len(groups) >= 1 and all(f"\n{group}:\n" in shown for group in groups)
    flags = re.findall(r"(?:^  |\]   )--(\w+)[^[]*\[([^]]*)(?=\])", shown, flags=re.MULTILINE)
    defaults = [(name, " ".join(values.split()).split(" | ")[0]) for name, values in flags]
    words = {"None": "not set", "True": "true", "False": "false"}
    assert defaults == [(field.name, words.get(str(field.default), str(field.default))) for field in fields]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_parses_before_it_loads_its_libraries(script):
    heavy = {"torch", "transformers", "datasets", "scipy", "accelerate"}
    code = (
        f"import runpy, sys\nsys.argv = ['{script}.py', '--help']\n"
        f"try:\n    runpy.run_path('{script}.py', run_name='__main__')\n"
        f"except SystemExit as stop:\n    print(stop.code, {heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_reports_recipe_and_imports_and_stops_at_sigterm(script):
    process = subprocess.Popen([sys.executable, f"{script}.py"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines = [process.stderr.readline(), process.stderr.readline()]
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert lines[0].startswith("No model, data or --config named: running the embedded demo, recipes/demo")
    assert lines[1] == "Loading PyTorch and transformers ...\n"
    assert process.stderr.read() == f"{script}.py: stopped by SIGTERM\n"


class Oracle(HfArgumentParser):
    """HfArgumentParser on a copy of the dataclass, because it changes the fields' types."""

    def __init__(self, arguments_class):
        fields = [(f.name, f.type, dataclasses.field(default=f.default)) for f in dataclasses.fields(arguments_class)]
        # It reads a list's default from a factory alone.
        fields = [
            (name, kind, dataclasses.field(default_factory=lambda value=field.default: value))
            if kind == list[str] | str
            else (name, kind, field)
            for name, kind, field in fields
        ]
        super().__init__(dataclasses.make_dataclass("Arguments", fields), allow_abbrev=False)

    def error(self, message):
        raise UsageError(f"{message} (see --help)")


PARSERS = {script: (Oracle(fields), ArgumentParser(fields, "")) for script, fields in SCRIPTS.items()}
FITTING = {int: ("1", "-1", "007"), float: ("0.5", "-1", "1e-3", "nan"), str: ("a=b", "1", "-1", "two words", "")}
WILD = ("", "-", "--", "true", "nan", "none", "1.5", "stray", "--stray")


@st.composite
def command_lines(draw):
    """A script and flags; one flag in three may be misspelt or have wrong or too many values."""
    script = draw(st.sampled_from(sorted(SCRIPTS)))
    words = []
    for field in draw(st.lists(st.sampled_from(dataclasses.fields(SCRIPTS[script])), min_size=1, max_size=4)):
        options = value_options(field.type)
        fitting = options.get("choices") or FITTING.get(options["type"], ("true", "No", "y", "0", "F"))
        least, most = {"?": (0, 1), "+": (1, 3)}.get(options.get("nargs"), (1, 1))
        values = draw(st.lists(st.sampled_from(fitting), min_size=least, max_size=most))
        name = field.name
        if field.default is True and draw(st.booleans()):
            name, values = f"no_{name}", []
        if draw(st.sampled_from(range(3))) == 2:
            name = draw(st.sampled_from([name, name[:-1], f"no_{name}"]))
            values = draw(st.sampled_from([[], *([word] for word in WILD), *([word, "stray"] for word in WILD)]))
        flag = "--" + draw(st.sampled_from([name, name.replace("_", "-")]))
        words += [f"{flag}={values[0]}", *values[1:]] if values and draw(st.booleans()) else [flag, *values]
    return script, words


@hypothesis.settings(max_examples=300)
@hypothesis.given(command_lines())
@hypothesis.example(("evaluate", ["--systems"]))
@hypothesis.example(("train", ["--no_torch_compile"]))
@hypothesis.example(("train", ["--no-gradient-checkpointing=true"]))
def test_flags_are_read_as_transformers_reads_them(line):
    """HfArgumentParser gives the same values, unknown words and error messages."""
    script, words = line
    expected, found = (outcome(parser, words) for parser in PARSERS[script])
    assert found == expected


def outcome(parser, words):
    try:
        values, unknown = parser.parse_known_args(words)
    except UsageError as error:
        return str(error)
    return repr(vars(values)), unknown  # as texts: nan != nan


def test_the_dataclass_has_the_values_of_transformers():
    words = shlex.split(
        "--dataset-name rows.jsonl --seed 7 --learning_rate 2e-4 --no_gradient_checkpointing --torch_compile yes "
        "--lora_target_modules q_proj v_proj --max_train_steps=3 --lr-scheduler-type linear"
    )
    (expected,) = PARSERS["train"][0].parse_args_into_dataclasses(words, look_for_args_file=False)
    expected.dataset_name = "rows.jsonl"  # a list of one
    assert vars(parse(*words)) == vars(expected)
    assert (expected.torch_compile, expected.gradient_checkpointing, expected.max_train_steps) == (True, False, 3)


def test_the_demo_runs_unless_a_model_or_data_set_is_named(capsys):
    assert parse().dataset_name == "demo"
    assert "recipes/demo.yaml" in capsys.readouterr().err
    assert parse("--seed", "1").model_name_or_path == "demo"
    assert parse("--dataset_name", "rows.jsonl").model_name_or_path == TrainingArguments().model_name_or_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown key 'learning_rat': did you mean learning_rate?"),
        ("seed: abc", "--seed"),
        ("quantization: nf5", "nf5"),
        ("gradient_checkpointing: maybe", "maybe"),
        ("lora_r: {a: 1}", "must be a value or a list"),
        ("lora_target_modules: []", "must be a value or a list"),
        ("per_device_train_batch_size: 1.5", "1.5"),
        ("config: other.yaml", "unknown key 'config'"),
        ("- a", "must hold"),
        ("", "must hold"),
        ("a: [", "not valid YAML"),
        ("learning_rate: -1", "--learning_rate must be above 0"),
        ("save_total_limit: " + "9" * 400, "--save_total_limit is beyond 9,223,372,036,854,775,807"),
        ("learning_rate: &a [*a]", "its aliases make more than 100,000 values"),
        (
            "a: [&a [x, x, x, x, x, x, x, x, x], "
            + ", ".join(f"&{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghij"))
            + "]",
            "its aliases make more than 100,000 values",
        ),
    ],
)
def test_a_bad_recipe_is_refused_by_name(recipe, text, message):
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        parse("--config", recipe(text))
    assert ("\n" not in str(error.value) and "recipe.yaml" in str(error.value)) or text.startswith(
        ("learning_rate", "save_total")
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rat", "1"], "unknown argument --learning_rat: did you mean --learning_rate?"),
        (["--learning_rate", "nan"], "--learning_rate must be above 0, not nan"),
        (["--learning_rate", "inf"], "--learning_rate must be above 0, not inf"),
        (["--per_device_train_batch_size", "-2"], "--per_device_train_batch_size must be above 0, not -2"),
        (["--per_device_train_batch_size", "two"], "invalid int value: 'two'"),
        (["--lora_dropout", "1"], "--lora_dropout must be at least 0 and below 1"),
        (["--quantization", "fp4"], "fp4"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--config", "absent.yaml"], "cannot read absent.yaml"),
        (["--config", "recipes/demo.yml"], "No such file or directory: did you mean recipes/demo.yaml?"),
        (["--overwrite_output_dir", "--resume_from_checkpoint", "latest"], "contradict"),
        (["--cuda_graphs", "--gradient_checkpointing"], "switch one of them off"),
        (["--torch_compile", "--liger_kernel"], "switch one of them off"),
        *[(["--profile_steps", steps], f"like 5:7, not {steps}") for steps in ("5", "0:2", "7:5", "a:b", "1:2:3")],
        (["--seed"], "expected one argument"),
        (["stray"], "unknown argument stray"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(run_here, argv, message):
    result = run_here(train, argv)
    assert result.code == 2
    lines = [line for line in result.err.strip().splitlines() if "embedded demo" not in line]
    assert len(lines) == 1 and lines[0].startswith("train.py: error: ") and message in lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_name": "absent.jsonl"}, "absent.jsonl: no such file"),
        ({"dataset_name": "some/rows"}, "cannot load the data set some/rows"),
        ({"model_name_or_path": "absent"}, "absent: no such model folder"),
        ({"model_name_or_path": "some/model"}, "some/model"),
        ({"resume_from_checkpoint": "absent"}, "absent: no checkpoint there"),
        ({"dataset_name": "demo/world.jsonl"}, "demo/world.jsonl: no such file"),
        ({"model_name_or_path": "demo/bas"}, "did you mean demo/base?"),
        ({"output_dir": "README.md"}, "README.md is a file"),
        ({"lora_target_modules": ["q_prj"]}, "cannot add LoRA to q_prj"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(run_here, flags, monkeypatch, change, message):
    monkeypatch.chdir(ROOT)
    result = run_here(train, flags | change)
    assert result.code == 1
    (line,) = result.err.strip().splitlines()
    assert line.startswith("train.py: error: ") and message in line


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_real_launch_prints_the_error_once_without_our_traceback(processes, flags):
    result = launch("train.py", flags | {"dataset_name": "absent.jsonl"}, processes)
    assert result.code != 0
    assert result.err.count("train.py: error: absent.jsonl: no such file") == 1
    assert f'File "{ROOT}/train.py"' not in result.err and f'File "{ROOT}/run_utils/"' not in result.err


def test_without_a_launcher_the_exit_code_is_the_scripts():
    done = subprocess.run([sys.executable, "train.py", "--seed=x"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "invalid int value" in done.stderr and "Traceback" not in done.stderr


def test_the_readmes_training_commands_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^ *(accelerate launch .*?train\.py.*)$", text, flags=re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        before, after = command.split("train.py")
        words = shlex.split(before)
        if "--config_file" in words:
            assert (ROOT / words[words.index("--config_file") + 1]).is_file()
        parse(*shlex.split(after, comments=True))


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_every_launch_file(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]


@pytest.mark.parametrize(
    "message", ["[/pytorch/third_party/gloo/tcp/pair.cc:552] Connection closed by peer", "x/gloo/y\n\nlast words\n "]
)
def test_another_process_that_is_lost_is_one_line_with_the_way_on(capsys, message):
    def main():
        raise RuntimeError(message)

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    (line,) = capsys.readouterr().err.splitlines()
    cause = "last words" if "last" in message else message
    assert stop.value.code == 1 and line.partition(": ")[2] == (
        f"error: lost another process, or the network failed ({cause}): "
        "launch all again, a training with --resume_from_checkpoint latest"
    )


def test_another_runtime_error_is_no_user_s():
    def main():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_script(main)


def test_a_signal_s_exit_code_is_128_and_its_number_and_its_line_names_the_way_on(capsys):
    def main():
        raise Stopped(signal.SIGTERM, "3 of 9 rows are answered")

    with pytest.raises(SystemExit) as stop:
        run_script(main, "the same command goes on")
    assert stop.value.code == 143
    (line,) = capsys.readouterr().err.splitlines()
    assert line.partition(": ")[2] == "stopped by SIGTERM: 3 of 9 rows are answered; the same command goes on"


def test_flags_are_those_behind_the_script_s_name(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--dataset_name", "rows.jsonl", "--seed", "3"])
    assert parse_arguments(TrainingArguments, "", "demo.yaml").seed == 3


@pytest.mark.parametrize(("processes", "ignored"), [("1", False), ("2", True)])
def test_one_of_several_processes_ignores_the_launcher_s_signals_as_it_ends(monkeypatch, processes, ignored):
    def main():
        raise UsageError("refused")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(SystemExit):
        run_script(main)
    after = signal.getsignal(signal.SIGTERM)
    handle_signals(before)
    assert after == (signal.SIG_IGN if ignored else before)


def test_runs_are_compared_by_values_of_the_experiment_s_arguments_without_secrets():
    args = TrainingArguments(
        dataset_name="https://user:secret@host/rows.jsonl", lora_dropout=0, lora_target_modules=["q_proj", "v_proj"],
        output_dir="runs/mine", logging_steps=7, per_device_train_batch_size=8,
    )  # fmt: skip
    arguments, changed = compared_arguments(args, effective_batch=64)
    assert changed == {"dataset_name", "lora_dropout", "lora_target_modules", "effective_batch"}
    assert "secret" not in arguments["dataset_name"] and arguments["lora_target_modules"] == "q_proj, v_proj"
    assert (
        arguments["learning_rate"] == 1e-4 and arguments["torch_compile"] is False and arguments["logging_steps"] == 7
    )
    assert not {"output_dir", "config", "resume_from_checkpoint", "max_train_steps"} & arguments.keys()  # None: not set
