"""Lets ``python -m medvae3d`` stand for the command ``medvae3d``."""

from medvae3d.apps.cli import main

if __name__ == "__main__":
    main()
