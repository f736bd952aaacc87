"""Create what `ray up cluster.yaml` needs on AWS, and put its ids into the file.

    python -m scripts.prepare_aws --image REGISTRY/autoexplore --ssh-from 203.0.113.7/32

Ray would make a security group only while it starts the head, too late for a file system that the
head has to mount. This script creates, where they do not exist yet: a security group that lets in
SSH from your addresses and all traffic of its own machines, an encrypted EFS file system with a
mount target in each zone, and the role of the head.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from envs.utils.errors import InputError
from experiments.diagnosis.aws import aws_session
from experiments.diagnosis.cluster_file import ClusterFile, fill_in, read_cluster_file

WAIT_SECONDS = 600
POLICIES = (
    "arn:aws:iam::aws:policy/AmazonEC2FullAccess",
    "arn:aws:iam::aws:policy/AmazonSSMReadOnlyAccess",
)
"""Policies of the head: it starts and ends machines, whose images it looks up by name."""


@dataclass(frozen=True)
class Args:
    """Create what a cluster on AWS needs, and fill in the cluster file."""

    image: str
    """Image of all machines without its tag, which they may pull without a login."""
    ssh_from: str
    """Addresses that may use SSH, e.g. 203.0.113.7/32."""
    cluster: tyro.conf.Positional[Path] = Path("cluster.yaml")
    """Cluster file to fill in."""


def prepare(args: Args, client: Callable[[str], Any], pause: float = 5.0) -> dict[str, str]:
    """Create what is missing, fill in the cluster file and return the values.

    client: makes a client from the name of an AWS service. pause: seconds between two questions
    for the state of the file system.
    """
    file = read_cluster_file(args.cluster)
    ec2, efs = client("ec2"), client("efs")
    subnets = zone_subnets(ec2, file)
    group = create_group(ec2, file, subnets[file.zones[0]]["VpcId"], args.ssh_from)
    ids = {zone: subnet["SubnetId"] for zone, subnet in subnets.items()}
    values = {
        "IMAGE": args.image,
        "SECURITY_GROUP": group,
        "FILE_SYSTEM": create_file_system(efs, file, ids, group, pause),
    }
    create_head_role(client("iam"), file.profile)
    fill_in(args.cluster, values)
    return values


def zone_subnets(ec2: Any, file: ClusterFile) -> dict[str, Any]:
    """Return a subnet of the default VPC for each zone; machines get public addresses there."""
    networks = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not networks:
        raise InputError(f"{file.region} has no default VPC: aws ec2 create-default-vpc")
    answer = ec2.describe_subnets(
        Filters=[
            {"Name": "vpc-id", "Values": [networks[0]["VpcId"]]},
            {"Name": "availability-zone", "Values": list(file.zones)},
            {"Name": "map-public-ip-on-launch", "Values": ["true"]},
        ]
    )
    subnets = {subnet["AvailabilityZone"]: subnet for subnet in answer["Subnets"]}
    if missing := [zone for zone in file.zones if zone not in subnets]:
        raise InputError(f"no public subnet in {missing[0]}: take it out of availability_zone")
    return subnets


def create_group(ec2: Any, file: ClusterFile, network: str, ssh_from: str) -> str:
    """Return the id of the cluster's security group, created if there is none."""
    filters = [
        {"Name": "vpc-id", "Values": [network]},
        {"Name": "group-name", "Values": [file.name]},
    ]
    if found := ec2.describe_security_groups(Filters=filters)["SecurityGroups"]:
        return str(found[0]["GroupId"])
    group = ec2.create_security_group(
        GroupName=file.name, VpcId=network, Description=f"Ray cluster {file.name}"
    )["GroupId"]
    own = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "IpRanges": [{"CidrIp": ssh_from}],
    }
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[own, ssh])
    return str(group)


def create_file_system(
    efs: Any, file: ClusterFile, subnets: dict[str, str], group: str, pause: float
) -> str:
    """Return the id of the cluster's file system once all its mount targets are available.

    It and its mount targets are created where they are missing. Raises InputError if they are not
    available in time.
    """
    found = efs.describe_file_systems(CreationToken=file.name)["FileSystems"]
    system = str(
        found[0]["FileSystemId"]
        if found
        else efs.create_file_system(
            CreationToken=file.name,
            Encrypted=True,
            ThroughputMode="elastic",
            Tags=[{"Key": "Name", "Value": file.name}],
        )["FileSystemId"]
    )

    def systems() -> list[Any]:
        return list(efs.describe_file_systems(FileSystemId=system)["FileSystems"])

    def targets() -> list[Any]:
        return list(efs.describe_mount_targets(FileSystemId=system)["MountTargets"])

    _wait_until_available(systems, system, pause)
    present = {target["AvailabilityZoneName"] for target in targets()}
    for zone, subnet in subnets.items():
        if zone not in present:
            efs.create_mount_target(FileSystemId=system, SubnetId=subnet, SecurityGroups=[group])
    _wait_until_available(targets, f"mount targets of {system}", pause)
    return system


def _wait_until_available(ask: Callable[[], list[Any]], what: str, pause: float) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while any(item["LifeCycleState"] != "available" for item in ask()):
        if time.monotonic() > deadline:
            raise InputError(f"{what}: not available after {WAIT_SECONDS} s; run this again")
        time.sleep(pause)


def create_head_role(iam: Any, name: str) -> None:
    """Create the head's instance profile and its role, both called `name`, where missing."""
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ec2.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    missing = iam.exceptions.NoSuchEntityException
    try:
        iam.get_role(RoleName=name)
    except missing:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
    for policy in POLICIES:
        iam.attach_role_policy(RoleName=name, PolicyArn=policy)
    try:
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    except missing:
        profile = iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    if not profile["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


def main() -> None:
    """Prepare the account, and print what was put into the file."""
    args = tyro.cli(Args, description=__doc__)
    region = read_cluster_file(args.cluster).region
    for word, value in prepare(args, aws_session(region).client).items():
        print(f"{word} {value}")
    print(f"{args.cluster} is complete: autoexplore doctor --cluster {args.cluster}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
