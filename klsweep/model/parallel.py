"""One run on several processes: their group, and networks whose weights are spread over them (FSDP2).

Every process (rank) trains on its share of each minibatch's rows; weights, gradients and optimiser state are cut along
their first dimension over all ranks. Losses are normalised by the counts of the whole minibatch, gradients are summed,
so an update is that of one process up to the order of floating-point sums.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from pydantic import PositiveInt
from torch import Tensor

from klsweep.component import component

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

ORDER_HOURS = 24.0  # a rank may wait so long for the next order: the leader's base evaluation or checkpoint takes time


@component
class Parallel:
    """The `parallel` node: the processes that train one run."""

    processes: PositiveInt | None
    reshard_after_forward: bool | None

    @property
    def is_sharded(self) -> bool:
        """True if weights are spread over processes."""
        return False


@component
class Single(Parallel):
    """Choice `single`: one process."""


@component
class FSDP2(Parallel):
    """Choice `fsdp2`: torch's `fully_shard` over `processes` per node (null: one per GPU of the node).

    The trained weights' shards, sums of gradients and the optimiser are float32, whatever `model.dtype` the network
    computes in (mixed precision, if that is bfloat16).
    """

    processes: PositiveInt | None
    reshard_after_forward: bool

    @property
    def is_sharded(self) -> bool:
        return True


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, of which this is number `rank`; 0 leads. The default is a process by itself."""

    rank: int = 0
    size: int = 1
    control: Any = None  # a group on the CPU for orders and their answers

    def mine(self, count: int) -> slice:
        """This rank's part of `count` rows or prompts; parts differ by at most one."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def in_step(self, parts: Sequence[Tensor], rows: Tensor, size: int) -> Iterator[tuple[Tensor, bool]]:
        """This rank's micro-batches, and as often as another rank has one more, a row that does not count.

        Weights are gathered for each, so all ranks have to come equally often. `parts`: those of this rank's part of
        `rows`, which all ranks share, of at most `size` rows each.
        """
        rounds = math.ceil(math.ceil(len(rows) / self.size) / size)
        own = [part for part in parts if len(part)]
        yield from ((part, True) for part in own)
        yield from ((rows[:1], False) for _ in range(rounds - len(own)))

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise over all ranks, the same everywhere."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """Elementwise over all ranks, the same everywhere."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Tensor, how: Any) -> Tensor:
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, how)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order, for all of them; tensors of other ranks come on the CPU."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, moved(value, "cpu"), self.control)
        return found

    def order(self, value: Any = None) -> Any:
        """What the leader says, on all ranks; None dismisses them. Its tensors come on the CPU."""
        if self.size == 1:
            return value
        said = [moved(value, "cpu") if isinstance(value, tuple) else value]
        dist.broadcast_object_list(said, 0, self.control, torch.device("cpu"))
        return value if self.rank == 0 else said[0]


ALONE = Ranks()


def join(store: Any, rank: int, size: int, device: str) -> Ranks:
    """Become one of `size` ranks that meet at a store; returns once all have. `device`: cpu or cuda."""
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return Ranks(rank, size, dist.new_group(backend="gloo", timeout=timedelta(hours=ORDER_HOURS)))


def leave() -> None:
    """End the group that this process joined, if it did."""
    if dist.is_initialized():
        dist.destroy_process_group()


def moved(value: Any, device: Any) -> Any:
    """The same with every tensor in it on a device; looks into dataclasses, tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields})
    if isinstance(value, tuple | list):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value


def spread(network: Any, settings: Parallel, ranks: Ranks, device: str) -> None:
    """Spread a whole network, in host memory, over the ranks' devices, layer by layer and in place.

    Each decoder layer is gathered by itself; embedding, norm and head, which may be tied, together. `parameters` and
    `state_dict` keep their names; their tensors are DTensors that hold this rank's part. What is to be trained becomes
    float32, and computes in the dtype it had.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    trained, compute = any(p.requires_grad for p in network.parameters()), network.dtype
    precision = MixedPrecisionPolicy()
    if trained and compute != torch.float32:
        network.to(torch.float32)
        precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    options: Any = {"mesh": init_device_mesh(device, (ranks.size,)), "mp_policy": precision}
    for layer in network.get_decoder().layers:
        fully_shard(layer, reshard_after_forward=settings.reshard_after_forward, **options)
    fully_shard(network, reshard_after_forward=False, **options)  # its backward begins where its forward ends
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are shares of one sum: gradients are summed, not averaged
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def forget_gathered(network: Any) -> None:
    """Drop what forward passes without a backward pass have gathered: optimisers step on shards."""
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_spread(network: Any) -> bool:
    """True for a network whose weights are spread over ranks."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def _sharded(tensor: Tensor) -> "DTensor | None":
    """A tensor that is spread over ranks, None for another."""
    from torch.distributed.tensor import DTensor  # half a second to import, which planning does without

    return tensor if isinstance(tensor, DTensor) else None


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all ranks, which all have to ask for it."""
    return tensor if (parts := _sharded(tensor)) is None else parts.full_tensor()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a weight, or of what goes with it."""
    return tensor if (parts := _sharded(tensor)) is None else parts.to_local()


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """First row, and first row after, of this rank's part: `fully_shard` cuts as `torch.chunk` does."""
    if (parts := _sharded(tensor)) is None:
        return 0, len(tensor)
    mesh = parts.device_mesh
    step = -(-len(tensor) // mesh.size())
    first = min(mesh.get_local_rank() * step, len(tensor))
    return first, first + len(parts.to_local())
