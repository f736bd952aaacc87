"""Choice of machines by Ray's autoscaler, for cluster.yaml.

Ray knows which node types the cloud has just refused, but its own scorer does not look at it and
asks for the same type again. The head of cluster.yaml names this one in
RAY_AUTOSCALER_UTILIZATION_SCORER.
"""

from typing import Any


def prefer_available(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """Return Ray's score of a node type for requests, lowered if the cloud has just refused it.

    None if the type fits no request. Ray forgets a refusal after half an hour.
    """
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

    score = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if score is None:
        return None
    record = node_availability_summary.node_availabilities.get(node_type)
    keeps_gpus_free, *rest = score
    return (keeps_gpus_free, record is None or record.is_available, *rest)
