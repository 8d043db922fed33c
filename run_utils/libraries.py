"""The large libraries, without the imports that these scripts have no use for."""

import contextlib
import functools
import os
import sys
from pathlib import Path

from run_utils.clock import lap
from run_utils.errors import say


def load_libraries():
    """Import PyTorch, transformers and bitsandbytes. Without this call, later imports do it, and
    take two seconds more."""
    say("Loading PyTorch and transformers ...")
    lap("Python and arguments")
    grow_gpu_blocks()
    import torch

    keep_compiled_code(torch)
    lap("import of torch")
    with hidden("scipy"):  # for its losses of object detection
        import transformers.modeling_utils  # noqa: F401
    lap("import of transformers")
    # PEFT imports it for any base. It compiles a few functions for devices without its kernels, and
    # torch.compile imports the whole compiler.
    compiled, torch.compile = torch.compile, compile_at_first_call
    try:
        with contextlib.suppress(ImportError):
            import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiled
    lap("import of bitsandbytes")


def grow_gpu_blocks():
    """Let torch reserve GPU memory in blocks that can grow. Otherwise a freed block beside a
    longer-lived tensor would be lost to a later step's larger micro-batch, and the check before
    training could not foresee this. After the imports it is too late: torch 2.11 had read the
    setting by then."""
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def keep_compiled_code(torch):
    """Let torch keep compiled code beside the rows' cache. Its own folder, in /tmp, ends with the
    container or at the next boot. Its keys have the graph, its options and the GPU; the folder's
    name has the rest."""
    from huggingface_hub.constants import HF_HOME  # late, as all large libraries

    version = f"{torch.__version__}_{torch.backends.cpu.get_cpu_capability()}"
    folder = Path(HF_HOME) / "tool_call_cache" / f"compiled_{version}"
    with contextlib.suppress(OSError):  # a read-only disk
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


@contextlib.contextmanager
def hidden(package):
    """Import a library as if this package were not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # Python's mark of a package that cannot be imported
    try:
        yield
    finally:
        del sys.modules[package]


def compile_at_first_call(function=None, **options):
    """torch.compile, called when the function is."""
    if function is None:
        return functools.partial(compile_at_first_call, **options)

    @functools.cache
    def compiled():
        import torch

        return torch.compile(function, **options)

    return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))
