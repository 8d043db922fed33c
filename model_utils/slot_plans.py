"""Which rows share a cache of slots, and which prompts a pass reads."""

import itertools

import numpy as np

PREFILL_TOKENS = 8192  # of one forward pass over prompts; a longer prompt has a pass alone
LEAST_SAVED = 1024  # tokens; on a GPU, a pass over a few takes as long as over these


def common_beginning(prompts):
    """The number of tokens with which all prompts (int32 arrays) begin; each has one token more. 0
    if reading them once saves less than LEAST_SAVED tokens."""
    length = min(map(len, prompts)) - 1
    alike = np.all([prompt[:length] == prompts[0][:length] for prompt in prompts], axis=0)
    length = length if alike.all() else int(alike.argmin())
    return length if (len(prompts) - 1) * length >= LEAST_SAVED else 0


def plan_groups(rooms, batch_tokens):
    """Rows that share a cache: `[(indices, slots, tokens per slot), ...]`, longest first. rooms:
    `{index: tokens that the row may need}`.

    The remaining rows share one group if the cache has a slot for each. Otherwise each row of a
    group needs more than half the tokens of its longest row, so that little of the cache is
    idle."""
    groups = []
    order = sorted(rooms, key=lambda index: -rooms[index])
    for done, index in enumerate(order):
        room = rooms[index]
        all_fit = groups and (len(order) - done + len(groups[-1][0])) * groups[-1][1] <= batch_tokens
        if not groups or (2 * room <= groups[-1][1] and not all_fit):
            groups.append(([], room))
        groups[-1][0].append(index)
    return [(group, max(1, min(len(group), batch_tokens // room)), room) for group, room in groups]


def plan_prefill(waiting, prompt_ids, num_free, num_slots):
    """Remove prompts from the front of `waiting` for the free slots: `[indices of a pass, ...]`.

    A pass has at most PREFILL_TOKENS, or one prompt. A pass is worth its time if it is as full as
    that, or has all waiting prompts, or a quarter of the slots. Other prompts wait for more free
    slots."""
    passes = []
    while waiting and num_free:
        count, num_tokens = 0, 0
        for index in itertools.islice(waiting, num_free):
            num_tokens += len(prompt_ids[index])
            if count and num_tokens > PREFILL_TOKENS:
                break
            count += 1
        if num_tokens < PREFILL_TOKENS and count < min(len(waiting), num_slots / 4):
            break
        passes.append([waiting.popleft() for _ in range(count)])
        num_free -= count
    return passes
