"""Contents of cluster.yaml that AWS is asked about."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from envs.utils.errors import InputError

PLACEHOLDERS = ("IMAGE", "SECURITY_GROUP", "FILE_SYSTEM")
"""Words of the file in place of names that only you know."""
FALLBACK = "fallback-"
"""Prefix of node types that are started when another type cannot be had."""


@dataclass(frozen=True)
class NodeType:
    """Node type of the cluster."""

    name: str
    count: int
    """Maximum number of machines."""
    launch: dict[str, Any]
    """Arguments of EC2's RunInstances."""

    @property
    def instance(self) -> str:
        """Instance type, e.g. g6.2xlarge."""
        return str(self.launch["InstanceType"])

    @property
    def is_spot(self) -> bool:
        """True if the machine can be taken back."""
        return dict(self.launch.get("InstanceMarketOptions", {})).get("MarketType") == "spot"

    @property
    def is_fallback(self) -> bool:
        """True if another type is started first."""
        return self.name.startswith(FALLBACK)


@dataclass(frozen=True)
class ClusterFile:
    """Contents of a cluster file."""

    name: str
    region: str
    zones: tuple[str, ...]
    head: NodeType
    workers: tuple[NodeType, ...]
    file_system: str | None
    """Id of the EFS file system, None if it is still to be filled in."""
    blanks: tuple[str, ...]
    """Placeholders that are still in the file."""

    @property
    def types(self) -> tuple[NodeType, ...]:
        """All node types, the head first."""
        return (self.head, *self.workers)

    @property
    def groups(self) -> list[str]:
        """Ids of the security groups of all machines, sorted."""
        return sorted({group for kind in self.types for group in kind.launch["SecurityGroupIds"]})

    @property
    def profile(self) -> str:
        """Name of the head's instance profile."""
        return str(self.head.launch["IamInstanceProfile"]["Name"])


def read_cluster_file(path: Path) -> ClusterFile:
    """Return the contents of a cluster file. Raises InputError if it is not one for AWS."""
    if not path.is_file():
        raise InputError(f"there is no cluster file {path}: give e.g. cluster.yaml")
    try:
        content = yaml.safe_load(path.read_text())
        provider, kinds = content["provider"], dict(content["available_node_types"])
        if provider["type"] != "aws":
            raise InputError(f"{path} is for {provider['type']}: only AWS can be asked")
        head = content["head_node_type"]
        commands = " ".join(content["initialization_commands"])
        file_system = re.search(r"(fs-[0-9a-f]+)\.efs\.", commands)
        return ClusterFile(
            name=content["cluster_name"],
            region=provider["region"],
            zones=tuple(zone.strip() for zone in provider["availability_zone"].split(",")),
            head=NodeType(head, 1, kinds.pop(head)["node_config"]),
            workers=tuple(
                NodeType(name, kind["max_workers"], kind["node_config"])
                for name, kind in kinds.items()
            ),
            file_system=file_system and file_system[1],
            blanks=tuple(word for word in PLACEHOLDERS if _uses(word).search(_code(path))),
        )
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a cluster file of this project: {error!r}") from error


def fill_in(path: Path, values: dict[str, str]) -> None:
    """Replace placeholders of a cluster file, not in its comments, by their values."""
    lines = path.read_text().splitlines(keepends=True)
    for word, value in values.items():
        lines = [
            line if line.lstrip().startswith("#") else _uses(word).sub(value, line)
            for line in lines
        ]
    path.write_text("".join(lines))


def _uses(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{word}\b")


def _code(path: Path) -> str:
    """Return the file without its comments."""
    lines = path.read_text().splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))
