"""Cluster file on an account: prepared, checked by doctor and bootstrapped by Ray, without AWS.

moto stands in for AWS, and botocore's stubs for the two answers that moto does not know. The
numbers of vCPUs and zones are those that moto ships.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws

from envs.utils.errors import InputError
from experiments.diagnosis import aws
from experiments.diagnosis.cluster_file import fill_in, read_cluster_file
from experiments.diagnosis.finding import Finding
from scripts import prepare_aws

FILE = Path(__file__).parents[3] / "cluster.yaml"
REGION = "us-west-2"
LIMITS = {"L-1216C47A": 64, "L-DB2E81BA": 192, "L-417A185B": 0, "L-34B43A08": 768}
Client = Callable[[str], Any]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Yield what makes a client of an AWS service of an empty account, without AWS's policies.

    moto takes seconds to load them.
    """
    monkeypatch.setattr(prepare_aws, "POLICIES", ())
    with mock_aws():
        yield partial(boto3.client, region_name=REGION)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copy(FILE, tmp_path / "cluster.yaml"))


def prepared(file: Path, client: Client) -> dict[str, str]:
    """Prepare the account for a cluster file."""
    arguments = prepare_aws.Args(image="registry/me/it", ssh_from="203.0.113.7/32", cluster=file)
    return prepare_aws.prepare(arguments, client, pause=0)


def answering(client: Client, *, denied: str = "", refused: str = "") -> Client:
    """Return `client` with answers for quotas and for the rights of the head's role."""

    def make(service: str) -> Any:
        made = client(service)
        if service == "service-quotas":
            made.get_service_quota = partial(limit, refused)
        if service == "iam":
            made.simulate_principal_policy = partial(decide, denied)
        return made

    return make


def limit(refused: str, *, ServiceCode: str, QuotaCode: str) -> dict[str, Any]:
    """Answer for a quota as the service does."""
    stubbed = boto3.client("service-quotas", region_name=REGION)
    with Stubber(stubbed) as stubber:
        question = {"ServiceCode": ServiceCode, "QuotaCode": QuotaCode}
        if refused:
            stubber.add_client_error("get_service_quota", refused, expected_params=question)
        else:
            quota = {**question, "Value": float(LIMITS[QuotaCode])}
            stubber.add_response("get_service_quota", {"Quota": quota}, question)
        return dict(stubbed.get_service_quota(**question))


def decide(denied: str, *, PolicySourceArn: str, ActionNames: list[str]) -> dict[str, Any]:
    """Answer for the rights of a role as the service does."""
    stubbed = boto3.client("iam", region_name=REGION)
    question = {"PolicySourceArn": PolicySourceArn, "ActionNames": ActionNames}
    results = [
        {
            "EvalActionName": action,
            "EvalDecision": "implicitDeny" if action == denied else "allowed",
        }
        for action in ActionNames
    ]
    with Stubber(stubbed) as stubber:
        stubber.add_response("simulate_principal_policy", {"EvaluationResults": results}, question)
        return dict(stubbed.simulate_principal_policy(**question))


def by_name(found: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in found}


def test_an_account_is_prepared_once(file: Path, client: Client) -> None:
    values = prepared(file, client)
    assert prepared(file, client) == values
    content = read_cluster_file(file)
    assert content.blanks == ()
    assert content.groups == [values["SECURITY_GROUP"]]
    assert content.file_system == values["FILE_SYSTEM"]
    assert len(client("efs").describe_file_systems()["FileSystems"]) == 1
    assert yaml.safe_load(file.read_text())["docker"]["image"] == "registry/me/it:cpu"
    # The comments still say what is filled in.
    assert "#   FILE_SYSTEM " in file.read_text()


def test_the_head_gets_a_role_that_starts_machines() -> None:
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        iam = boto3.client("iam")
        prepare_aws.create_head_role(iam, "head")
        prepare_aws.create_head_role(iam, "head")
        profile = iam.get_instance_profile(InstanceProfileName="head")["InstanceProfile"]
        assert [role["RoleName"] for role in profile["Roles"]] == ["head"]
        attached = iam.list_attached_role_policies(RoleName="head")["AttachedPolicies"]
        assert sorted(policy["PolicyArn"] for policy in attached) == sorted(prepare_aws.POLICIES)


def test_ray_keeps_what_was_prepared(file: Path, client: Client) -> None:
    """Run the part of `ray up` that finds network, rights and keys on the prepared file."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config, validate_config

    values = prepared(file, client)
    before = len(client("ec2").describe_security_groups()["SecurityGroups"])
    roles = len(client("iam").list_roles()["Roles"])
    config = prepare_config(yaml.safe_load(file.read_text()))
    validate_config(config)
    key = file.with_name("key.pem")
    config["auth"]["ssh_private_key"] = str(key)
    for kind in config["available_node_types"].values():
        kind["node_config"]["KeyName"] = "key"
    started = bootstrap_aws(config)
    assert len(client("ec2").describe_security_groups()["SecurityGroups"]) == before
    assert len(client("iam").list_roles()["Roles"]) == roles
    zones = set()
    for kind in started["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == [values["SECURITY_GROUP"]]
        subnets = client("ec2").describe_subnets(SubnetIds=kind["node_config"]["SubnetIds"])
        zones |= {subnet["AvailabilityZone"] for subnet in subnets["Subnets"]}
    assert zones == set(read_cluster_file(file).zones)


def test_doctor_asks_a_prepared_account(file: Path, client: Client) -> None:
    prepared(file, client)
    found = by_name(aws.check_cluster(file, answering(client)))
    for what in ("cluster file", "account", "security group", "file system", "head's role"):
        assert not found[what].fix, found[what]
    assert found["rights"].result == "you may start the head, by a dry run", found
    standard, gpu, training = (found[f"on demand {name}"] for name in ("standard", "G", "P"))
    assert standard.result == "64 vCPUs: 1 of 1 head"
    assert not standard.fix
    # Machines with a GPU can be started, but not all of them at once.
    expected = "192 vCPUs: 16 of 16 serve, 16 of 16 fallback-serve, 1 of 2 fallback-train"
    assert gpu.result == expected
    assert not gpu.fix
    assert training.result == "0 vCPUs: 0 of 2 train"
    assert training.serious
    assert training.fix.endswith("--quota-code L-417A185B --desired-value 192")
    assert found["spot standard"].result.startswith("768 vCPUs: 48 of 48 rollout")


def test_doctor_says_what_it_could_not_ask_and_why(file: Path, client: Client) -> None:
    prepared(file, client)
    found = by_name(aws.check_cluster(file, answering(client, refused="AccessDeniedException")))
    asked = found["on demand P"]
    assert (asked.result, asked.serious) == ("not asked: AccessDeniedException", False)


def test_doctor_finds_what_is_missing(file: Path, client: Client) -> None:
    found = by_name(aws.check_cluster(file, client))
    assert found["cluster file"].result == "IMAGE, SECURITY_GROUP, FILE_SYSTEM to be filled in"
    assert found["security group"].fix == "fill in SECURITY_GROUP"
    assert found["head's role"].result == "no profile autoexplore-head"


def test_doctor_finds_what_is_wrong(file: Path, client: Client) -> None:
    values = prepared(file, client)
    ec2, efs = client("ec2"), client("efs")
    group = values["SECURITY_GROUP"]
    rule = {"IpProtocol": "tcp", "FromPort": 8265, "ToPort": 8265}
    everyone = {**rule, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[everyone])
    target = efs.describe_mount_targets(FileSystemId=values["FILE_SYSTEM"])["MountTargets"][0]
    efs.delete_mount_target(MountTargetId=target["MountTargetId"])
    denied = answering(client, denied="ssm:GetParameters")
    found = by_name(aws.check_cluster(file, denied))
    assert found["security group"].result == f"{group} lets others in on more than SSH"
    zone = target["AvailabilityZoneName"]
    assert found["file system"].result.endswith(f"no mount target of the group in {zone}")
    assert found["head's role"].result == "autoexplore-head may not ssm:GetParameters"


def test_rights_are_those_of_the_dry_run(file: Path, client: Client) -> None:
    prepared(file, client)
    ec2 = client("ec2")

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "UnauthorizedOperation"}}, "RunInstances")

    ec2.run_instances = refuse
    assert aws.rights(read_cluster_file(file), ec2).result == "you may not start the head"


def test_without_boto3_or_credentials_the_file_is_still_checked(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file.with_name("none")))
    found = list(aws.check_cluster(file))
    assert [finding.what for finding in found] == ["cluster file", "account"]
    assert found[1].fix.startswith("no credentials")
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    assert list(aws.check_cluster(file))[1].fix == "boto3 is missing: pip install boto3"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    with pytest.raises(InputError, match="there is no cluster file"):
        read_cluster_file(other)
    other.write_text("provider: {type: gcp}\navailable_node_types: {}\n")
    with pytest.raises(InputError, match="only AWS can be asked"):
        read_cluster_file(other)
    other.write_text("a list")
    with pytest.raises(InputError, match="not a cluster file"):
        read_cluster_file(other)


def test_comments_keep_the_placeholders(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("# IMAGE is filled in\nimage: IMAGE:cpu\nImageId: IMAGES\n")
    fill_in(path, {"IMAGE": "here"})
    assert path.read_text() == "# IMAGE is filled in\nimage: here:cpu\nImageId: IMAGES\n"


# Stand-ins for the commands of a machine: each use is logged; apt-get fails until its lock is free.
STAND_INS = {
    "sudo": 'echo "$*" >> $LOG; case "$1" in usermod|install|mkdir) ;; *) "$@" ;; esac',
    "apt-get": """
        echo >> $COUNT; test $(wc -l < $COUNT) -gt 3 || exit 100
        for package in "$@"; do case $package in
            docker.io) cp $BIN/true $BIN/docker ;;
            nfs-common) cp $BIN/true $BIN/mount.nfs4 ;;
        esac; done""",
    "mount": 'test -n "$REACHABLE"',
    "mountpoint": "false",
    "cloud-init": "true",
    "sleep": "true",
    "id": "echo ubuntu",
}


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., list[tuple[int, str]]]:
    """Return what runs the file's initialization commands on a machine of stand-ins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("seq", "grep", "wc", "cp", "true", "false", "bash", "timeout"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "log").touch()

    def run(**variables: str) -> list[tuple[int, str]]:
        environment = {"PATH": str(folder), "BIN": str(folder), "USER": "ubuntu", **variables}
        environment |= {"LOG": str(tmp_path / "log"), "COUNT": str(tmp_path / "count")}
        results = []
        for command in yaml.safe_load(FILE.read_text())["initialization_commands"]:
            # Ray's launcher puts a command into brackets too.
            done = subprocess.run(
                [str(folder / "bash"), "-c", f"({command})"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            results.append((done.returncode, done.stderr))
        return results

    return run


def test_a_machine_waits_for_apt_and_mounts(
    machine: Callable[..., list[tuple[int, str]]], tmp_path: Path
) -> None:
    results = machine(REACHABLE="yes")
    assert [code for code, _ in results] == [0, 0, 0, 0], results
    log = (tmp_path / "log").read_text()
    assert log.count("apt-get update") == 4
    assert "DPkg::Lock::Timeout=300 docker.io nfs-common" in log
    assert "usermod -aG docker ubuntu" in log
    assert "FILE_SYSTEM.efs.us-west-2.amazonaws.com:/ /mnt/autoexplore" in log
    assert log.endswith("install -d -o ubuntu /mnt/autoexplore/runs /mnt/autoexplore/roms\n")


def test_a_machine_that_cannot_mount_says_so(
    machine: Callable[..., list[tuple[int, str]]],
) -> None:
    code, error = machine()[2]
    assert code == 1
    assert "cannot mount FILE_SYSTEM" in error
