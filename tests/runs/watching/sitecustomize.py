"""For tests of several processes: with this directory on PYTHONPATH, a run writes down what its processes do.

Each appends to WATCHED-RANK.jsonl: of each training batch its step, rows and loss; the count of numbers in each sum
over the processes (`summed`), in each sending of weights (`sent`), and in what it keeps of the trained weights (`kept`)
and of their moments (`moments`) where each process has a share; and last whether what joins it to the others is still
open when it ends (`leaves_open`). With RAISES=RANK:STEP that process fails there, with KILLS=RANK:STEP it is killed;
with SPOILS=RANK:STEP its loss is not
a number there, and each step has the sum of the weights, where they are whole.
"""

import atexit
import json
import os
import signal
import time

import torch.distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from permafrost.training.module import FineTuning

make, send, step = DistributedDataParallel.__init__, torch.distributed._broadcast_coalesced, FineTuning.training_step


def note(**what):
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    with open(f"{os.environ['WATCHED']}-{rank}.jsonl", "a") as file:
        file.write(json.dumps(what) + "\n")
    return rank


def watched_sum(state, bucket):
    note(summed=bucket.buffer().numel())
    return allreduce_hook(None, bucket)


def watched_make(self, *arguments, **options):
    make(self, *arguments, **options)
    self.register_comm_hook(None, watched_sum)


def watched_send(group, tensors, *arguments):
    note(sent=sum(tensor.numel() for tensor in tensors))
    return send(group, tensors, *arguments)


def watched_step(self, batch, batch_idx):
    number, weights = self.trainer.global_step, {}
    if "SPOILS" in os.environ and not any(hasattr(p, "to_local") for p in self.parameters()):
        weights = {"weights": sum(float(p.detach().double().sum()) for p in self.parameters())}
    if "SHARES" in os.environ and number == 2:
        mine = [p.to_local().numel() for p in self.parameters() if hasattr(p, "to_local")]
        states = [value for moments in self.optimizers().state.values() for value in moments.values()]
        note(kept=sum(mine), moments=sum(v.to_local().numel() for v in states if hasattr(v, "to_local")))
    loss = step(self, batch, batch_idx)
    rank = note(step=number, rows=batch.row_ids.tolist() if batch.loss_scale else [], loss=float(loss), **weights)
    if os.environ.get("KILLS") == f"{rank}:{number}":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("RAISES") == f"{rank}:{number}":
        note(raised=time.time())
        raise RuntimeError("planted")
    return loss * float("nan") if os.environ.get("SPOILS") == f"{rank}:{number}" else loss


if "WATCHED" in os.environ:
    atexit.register(lambda: note(leaves_open=torch.distributed.is_initialized()))
    DistributedDataParallel.__init__ = watched_make
    torch.distributed._broadcast_coalesced = watched_send
    FineTuning.training_step = watched_step
