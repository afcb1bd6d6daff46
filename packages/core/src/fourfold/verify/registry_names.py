"""Rules about names, experts and the config."""

from __future__ import annotations

from fourfold.verify import config, experts, ignores, mixed, names, source_config, trust
from fourfold.verify.rule import Need, Phase, Rule

NAME_RULES: tuple[Rule, ...] = (
    Rule(
        id="FF020", phase=Phase.FOLDER, check=experts.all_experts_quantized, needs=(Need.MODEL,),
        title="every expert matrix is there",
        why="vLLM does not notice a missing expert and computes with uninitialised memory.",
    ),
    Rule(
        id="FF021", phase=Phase.FOLDER, check=experts.no_expert_left, needs=(Need.MODEL,),
        title="no expert is left unquantized",
        why="A layer's experts are loaded in one format; BF16 values are cast into codes.",
    ),
    Rule(
        id="FF022", phase=Phase.FOLDER, check=experts.every_layer_quantized, needs=(Need.MODEL,),
        title="no layer is skipped",
        why="The file is far larger than promised, or the layer cannot be loaded.",
    ),
    Rule(
        id="FF023", phase=Phase.FOLDER, check=experts.expert_index_in_range, needs=(Need.MODEL,),
        title="no expert is one too many",
        why="Servers drop experts past the configured number without a word.",
    ),
    Rule(
        id="FF024", phase=Phase.FOLDER, check=names.parts_complete, needs=(Need.LAYOUT,),
        title="every module has its parts",
        why="A missing part is uninitialised memory in vLLM, without an error.",
    ),
    Rule(
        id="FF025", phase=Phase.FOLDER, check=names.input_scales_present, needs=(Need.LAYOUT,),
        title="W4A4: every module has an input scale",
        why="A missing one is folded as 1/0: NaN or padding on Blackwell, unnoticed elsewhere.",
    ),
    Rule(
        id="FF026", phase=Phase.FOLDER, check=names.input_scales_absent, needs=(Need.LAYOUT,),
        title="weights only: no input scales",
        why="No parameter takes them; a server refuses the file or computes W4A4.",
    ),
    Rule(
        id="FF027", phase=Phase.FOLDER, check=names.nothing_extra, needs=(Need.MODEL,),
        title="no tensor is extra",
        why="Servers refuse unknown suffixes and drop unknown modules in silence.",
    ),
    Rule(
        id="FF028", phase=Phase.FOLDER, check=names.nothing_missing, needs=(Need.MODEL,),
        title="no tensor is missing",
        why="vLLM does not report missing tensors of a quantized model.",
    ),
    Rule(
        id="FF029", phase=Phase.FOLDER, check=names.layer_scalars_present, needs=(Need.MODEL,),
        title="every layer_scalar is there",
        why="Without it the residual stream grows about eightfold and logits become NaN.",
    ),
    Rule(
        id="FF030", phase=Phase.FOLDER, check=experts.never_quantized, needs=(Need.LAYOUT,),
        title="router, vision and embeddings are never quantized",
        why="Servers build them unquantized; loading fails, or images and routing are garbage.",
    ),
    Rule(
        id="FF031", phase=Phase.FOLDER, check=names.head_tied,
        title="the output layer fits tie_word_embeddings",
        why="An untied head that was dropped as tied leaves the output layer random.",
    ),
    Rule(
        id="FF032", phase=Phase.FOLDER, check=experts.stored_in_one_form, needs=(Need.MODEL,),
        title="every weight stands in one form",
        why="A server loads the one over the other, in file order.",
    ),
    Rule(
        id="FF033", phase=Phase.FOLDER, check=names.names_of_the_source, needs=(Need.MODEL,),
        title="names are the source's",
        why="Servers map the source's names; others raise KeyError or are dropped in silence.",
    ),
    Rule(
        id="FF034", phase=Phase.FOLDER, check=names.one_layout,
        title="one layout",
        why="Tensors of the other layout are never loaded.",
    ),
    Rule(
        id="FF035", phase=Phase.FOLDER, check=experts.fused_alike, needs=(Need.MODEL,),
        title="fused linears are quantized alike",
        why="vLLM refuses q, k, v (or gate, up) of which only some are quantized.",
    ),
)  # fmt: skip

CONFIG_RULES: tuple[Rule, ...] = (
    Rule(
        id="FF100", phase=Phase.FOLDER, check=config.section_present, needs=(Need.CONFIG,),
        title="quantization_config is there",
        why="Without it codes are loaded as weights.",
    ),
    Rule(
        id="FF101", phase=Phase.FOLDER, check=config.method_fits, needs=(Need.CONFIG, Need.LAYOUT),
        title="quant_method is the layout's",
        why="Every key would be looked for under the other layout's name.",
    ),
    Rule(
        id="FF102", phase=Phase.FOLDER, check=config.algorithm_is_nvfp4, needs=(Need.CONFIG, Need.LAYOUT),
        title="the algorithm is NVFP4",
        why="The server chooses its kernels by it.",
    ),
    Rule(
        id="FF103", phase=Phase.FOLDER, check=config.group_size_is_16, needs=(Need.CONFIG, Need.LAYOUT),
        title="the group size is 16",
        why="Another size gives scales of another shape: a refusal, or garbage.",
    ),
    Rule(
        id="FF104", phase=Phase.FOLDER, check=config.scheme_agrees, needs=(Need.CONFIG, Need.LAYOUT),
        title="the scheme is the tensors'",
        why="Activations are quantized with scales that are not there, or not quantized at all.",
    ),
    Rule(
        id="FF105", phase=Phase.FOLDER, check=config.hf_quant_config_agrees, needs=(Need.CONFIG, Need.LAYOUT),
        title="hf_quant_config.json agrees",
        why="TensorRT-LLM and older servers read this file and not config.json.",
    ),
    Rule(
        id="FF106", phase=Phase.FOLDER, check=ignores.unquantized_ignored, needs=(Need.CONFIG, Need.LAYOUT),
        title="every unquantized linear is ignored",
        why="The server builds it for NVFP4 and does not find its scales.",
    ),
    Rule(
        id="FF107", phase=Phase.FOLDER, check=ignores.quantized_not_ignored, needs=(Need.CONFIG, Need.LAYOUT),
        title="no quantized module is ignored",
        why="The server builds it unquantized and refuses its scales.",
    ),
    Rule(
        id="FF108", phase=Phase.FOLDER, check=ignores.ignore_entries_match, needs=(Need.CONFIG, Need.LAYOUT),
        title="every ignore entry matches something",
        why="The list was written for other names, and protects nothing.",
    ),
    Rule(
        id="FF109", phase=Phase.FOLDER, check=ignores.ignore_catches_no_more, needs=(Need.CONFIG, Need.LAYOUT),
        title="no ignore entry catches more than it means",
        why="vLLM matches wildcards and substrings: layers.1* ignores layers 10 to 19 too.",
    ),
    Rule(
        id="FF110", phase=Phase.FOLDER, check=ignores.quantized_targeted, needs=(Need.CONFIG, Need.LAYOUT),
        title="every quantized module is a target",
        why="The server builds the others unquantized.",
    ),
    Rule(
        id="FF119", phase=Phase.FOLDER, check=mixed.fused_in_one_scheme, needs=(Need.CONFIG, Need.LAYOUT, Need.MODEL),
        title="what is fused is stated in one scheme",
        why="The server takes the scheme of one for all, and waits for scales that are not there.",
    ),
    Rule(
        id="FF111", phase=Phase.FOLDER, check=config.kv_scheme_agrees, needs=(Need.CONFIG, Need.LAYOUT),
        title="KV-cache scheme and scales agree",
        why="Without scales the server takes 1.0; without a scheme it drops the scales.",
    ),
    Rule(
        id="FF112", phase=Phase.FOLDER, check=source_config.config_of_source, needs=(Need.CONFIG, Need.SOURCE),
        title="the config is the source's",
        why="Another rope base, softcap or layer count changes every output without an error.",
    ),
    Rule(
        id="FF114", phase=Phase.FOLDER, check=config.version_stated, needs=(Need.CONFIG, Need.LAYOUT),
        title="the format's version is stated",
        why="Loaders choose how to read tensors by version and status.",
    ),
    Rule(
        id="FF117", phase=Phase.FOLDER, check=trust.nothing_further, needs=(Need.CONFIG,),
        title="the config asks for NVFP4 and nothing further",
        why="A rotation or a sparsity pattern that is stated is applied, to weights that were made without.",
    ),
    Rule(
        id="FF118", phase=Phase.FOLDER, check=ignores.patterns_bounded, needs=(Need.CONFIG, Need.LAYOUT),
        title="patterns match in bounded time",
        why="Servers match them by backtracking at start: one hostile pattern and the server never starts.",
    ),
    Rule(
        id="FF116", phase=Phase.FOLDER, check=config.model_known, needs=(Need.CONFIG,),
        title="the model class is known",
        why="A server refuses an unknown class, or treats the model as dense.",
    ),
)  # fmt: skip
