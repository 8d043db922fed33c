"""The pictures of a sweep, as SVG: all differences from the first configuration, and exact match by
each numeric argument."""

import itertools
import math

from eval_utils.report import PALETTE
from eval_utils.sweep_results import MAIN, is_clear

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 12, 46
NAMES, LINE = 250, 20  # of the differences: width of the names, height of a line
LOG_FROM = 5  # the ratio of the largest to the smallest value
COLOURS = [fill for fill, _ in (*PALETTE["good"], *PALETTE["bad"])]


def pictures(comparison):
    """`[{"axis", "is_log", "x_ticks", "y_ticks", "series", "base", "base_rate"}]`, in pixels.

    A series has configurations with differences in this argument alone: `{"label", "colour",
    "line", "band", "whiskers", "points": [{"x", "y", "title"}], "seeds": [(x, y)]}`. base: the
    prompted base's y, or None if it is far from the curves; base_rate: its rate."""
    found = []
    for axis in comparison["axes"]:
        groups = {}
        for one in comparison["configurations"]:
            if MAIN in one["rates"] and is_number(one["settings"][axis]):
                others = tuple((name, text) for name, text in one["settings"].items() if name != axis)
                groups.setdefault(others, []).append(one)
        # After --vary, most configurations differ from the rest in another argument: no line.
        lines = {others: members for others, members in groups.items() if len(members) > 1}
        if lines:
            found.append(picture(axis, lines, prompted_rate(comparison)))
    return found


def differences(comparison):
    """All differences from the first configuration, one a line: `{"height", "zero", "ticks": [(x,
    label)], "lines": [{"name", "y", "x", "low", "high", "is_clear", "title"}]}`, in pixels. None
    for fewer than two."""
    tests = {one["name"]: one["against_first"] for one in comparison["configurations"] if one.get("against_first")}
    if len(tests) < 2:
        return None
    ends = [end for test in tests.values() for end in (test["difference"], test["low"] or 0, test["high"] or 0)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 8), 0.25)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step or step

    def place(value):
        return NAMES + (WIDTH - NAMES - RIGHT) * (value - low) / (high - low)

    def line(number, name, test):
        interval = [test["difference"] if end is None else end for end in (test["low"], test["high"])]
        points = " to ".join(f"{100 * end:+.1f}" for end in interval)
        return {
            "name": name if len(name) <= 40 else f"{name[:39]}…",
            "y": TOP + LINE * (number + 0.5),
            "x": place(test["difference"]),
            "low": place(interval[0]),
            "high": place(interval[1]),
            "is_clear": is_clear(test, len(tests)),
            "title": f"{name}: {100 * test['difference']:+.1f} points ({points})",
        }

    count = round((high - low) / step) + 1
    return {
        "height": TOP + LINE * len(tests) + BOTTOM,
        "zero": place(0),
        "ticks": [(place(low + step * k), f"{100 * (low + step * k):+.0f}".replace("+0", "0")) for k in range(count)],
        "lines": [line(number, *pair) for number, pair in enumerate(tests.items())],
    }


def is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def prompted_rate(comparison):
    """The prompted base's exact match, if all configurations have one base."""
    bases = [systems["prompted"] for systems in comparison["base"].values() if MAIN in systems.get("prompted", {})]
    return bases[0][MAIN]["mean"] if len(bases) == 1 else None


def picture(axis, groups, base):
    """groups: `{settings of the other arguments: configurations}`."""
    configurations = list(itertools.chain(*groups.values()))
    xs = sorted({float(one["settings"][axis]) for one in configurations})
    is_log = xs[0] > 0 and xs[-1] >= LOG_FROM * xs[0]
    rates = [one["rates"][MAIN] for one in configurations]
    ends = [end for rate in rates for end in (rate["low"], rate["high"], *rate["values"])]
    is_near = base is not None and min(ends) - base < 2 * (max(ends) - min(ends))  # a far one would flatten the curves
    ends += [base] * is_near
    low, high = max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02)
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 7), 0.25)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step

    def place_x(value):
        first, last, value = (math.log(number) if is_log else number for number in (xs[0], xs[-1], value))
        return LEFT + 20 + (WIDTH - LEFT - RIGHT - 40) * (value - first) / (last - first)

    def place_y(value):
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    varied = {name for others in groups for name, text in others if any((name, text) not in other for other in groups)}
    labels = [", ".join(f"{name}={text}" for name, text in others if name in varied) for others in groups]
    return {
        "axis": axis,
        "is_log": is_log,
        "x_ticks": [(place_x(x), f"{x:g}") for x in xs],
        "y_ticks": [
            (place_y(low + step * k), f"{100 * (low + step * k):.0f}") for k in range(round((high - low) / step) + 1)
        ],
        "base": place_y(base) if is_near else None,
        "base_rate": base,
        "series": [
            series(label, axis, members, colour=COLOURS[place % len(COLOURS)], place_x=place_x, place_y=place_y)
            for place, (label, members) in enumerate(zip(labels, groups.values(), strict=True))
        ],
    }


def series(label, axis, members, *, colour, place_x, place_y):
    members = sorted(members, key=lambda one: float(one["settings"][axis]))
    places = [place_x(float(one["settings"][axis])) for one in members]
    rates = [one["rates"][MAIN] for one in members]
    upper = [(x, place_y(rate["high"])) for x, rate in zip(places, rates, strict=True)]
    lower = [(x, place_y(rate["low"])) for x, rate in zip(places, rates, strict=True)]
    middle = [(x, place_y(rate["mean"])) for x, rate in zip(places, rates, strict=True)]
    titles = [
        f"{one['name']}: {100 * rate['mean']:.1f} % ({100 * rate['low']:.1f} – {100 * rate['high']:.1f})"
        for one, rate in zip(members, rates, strict=True)
    ]
    return {
        "label": label,
        "colour": colour,
        "line": as_points(middle),
        "band": as_points([*upper, *reversed(lower)]),
        "whiskers": [(x, top, bottom) for (x, top), (_, bottom) in zip(upper, lower, strict=True)],
        "points": [{"x": x, "y": y, "title": title} for (x, y), title in zip(middle, titles, strict=True)],
        "seeds": [(x, place_y(value)) for x, rate in zip(places, rates, strict=True) for value in rate["values"]],
    }


def as_points(places):
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
