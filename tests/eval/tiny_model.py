"""A model that is a table of next-token logits, behind an endpoint: its true divergence from another is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from eval.endpoint import FakeEndpoint, Payload, text_of

VOCABULARY = 64
TOP = 6


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


class TinyModel(FakeEndpoint):
    """Next-token logits by the token before; ``shift`` moves them, as rounding a model's weights would."""

    def __init__(self, shift: float) -> None:
        super().__init__(lambda _payload: "text", self._complete)
        #: Where in the conversation an answer is taken from: another place, another answer of the same length.
        self.place = 60
        rng = np.random.default_rng(0)
        self.logits = rng.normal(0, 2, size=(VOCABULARY, VOCABULARY))
        self.logits += shift * rng.normal(0, 1, size=self.logits.shape)
        self.extra = lambda payload: {
            "prompt_token_ids": self.prompt_ids(payload), "choice": {"token_ids": self.answer_ids(payload)},
        }  # fmt: skip

    @staticmethod
    def prompt_ids(payload: Payload) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in text_of(payload)[-30:]]

    def answer_ids(self, payload: Payload) -> list[int]:
        text = text_of(payload)
        return [ord(letter) % VOCABULARY for letter in text[self.place : self.place + 12 + len(text) % 5]]

    def _complete(self, payload: Payload) -> Payload:
        ids, k = payload["prompt"], payload["prompt_logprobs"]
        rows: list[dict | None] = [None]
        for before, token in pairwise(ids):
            p = softmax(self.logits[before])
            order = np.argsort(-p)
            chosen = {*order[: k if k > 0 else VOCABULARY].tolist(), token}
            rank = {int(each): place + 1 for place, each in enumerate(order)}
            rows.append({str(each): {"logprob": float(np.log(p[each])), "rank": rank[each]} for each in chosen})
        return {"choices": [{"text": "", "prompt_logprobs": rows}]}
