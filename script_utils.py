"""What the scripts share that is about neither data nor models: arguments, one-line errors, the launch, provenance."""

import ctypes
import dataclasses
import difflib
import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import HfArgumentParser

ROOT = Path(__file__).resolve().parent
# About this invocation, not about the experiment: never written to args.yaml, so that it can be passed to --config.
INVOCATION = ("config", "overwrite_output_dir", "resume_from_checkpoint")


class UserError(Exception):
    """A failure that the user can mend. The message is one line: what is wrong, and what to do."""


class UsageError(UserError):
    """Wrong arguments: like UserError, but the script exits with 2 instead of 1."""


def run_script(main):
    """Run `main`, and turn what the user can mend into one line on stderr and an exit code: 1, 2 or 128 + signal."""
    name = Path(sys.argv[0]).name
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it offers a faster CPU kernel from the hub
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' to each other, not the user's
    # Examples hold any text, terminals do not. Each line is there when it is printed, in a file too.
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
    except UserError as error:
        code, message = (2 if isinstance(error, UsageError) else 1), f"{name}: error: {error}"
    except torch.OutOfMemoryError as error:
        first_line = str(error).splitlines()[0]
        code, message = 1, f"{name}: error: {first_line} Lower the batch size or --max_seq_length."
    except KeyboardInterrupt:
        code, message = 128 + signal.SIGINT, f"{name}: interrupted"
    except BrokenPipeError:  # the reader of our stdout, `head` say, is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, message = 1, ""
    else:
        return
    if os.environ.get("RANK", "0") != "0":
        time.sleep(10)  # main has usually met the same error: the launcher stops us before we repeat it
    if message:
        print(" ".join(message.split("\n")), file=sys.stderr, flush=True)
    sys.exit(code)


def step_profiler(steps, steps_done, output_dir):
    """A started torch profiler of the optimizer steps `A:B`, or None for None: call its `step` after each step.

    Writes profile/steps-A-B.json.gz under `output_dir`, a trace for https://ui.perfetto.dev or TensorBoard's profiler, and
    beside it the sums by operation as text.
    """
    first, last = map(int, (steps or "0:0").split(":"))
    if last <= steps_done:
        return None
    first = max(first, steps_done + 1)
    before = first - 1 - steps_done

    def write(profiler):
        folder = Path(output_dir) / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / f"steps-{first}-{last}.json.gz"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=80)
        (folder / f"steps-{first}-{last}.txt").write_text(table, encoding="utf-8")

    warmup = min(1, before)
    schedule = torch.profiler.schedule(wait=before - warmup, warmup=warmup, active=last - first + 1, repeat=1)
    profiler = torch.profiler.profile(schedule=schedule, on_trace_ready=write)
    profiler.start()
    return profiler


class OneLineParser(HfArgumentParser):
    """HfArgumentParser whose errors are one line instead of all the flags, and name the recipe they come from."""

    source = ""

    def error(self, message):
        raise UsageError(f"{self.source}{message} (see --help)")


def parse_arguments(arguments_class, description, demo_recipe, argv=None):
    """Defaults of the dataclass, then the values of `--config FILE`, then the flags: the later one wins.

    The values of the YAML file go through the parser as flags, so that `2e-4` is a number and a wrong type or choice is
    refused as it is on the command line. With no `--config`, model, data set or adapter named, `demo_recipe` (a file of
    recipes/) is the recipe. Raises UsageError.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = OneLineParser(arguments_class, description=description, allow_abbrev=False)
    recipe = parser.parse_known_args(argv)[0].config
    defaults = {field.name: field.default for field in dataclasses.fields(arguments_class)}
    named = {word.split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    if not named & {"__config", "__model_name_or_path", "__dataset_name", "__adapter"}:
        recipe = str(ROOT / "recipes" / demo_recipe)
        if os.environ.get("RANK", "0") == "0":
            print(
                f"No model, data or --config named: running the embedded demo, recipes/{demo_recipe}", file=sys.stderr
            )
    if recipe:
        recipe_argv = recipe_as_flags(recipe, set(defaults) - set(INVOCATION))
        parser.source = f"{recipe}: "
        parser.parse_args(recipe_argv)  # its own pass, so that its errors name the file
        parser.source = ""
        argv = [*recipe_argv, *argv]
    arguments, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        flags = {f"--{name}" for name in defaults}
        raise UsageError(f"unknown argument {unknown[0]}{closest(unknown[0], flags)} (see --help)")
    return arguments


def recipe_as_flags(path, known):
    """`{learning_rate: 2e-4, tags: [a, b]}` as `["--learning_rate=2e-4", "--tags", "a", "b"]`."""
    values = read_yaml(path)
    flags = []
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}{closest(str(key), known)}")
        if isinstance(value, dict) or (isinstance(value, list) and not value):
            raise UsageError(f"{path}: {key} must be a value or a list of values, not {value!r}")
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:  # a YAML null means the default
            flags.append(f"--{key}={value}")
    return flags


def closest(word, candidates):
    matches = difflib.get_close_matches(word, sorted(candidates), n=1)
    return f": did you mean {matches[0]}?" if matches else ""


def read_yaml(path):
    """The mapping in a YAML file; raises UsageError when there is none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, nesting without end
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold `name: value` lines")
    return values


def write_yaml(path, arguments):
    """The resolved arguments, as a file that `--config` takes. None means the default and is left out."""
    values = {
        name: value
        for name, value in dataclasses.asdict(arguments).items()
        if value is not None and name not in INVOCATION
    }
    Path(path).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def write_json(path, value):
    """Write the value as indented JSON; a kill leaves the old file or the new one."""
    unfinished = Path(f"{path}.incomplete")
    unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def require(condition, message):
    if not condition:
        raise UsageError(message)


def require_positive(arguments, *names):
    """Each named argument, where it is set, is a finite number above 0."""
    for name in names:
        value = getattr(arguments, name)
        require(value is None or (value > 0 and math.isfinite(value)), f"--{name} must be above 0, not {value}")


def require_share(arguments, *names):
    for name in names:
        value = getattr(arguments, name)
        require(0 <= value < 1, f"--{name} must be at least 0 and below 1, not {value}")


def start_accelerator(dtype):
    """The Accelerator for `--dtype` auto, bf16 or fp32, whatever mixed precision the launch file names.

    Its own gradient accumulation stays at 1, whatever the launch file says: the loop scales the loss by itself.
    """
    follow_launcher()
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.cuda.is_available()
    if dtype == "auto":
        native = not use_cpu and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bf16" if native else "fp32"
    accelerator = Accelerator(
        # With MULTI_GPU and use_cpu in the launch file, each process would train alone without `cpu=True`.
        cpu=use_cpu,
        mixed_precision="bf16" if dtype == "bf16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched but {accelerator.num_processes} work together: "
            "launch with one of the files in accelerate_configs/"
        )
    if use_cpu:  # a bare launch sets OMP_NUM_THREADS=1
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return accelerator


def follow_launcher():
    """Have the kernel stop this process when its launcher dies: `accelerate launch` alone would leave it an orphan."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or sys.platform != "linux":
        return  # started by hand
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != launcher:  # it died before the call above
        sys.exit(128 + signal.SIGTERM)


def check_hub_access(repo_id, repo_type, revision=None):
    """One quick question to the hub before anything is downloaded; raises UserError with the hub client's own reason.

    Without it an unreachable hub costs half a minute of retries. In offline mode (HF_HUB_OFFLINE=1) the cache is used
    and nobody is asked.
    """
    if constants.is_offline_mode():
        return
    try:
        HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=10)
        HfApi().auth_check(repo_id, repo_type=repo_type)
    except GatedRepoError as error:
        raise UserError(
            f"{repo_id} is gated: accept its conditions at {constants.ENDPOINT}/{'datasets/' * (repo_type == 'dataset')}"
            f"{repo_id}, then `hf auth login` or set HF_TOKEN ({type(error).__name__})"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"no {repo_type} {repo_id}{f' at revision {revision}' * bool(revision)} on the hub, or it is private and "
            f"needs `hf auth login` ({type(error).__name__}); for a local folder or file give its path"
        ) from None
    except Exception as error:  # the transport's own errors have no public class in common
        raise UserError(
            f"cannot reach {constants.ENDPOINT} for {repo_id} ({type(error).__name__}); "
            "if it is in the local cache already, set HF_HUB_OFFLINE=1"
        ) from None


def environment_record(**extra):
    """Where a result comes from: versions, git commit, machine, command. A dict for environment.json."""

    def installed(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    packages = ["accelerate", "transformers", "peft", "bitsandbytes", "datasets", "tokenizers", "safetensors"]
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the CUDA version it was built for
        **{package: installed(package) for package in packages},
        "machine": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **extra,
    }
