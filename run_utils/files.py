"""Files that are whole or absent, and folders for one process only."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path

from run_utils.errors import UserError, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MAX_DEPTH = 64  # far beyond any real call, far below the parser's recursion limit
# An unclosed string ends with the text.
JSON_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
LOCKED = {}  # this process's locks: {path: open folder}

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def write_text(path, text):
    """Write a file. A kill or a full disk leaves the old file or the new one."""
    write_lines(path, [text])


def write_lines(path, lines):
    """The same for several texts, each written when produced."""
    unfinished = Path(f"{path}.incomplete")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        unfinished.replace(path)
    except (OSError, ValueError):  # a full disk, half a surrogate pair
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_json_lines(path, records):
    write_lines(path, (json.dumps(record) + "\n" for record in records))


def read_json(path, check=lambda value: None):
    """The object in a JSON file of ours, which may be damaged or have another origin. Raises
    UserError, a line with the path and the fault, if the file has no object, if it nests too deep,
    or if `check` finds a wrong type, value or key."""
    try:
        text = no_pipe(path).read_text(encoding="utf-8")
        check_depth(text)
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        check(value)
        return value
    except OSError as error:
        reason = error.strerror
    except KeyError as error:
        reason = f"no {error} there"
    except (AttributeError, TypeError, ValueError) as error:
        reason = one_line(error)
    raise UserError(f"{path} cannot be read: {reason}")


def no_pipe(path):
    """The Path of a file, which need not exist. Raises UserError for anything else: reading a pipe
    would wait."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} cannot be read: not a file")
    return path


def is_full_disk(error):
    """Whether an exception, perhaps of a library in another language, means a full disk or
    quota."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    found = re.search(r"\(os error (\d+)\)", str(error))
    return getattr(error, "errno", None) in codes or (found is not None and int(found[1]) in codes)


def describe_free(folder, needed):
    """`needed` bytes and the free space of a folder's disk, in words."""
    return f"about {needed / 2**20:,.1f} MiB and the disk has {shutil.disk_usage(folder).free / 2**20:,.1f} MiB free"


@contextlib.contextmanager
def naming_full_disk(path, needed, remedy):
    """Turn a full disk into a UserError with the path, the `needed` bytes and the remedy."""
    try:
        yield
    except Exception as error:  # safetensors has its own type
        if not is_full_disk(error):
            raise
        free = describe_free(Path(path).parent, needed)
        raise UserError(f"{path} could not be written: it needs {free}; {remedy}") from None


def apply_umask(*paths):
    """Give files the mode of a new file. safetensors 0.8 writes mode 0600, so a server under
    another user could not read the weights. Folders among the paths keep their mode."""
    probe = paths[0].with_name(f"{paths[0].name}.incomplete")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in paths:
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
            with contextlib.suppress(OSError):  # a file system without modes
                path.chmod(mode)


def file_hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole_model(folder):
    """Whether a folder has a whole model of train.py, and no adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def weight_files(folder):
    """The files of a whole model's weights: one, or several of a large model."""
    return sorted(folder.glob("*.safetensors"))


def weights_hash(folder):
    """The SHA-256 of an adapter's or a whole model's weights."""
    if not is_whole_model(folder):
        return file_hash(folder / ADAPTER_FILES[0])
    return hashlib.sha256("".join(map(file_hash, weight_files(folder))).encode()).hexdigest()


def lock_folder(folder):
    """Keep other processes out of a folder until this process ends, in any way. Raises UserError if
    another process holds it."""
    folder = Path(folder).resolve()
    if fcntl is None or folder in LOCKED:
        return
    handle = os.open(folder, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"another process is working in {folder}: wait for its end, or choose another place") from None
    except OSError:  # a file system without locks
        os.close(handle)
        return
    LOCKED[folder] = handle


def is_locked(folder):
    """Whether another process holds a folder's lock."""
    if fcntl is None or not Path(folder).is_dir():
        return False
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return isinstance(error, BlockingIOError)  # other errors: a file system without locks
    finally:
        os.close(handle)


def check_depth(text):
    """Raises ValueError if the lists and objects of a JSON text nest deeper than MAX_DEPTH."""
    # With fewer brackets it cannot be deeper, and counting is quick.
    if text.count("[") + text.count("{") > MAX_DEPTH:
        depth = 0
        for character in re.findall(r"[\[{\]}]", JSON_STRING.sub("", text)):
            depth += (character in "[{") - (character in "]}")
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")


@contextlib.contextmanager
def new_folder(path):
    """A folder under a temporary name. It is renamed to `path` if the context succeeds, and deleted
    otherwise."""
    unfinished = path.with_name(f"incomplete-{path.name}")
    marker = unfinished / ".unfinished_export"
    if unfinished.exists():
        if not marker.exists():
            raise UserError(
                f"{unfinished} is there, and no export has left it: remove it, or choose another --output_dir"
            )
        lock_folder(unfinished)  # refused while that export still runs
        shutil.rmtree(unfinished)
    try:
        unfinished.mkdir(parents=True)
        lock_folder(unfinished)
        marker.touch()
        yield unfinished
        marker.unlink()
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def encodes(text):
    """Whether a text can be encoded: a lone surrogate cannot."""
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False
