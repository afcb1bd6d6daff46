"""Rules about shapes, scales, codes and decoded values.

Misfit rules are tried by rank, then in this order: FF094 first, which tells a sound method's errors from damage, and
FF081 last, which takes what no other explains.
"""

from __future__ import annotations

from fourfold.verify import causes, codes, scales, shapes, steps, transformed, values
from fourfold.verify.rule import Need, Phase, Rule

SHAPE_RULES: tuple[Rule, ...] = (
    Rule(
        id="FF040", phase=Phase.MODULE, check=shapes.part_dtypes, needs=(Need.LAYOUT,),
        title="parts have the right dtype",
        why="A cast on loading changes bytes into numbers.",
    ),
    Rule(
        id="FF041", phase=Phase.MODULE, check=shapes.part_shapes, needs=(Need.LAYOUT,),
        title="parts have the right shape",
        why="Loading fails, or broadcasts one block's scale over others.",
    ),
    Rule(
        id="FF042", phase=Phase.FOLDER, check=shapes.kept_shapes, needs=(Need.MODEL,),
        title="kept tensors have the model's shape and dtype",
        why="Loading fails, or a norm in another precision changes every output.",
    ),
)  # fmt: skip

SCALE_RULES: tuple[Rule, ...] = (
    Rule(
        id="FF050", phase=Phase.MODULE, check=scales.block_scales_not_nan, needs=(Need.LAYOUT,),
        title="block scales are not NaN",
        why="One NaN block makes every output of the layer NaN.",
    ),
    Rule(
        id="FF051", phase=Phase.MODULE, check=scales.block_scales_not_negative, needs=(Need.LAYOUT,),
        title="block scales are not negative",
        why="Kernels read block scales as unsigned.",
    ),
    Rule(
        id="FF052", phase=Phase.MODULE, check=scales.block_scales_not_zero, needs=(Need.LAYOUT,),
        title="block scales are not all zero",
        why="The module decodes to zero; in an expert, its tokens lose their answer.",
    ),
    Rule(
        id="FF053", phase=Phase.MODULE, check=scales.block_scales_normal, needs=(Need.LAYOUT,),
        title="few block scales are subnormal",
        why="Under 2^-6 float8 has two digits or fewer; under 2^-9 the block is lost.",
    ),
    Rule(
        id="FF054", phase=Phase.MODULE, check=scales.block_scales_vary, needs=(Need.LAYOUT,),
        title="block scales vary",
        why="A constant means that block scales were never computed.",
    ),
    Rule(
        id="FF055", phase=Phase.MODULE, check=scales.global_scales_usable, needs=(Need.LAYOUT,),
        title="global scales are finite and over zero",
        why="The module computes zeros, infinities or NaN.",
    ),
    Rule(
        id="FF056", phase=Phase.MODULE, check=scales.input_scales_usable, needs=(Need.LAYOUT,),
        title="input scales are finite and over zero",
        why="Folded as 1/0 it gives NaN; the fault is prompt-dependent and hidden on Hopper.",
    ),
    Rule(
        id="FF057", phase=Phase.MODULE, check=scales.scales_not_denormal, needs=(Need.LAYOUT,),
        title="no scale is denormal",
        why="GPUs flush it to zero; it is mostly memory that was never written.",
    ),
    Rule(
        id="FF058", phase=Phase.END, check=scales.global_scale_direction, needs=(Need.LAYOUT,),
        title="global scales are no reciprocals",
        why="The two layouts store reciprocals of each other; weights would be off by 1e6 and more.",
    ),
    Rule(
        id="FF059", phase=Phase.END, check=scales.input_scale_direction, needs=(Need.LAYOUT,),
        title="input scales are no reciprocals",
        why="Activations saturate, or all round to zero.",
    ),
    Rule(
        id="FF060", phase=Phase.END, check=scales.global_scales_plausible, needs=(Need.LAYOUT,),
        title="global scales are plausible",
        why="No weight has such a range.",
    ),
    Rule(
        id="FF061", phase=Phase.END, check=scales.input_scales_plausible, needs=(Need.LAYOUT,),
        title="input scales are plausible",
        why="No activation has such a range; it is junk from an expert without tokens.",
    ),
    Rule(
        id="FF062", phase=Phase.END, check=scales.groups_share_global_scale, needs=(Need.MODEL,),
        title="fused linears share one global scale",
        why="vLLM takes gate's for gate and up, and the largest or smallest of q, k, v.",
    ),
    Rule(
        id="FF063", phase=Phase.END, check=scales.groups_share_input_scale, needs=(Need.MODEL,),
        title="fused linears share one input scale",
        why="Servers merge them by maximum or minimum, each its own way.",
    ),
    Rule(
        id="FF064", phase=Phase.END, check=scales.kv_scales_usable, needs=(Need.LAYOUT,),
        title="KV-cache scales are usable",
        why="Attention computes NaN or zero.",
    ),
)  # fmt: skip

CODE_RULES: tuple[Rule, ...] = (
    Rule(
        id="FF070", phase=Phase.MODULE, check=codes.codes_not_zero, needs=(Need.LAYOUT,),
        title="codes are not all zero",
        why="The module decodes to zero.",
    ),
    Rule(
        id="FF071", phase=Phase.MODULE, check=codes.codes_vary, needs=(Need.LAYOUT,),
        title="codes vary",
        why="A constant weight was overwritten, or was NaN when it was rounded.",
    ),
    Rule(
        id="FF072", phase=Phase.MODULE, check=codes.codes_reach_top, needs=(Need.LAYOUT,),
        title="codes use the whole grid",
        why="Half of the four bits are wasted, and accuracy with them.",
    ),
    Rule(
        id="FF073", phase=Phase.MODULE, check=codes.no_twin, needs=(Need.LAYOUT,),
        title="no two weights are the same",
        why="An expert that was written twice took another's place; its tokens get the wrong answer.",
    ),
)  # fmt: skip

VALUE_RULES: tuple[Rule, ...] = (
    Rule(
        id="FF080", phase=Phase.TENSOR, check=values.kept_identical, needs=(Need.SOURCE,),
        title="kept tensors are the source's to the bit",
        why="Router, norms and vision carry the model; one changed bit is a fault in the writer.",
    ),
    Rule(
        id="FF094", phase=Phase.MISFIT, check=values.not_overfitted, needs=(Need.SOURCE,), is_doubt=True, rank=-1,
        title="weights are not fitted past rounding",
        why="Inputs unlike those of calibration meet a weight further off than rounding makes it.",
    ),
    Rule(
        id="FF082", phase=Phase.MISFIT, check=causes.scale_direction_fits, needs=(Need.SOURCE,),
        title="the global scale is no reciprocal of the source's",
        why="Decoded weights are off by a factor of 1e6 and more.",
    ),
    Rule(
        id="FF083", phase=Phase.MISFIT, check=causes.scale_factor_fits, needs=(Need.SOURCE,),
        title="the global scale fits the source",
        why="The module's output is off by that factor.",
    ),
    Rule(
        id="FF084", phase=Phase.MISFIT, check=causes.nibbles_in_order, needs=(Need.SOURCE,),
        title="nibbles are in order",
        why="Every pair of columns is exchanged.",
    ),
    Rule(
        id="FF085", phase=Phase.MISFIT, check=causes.gate_up_in_place, needs=(Need.SOURCE,),
        title="gate and up are in place",
        why="The activation function is applied to the wrong half.",
    ),
    Rule(
        id="FF086", phase=Phase.MISFIT, check=causes.experts_in_order, needs=(Need.SOURCE,),
        title="experts and layers are in order",
        why="The router sends tokens to the wrong expert.",
    ),
    Rule(
        id="FF087", phase=Phase.MISFIT, check=causes.not_transposed, needs=(Need.SOURCE,),
        title="weights are not transposed",
        why="Inputs meet the wrong rows.",
    ),
    Rule(
        id="FF088", phase=Phase.MISFIT, check=causes.rows_in_order, needs=(Need.SOURCE,),
        title="rows are in order",
        why="Gate and up rows mixed, or shifted by padding: outputs land in the wrong places.",
    ),
    Rule(
        id="FF089", phase=Phase.MISFIT, check=causes.columns_in_order, needs=(Need.SOURCE,),
        title="columns are in order",
        why="Inputs meet the wrong weights.",
    ),
    Rule(
        id="FF090", phase=Phase.MISFIT, check=causes.block_scales_in_place, needs=(Need.SOURCE,),
        title="block scales belong to their blocks",
        why="Scales stored in a kernel's swizzled order are swizzled again on loading.",
    ),
    Rule(
        id="FF081", phase=Phase.MISFIT, check=values.decodes_to_source, needs=(Need.SOURCE,), rank=1,
        title="weights decode to the source",
        why="More than rounding has happened to this weight, and no other rule explains what.",
    ),
    Rule(
        id="FF091", phase=Phase.MODULE, check=values.blocks_within_bound, needs=(Need.SOURCE,),
        title="no single block is damaged",
        why="A flipped bit in a block scale ruins 16 weights; sums over a tensor do not show it.",
    ),
    Rule(
        id="FF099", phase=Phase.END, check=transformed.factors_cancel, needs=(Need.SOURCE, Need.MANIFEST),
        title="factors of transformed weights cancel",
        why="What AWQ and SmoothQuant move between two weights must leave their product; else the output is off by it.",
    ),
    Rule(
        id="FF095", phase=Phase.MODULE, check=steps.rows_have_their_scales, needs=(Need.SOURCE,),
        title="every row has its own block scales",
        why="One row under its neighbour's scales is one output off by a fifth; no sum shows it.",
    ),
    Rule(
        id="FF098", phase=Phase.MODULE, check=steps.rows_are_their_own, needs=(Need.SOURCE,),
        title="every row is the source's",
        why="One output of the module is another's, or noise; the other rows hide it in any sum.",
    ),
    Rule(
        id="FF096", phase=Phase.MODULE, check=steps.global_scale_of_codes, needs=(Need.SOURCE,),
        title="codes were rounded under this global scale",
        why="A scale a few per cent off bends every output of the module and stays under any error bound.",
    ),
    Rule(
        id="FF097", phase=Phase.MODULE, check=steps.single_codes_sound, needs=(Need.SOURCE,),
        title="no single code is damaged",
        why="A bit flipped on disk or in memory; where there is one, there are more.",
    ),
    Rule(
        id="FF092", phase=Phase.TENSOR, check=values.kept_finite,
        title="kept tensors are finite",
        why="One NaN in a norm makes every output NaN.",
    ),
    Rule(
        id="FF093", phase=Phase.TENSOR, check=values.layer_scalar_not_zero,
        title="no layer_scalar is zero",
        why="The layer's whole output is multiplied by it.",
    ),
)  # fmt: skip
