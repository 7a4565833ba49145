"""Cells to a graph of tasks with product keys and cost estimates; nothing is computed here."""

from saebench_core.plan.costs import NOMINAL, Gpu, Machine
from saebench_core.plan.gpus import GPUS, planned_gpu
from saebench_core.plan.graph import Estimate, Plan, Product, Task
from saebench_core.plan.keys import Environment, activations_product, core_digest
from saebench_core.plan.planner import make_plan

__all__ = [
    "GPUS",
    "NOMINAL",
    "Environment",
    "Estimate",
    "Gpu",
    "Machine",
    "Plan",
    "Product",
    "Task",
    "activations_product",
    "core_digest",
    "make_plan",
    "planned_gpu",
]
