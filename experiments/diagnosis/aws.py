"""Questions to an account on AWS: can `ray up cluster.yaml` start all machines there?

Nothing is created or changed. boto3, which Ray's launcher needs too, is no requirement of this
package and is imported only here.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from envs.utils.errors import InputError
from experiments.diagnosis.cluster_file import ClusterFile, NodeType, read_cluster_file
from experiments.diagnosis.finding import Finding

STANDARD = ("a", "c", "d", "h", "i", "m", "r", "t", "z")
"""Families of instance types that share EC2's quota of standard instances."""
QUOTAS = {
    ("standard", False): "L-1216C47A",
    ("G", False): "L-DB2E81BA",
    ("P", False): "L-417A185B",
    ("standard", True): "L-34B43A08",
    ("G", True): "L-3819A6DF",
    ("P", True): "L-7212CCBC",
}
"""(family, spot) -> code of EC2's quota of vCPUs that run at the same time."""
HEAD_ACTIONS = (
    *("ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "ec2:DescribeInstances"),
    "ssm:GetParameters",
)
"""Actions by which the head starts and ends the other machines."""
PREPARE = "python -m scripts.prepare_aws"


def aws_session(region: str) -> Any:
    """Return a boto3 session. Raises InputError without boto3 or credentials."""
    try:
        import boto3
    except ImportError:
        raise InputError("boto3 is missing: pip install boto3") from None
    session = boto3.Session(region_name=region)
    if session.get_credentials() is None:
        raise InputError("no credentials: run `aws configure` or set AWS_PROFILE")
    return session


def check_cluster(path: Path, client: Callable[[str], Any] | None = None) -> Iterator[Finding]:
    """Yield the findings about a cluster file and the account that is to run it.

    client: makes a client from the name of an AWS service. Default: boto3's, in the file's region.
    """
    file = read_cluster_file(path)
    yield blanks(file)
    try:
        client = client or aws_session(file.region).client
        account = Finding("account", client("sts").get_caller_identity()["Account"])
    except InputError as error:
        yield Finding("account", "AWS not asked", str(error), serious=False)
        return
    except Exception as error:
        _raise_unless_from_aws(error)
        yield Finding("account", "AWS not asked", f"log in: {_reason(error)}", serious=False)
        return
    yield account
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("zones", partial(offered, file, client("ec2"))),
        ("images", partial(machine_images, file, client("ssm"))),
        ("security group", partial(security_group, file, client("ec2"))),
        ("file system", partial(file_system, file, client("efs"))),
        ("head's role", partial(head_role, file, client("iam"))),
        ("rights", partial(rights, file, client("ec2"))),
    ]
    for what, check in checks:
        yield _answer(what, check)
    yield from quotas(file, client("ec2"), client("service-quotas"))


def _answer(what: str, check: Callable[[], Finding]) -> Finding:
    """Return a check's finding, or one that says why AWS gave no answer."""
    try:
        return check()
    except InputError as error:
        return Finding(what, "not asked", str(error))
    except Exception as error:
        _raise_unless_from_aws(error)
        return Finding(what, f"not asked: {_reason(error)}", "look yourself", serious=False)


def _raise_unless_from_aws(error: Exception) -> None:
    # boto3's errors can be named only where it is installed.
    from botocore.exceptions import BotoCoreError, ClientError

    if not isinstance(error, BotoCoreError | ClientError):
        raise error


def _code(error: Exception) -> str:
    """Return the code of AWS's refusal, empty for other errors."""
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _reason(error: Exception) -> str:
    return _code(error) or str(error).splitlines()[0]


def blanks(file: ClusterFile) -> Finding:
    """Check that nothing is left to be filled in."""
    missing = ", ".join(file.blanks)
    fix = f"{PREPARE} fills it in" if missing else ""
    return Finding("cluster file", f"{missing} to be filled in" if missing else "complete", fix)


def offered(file: ClusterFile, ec2: Any) -> Finding:
    """Check that the zones offer each instance type."""
    names = sorted({kind.instance for kind in file.types})
    answer = ec2.describe_instance_type_offerings(
        LocationType="availability-zone",
        Filters=[
            {"Name": "instance-type", "Values": names},
            {"Name": "location", "Values": list(file.zones)},
        ],
    )
    found = {offer["InstanceType"] for offer in answer["InstanceTypeOfferings"]}
    missing = [kind for kind in file.types if kind.instance not in found]
    zones = ", ".join(file.zones)
    if not missing:
        return Finding("zones", f"{zones} offer all {len(names)} instance types")
    lacking = ", ".join(f"{kind.instance} ({kind.name})" for kind in missing)
    serious = not all(kind.is_fallback for kind in missing)
    return Finding("zones", f"{zones} lack {lacking}", "choose other zones or types", serious)


def machine_images(file: ClusterFile, ssm: Any) -> Finding:
    """Check that the images that are looked up by name exist."""
    prefix = "resolve:ssm:"
    images = {str(kind.launch["ImageId"]) for kind in file.types}
    names = sorted(image.removeprefix(prefix) for image in images if image.startswith(prefix))
    unknown = ssm.get_parameters(Names=names).get("InvalidParameters", []) if names else []
    fix = "correct ImageId" if unknown else ""
    return Finding("images", f"unknown: {', '.join(unknown)}" if unknown else "found", fix)


def security_group(file: ClusterFile, ec2: Any) -> Finding:
    """Check that the machines reach each other, you reach them by SSH, and others nothing more."""
    _require(file, "SECURITY_GROUP")
    faults = []
    for group in ec2.describe_security_groups(GroupIds=file.groups)["SecurityGroups"]:
        name, rules = group["GroupId"], group["IpPermissions"]
        inside = [
            rule
            for rule in rules
            if rule["IpProtocol"] == "-1"
            and name in {pair.get("GroupId") for pair in rule.get("UserIdGroupPairs", [])}
        ]
        if not inside:
            faults.append(f"{name} does not let in its own machines")
        addressed = [rule for rule in rules if rule.get("IpRanges") or rule.get("Ipv6Ranges")]
        ports = {(rule.get("FromPort"), rule.get("ToPort")) for rule in addressed}
        if (22, 22) not in ports:
            faults.append(f"{name} does not let you in by SSH")
        if ports - {(22, 22)}:
            faults.append(f"{name} lets others in on more than SSH")
    result = "; ".join(faults) or f"{', '.join(file.groups)}: SSH and its own machines"
    return Finding("security group", result, f"change it, or see {PREPARE}" if faults else "")


def file_system(file: ClusterFile, efs: Any) -> Finding:
    """Check that each zone has a mount target that machines of the security group reach."""
    _require(file, "FILE_SYSTEM")
    targets = efs.describe_mount_targets(FileSystemId=file.file_system)["MountTargets"]
    ready = {
        target["AvailabilityZoneName"]
        for target in targets
        if target["LifeCycleState"] == "available"
        and set(file.groups)
        & set(
            efs.describe_mount_target_security_groups(MountTargetId=target["MountTargetId"])[
                "SecurityGroups"
            ]
        )
    }
    missing = [zone for zone in file.zones if zone not in ready]
    if missing:
        result = f"{file.file_system} has no mount target of the group in {', '.join(missing)}"
        return Finding("file system", result, f"{PREPARE} makes it")
    return Finding("file system", f"{file.file_system} can be mounted in {', '.join(file.zones)}")


def head_role(file: ClusterFile, iam: Any) -> Finding:
    """Check that the head's role exists and may start and end machines."""
    try:
        answer = iam.get_instance_profile(InstanceProfileName=file.profile)
    except Exception as error:
        if _code(error) != "NoSuchEntity":
            raise
        return Finding("head's role", f"no profile {file.profile}", f"{PREPARE} makes it")
    roles = answer["InstanceProfile"]["Roles"]
    if not roles:
        return Finding("head's role", f"{file.profile} has no role", f"{PREPARE} adds it")
    evaluated = iam.simulate_principal_policy(
        PolicySourceArn=roles[0]["Arn"], ActionNames=list(HEAD_ACTIONS)
    )["EvaluationResults"]
    denied = [item["EvalActionName"] for item in evaluated if item["EvalDecision"] != "allowed"]
    if denied:
        result = f"{roles[0]['RoleName']} may not {', '.join(denied)}"
        return Finding("head's role", result, "attach a policy that allows it")
    return Finding("head's role", f"{roles[0]['RoleName']} may start and end machines")


def rights(file: ClusterFile, ec2: Any) -> Finding:
    """Check by a dry run that you may start the head, with its role."""
    _require(file, "SECURITY_GROUP")
    groups = ec2.describe_security_groups(GroupIds=file.groups)["SecurityGroups"]
    subnets = ec2.describe_subnets(
        Filters=[
            {"Name": "vpc-id", "Values": [groups[0]["VpcId"]]},
            {"Name": "availability-zone", "Values": list(file.zones)},
        ]
    )["Subnets"]
    if not subnets:
        return Finding("rights", f"no subnet in {', '.join(file.zones)}", "choose other zones")
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": file.name}]}]
    try:
        ec2.run_instances(
            **file.head.launch,
            SubnetId=subnets[0]["SubnetId"],
            TagSpecifications=tags,
            MinCount=1,
            MaxCount=1,
            DryRun=True,
        )
    except Exception as error:
        _raise_unless_from_aws(error)
        if _code(error) == "UnauthorizedOperation":
            needed = "ec2:RunInstances, ec2:CreateTags, iam:PassRole or ssm:GetParameters"
            return Finding("rights", "you may not start the head", f"you lack one of {needed}")
        if _code(error) != "DryRunOperation":
            raise
    return Finding("rights", "you may start the head, by a dry run")


def _require(file: ClusterFile, word: str) -> None:
    if word in file.blanks:
        raise InputError(f"fill in {word}")


def quotas(file: ClusterFile, ec2: Any, service_quotas: Any) -> Iterator[Finding]:
    """Yield a finding for each quota of vCPUs that the cluster needs."""
    names = sorted({kind.instance for kind in file.types})
    try:
        described = ec2.describe_instance_types(InstanceTypes=names)["InstanceTypes"]
    except Exception as error:
        yield _answer("quotas", partial(_raise, error))
        return
    vcpus = {item["InstanceType"]: item["VCpuInfo"]["DefaultVCpus"] for item in described}
    users: dict[tuple[str, bool], list[NodeType]] = defaultdict(list)
    for kind in file.types:
        users[family(kind.instance), kind.is_spot].append(kind)
    for (group, is_spot), kinds in sorted(users.items()):
        what = f"{'spot' if is_spot else 'on demand'} {group}"
        code = QUOTAS.get((group, is_spot))
        if code is None:
            yield Finding(what, "not asked: its quota is not known", "look yourself", False)
        else:
            yield _answer(what, partial(quota, what, code, kinds, vcpus, service_quotas))


def _raise(error: Exception) -> Finding:
    raise error


def family(instance: str) -> str:
    """Return the family of an instance type that shares a quota: standard, G, P or another."""
    found = re.match(r"[a-z]+", instance)
    letters = found[0] if found else instance
    return "standard" if letters in STANDARD else letters.upper()


def quota(
    what: str, code: str, kinds: list[NodeType], vcpus: dict[str, int], service_quotas: Any
) -> Finding:
    """Check how many machines of each type a quota of vCPUs allows, one type at a time.

    It is serious if not one machine of a type that is no fallback can be started.
    """
    answer = service_quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)
    limit = int(answer["Quota"]["Value"])
    counts = {kind.name: min(kind.count, limit // vcpus[kind.instance]) for kind in kinds}
    listed = ", ".join(f"{counts[kind.name]} of {kind.count} {kind.name}" for kind in kinds)
    # A fallback is started instead of another type, which it need not share the quota with.
    first = [kind for kind in kinds if not kind.is_fallback]
    wanted = sum(kind.count * vcpus[kind.instance] for kind in first)
    wanted = max([wanted, *(vcpus[kind.instance] for kind in kinds)])
    fix = ""
    if limit < wanted:
        fix = (
            "aws service-quotas request-service-quota-increase --service-code ec2 "
            f"--quota-code {code} --desired-value {wanted}"
        )
    serious = any(counts[kind.name] == 0 for kind in first)
    return Finding(what, f"{limit} vCPUs: {listed}", fix, serious)
