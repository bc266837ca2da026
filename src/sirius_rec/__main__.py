"""`python -m sirius_rec …` is `sirius …`: what torchrun and accelerate can launch."""

from sirius_rec.cli import main

if __name__ == "__main__":
    main()
