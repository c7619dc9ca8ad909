"""The package's version, known without its metadata: a job sent to a cluster travels as plain folders."""

__all__ = ["__version__"]

__version__ = "0.1.0"
