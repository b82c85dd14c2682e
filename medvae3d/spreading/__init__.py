"""Tasks that know nothing of each other, spread over processes, ranks or a Ray cluster.

Work is begun once in each worker, from something picklable that says how, and is then handed one
task after the other. A task has to give the same whoever does it, and may be done twice: that of a
worker that was killed is done again by another one, so nothing is lost, and nothing is doubled
where results are files written whole or values returned once.
"""

from medvae3d.spreading.base import Begin, Done, Engine, Here, Work
from medvae3d.spreading.choice import engine
from medvae3d.spreading.cluster import LOCAL, OnRay
from medvae3d.spreading.lifeline import end_with_parent, lifeline
from medvae3d.spreading.processes import Processes
from medvae3d.spreading.ranks import OnRanks, rank_and_world

__all__ = [
    "LOCAL",
    "Begin",
    "Done",
    "Engine",
    "Here",
    "OnRanks",
    "OnRay",
    "Processes",
    "Work",
    "end_with_parent",
    "engine",
    "lifeline",
    "rank_and_world",
]
