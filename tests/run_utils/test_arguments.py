"""Defaults, recipes and flags; and every wrong use ends in one line with the right exit code."""

import dataclasses
import importlib
import itertools
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, launch

import train
from evaluate import EvaluationArguments
from export import ExportArguments
from infer import InferenceArguments
from run_utils.arguments import UsageError, parse_arguments
from train import TrainingArguments


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


def test_the_reference_recipe_holds_what_differs_from_the_defaults():
    """So that an edited default takes effect."""
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


def test_what_is_named_is_never_taken_for_nothing():
    """Naming the reference model and rows, the defaults, must not start the demo."""
    defaults = TrainingArguments()
    args = parse(f"--model_name_or_path={defaults.model_name_or_path}", "--dataset_name", defaults.dataset_name)
    assert args == defaults


@pytest.mark.parametrize("script", ["train", "evaluate", "infer", "export"])
def test_help_has_the_groups_and_the_examples_as_they_are_written(script, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--help"])
    module = importlib.import_module(script)
    with pytest.raises(SystemExit):
        module.main()
    shown = capsys.readouterr().out
    assert module.__doc__.strip() in shown
    arguments = next(value for name, value in vars(module).items() if name.endswith("Arguments"))
    groups = [field.metadata["group"] for field in dataclasses.fields(arguments) if field.metadata["group"]]
    assert len(groups) >= 1 and all(f"\n{group}:\n" in shown for group in groups)
    assert "free_on_resume" not in shown


def test_nothing_named_is_the_demo_and_anything_named_is_not(capsys):
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
def test_a_real_launch_prints_the_line_first_and_no_traceback_of_ours(processes, flags):
    result = launch("train.py", flags | {"dataset_name": "absent.jsonl"}, processes)
    assert result.code != 0
    assert result.err.count("train.py: error: absent.jsonl: no such file") == 1
    assert f'File "{ROOT}/train.py"' not in result.err and f'File "{ROOT}/run_utils/"' not in result.err


def test_without_a_launcher_the_exit_code_is_ours():
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
def test_every_launch_file_is_one_that_accelerate_reads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]
