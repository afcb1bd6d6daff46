"""What a third-party backend runs against itself. docs/writing-a-backend.md walks through it.

Under pytest, a class a backend (:mod:`fourfold.conformance.suite`)::

    from fourfold.conformance.suite import QuantizerConformance

    class TestMine(QuantizerConformance):
        plugin = "my_plugin.hooks"
        name = "mine"

In an environment without pytest, such as a toolchain's own: ``python -m fourfold.conformance my_plugin.hooks
quantizer mine``. Both run the same checks (:data:`CHECKS`) on a small random model that the suite makes itself.
"""

from fourfold.conformance.checks import CHECKS, Outcome, Verdict, run_check, run_checks
from fourfold.conformance.subject import ConformanceError, Refusal, Subject

__all__ = [
    "CHECKS",
    "ConformanceError",
    "Outcome",
    "Refusal",
    "Subject",
    "Verdict",
    "run_check",
    "run_checks",
]
