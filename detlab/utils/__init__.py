"""Small tools that every other package may use: registries, processes, events, logging, files and images."""

__all__: list[str] = []
