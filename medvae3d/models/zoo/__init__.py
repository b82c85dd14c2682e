"""The named models, each a composition of a few lines.

Every function returns a network that a bundle can hold: plain numbers, strings and lists in, one
module out, which takes an image tensor and returns one tensor.
"""

from medvae3d.models.zoo.adversarial import autoencoder_of, dcgan, vae_noise_gan
from medvae3d.models.zoo.conditional import cvae, cvae_fill, cvae_multiscale, icvae
from medvae3d.models.zoo.discrete import vqvae
from medvae3d.models.zoo.joint import hvae, latent_model, vae
from medvae3d.models.zoo.riemannian import rhvae
from medvae3d.models.zoo.two_stage import MASK_ATTRIBUTES, pavae

__all__ = [
    "MASK_ATTRIBUTES",
    "autoencoder_of",
    "cvae",
    "cvae_fill",
    "cvae_multiscale",
    "dcgan",
    "hvae",
    "icvae",
    "latent_model",
    "pavae",
    "rhvae",
    "vae",
    "vae_noise_gan",
    "vqvae",
]
