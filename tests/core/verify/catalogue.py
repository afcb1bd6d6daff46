"""All planted faults."""

from __future__ import annotations

from .faults import Fault
from .faults_config import CONFIG_FAULTS
from .faults_hostile import HOSTILE_FAULTS
from .faults_mixed import MIXED_FAULTS
from .faults_names import NAME_FAULTS
from .faults_record import RECORD_FAULTS
from .faults_resaved import RESAVED_FAULTS
from .faults_scales import SCALE_FAULTS
from .faults_shards import SHARD_FAULTS
from .faults_stealth import STEALTH_FAULTS
from .faults_values import VALUE_FAULTS

CATALOGUE: tuple[Fault, ...] = (
    *SHARD_FAULTS,
    *HOSTILE_FAULTS,
    *NAME_FAULTS,
    *SCALE_FAULTS,
    *VALUE_FAULTS,
    *STEALTH_FAULTS,
    *CONFIG_FAULTS,
    *MIXED_FAULTS,
    *RECORD_FAULTS,
    *RESAVED_FAULTS,
)
