"""Does it fit, and how long may a sequence be: weights + allowance + keys and values against what there is."""

from __future__ import annotations

from dataclasses import dataclass

from fourfold.errors import DeviceError
from fourfold_vllm.facts import CheckpointFacts
from fourfold_vllm.hardware import Machine

#: Activations, CUDA graphs, contexts: an allowance, not a measurement of each GPU. On the CPU, vLLM's three processes
#: take 3.0 GB beside weights and KV cache when they serve the demo model.
ALLOWANCE_BYTES = 3 * 10**9
#: A server with a shorter context than this is of no use; models made for less get what they were made for.
_SHORTEST_TOKENS = 2048
_LENGTH_STEP = 1024


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One rank's memory. ``ranks`` share each layer (attention heads, experts), ``nodes`` share the layers."""

    facts: CheckpointFacts
    machine: Machine
    weight_bytes: int
    kv_value_bytes: int
    utilization: float
    ranks: int = 1
    nodes: int = 1

    @property
    def rank_weight_bytes(self) -> int:
        """This rank's share of the weights."""
        return self.weight_bytes // (self.ranks * self.nodes)

    @property
    def limit_bytes(self) -> int:
        """What vLLM may use."""
        return int(self.machine.memory_bytes * self.utilization)

    @property
    def kv_room_bytes(self) -> int:
        """What is left for keys and values; negative when the weights alone do not fit."""
        return self.limit_bytes - self.rank_weight_bytes - ALLOWANCE_BYTES

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of one sequence on this rank."""
        return self.facts.kv_bytes(tokens, self.kv_value_bytes, self.ranks) // self.nodes

    def fits(self, tokens: int) -> bool:
        """Whether one sequence of that length can be served."""
        return self.kv_bytes(tokens) <= self.kv_room_bytes

    def longest(self) -> int:
        """The most tokens of one sequence, at most the model's positions; :class:`DeviceError` when too few fit."""
        positions = self.facts.max_positions
        if self.fits(positions):
            return positions
        low, high = 0, positions // _LENGTH_STEP
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(middle * _LENGTH_STEP) else (low, middle - 1)
        tokens = low * _LENGTH_STEP
        if tokens < min(_SHORTEST_TOKENS, positions):
            raise DeviceError(self.refusal(min(_SHORTEST_TOKENS, positions)))
        return tokens

    def arithmetic(self, tokens: int) -> str:
        """The sum in words."""
        parts = (self.rank_weight_bytes, ALLOWANCE_BYTES, self.kv_bytes(tokens))
        whole = "" if self.ranks * self.nodes == 1 else f" (a rank's share of {_gb(self.weight_bytes)})"
        return (
            f"weights {_gb(parts[0])}{whole} + activations and graphs {_gb(parts[1])} + keys and values of "
            f"{tokens:,} tokens {_gb(parts[2])} = {_gb(sum(parts))}, of {_gb(self.limit_bytes)} "
            f"({self.utilization:g} x {_gb(self.machine.memory_bytes)})"
        )

    def refusal(self, tokens: int) -> str:
        """Why it does not fit, and what would help."""
        help_ = (
            "shorten the context (--max-model-len), free memory, or quantize"
            if self.machine.sm is None
            else "shorten the context (--max-model-len), use more GPUs (--tensor-parallel), or quantize"
        )
        return f"{self.facts.path.name} does not fit {self.machine.summary}: {self.arithmetic(tokens)}; {help_}"


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
