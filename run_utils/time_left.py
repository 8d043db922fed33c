"""The time that a training still needs, from the durations measured so far."""

import math


def events_left(step, last_step, eval_steps, save_steps):
    """`{"step", "evaluation", "save"}`: how many follow the optimizer step `step`. The evaluation
    and the save at the step itself are still to come.

    eval_steps: None without evaluations. An evaluation precedes each save, and the last step has
    both. The save of a new best checkpoint between two multiples of save_steps cannot be
    foreseen."""

    def multiples(period):
        return last_step // period - max(0, step - 1) // period

    saves = multiples(save_steps) + (last_step % save_steps > 0)
    evaluations = 0
    if eval_steps:
        evaluations = saves + multiples(eval_steps) - multiples(math.lcm(eval_steps, save_steps))
        # The last step is counted twice if it is a multiple of eval_steps alone.
        evaluations -= last_step % save_steps > 0 and last_step % eval_steps == 0
    return {"step": last_step - step, "evaluation": evaluations, "save": saves}


def seconds_left(events, measured):
    """`(seconds, is_complete)`: the seconds of the coming `events`, `{name: number}`, at their mean
    durations so far. measured: `{name: (number, seconds)}`. An event without a measured duration
    counts as 0 seconds, and the sum is then incomplete: a lower bound."""
    durations = {name: seconds / number for name, (number, seconds) in measured.items() if number}
    total = sum(number * durations.get(name, 0.0) for name, number in events.items())
    return total, all(name in durations for name, number in events.items() if number)
