"""FSDP for what is trained: of its weights, gradients and moments each process keeps a share (Zhao et al. 2023).

What is frozen is whole in every process, and is never sent. Checkpoints hold whole tensors, as those of any other run,
so that a run goes on with another number of processes, with shares or without.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from permafrost.model.freezing import frozen_parameters, trainable

FORWARD = "loss_of"  # the module's method that runs the model in training


class Sharded(DDPStrategy):
    """Lightning's DDP, with shares where that would have copies. Weights are whole for a step, and for validation."""

    broke_off = False

    @property
    def module(self) -> Any:
        return self.lightning_module

    def configure_ddp(self) -> None:
        shard_(self.module, init_device_mesh(self.root_device.type, (self.world_size,)))

    def on_validation_start(self) -> None:
        if isinstance(self.module, FSDPModule):
            self.module.unshard()

    def on_validation_end(self) -> None:
        if isinstance(self.module, FSDPModule):
            self.module.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {name: self._to_write(value) for name, value in self.module.state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: Any = super().optimizer_state(optimizer)
        moments = {
            number: {name: self._to_write(value) for name, value in of_parameter.items()}
            for number, of_parameter in state["state"].items()
        }
        return {**state, "state": moments}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        if isinstance(self.module, FSDPModule):
            self.module.reshard()
        here = dict(self.module.named_parameters(remove_duplicate=False))
        state = {name: share_of(value, here.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            for parameter, moments in optimizer.state.items():
                moments.update({name: share_of(value, parameter) for name, value in moments.items()})

    def on_exception(self, exception: BaseException) -> None:
        self.broke_off = True
        super().on_exception(exception)

    def teardown(self) -> None:
        """At the end of training all processes have the whole again; where one has failed, none waits for it."""
        if isinstance(self.module, FSDPModule):
            self._reset_optimizers_and_schedulers()
            if not self.broke_off:
                gather_(self.module)
        super().teardown()

    def _to_write(self, value: Any) -> Any:
        """Whole on the first process, which writes it; the others have a part in gathering it."""
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.is_global_zero else whole.new_empty(0)


def shard_(module: Any, mesh: DeviceMesh) -> None:
    """Keep this process's share of each trained weight, of those that the first process has."""
    for _, parameter in trainable(module):
        torch.distributed.broadcast(parameter.data, src=0)
    fully_shard(module, mesh=mesh, ignored_params={parameter for _, parameter in frozen_parameters(module)})
    module.set_force_sum_reduction_for_comms(mesh.device_type == "cpu")  # gloo has no mean
    register_fsdp_forward_method(module, FORWARD)


def gather_(module: Any) -> None:
    """Make it the module that it was before, with the weights whole."""
    module.reshard()
    shares = {name: value for name, value in module.named_parameters() if isinstance(value, DTensor)}
    for name, share in shares.items():
        path, _, own_name = name.rpartition(".")
        owner = module.get_submodule(path)
        setattr(owner, own_name, nn.Parameter(share.full_tensor().detach()))
        owner._load_state_dict_post_hooks.clear()  # which look for shares
    delattr(module, FORWARD)
    module.__class__ = type(module).__mro__[2]  # behind the class that was put before it, and FSDPModule


def share_of(value: Any, like: Tensor | None) -> Any:
    """Of a whole tensor this process's share, where `like` is one; a count of steps is no such tensor."""
    if not isinstance(value, Tensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
