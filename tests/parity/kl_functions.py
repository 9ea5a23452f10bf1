"""Runs where verl and OpenRLHF are installed: value and derivative of their own KL functions.

    python kl_functions.py OUT LOG_RATIOS RHOS REQUESTS

REQUESTS is JSON, a list of [library, estimator, unbiased gradient]; OUT gets the libraries' versions and, for each
request, [value, derivative with respect to log π] at every (ℓ, ρ). The packages themselves start Ray, DeepSpeed or a
GPU when imported, so the functions are taken out of the installed source files, as they stand there.
"""

import ast
import json
import math
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Optional

import torch

PLACES = {
    "verl": ("verl/trainer/ppo/core_algos.py", ("kl_penalty", "kl_penalty_forward")),
    "OpenRLHF": ("openrlhf/models/utils.py", ("compute_approx_kl", "KL_IS_WEIGHT_CLIP")),
}


def functions(library: str) -> dict:
    """The named top-level definitions of the library's file, and only those, executed."""
    file, names = PLACES[library]
    tree = ast.parse(Path(str(distribution(library.lower()).locate_file(file))).read_text())
    kept = [node for node in tree.body if getattr(node, "name", None) in names or _assigns(node) in names]
    assert len(kept) == len(names), f"{file} does not define all of {names}"
    found = {"torch": torch, "Optional": Optional}
    exec(compile(ast.Module(kept, []), file, "exec"), found)
    return found


def _assigns(node: ast.AST) -> str | None:
    return node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None


def point(library: str, own: dict, estimator: str, unbiased: bool, log_ratio: float, rho: float) -> list[float]:
    logprob = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    ref, old = logprob.detach() - log_ratio, logprob.detach() - math.log(rho)
    if library == "verl":
        value = own["kl_penalty"](logprob, ref, estimator)
    else:
        value = own["compute_approx_kl"](logprob, ref, old, kl_estimator=estimator, unbiased_gradient=unbiased)
    return [value.item(), torch.autograd.grad(value.sum(), logprob)[0].item()]


def main(out: Path, log_ratios: list, rhos: list, requests: list) -> None:
    own = {library: functions(library) for library in PLACES}
    points = [
        [point(library, own[library], *rest, log_ratio, rho) for log_ratio in log_ratios for rho in rhos]
        for library, *rest in requests
    ]
    versions = {library: distribution(library.lower()).version for library in PLACES}
    out.write_text(json.dumps({"versions": versions, "points": points}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(json.loads, sys.argv[2:]))
