"""Sources of rows: files, the hub, folders in the hub's layout, and the demo's generator."""

import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from huggingface_hub import DatasetCard, constants, snapshot_download

from data_utils import cache
from data_utils.readers import READERS, accepted_beside, warn_of_json_columns
from data_utils.rows import Row, describe_bad_rows, describe_rows, valid_rows
from run_utils.errors import UserError, one_line, say
from run_utils.files import write_json
from run_utils.hub import check_hub_access
from run_utils.paths import did_you_mean
from run_utils.terminal import progress, shows_bars


class File(NamedTuple):
    path: Path
    name: str  # in the repository; `path` may be a renamed download or unpacked copy


def load_rows(dataset_name, revision=None, max_bad_rows=0.01, *, config_name=None, report=None, generators=None):
    """The valid rows of a data set, in order, and the bad ones as `{reason: [ids]}`. Prints how the
    rows were read.

    max_bad_rows: a share of all rows if below 1, else a count. report: a file for the names of all
    bad rows if there are too many. The others: see read_rows. Raises UserError for too many bad
    rows, and if no row is valid."""
    rows, bad, summary = read_rows(dataset_name, revision, config_name=config_name, generators=generators)
    num_bad = sum(map(len, bad.values()))
    total = len(rows) + num_bad
    allowed = most_bad_rows(max_bad_rows, total)
    if num_bad > allowed or not rows:
        if report:
            write_json(report, bad)
        raise UserError(
            f"{num_bad} of the {total} rows of {dataset_name} are bad ({describe_bad_rows(bad)}); "
            f"--max_bad_rows allows {allowed}" + (f"; all of them are in {report}" if report else "")
        )
    for line in describe_rows(len(rows), summary):
        say(f"{dataset_name}: {line}")
    return rows, bad


def most_bad_rows(max_bad_rows, total):
    return math.floor(max_bad_rows if max_bad_rows >= 1 else max_bad_rows * total)


def read_rows(dataset_name, revision=None, *, config_name=None, generators=None):
    """The results of valid_rows for a data set, however many rows are bad.

    dataset_name: a file with a reader in READERS, a folder in the hub's layout, a hub id, or a name
    in `generators`, `{name: function that returns records}`, such as the demo's. config_name: a
    configuration, if there are several. Large data sets are validated once and then read from the
    cache. Raises UserError if there are no rows."""
    source = find_source(dataset_name, revision, config_name, generators or {})
    try:
        rows, bad, summary = valid_rows(number(source)) if isinstance(source, list) else validate_or_load(source)
    except UserError:
        raise
    except Exception as error:  # a new reader need not raise UserError
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read {dataset_name}: {reason}") from None
    if not rows and not bad:
        raise UserError(f"{dataset_name} has no rows")
    return rows, bad, summary


def find_source(dataset_name, revision, config_name, generators):
    """A generator's records as a list, or a data set's Files as a tuple."""
    path = Path(dataset_name)
    on_hub = dataset_name.count("/") == 1 and not dataset_name.startswith((".", "/"))
    named_as_file = path.suffix.lower() in READERS
    is_made = dataset_name in generators
    if not is_made and ((dataset_name and path.is_dir()) or (on_hub and not path.is_file() and not named_as_file)):
        return find_hub_files(dataset_name, revision, config_name)
    if config_name:
        raise UserError(f"--dataset_config_name is for a data set on the hub or a folder, not for {dataset_name}")
    if is_made:
        return generators[dataset_name]()
    if path.is_file() and not named_as_file:
        raise UserError(f"{dataset_name}: unsupported file type; supported are {', '.join(READERS)}")
    if named_as_file:
        if not path.is_file():
            raise UserError(f"{dataset_name}: no such file{did_you_mean(path)}")
        return (File(path, path.name),)
    kinds = ", ".join(READERS)
    near = did_you_mean(path) if dataset_name else ""
    raise UserError(
        f"{dataset_name or 'an empty name'} is neither a file ({kinds}) nor a folder, a hub id or 'demo'{near}"
    )


def find_hub_files(name, revision, config_name):
    """The files of a train split, downloaded from the Hugging Face hub, or in a folder in the hub's
    layout.

    `datasets` only chooses the files. It must not read them: its types would change the rows
    (findings/README.md)."""
    import datasets

    local = Path(name).is_dir()
    if not local:
        check_hub_access(name, "dataset", revision)
    if not shows_bars():
        datasets.disable_progress_bars()
    try:
        if not local and constants.is_offline_mode():
            files = files_offline(name, revision, config_name)
        else:
            place = str(Path(name).resolve()) if local else name  # datasets finds no name in "."
            files = datasets.load_dataset_builder(place, config_name, revision=revision).config.data_files
        if not files or "train" not in files:
            hint = "; --dataset_name also takes one file" if local else ""
            raise ValueError(f"no split train among {', '.join(map(str, files or ())) or 'none'}{hint}")
        urls = [str(url) for url in files["train"]]
        # Unpacked files are cached by path, so an edited local file would keep its old content.
        settings = datasets.DownloadConfig(force_extract=local)
        paths = datasets.DownloadManager(download_config=settings).download_and_extract(urls)
    except Exception as error:  # load_dataset_builder raises any error of its builder
        reason = one_line(error.__cause__ or error)
        hint = "; --dataset_config_name chooses one" if "onfig name is missing" in reason else ""
        hint += did_you_mean(name)
        raise UserError(f"cannot load the data set {name}: {type(error).__name__}: {reason}{hint}") from None
    names = [Path(url).name for url in urls]
    found = tuple(File(Path(path), unpacked_name(url)) for path, url in zip(paths, names, strict=True))
    for file in found:
        if Path(file.name).suffix.lower() not in READERS:
            raise UserError(f"{name}: {file.name} has an unsupported type; supported are {', '.join(READERS)}")
    return found


def files_offline(name, revision, config_name):
    """A configuration's files by split in the hub's cache. `datasets` itself would need the files
    of all configurations."""
    from datasets.data_files import DataFilesDict, sanitize_patterns
    from datasets.load import load_dataset_builder

    folder = snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True)
    card = Path(folder, "README.md")
    configs = (DatasetCard.load(card).data.to_dict().get("configs") if card.is_file() else None) or []
    patterns = {config["config_name"]: config["data_files"] for config in configs if "data_files" in config}
    if len(patterns) < 2 or config_name not in patterns:
        return load_dataset_builder(folder, config_name).config.data_files
    return DataFilesDict.from_patterns(sanitize_patterns(patterns[config_name]), base_path=folder)


def unpacked_name(name):
    return name.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2").removesuffix(".xz")


def validate_or_load(files):
    kept = cache.file_of("rows", content_of(files))
    if stored := cache.load(kept):
        rows, *others = unpack(stored)
    else:
        rows, *others = valid_rows(progress(records_of(files), f"Reading {files[0].name}", delay=5, leave=False))
        if len(rows) >= cache.FROM_ROWS:
            cache.save(kept, pack(rows, others))
    warn_of_json_columns(files[0].path)
    return rows, *others


def records_of(files):
    for file in files:
        for place, record in READERS[Path(file.name).suffix.lower()](file.path):
            yield place if len(files) == 1 else f"{file.name} {place}", record


def content_of(files):
    """Names and hashes of everything that determines the rows of files, as bytes."""
    for file in files:
        yield file.name.encode()
        for path in (file.path, accepted_beside(file.path)):
            yield hash_of(path) if path.is_file() else b""


def hash_of(path):
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def pack(rows, others):
    """Rows and the other results of valid_rows as arrays for the cache."""
    texts = [text.encode() for row in rows for text in row]
    return {
        "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "lengths": np.array([len(text) for text in texts]),
        "others": np.frombuffer(json.dumps(others).encode(), dtype=np.uint8),
    }


def unpack(stored):
    texts, ends = stored["texts"].tobytes(), np.cumsum(stored["lengths"]).tolist()
    fields = [texts[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
    width = len(Row._fields)
    rows = [Row(*fields[i : i + width]) for i in range(0, len(fields), width)]
    return rows, *json.loads(stored["others"].tobytes())


def number(records):
    return [(f"row {place}", record) for place, record in enumerate(records, start=1)]
