"""A sweep's grid, names and runs, with train.py's own arguments."""

import re
from pathlib import Path

import pytest

import train
from run_utils.arguments import SWEPT, compared_arguments
from run_utils.errors import UsageError, UserError
from run_utils.sweep_plan import configuration_names, experiment, group_by_base, merge_plans, parse_grid, plan_runs

DEMO = ["--config", "recipes/demo.yaml"]


def plan(*grid, seeds=1, flags=DEMO, output_dir=Path("out")):
    parsed = parse_grid(grid, train.TrainingArguments)
    options = {"grid": parsed, "seeds": seeds, "output_dir": output_dir}
    return plan_runs(train.TrainingArguments, train.__doc__, list(flags), **options)


def test_each_point_of_the_grid_has_a_run_of_each_seed_on_one_split():
    runs = plan("learning_rate=1e-4,3e-4", "lora_r=8,32", seeds=2, flags=[*DEMO, "--seed=7", "--max_train_steps", "5"])
    assert [run.name for run in runs[:3]] == ["lr=1e-4,r=8,seed=7", "lr=1e-4,r=8,seed=8", "lr=1e-4,r=32,seed=7"]
    assert len(runs) == 8 and len({run.folder for run in runs}) == 8
    found = {(run.arguments.learning_rate, run.arguments.lora_r, run.arguments.seed) for run in runs}
    assert found == {(rate, rank, seed) for rate in (1e-4, 3e-4) for rank in (8, 32) for seed in (7, 8)}
    assert {run.arguments.split_seed for run in runs} == {7} and {run.arguments.max_train_steps for run in runs} == {5}
    assert {run.arguments.resume_from_checkpoint for run in runs} == {"latest"}
    assert runs[0].folder == Path("out/runs/lr=1e-4,r=8,seed=7") and runs[2].configuration == "lr=1e-4,r=32"
    assert {run.arguments.split_seed for run in plan(seeds=2, flags=[*DEMO, "--split_seed=3"])} == {3}


def test_lists_booleans_recipes_and_paths_are_values_of_a_grid(tmp_path):
    lists = plan("lora_target_modules=q_proj+v_proj,down_proj", "eval_on_start=true,false")
    assert [run.arguments.lora_target_modules for run in lists] == 2 * [["q_proj", "v_proj"]] + 2 * [["down_proj"]]
    assert [run.arguments.eval_on_start for run in lists] == [True, False, True, False]
    assert lists[0].name == "modules=q_proj+v_proj,eval_on_start=true,seed=42"
    recipes = plan("config=recipes/demo.yaml,recipes/smollm2_135m.yaml")
    assert [run.name for run in recipes] == ["config=demo,seed=42", "config=smollm2_135m,seed=42"]
    assert recipes[0].arguments.lora_r == 16 and recipes[1].arguments.model_name_or_path != "demo"
    assert configuration_names([{"dataset_name": "a/rows.jsonl"}, {"dataset_name": "b/rows.jsonl"}]) == [
        "data=a_rows.jsonl", "data=b_rows.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "flags", "message"),
    [
        (["learning_rat=1,2"], DEMO, "--grid: unknown argument 'learning_rat': did you mean learning_rate?"),
        (["learning_rate"], DEMO, "'learning_rate' must be like learning_rate=A,B"),
        (["learning_rate=1,,2"], DEMO, "must be like learning_rate=A,B"),
        (["lora_r=8,8"], DEMO, "has a value twice"),
        (["lora_r=8", "lora_r=9"], DEMO, "--grid names lora_r twice"),
        (["learning_rate=1e-4,0.0001"], DEMO, "lr=0.0001 and lr=1e-4 are the same experiment"),
        (["seed=1,2"], DEMO, "seed cannot vary: --seeds varies it"),
        (["split_seed=1,2"], DEMO, "split_seed cannot vary: all runs are evaluated on the same rows"),
        (["output_dir=a,b"], DEMO, "output_dir cannot vary"),
        (["lora_r=8,0"], DEMO, "r=0,seed=42: --lora_r must be above 0, not 0"),  # the second run's
        (["lora_r=8,many"], DEMO, "r=many,seed=42: argument --lora_r/--lora-r: invalid int value"),
        (["lr_scheduler_type=cosine,cosin"], DEMO, "lr_scheduler_type=cosin,seed=42: argument --lr_scheduler_type"),
        (["best_metric=eval_loss,exact_match"], DEMO, "needs --eval_generate_examples"),
        (["lora_r=8,9"], [*DEMO, "--lora_s=1"], "unknown argument --lora_s"),
        (["lora_r=8,9"], [*DEMO, "--overwrite_output_dir"], "leave out --overwrite_output_dir"),
        (["lora_r=" + ",".join(map(str, range(1, 1002)))], DEMO, "1,001 runs: at most 1,000"),
    ],
)
def test_a_wrong_run_is_refused_by_name_before_the_first_starts(grid, flags, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        plan(*grid, flags=flags)


def test_another_grid_adds_runs_and_another_experiment_is_refused(tmp_path):
    path = tmp_path / "sweep.json"
    assert list(merge_plans(path, plan("lora_r=8,16"))) == ["r=8,seed=42", "r=16,seed=42"]
    assert len(merge_plans(path, plan("lora_r=8,32", "learning_rate=1e-3,1e-4", seeds=2))) == 10
    assert len(merge_plans(path, plan("lora_r=8", flags=[*DEMO, "--save_steps=7"]))) == 10  # free on a resume
    before = path.read_text()
    with pytest.raises(UserError, match="holds a sweep with --weight_decay 0.0, not 0.5: vary it with --grid"):
        merge_plans(path, plan("lora_r=64", flags=[*DEMO, "--weight_decay=0.5"]))
    with pytest.raises(UserError, match="--per_device_train_batch_size x gradient_accumulation_steps 4, not 8"):
        merge_plans(path, plan("lora_r=64", flags=[*DEMO, "--gradient_accumulation_steps=2"]))
    with pytest.raises(UserError, match="--split_seed 42, not 1"):
        merge_plans(path, plan("lora_r=64", flags=[*DEMO, "--seed=1"]))
    assert path.read_text() == before


def test_the_unchanged_run_has_a_value_of_each_argument_that_varies(tmp_path):
    """Also of one that a resume may change, such as the batch's factors: a picture shows it."""
    vary = parse_grid(["per_device_train_batch_size=8,16"], train.TrainingArguments, "--vary")
    options = {"grid": {}, "vary": vary, "seeds": 1, "output_dir": tmp_path}
    runs = plan_runs(train.TrainingArguments, train.__doc__, list(DEMO), **options)
    recorded = merge_plans(tmp_path / "sweep.json", runs)
    sizes = [run["arguments"]["per_device_train_batch_size"] for run in recorded.values()]
    assert sizes == [4, 8, 16] and next(iter(recorded)) == "unchanged,seed=42"


def test_runs_share_a_bases_answers_unless_the_base_the_prompt_or_the_rows_differ():
    assert list(group_by_base(Path("out"), plan("lora_r=8,16", seeds=2))) == [Path("out/base")]
    groups = group_by_base(Path("out"), plan("lora_r=8,16", "prompt_format=tags-1,raw"))
    assert {folder.name: [run.name for run in runs] for folder, runs in groups.items()} == {
        "base-prompt_format=tags-1": ["r=8,prompt_format=tags-1,seed=42", "r=16,prompt_format=tags-1,seed=42"],
        "base-prompt_format=raw": ["r=8,prompt_format=raw,seed=42", "r=16,prompt_format=raw,seed=42"],
    }


def test_a_resume_may_change_what_experiment_leaves_out():
    one, other = plan("lora_r=8", flags=[*DEMO, "--save_steps=3"]), plan("lora_r=8", flags=[*DEMO, "--save_steps=4"])
    assert experiment(one[0].arguments) == experiment(other[0].arguments)
    assert "seed" not in experiment(one[0].arguments) and "lora_r" in experiment(one[0].arguments)


def test_in_a_sweep_the_arguments_that_vary_lead_tensorboards_table(monkeypatch):
    arguments = plan("lora_r=8")[0].arguments
    assert {"lora_r", "learning_rate", "dataset_name"} <= compared_arguments(arguments, 4)[1]
    monkeypatch.setenv(SWEPT, "lora_r,seed")
    assert compared_arguments(arguments, 4)[1] == {"lora_r", "seed"}


def test_vary_changes_one_argument_at_a_time(tmp_path):
    options = {"grid": {}, "seeds": 2, "output_dir": tmp_path}
    vary = parse_grid(["lora_r=8,32", "learning_rate=1e-3"], train.TrainingArguments)
    runs = plan_runs(train.TrainingArguments, train.__doc__, ["--config", "recipes/demo.yaml"], vary=vary, **options)

    assert [run.name for run in runs[::2]] == ["unchanged,seed=42", "r=8,seed=42", "r=32,seed=42", "lr=1e-3,seed=42"]
    changed = [(run.arguments.lora_r, run.arguments.learning_rate) for run in runs[::2]]
    assert changed == [(16, 2e-3), (8, 2e-3), (32, 2e-3), (16, 1e-3)]
