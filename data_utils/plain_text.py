"""A plain text in blocks of STRIDE tokens, for its perplexity. Each block is predicted after at
most WINDOW - STRIDE tokens, as in transformers' guide "Perplexity of fixed-length models"."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from data_utils.tokens import encode_prompts
from run_utils.errors import UserError, say
from run_utils.files import no_pipe
from run_utils.paths import did_you_mean

WINDOW, STRIDE = 512, 128  # tokens
LEAST_BLOCKS, MOST_BLOCKS = 8, 512


class Text(NamedTuple):
    name: str
    sha256: str  # of tokens and blocks
    blocks: list  # (int32 token ids, how many at the end are predicted)


def read_text(name, texts, tokenizer, positions):
    """The Text of --retention in blocks, for a model with this number of positions; None without a
    name. A rest of less than a block is left out.

    name: a file's, or a key of texts, `{name: () -> text}`. Raises UserError if the file cannot be
    read, or is too short."""
    if name is None:
        return None
    try:
        text = texts[name]() if name in texts else no_pipe(name).read_text(encoding="utf-8-sig")
    except OSError as error:
        known = "" if Path(name).suffix else f"; texts that come with the project: {', '.join(texts)}"
        raise UserError(f"--retention {name} cannot be read: {error.strerror}{did_you_mean(name)}{known}") from None
    except UnicodeDecodeError:
        raise UserError(f"--retention {name} cannot be read: it is no text in UTF-8") from None
    (ids,) = encode_prompts(tokenizer, [text])
    window = min(WINDOW, positions)
    stride = min(STRIDE, window // 2)
    count = (len(ids) - 1) // stride
    if count < LEAST_BLOCKS:
        raise UserError(
            f"--retention {name} has {len(ids)} tokens: an interval needs {LEAST_BLOCKS * stride + 1} or more"
        )
    if count > MOST_BLOCKS:
        say(f"--retention {name}: the first {MOST_BLOCKS * stride:,} of {len(ids):,} tokens are read")
    ends = [1 + stride * (block + 1) for block in range(min(count, MOST_BLOCKS))]
    blocks = [(ids[max(0, end - window) : end], stride) for end in ends]
    digest = hashlib.sha256(f"{window} {stride} ".encode() + ids[: ends[-1]].tobytes()).hexdigest()
    return Text(name, digest, blocks)
