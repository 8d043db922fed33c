"""TensorBoard's view of a training run."""

import threading

from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """A tracker of TrainingLog: event files in logs/. It drops entries beyond the checkpoint that a
    run resumes from."""

    files = "TensorBoard's files"

    def __init__(self, output_dir, first_step):
        threading.excepthook = leave_to_flush
        self.writer = SummaryWriter(output_dir / "logs", purge_step=first_step)
        loss = ["Multiline", ["train/loss", "eval/loss"]]
        self.writer.add_custom_scalars({"loss": {"training and evaluation": loss}})

    def scalars(self, step, figures):
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def text(self, step, name, text):
        self.writer.add_text(name, text, step)

    def close(self, step, arguments, figures):
        # For TensorBoard's table of runs: in this run, not in a new one.
        self.writer.add_hparams(arguments, figures, run_name=".", global_step=step)
        self.writer.close()


def leave_to_flush(failure):
    """TensorBoard's writer thread re-raises its OSError in flush(): don't print the traceback
    twice."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)
