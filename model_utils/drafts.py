"""Drafts of the next tokens, looked up in a row's own prompt and answer: an answer copies names and
values from them (prompt look-up decoding, github.com/apoorvumang/prompt-lookup-decoding).

One forward pass verifies the drafts. A draft holds if greedy decoding chooses the same token, so
the texts are those of greedy decoding. A wrong draft costs its share of the pass."""

import torch

MATCHED = 3  # newest tokens that are compared; four find no better drafts
DRAFTS = 7
# With DRAFTS a pass gives a row two to three tokens. On an H200 it takes 1.05 times as long as
# without in one slot, 1.4 times in 32, and 2.6 times in 100. A CPU's time grows with each token.
MOST_SLOTS = {"cuda": 32, "cpu": 2}


def num_drafts(num_slots, device):
    """How many drafts a pass verifies for each of its slots."""
    return DRAFTS if num_slots <= MOST_SLOTS.get(device.type, 0) else 0


def look_up(history, ends, count):
    """Drafts, int64 [rows, count]: the tokens that follow the latest earlier place that repeats
    most of the newest MATCHED tokens; and whether it repeats all of them, bool [rows].

    history: int64 [rows, length], each row's tokens; ends: int64 [rows], the newest token's place.
    A row without a repeated token gets any tokens."""
    places = torch.arange(history.shape[1], device=history.device)
    alike = torch.ones_like(history, dtype=torch.bool)
    num_alike = torch.zeros_like(history)
    for age in range(MATCHED):
        token = history.gather(1, (ends[:, None] - age).clamp(min=0))
        # The first places are compared with the last tokens: they get wrong drafts at worst.
        alike &= (history == token).roll(age, 1)
        num_alike += alike
    # Only places before the newest token count.
    score, best = (num_alike * len(places) + places).masked_fill(places >= ends[:, None], -1).max(1)
    # Where the copied tokens reach the newest one, copy them again.
    period = (ends - best).clamp(min=1)
    drafts = history.gather(1, best[:, None] + 1 + torch.arange(count, device=history.device) % period[:, None])
    return drafts, score >= MATCHED * len(places)


def num_agreed(chosen, drafts):
    """How many drafts hold, int64 [rows]. chosen: the choice after the newest token and after each
    draft, [rows, count + 1]; drafts: [rows, count]."""
    return (chosen[:, :-1] == drafts).cumprod(1).sum(1)
