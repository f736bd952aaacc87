"""Command line, pipeline, studies, benchmarks and reports on top of the other packages."""

from importlib.metadata import version

__version__ = version("autoexplore")
