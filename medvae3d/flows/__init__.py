"""Flows: what moves a latent against a potential, and what that adds to the evidence."""

from medvae3d.flows.hamiltonian import Flowed, HamiltonianFlow, Identity
from medvae3d.flows.integrators import MCLACHLAN, VELOCITY_VERLET, YOSHIDA, Potential, leapfrog
from medvae3d.flows.metrics import KernelMetric
from medvae3d.flows.riemannian import RiemannianFlow

__all__ = [
    "MCLACHLAN",
    "VELOCITY_VERLET",
    "YOSHIDA",
    "Flowed",
    "HamiltonianFlow",
    "Identity",
    "KernelMetric",
    "Potential",
    "RiemannianFlow",
    "leapfrog",
]
