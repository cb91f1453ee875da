"""For tests of several processes: with this directory on PYTHONPATH, a run writes down what its processes do.

Each appends to WATCHED-RANK.jsonl: of each training batch its step, rows and loss; the count of numbers in each sum
over the processes (`summed`), and in each sending of weights (`sent`). With RAISES=RANK:STEP that process fails there.
"""

import json
import os
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
    loss, number = step(self, batch, batch_idx), self.trainer.global_step
    rank = note(step=number, rows=batch.row_ids.tolist() if batch.loss_scale else [], loss=float(loss))
    if os.environ.get("RAISES") == f"{rank}:{number}":
        note(raised=time.time())
        raise RuntimeError("planted")
    return loss


if "WATCHED" in os.environ:
    DistributedDataParallel.__init__ = watched_make
    torch.distributed._broadcast_coalesced = watched_send
    FineTuning.training_step = watched_step
