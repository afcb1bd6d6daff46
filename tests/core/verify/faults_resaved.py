"""Faults in configs and side files that another tool saved: its spelling is no fault, another fact is."""

from __future__ import annotations

from .faults import Fault
from .planting_resaved import CONFIG, GENERATION, PROCESSOR, TOKENIZER, resaved

RESAVED_FAULTS = (
    Fault("saved anew: another head size of global layers", "FF112", blind=False,
          after=resaved(CONFIG, lambda c: c["text_config"].update(global_head_dim=16))),
    Fault("saved anew: the head size of global layers left to the default", "FF112", blind=False,
          after=resaved(CONFIG, lambda c: c["text_config"].pop("global_head_dim"))),
    Fault("saved anew: another number of global key-value heads", "FF112", blind=False,
          after=resaved(CONFIG, lambda c: c["text_config"].update(num_global_key_value_heads=2))),
    Fault("saved anew: a window left to the default", "FF112", blind=False,
          after=resaved(CONFIG, lambda c: c["text_config"].pop("sliding_window"))),
    Fault("saved anew: another rope base of the vision tower", "FF112", blind=False,
          after=resaved(CONFIG, lambda c: c["vision_config"].update(rope_parameters={
              "rope_type": "axial", "rope_theta": 10000.0}))),
    Fault("saved anew: another patch size", "FF112", blind=False,
          after=resaved(CONFIG, lambda c: c["vision_config"].update(patch_size=14))),
    Fault("saved anew: an untied head", "FF112", blind=False, also=("FF031",),
          after=resaved(CONFIG, lambda c: c.update(tie_word_embeddings=False))),
    Fault("saved anew: no vision tower", "FF112", blind=False,
          after=resaved(CONFIG, lambda c: c.update(vision_config=None))),
    Fault("saved anew: other stop tokens", "FF124", blind=False,
          after=resaved(GENERATION, lambda c: c.update(eos_token_id=[1]))),
    Fault("saved anew: another image size", "FF124", blind=False,
          after=resaved(PROCESSOR, lambda c: c["image_processor"].update(max_soft_tokens=1120))),
    Fault("saved anew: an image mean left to the default", "FF124", blind=False,
          after=resaved(PROCESSOR, lambda c: c["image_processor"].pop("image_mean"))),
    Fault("saved anew: no image processor", "FF124", blind=False,
          after=resaved(PROCESSOR, lambda c: c.pop("image_processor"))),
    Fault("saved anew: padding on the other side", "FF124", blind=False,
          after=resaved(TOKENIZER, lambda c: c.update(padding_side="right"))),
    Fault("saved anew: another token of turns", "FF124", blind=False,
          after=resaved(TOKENIZER, lambda c: c["model_specific_special_tokens"].update(sot_token="<|im_start|>"))),
)  # fmt: skip
