"""Who computes which layers, and in which order: the arithmetic of pipeline schedules.

Pure: numbers in, numbers out. How many stages a rank holds: `kinds.train_settings`.

* 1F1B (PipeDream-flush, arXiv 2104.04473) and GPipe (arXiv 1811.06965): one stage per rank.
* Interleaved1F1B (arXiv 2104.04473 section 2.2): rank r holds stages r and r + ranks.
* ZBVZeroBubble (arXiv 2401.10241 section 6): a V; rank r holds stages r and 2 x ranks - 1 - r, so
  the first rank has both the first and the last stage.

Called by `appliance.jobs.train.recipe` and `appliance.jobs.train.export`.
"""

from __future__ import annotations


def rank_of_stage(schedule: str, stage: int, ranks: int) -> int:
    """The pipeline rank that computes a stage."""
    turn, place = divmod(stage, ranks)
    backwards = schedule == "ZBVZeroBubble" and turn % 2 == 1
    return ranks - 1 - place if backwards else place


def stages_of_rank(schedule: str, rank: int, ranks: int, stages: int) -> list[int]:
    """The stages that a pipeline rank computes, ascending."""
    return [stage for stage in range(stages) if rank_of_stage(schedule, stage, ranks) == rank]


def layers_of_stage(stage: int, stages: int, layers: int) -> range:
    """The decoder layers of a stage; `stages` divides `layers`."""
    each = layers // stages
    return range(stage * each, (stage + 1) * each)
