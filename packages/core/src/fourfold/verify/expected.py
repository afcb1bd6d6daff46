"""What the unquantized model of a ``config.json`` holds: names and shapes, without its weights.

This lets a checkpoint be verified without its source. Only the text model and the vision tower are listed; an audio
tower is allowed under its prefix without a list.

Source: transformers ``models/gemma4/modeling_gemma4.py`` (``Gemma4TextDecoderLayer``, ``Gemma4TextAttention``,
``Gemma4TextRouter``, ``Gemma4TextExperts``, ``Gemma4VisionModel``, ``Gemma4ClippableLinear``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourfold.checkpoint.index import TensorEntry, TensorFolder
from fourfold.errors import ModelError
from fourfold.models.gemma4 import Gemma4Moe, layer_of
from fourfold.models.gemma4_config import ConfigNumbers

Shapes = dict[str, tuple[int, ...]]

_TOWERS = ("model.vision_tower.", "model.embed_vision.")
#: Tensors under these prefixes are kept as they are and not listed one by one.
UNLISTED_PREFIXES = ("model.audio_tower.", "model.embed_audio.")

_MAX_LAYERS, _MAX_MATRICES = 1024, 2**18
_TEXT_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    "post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2",
)  # fmt: skip
_VISION_NORMS = _TEXT_NORMS[:4]
_CLIP_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


class ImaginedFolder(TensorFolder):
    """A source folder that only its config describes: names, shapes and dtypes, no data to read."""

    def __init__(self, path: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
        self.path = path
        self.tensors = {name: TensorEntry(name, "BF16", shape, "") for name, shape in shapes.items()}
        self._open = None
        self.__dict__["config"] = config


def imagine_source(config: Mapping[str, Any], path: Path) -> ImaginedFolder:
    """The source that ``config`` describes; :class:`ModelError` names the key that keeps it from being known."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    text = plain.get("text_config", plain)
    if not isinstance(text, Mapping) or not str(plain.get("model_type", "")).startswith("gemma4"):
        raise ModelError(f"{path}: not a Gemma 4 model (model_type {plain.get('model_type')!r})")
    if not text.get("enable_moe_block"):
        raise ModelError(f"{path}: a dense Gemma 4 model, without experts")
    prefix = "model.language_model." if "text_config" in plain else "model."
    shapes = _text_shapes(ConfigNumbers(text, path, "text_config"), prefix)
    if not plain.get("tie_word_embeddings", text.get("tie_word_embeddings", True)):
        shapes["lm_head.weight"] = shapes[f"{prefix}embed_tokens.weight"]
    vision = plain.get("vision_config")
    if isinstance(vision, Mapping):
        shapes |= _vision_shapes(ConfigNumbers(vision, path, "vision_config"), shapes[f"{prefix}norm.weight"][0])
    return ImaginedFolder(path, plain, shapes)


def require_whole(source: TensorFolder, gemma: Gemma4Moe) -> None:
    """Raise :class:`ModelError` unless the text model of ``source`` has the tensors that its config.json describes: a
    checkpoint made of less would be like its source, and wrong. Towers are not looked at.
    """
    for name, entry in imagine_source(source.config, source.path / "config.json").tensors.items():
        if name.startswith(_TOWERS):
            continue
        found = source.tensors.get(name)
        if found is None:
            raise ModelError(
                f"{source.path}: {name} is not there, though config.json describes it; fetch the model anew"
            )
        if found.shape != entry.shape:
            raise ModelError(
                f"{source.path}: {name} has shape {list(found.shape)}, config.json says {list(entry.shape)}"
            )
    for name in source.tensors:
        if (layer := layer_of(name)) is not None and layer >= gemma.num_layers:
            raise ModelError(
                f"{source.path}: {name} belongs to no layer, as config.json says that there are {gemma.num_layers}"
            )


def _text_shapes(text: ConfigNumbers, prefix: str) -> Shapes:
    hidden, layers, experts = text["hidden_size"], text["num_hidden_layers"], text["num_experts"]
    if layers > _MAX_LAYERS or layers * experts * 3 > _MAX_MATRICES:
        raise ModelError(f"{text.path}: {layers} layers of {experts} experts; no such model is known")
    shapes: Shapes = {
        f"{prefix}embed_tokens.weight": (text["vocab_size"], hidden),
        f"{prefix}norm.weight": (hidden,),
    }
    per_layer = text.get("hidden_size_per_layer_input", 0)
    if per_layer:
        shapes[f"{prefix}embed_tokens_per_layer.weight"] = (text["vocab_size_per_layer_input"], layers * per_layer)
        shapes[f"{prefix}per_layer_model_projection.weight"] = (layers * per_layer, hidden)
        shapes[f"{prefix}per_layer_projection_norm.weight"] = (per_layer,)
    for number in range(layers):
        base = f"{prefix}layers.{number}."
        shapes |= {f"{base}{norm}.weight": (hidden,) for norm in _TEXT_NORMS}
        shapes |= {
            f"{base}layer_scalar": (1,),
            f"{base}router.proj.weight": (experts, hidden),
            f"{base}router.scale": (hidden,),
            f"{base}router.per_expert_scale": (experts,),
            f"{base}experts.gate_up_proj": (experts, 2 * text["moe_intermediate_size"], hidden),
            f"{base}experts.down_proj": (experts, hidden, text["moe_intermediate_size"]),
        }
        if per_layer:
            shapes[f"{base}per_layer_input_gate.weight"] = (per_layer, hidden)
            shapes[f"{base}per_layer_projection.weight"] = (hidden, per_layer)
            shapes[f"{base}post_per_layer_input_norm.weight"] = (hidden,)
        shapes |= _attention_shapes(text, number, base) | _dense_shapes(text, number, base)
    return shapes


def _attention_shapes(text: ConfigNumbers, number: int, base: str) -> Shapes:
    sliding, reuse = text.is_sliding(number), bool(text.section.get("attention_k_eq_v"))
    head, key_heads = text.attention_heads(number)
    queries, keys, hidden = text["num_attention_heads"] * head, key_heads * head, text["hidden_size"]
    base = f"{base}self_attn."
    shapes: Shapes = {
        f"{base}q_proj.weight": (queries, hidden),
        f"{base}o_proj.weight": (hidden, queries),
        f"{base}q_norm.weight": (head,),
    }
    if not _shares_keys(text, number):
        shapes |= {f"{base}k_proj.weight": (keys, hidden), f"{base}k_norm.weight": (head,)}
        if sliding or not reuse:
            shapes[f"{base}v_proj.weight"] = (keys, hidden)
    return shapes


def _dense_shapes(text: ConfigNumbers, number: int, base: str) -> Shapes:
    wide = bool(text.section.get("use_double_wide_mlp")) and _shares_keys(text, number)
    width, hidden = text["intermediate_size"] * (2 if wide else 1), text["hidden_size"]
    return {
        f"{base}mlp.gate_proj.weight": (width, hidden),
        f"{base}mlp.up_proj.weight": (width, hidden),
        f"{base}mlp.down_proj.weight": (hidden, width),
    }


def _shares_keys(text: ConfigNumbers, number: int) -> bool:
    return number >= text["num_hidden_layers"] - text.get("num_kv_shared_layers", 0)


def _vision_shapes(vision: ConfigNumbers, text_hidden: int) -> Shapes:
    hidden, width, head = vision["hidden_size"], vision["intermediate_size"], vision["head_dim"]
    queries, keys = vision["num_attention_heads"] * head, vision["num_key_value_heads"] * head
    if vision["num_hidden_layers"] > _MAX_LAYERS:
        raise ModelError(f"{vision.path}: vision_config.num_hidden_layers is over {_MAX_LAYERS}")
    shapes: Shapes = {
        "model.embed_vision.embedding_projection.weight": (text_hidden, hidden),
        "model.vision_tower.patch_embedder.input_proj.weight": (hidden, 3 * vision["patch_size"] ** 2),
        "model.vision_tower.patch_embedder.position_embedding_table": (2, vision["position_embedding_size"], hidden),
    }
    if vision.section.get("standardize"):
        shapes |= {f"model.vision_tower.std_{part}": (hidden,) for part in ("bias", "scale")}
    for number in range(vision["num_hidden_layers"]):
        base = f"model.vision_tower.encoder.layers.{number}."
        shapes |= {f"{base}{norm}.weight": (hidden,) for norm in _VISION_NORMS}
        shapes |= {f"{base}self_attn.{norm}.weight": (head,) for norm in ("q_norm", "k_norm")}
        linears = {
            "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (width, hidden), "mlp.up_proj": (width, hidden), "mlp.down_proj": (hidden, width),
        }  # fmt: skip
        for name, shape in linears.items():
            shapes[f"{base}{name}.linear.weight"] = shape
            if vision.section.get("use_clipped_linears"):
                shapes |= {f"{base}{name}.{bound}": () for bound in _CLIP_BOUNDS}
    return shapes
