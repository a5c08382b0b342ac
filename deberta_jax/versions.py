"""Versions of this library and of the packages that it needs."""

import importlib.metadata
import re

_NAME = "deberta-jax"


def version_of(package: str = _NAME) -> str:
    """Returns the version of a package, or "unknown": a copy of this library's folder may never have been installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def unsupported_packages() -> list[str]:
    """Returns a line about every installed package whose version this library does not support.

    `pip install --no-deps`, or a later installation of another package, leaves such versions. There is no line where
    the requirements of this library are not known: it was not installed, or `packaging` is missing.
    """
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(text) for text in importlib.metadata.requires(_NAME) or ()]
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return []
    extras = sorted(set(re.findall(r'extra == "(\w+)"', "\n".join(map(str, requirements)))))
    lines = {}
    for requirement in requirements:
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue  # of another platform or Python
        installed = version_of(requirement.name)
        if installed != "unknown" and not requirement.specifier.contains(installed, prereleases=True):
            needed = f"{requirement.name}{requirement.specifier}"
            lines[requirement.name] = (
                f"{requirement.name} {installed} is installed, but this library needs {needed}: pip install '{needed}'"
            )
    return list(lines.values())
