"""The seconds of a script by part. infer.py --verbose prints them, and train.py before step 1."""

import time

STARTED = time.perf_counter()  # a script imports this module first
PARTS = {}  # {part: (seconds, generated tokens)}


def lap(part, tokens=0):
    """Count the time since the last lap as `part`'s, so that the parts add up to the whole. tokens:
    the number of tokens that it generated. Returns the seconds since the start."""
    whole = time.perf_counter() - STARTED
    seconds, count = PARTS.get(part, (0.0, 0))
    PARTS[part] = (seconds + whole - sum(seconds for seconds, _ in PARTS.values()), count + tokens)
    return whole


def table_of_parts():
    """The seconds until now, a line for each part."""
    whole = lap("the rest")
    lines = []
    for part, (seconds, tokens) in PARTS.items():
        rate = f": {tokens} tokens, {tokens / seconds:.1f} a second" if tokens else ""
        lines.append(f"{seconds:7.2f} s  {part}{rate}")
    return "\n".join([*lines, f"{whole:7.2f} s  in all"])


def describe_parts():
    """The seconds until now in one line, without parts of less than a tenth."""
    whole = lap("the rest")
    shown = [f"{part} {seconds:.1f}" for part, (seconds, _) in PARTS.items() if seconds >= 0.1]
    return f"Ready after {whole:.1f} s: {', '.join(shown)}"
