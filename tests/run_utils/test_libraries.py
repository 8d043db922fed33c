"""What a script imports, and the seconds of its parts."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, launch

from run_utils.libraries import compile_at_first_call, hidden

# Above all the compiler, which took two seconds, and packages of evaluation, rows and curves.
UNUSED = {
    *("torch._inductor.compile_fx", "networkx", "scipy", "sklearn", "pandas", "pyarrow", "datasets", "tensorboard"),
    *("rich", "xgrammar", "eval_utils"),
}


def test_a_script_outside_the_environment_ends_in_one_line(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    for script in ("train", "evaluate", "infer", "export", "inspect_data", "sweep"):
        done = subprocess.run([tmp_path / "bin" / "python", f"{script}.py"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and re.fullmatch(
            rf"{script}\.py: error: {tmp_path}/bin/python has no \w+: type `\. \.venv/bin/activate` first, .*\n",
            done.stderr,
        )


def test_other_errors_of_a_script_keep_their_traceback():
    code = "import run_utils\nimport no_such_package"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" in done.stderr and "No module named 'no_such_package'" in done.stderr


@pytest.mark.parametrize("system", ["prompted", "adapter"])
def test_one_query_imports_nothing_that_it_does_not_use(demo_adapter, system):
    """infer.py as a user starts it; --verbose accounts for its seconds."""
    code = (
        "import runpy, sys\nsys.path.insert(0, '.')\n"
        "try:\n    runpy.run_path('infer.py', run_name='__main__')\n"
        f"finally:\n    print('imported', {UNUSED} & set(sys.modules))"
    )
    flags = ["--query", "Roll a die.", "--tools", "demo/math_tools.json", "--adapter", demo_adapter, "--verbose"]
    command = [sys.executable, "-c", code, *flags, "--system", system, "--max_new_tokens", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "imported set()", done.stderr
    lines = re.findall(r"^ *(\d+\.\d\d) s  (.*)$", done.stderr, flags=re.MULTILINE)
    parts = {part.split(":")[0]: float(seconds) for seconds, part in lines}
    assert len(parts) == len(lines)
    whole = parts.pop("in all")
    assert abs(sum(parts.values()) - whole) < 0.1
    named = {
        "import of torch",
        "import of transformers",
        "tokenizer",
        "weights",
        "check of the generation",
        "generation",
    }
    assert named <= parts.keys() and (system == "adapter") == ("merge" in parts) and parts["the rest"] < whole / 10
    assert re.search(r"generation: \d+ tokens, \d+\.\d a second", done.stderr)


def test_a_training_says_where_the_seconds_before_its_first_step_went(flags):
    result = launch("train.py", flags | {"max_train_steps": 1})
    ((whole, line),) = re.findall(r"^Ready after (\d+\.\d) s: (.*)$", result.out, flags=re.MULTILINE)
    parts = dict(part.rsplit(" ", 1) for part in line.split(", "))
    assert {"import of torch", "import of transformers"} <= parts.keys()
    assert abs(sum(map(float, parts.values())) - float(whole)) < 1.5  # it leaves out parts below a tenth
    assert result.out.index("Ready after") < result.out.index("step 1/1")


@pytest.mark.parametrize(
    ("own", "seen"), [({}, "expandable_segments:True"), ({"PYTORCH_ALLOC_CONF": "backend:native"}, None)]
)
def test_gpu_memory_grows_in_blocks_unless_the_user_chose(own, seen):
    """Set before torch is imported."""
    code = (
        "import os, sys\nfrom run_utils.libraries import load_libraries\n"
        "class Watch:\n    def find_spec(self, name, *args):\n"
        "        if name == 'torch':\n            sys.exit(print(os.environ.get('PYTORCH_CUDA_ALLOC_CONF')))\n"
        "sys.meta_path.insert(0, Watch())\nload_libraries()"
    )
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment | own, capture_output=True, text=True)
    assert done.stdout == f"{seen}\n", done.stderr


def test_a_hidden_package_is_absent_and_then_there():
    sys.modules.pop("colorsys", None)
    with hidden("colorsys"), pytest.raises(ImportError):
        import colorsys
    import colorsys

    with hidden("colorsys"):  # imported before: others hold it anyway
        assert sys.modules["colorsys"] is colorsys


def test_a_function_compiled_at_its_first_call_is_compiled(monkeypatch):
    import torch

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(options) or function)

    @compile_at_first_call(dynamic=False)
    def double(x):
        """Twice x."""
        return 2 * x

    assert compiled == [] and double.__doc__ == "Twice x."
    assert double(3) == 6 and double(x=4) == 8 and compiled == [{"dynamic": False}]
    assert compile_at_first_call(len)([1]) == 1 and compiled == [{"dynamic": False}, {}]
