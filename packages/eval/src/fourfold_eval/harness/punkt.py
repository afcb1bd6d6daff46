"""IFEval's sentences: two of its instructions split text by NLTK's ``punkt_tab``, which is data, not code.

The harness fetches it from a code host when IFEval is imported, and where it cannot, breaks while it scores. Here its
absence is found before anything is asked, and only where a prompt needs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourfold.errors import UnreachableDataError

#: The instructions whose check splits sentences or words by it.
NEEDING = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
#: Below the folder of --data.
DATA_FOLDER = "nltk_data"


def offer_local_copy(data: Path | None) -> None:
    """Let NLTK look below ``data`` too; to be called before NLTK is imported, which reads the variable once."""
    if data is not None and (data / DATA_FOLDER).is_dir():
        known = os.environ.get("NLTK_DATA")
        os.environ["NLTK_DATA"] = os.pathsep.join([str(data / DATA_FOLDER), *([known] if known else [])])


def require_punkt(docs: Sequence[dict[str, Any]]) -> None:
    """:class:`UnreachableDataError` where one of ``docs`` needs ``punkt_tab`` and there is none."""
    needing = sum(any(name in NEEDING for name in doc["instruction_id_list"]) for doc in docs)
    if needing and not _has_punkt():
        raise UnreachableDataError(
            f"ifeval: {needing} of {len(docs)} prompts ({', '.join(NEEDING)}) need NLTK's punkt_tab, which is not here "
            f"and could not be fetched; put it at {DATA_FOLDER}/tokenizers/punkt_tab below --data, or set NLTK_DATA "
            "(docs/evaluation.md says where to get it)"
        )


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True
