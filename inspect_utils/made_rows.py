"""The training rows that --no_call_fraction and --augment make, for an inspection."""

from data_utils.training_rows import make_training_rows
from run_utils.errors import UserError


def made_rows(args, data, tokenize):
    """The TrainingRows of an Inspected or None, and the reason if they cannot be made. tokenize:
    rows -> Tokenized, within the limit."""
    if not (args.no_call_fraction or args.augment):
        return None, ""
    check = data.prompt_format.check if data.prompt_format.end_token else None
    rows, train = data.chosen.parts[0], within(data.tokens[0], data.limit)
    try:
        return make_training_rows(args, rows, train, tokenize, check=check, held_out=data.chosen.evaluation), ""
    except UserError as error:
        return None, str(error)


def within(tokenized, limit):
    """A Tokenized with the rows that are too long apart."""
    lengths = {example.row_id: len(example.input_ids) for example in tokenized.examples}
    return tokenized._replace(
        examples=[example for example in tokenized.examples if lengths[example.row_id] <= limit],
        too_long={row_id: length for row_id, length in lengths.items() if length > limit},
    )
