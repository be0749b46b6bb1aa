"""Print the lowest version of every dependency that pyproject.toml allows, for `pip install -r`."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in map(Requirement, project["dependencies"]):
    (lowest,) = (bound.version for bound in requirement.specifier if bound.operator == ">=")
    print(f"{requirement.name}=={lowest}")
