"""Attention on CPUs as Gemma 4 means it: the tokens of a picture or a frame see each other in both directions.

``use_bidirectional_attention = "vision"`` holds in sliding layers only. vLLM 0.32 tells every attention backend the
ranges of such tokens, and its CPU backend drops them without a word: pictures are then read causally and answered
wrongly (a demo checkpoint names 1 of 4 instead of 4). This is that backend with the ranges honoured, put in its
place through vLLM's own ``register_backend``.

The causal product is computed as ever. Then the rows of each range are computed again, as sequences of their own that
end with the range and are not causal: such a row sees what came before, and all of its range, within the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm import envs
from vllm.v1.attention.backend import AttentionLayer, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend


def register_cpu_attention() -> None:
    """Take the place of vLLM's CPU backend, in this process."""
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{__name__}.PrefixAttentionBackend")


@dataclass(frozen=True)
class RangeRows:
    """The rows of all ranges in a batch: where they stand, and the call that computes them again."""

    rows: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    scheduler_metadata: torch.Tensor


@dataclass
class PrefixAttentionMetadata(CPUAttentionMetadata):
    """The CPU backend's, with the ranges. Gemma 4 itself sets ``mm_prefix_range`` to None for its full layers."""

    mm_prefix_range: Mapping[int, Sequence[tuple[int, int]]] | None = None
    range_rows: RangeRows | None = None


def spans_in_batch(
    ranges: Mapping[int, Sequence[tuple[int, int]]], query_start_loc: Sequence[int], seq_lens: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """(request, first row, number of rows, length of the sequence up to the range's end) of every range that has rows.

    ``ranges`` are (first, last) token positions, both included. Tokens of a range that are in the cache already have
    no rows; tokens that come in a later step are not there yet.
    """
    spans = []
    for request, its_ranges in ranges.items():
        begin_row, end_row = query_start_loc[request], query_start_loc[request + 1]
        length = seq_lens[request]
        cached = length - (end_row - begin_row)
        for first, last in its_ranges:
            begin, end = max(first, cached), min(last, length - 1)
            if end > begin:
                spans.append((request, begin_row + begin - cached, end - begin + 1, end + 1))
    return spans


class PrefixAttentionMetadataBuilder(CPUAttentionMetadataBuilder):
    """Adds the ranges to what the CPU backend builds."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> PrefixAttentionMetadata:
        """The metadata of one batch and one group of layers."""
        causal = super().build(common_prefix_len, common_attn_metadata, fast_build)
        metadata = PrefixAttentionMetadata(**{field.name: getattr(causal, field.name) for field in fields(causal)})
        ranges = common_attn_metadata.mm_req_doc_ranges
        if ranges and metadata.causal is True:
            metadata.mm_prefix_range = ranges
            metadata.range_rows = self._range_rows(ranges, metadata)
        return metadata

    def _range_rows(self, ranges: Mapping[int, Any], metadata: PrefixAttentionMetadata) -> RangeRows | None:
        spans = spans_in_batch(ranges, metadata.query_start_loc.tolist(), metadata.seq_lens.tolist())
        if not spans:
            return None
        requests, _, counts, lengths = zip(*spans, strict=True)
        starts = torch.zeros(len(spans) + 1, dtype=metadata.query_start_loc.dtype)
        torch.cumsum(torch.tensor(counts), 0, out=starts[1:])
        seq_lens = torch.tensor(lengths, dtype=metadata.seq_lens.dtype)
        return RangeRows(
            rows=torch.cat([torch.arange(row, row + count) for _, row, count, _ in spans]),
            query_start_loc=starts,
            seq_lens=seq_lens,
            block_table=metadata.block_table[list(requests)].contiguous(),
            scheduler_metadata=ops.cpu_attn_get_scheduler_metadata(
                num_reqs=len(spans),
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                seq_lens=seq_lens,
                dtype=self.dtype,
                query_start_loc=starts,
                causal=False,
                sliding_window_size=self.window_size,
                isa=self.isa,
                enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
                kv_cache_dtype=self.kv_cache_dtype,
            ),
        )


class PrefixAttentionImpl(CPUAttentionBackendImpl):
    """The CPU backend's product, then the ranges' rows again."""

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: PrefixAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``query`` [T, heads, head size] to ``output`` of the same shape; keys and values are in the cache by now."""
        super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if attn_metadata is None or not attn_metadata.mm_prefix_range or attn_metadata.range_rows is None:
            return output
        again = attn_metadata.range_rows
        # A block's keys stand before its values, as the CPU backend lays them out.
        num_blocks, num_kv_heads, block_size, _ = kv_cache.size()
        keys, values = kv_cache.view((num_blocks, num_kv_heads, block_size * 2, -1)).chunk(2, dim=2)
        rows = query[again.rows].contiguous()
        product = torch.empty_like(rows)
        ops.cpu_attention_with_kv_cache(
            query=rows,
            key_cache=keys,
            value_cache=values,
            output=product,
            query_start_loc=again.query_start_loc,
            seq_lens=again.seq_lens,
            scale=self.scale,
            causal=False,
            alibi_slopes=self.alibi_slopes,
            sliding_window=self.sliding_window,
            block_table=again.block_table,
            softcap=self.logits_soft_cap,
            scheduler_metadata=again.scheduler_metadata,
            s_aux=self.sinks,
            k_scale=layer._k_scale_float,  # noqa: SLF001 - the protocol's own names
            v_scale=layer._v_scale_float,  # noqa: SLF001 - the same
            kv_cache_dtype=self.kv_cache_dtype,
        )
        output[again.rows] = product.view(output[again.rows].shape)
        return output


class PrefixAttentionBackend(CPUAttentionBackend):
    """vLLM's CPU backend, for models whose pictures are read in both directions."""

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        """It does."""
        return True

    @staticmethod
    def get_impl_cls() -> type[PrefixAttentionImpl]:
        """The product."""
        return PrefixAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[PrefixAttentionMetadataBuilder]:
        """The metadata."""
        return PrefixAttentionMetadataBuilder
