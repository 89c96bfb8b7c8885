"""Several processes on one step: each computes its share, and gradients are summed.

Without torch.distributed there is one rank, and nothing here communicates. Sharded weights
(FSDP2) are DTensors; outside a forward pass each rank holds only its part.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import fsdp2_prepare_model
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sdcore.errors import SdcoreError

Item = TypeVar("Item")
BUCKET = 1 << 24  # elements; 64 MiB of float32 gradients


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank, and the number of ranks."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather(items: list[Item]) -> list[Item]:
    """Return the items of all ranks, on every rank."""
    if rank_and_world_size()[1] == 1:
        return items
    parts: list[list[Item]] = [[] for _ in range(rank_and_world_size()[1])]
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def wait() -> None:
    """Wait until all ranks get here."""
    if rank_and_world_size()[1] > 1:
        distributed.barrier()


def together(call: Callable[[], Item]) -> Item:
    """Return what a call returns, if it fails on no rank. All ranks make it; it exchanges nothing.

    For reading files: a node that cannot read them would leave the others waiting.

    Raises:
        SdcoreError: this rank's own, or that of the first rank that failed.
    """
    error: SdcoreError | None = None
    made: list[Item] = []
    try:
        made.append(call())
    except SdcoreError as raised:
        error = raised
    failed = gather([None if error is None else str(error)])
    if error is not None:
        raise error
    for rank, message in enumerate(failed):
        if message is not None:
            raise SdcoreError(
                "another rank failed",
                got=message,
                where=f"rank {rank}",
                fix="every node needs the workspace and the models under the same paths",
            )
    return made[0]


def sum_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Sum gradients over ranks; those of sharded weights were summed already.

    Small ones share an exchange, and no exchange copies more than `BUCKET` elements, or one weight.
    """
    if rank_and_world_size()[1] == 1:
        return
    for bucket in buckets([weight for weight in weights if not isinstance(weight, DTensor)]):
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in bucket]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for weight, total in zip(bucket, torch.split(flat, [w.numel() for w in bucket])):
            weight.grad = total.view_as(weight)


def buckets(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Split weights, in their order, into groups of at most `BUCKET` elements, or of one weight."""
    group: list[nn.Parameter] = []
    elements = 0
    for weight in weights:
        if group and elements + weight.numel() > BUCKET:
            yield group
            group, elements = [], 0
        group.append(weight)
        elements += weight.numel()
    if group:
        yield group


def shard(policy: PreTrainedModel) -> None:
    """Shard a policy's weights over the ranks, layer by layer (FSDP2), in place."""
    layers = {
        type(m).__name__ for m in policy.modules() if isinstance(m, GradientCheckpointingLayer)
    }
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=sorted(layers),
        cpu_ram_efficient_loading=False,  # every rank has loaded the weights
    )
    accelerator = Accelerator(cpu=policy.device.type == "cpu", fsdp_plugin=plugin)
    accelerator.state.fsdp_plugin = plugin  # accelerate loses it if the ranks are CPUs
    fsdp2_prepare_model(accelerator, policy)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo supports no other reduction
            module.set_gradient_divide_factor(1.0)  # the loss is normalised over the whole batch


def inside(policy: nn.Module, function: Callable[[], Item]) -> Item:
    """Call a function as the policy's forward pass, during which sharded weights are whole."""
    if not isinstance(policy, FSDPModule):
        return function()
    forward = policy.forward
    policy.forward = function
    try:
        result: Item = policy()
        return result
    finally:
        policy.forward = forward


def settle(policy: nn.Module) -> None:
    """Drop whole weights left by a pass without gradient; call before changing sharded ones."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return the full tensors on rank 0, sharded ones in main memory; none on the other ranks.

    All ranks join in, one tensor at a time, so that no device holds more than one of them whole.
    """
    first = rank_and_world_size()[0] == 0
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        full = whole(tensor)
        if first:
            found[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return found


def alike(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Return a full tensor on the device of a pattern, sharded like the pattern."""
    tensor = tensor.to(pattern.device)
    if isinstance(pattern, DTensor):
        return distribute_tensor(tensor, pattern.device_mesh, pattern.placements)
    return tensor
