"""The losses of a model on the blocks of a plain text (eval_utils/retention.py)."""

import math

import torch
import torch.nn.functional as F

from eval_utils.retention import read_losses
from model_utils.self_checks import plain_transformers
from run_utils.errors import UserError
from run_utils.files import write_json
from run_utils.terminal import progress


def measure_retention(folder, text, kind, model):
    """Add a model's losses on a Text to an evaluation's retention.json, unless it has them. text:
    None if there is nothing to measure. kind: "base" or "adapter". Raises UserError if a loss is
    not finite."""
    if text is None:
        return
    saved = read_losses(folder)
    if saved.get("sha256") != text.sha256:
        saved = {"text": text.name, "sha256": text.sha256, "stride": text.blocks[0][1], "losses": {}}
    if kind not in saved["losses"]:
        label = f"{text.name}, {kind}"
        losses = [block_loss(model, *block) for block in progress(text.blocks, label, unit="block")]
        if not all(map(math.isfinite, losses)):
            raise UserError(f"the {kind}'s loss on --retention {text.name} is not finite: leave out --retention")
        saved["losses"][kind] = losses
        write_json(folder / "retention.json", saved)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def block_loss(model, ids, count):
    """The summed cross-entropy of the last `count` tokens, given the earlier ones."""
    ids = torch.from_numpy(ids).long().to(model.device)
    keep = torch.arange(len(ids) - count - 1, len(ids) - 1, device=model.device)
    with plain_transformers(model):
        logits = model(input_ids=ids[None], use_cache=False, logits_to_keep=keep).logits[0]
    return F.cross_entropy(logits.float(), ids[-count:], reduction="sum").item()
