"""A path that a user may have meant, if the named one does not exist or is the wrong folder."""

import contextlib
import difflib
from pathlib import Path

SUBFOLDERS = ("adapter", "model", "evaluation", "export")  # of a run's folder


def did_you_mean(path, marker=None):
    """`": did you mean PATH?"` for a near existing path, or "" without one. marker: see
    near_path."""
    near = near_path(path, marker)
    return f": did you mean {near}?" if near and near != Path(path) else ""


def near_path(path, marker=None):
    """The existing path nearest to a path, perhaps the path itself, or None.

    marker: a file that the wanted folder has, for example adapter_config.json. The folder of a
    run is replaced by its adapter/, evaluation/, export/ or newest checkpoint with this file."""
    near = None
    with contextlib.suppress(OSError):  # a folder that cannot be read, a name that is too long
        near = nearest(Path(path))
        if near and marker:
            near = next((folder for folder in (near, *inside(near)) if (folder / marker).is_file()), None)
    return near if near and str(near).isprintable() else None


def nearest(path):
    """The path with each missing name replaced by the closest one in its folder, or None."""
    found = Path(path.anchor)
    for name in path.parts[len(found.parts) :]:
        if not (found / name).exists():
            names = sorted(entry.name for entry in found.iterdir() if not entry.name.startswith("."))
            name = next(iter(difflib.get_close_matches(name, names, n=1)), None)
            if name is None:
                return None
        found /= name
    return found


def inside(folder):
    """The subfolders of a run, its checkpoints last, the newest first."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    newest_first = sorted(checkpoints, key=lambda path: int(path.name[11:]), reverse=True)
    return [*(folder / name for name in SUBFOLDERS), *newest_first]
