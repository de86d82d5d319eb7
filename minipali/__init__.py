"""PaliGemma, built from scratch to be read. The course around it is in the repository."""

from minipali.generation import generate, stream
from minipali.locations import detect
from minipali.weights import load, save

__version__ = "0.1.0"
__all__ = ["detect", "generate", "load", "save", "stream"]
