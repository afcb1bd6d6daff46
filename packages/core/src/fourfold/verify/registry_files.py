"""Rules about files, side files and the manifest."""

from __future__ import annotations

from fourfold.verify import files, record, sidefiles, tokens, trust
from fourfold.verify.rule import Need, Phase, Rule

FILE_RULES: tuple[Rule, ...] = (
    Rule(
        id="FF001", phase=Phase.FOLDER, check=files.weights_present,
        title="weights are there",
        why="A server has nothing to load.",
    ),
    Rule(
        id="FF002", phase=Phase.FOLDER, check=files.shards_whole,
        title="every shard is a whole safetensors file",
        why="Loading stops in the middle, or reads past the end of the data.",
    ),
    Rule(
        id="FF003", phase=Phase.FOLDER, check=files.index_stays_inside,
        title="the index stays inside the folder",
        why="A path in the index can make a loader read any file of the machine.",
    ),
    Rule(
        id="FF004", phase=Phase.FOLDER, check=files.links_stay_inside,
        title="no link leaves the folder",
        why="The checkpoint breaks, or changes, when it is copied or published.",
    ),
    Rule(
        id="FF005", phase=Phase.FOLDER, check=files.index_true,
        title="the index is true",
        why="Loaders that trust the index (transformers) stop or skip the tensor.",
    ),
    Rule(
        id="FF006", phase=Phase.FOLDER, check=files.index_complete,
        title="the index is complete",
        why="transformers never loads what is not listed; vLLM loads shards that are left over.",
    ),
    Rule(
        id="FF007", phase=Phase.FOLDER, check=files.total_size_true,
        title="total_size is true",
        why="A wrong size means that the index belongs to another write of the checkpoint.",
    ),
    Rule(
        id="FF008", phase=Phase.FOLDER, check=files.stored_once,
        title="no tensor is stored twice",
        why="Which copy is loaded depends on the server and on file order.",
    ),
    Rule(
        id="FF009", phase=Phase.FOLDER, check=files.no_pickles,
        title="no pickle files",
        why="Loading a pickle runs the code in it; some loaders prefer it to safetensors.",
    ),
    Rule(
        id="FF010", phase=Phase.FOLDER, check=trust.no_code,
        title="no code",
        why="Loaders run it when asked to trust remote code.",
    ),
    Rule(
        id="FF011", phase=Phase.END, check=files.json_readable,
        title="JSON files are valid",
        why="A server stops at start.",
    ),
    Rule(
        id="FF012", phase=Phase.FOLDER, check=files.shards_readable_by_transformers,
        title="shards state their format",
        why="transformers refuses safetensors files without it.",
    ),
    Rule(
        id="FF013", phase=Phase.FOLDER, check=trust.nothing_in_its_place,
        title="no adapter is there",
        why="transformers then loads the model that the adapter names, whatever the weights beside it.",
    ),
)  # fmt: skip

SIDE_FILE_RULES: tuple[Rule, ...] = (
    Rule(
        id="FF120", phase=Phase.FOLDER, check=sidefiles.tokenizer_present,
        title="a tokenizer is there",
        why="The server cannot start, or takes another model's tokenizer.",
    ),
    Rule(
        id="FF121", phase=Phase.FOLDER, check=sidefiles.template_present,
        title="a chat template is there",
        why="Chat requests fail, or run with a wrong format and lose accuracy.",
    ),
    Rule(
        id="FF122", phase=Phase.FOLDER, check=sidefiles.processor_present,
        title="the processor's config is there",
        why="Image requests fail at start or at the first image.",
    ),
    Rule(
        id="FF123", phase=Phase.FOLDER, check=sidefiles.generation_present,
        title="the generation config is there",
        why="Stop tokens and sampling fall back to defaults; answers do not end.",
    ),
    Rule(
        id="FF124", phase=Phase.FOLDER, check=sidefiles.side_files_of_source, needs=(Need.SOURCE,),
        title="side files are the source's",
        why="Another version's tokenizer or template changes every prompt without an error.",
    ),
    Rule(
        id="FF125", phase=Phase.FOLDER, check=tokens.tokenizer_fits, needs=(Need.CONFIG,),
        title="the tokenizer is this model's",
        why="Images, padding and turns are found by token numbers; another numbering turns text into noise.",
    ),
    Rule(
        id="FF126", phase=Phase.FOLDER, check=tokens.template_speaks_tokens,
        title="the chat template writes known tokens",
        why="An unknown marker is split into letters, and the model never sees the turn it was trained on.",
    ),
)  # fmt: skip

RECORD_RULES: tuple[Rule, ...] = (
    Rule(
        id="FF130", phase=Phase.FOLDER, check=record.manifest_belongs, needs=(Need.MANIFEST,),
        title="the manifest belongs to this checkpoint",
        why="What it says about calibration and fallbacks would be about something else.",
    ),
    Rule(
        id="FF131", phase=Phase.FOLDER, check=record.file_hashes, needs=(Need.MANIFEST,),
        title="files have their recorded hashes",
        why="A file was damaged or exchanged after it was written.",
    ),
    Rule(
        id="FF132", phase=Phase.FOLDER, check=record.modules_recorded, needs=(Need.MANIFEST,),
        title="quantized modules are as recorded",
        why="The record of what was quantized is how a recipe is reproduced.",
    ),
    Rule(
        id="FF133", phase=Phase.FOLDER, check=record.fates_true, needs=(Need.MANIFEST,),
        title="every source tensor's fate is true",
        why="A tensor without a fate was lost in silence.",
    ),
    Rule(
        id="FF134", phase=Phase.FOLDER, check=record.recipe_agrees, needs=(Need.MANIFEST,),
        title="the recorded recipe is the stated one",
        why="Results would be published under another recipe's name.",
    ),
    Rule(
        id="FF135", phase=Phase.FOLDER, check=record.fallbacks_named, needs=(Need.MANIFEST,),
        title="fallbacks name real modules",
        why="A fallback under a wrong name hides an uncalibrated expert.",
    ),
    Rule(
        id="FF136", phase=Phase.FOLDER, check=record.source_recorded, needs=(Need.MANIFEST,),
        title="files come from the recorded source",
        why="The checkpoint, or the source it is compared with, is another model's.",
    ),
)  # fmt: skip
