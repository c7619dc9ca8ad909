"""The sentence at the top of a comparison's report: whether predicting or the optimizer pays, with the figures.

It says "predicting pays" only of a gain over the job's own optimizer *and* over every equally tuned peer, among
them the one that takes the predictor's own average into each step.
"""

from collections.abc import Mapping
from typing import Any

from hybrid_ray.config.optimizers import optimizer_title
from hybrid_ray.report.tables.cells import ratio

__all__ = ["comparison_headline"]


def comparison_headline(result: Mapping[str, Any]) -> str:
    """The headline of a ``comparison.json``. It has both net speedups, or says that no peer was compared."""
    own, best = optimizer_title(result["job"]["optimizer"]), _best(result)
    text = f"{_finding(result, own, best)} ({_figures(result, own, best)}; {len(result['seeds'])} seeds)."
    if best is None and result["verdict"] != "inert":
        text += " No other optimizer (peer) was compared"
        text += ", so a better optimizer may give the same gain." if result["verdict"] == "real gain" else "."
    if result["verdict"] == "real gain" and (badly := _badly_tuned(result, own)):
        text += f" {badly}, so with a better one this gain may be smaller or none."
    return text


def _badly_tuned(result: Mapping[str, Any], own: str) -> str:
    """Which optimizers may have a better learning rate than the one they were given; empty: none."""
    if not result["tuning"]:
        return f"The learning rate of {own} was not tuned"
    tunings = {own: result["tuning"]["baseline"]}
    tunings |= {optimizer_title(peer["name"]): peer["tuning"] for peer in result["peers"] if peer["tuning"]}
    names = [name for name, tuned in tunings.items() if "learning_rate" in tuned["at_edge"]]
    every = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return f"The learning rate of {every} is the lowest or highest tried" if names else ""


def _best(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((peer for peer in result["peers"] if peer["name"] == result["best_peer"]), None)


def _finding(result: Mapping[str, Any], own: str, best: Mapping[str, Any] | None) -> str:
    verdict = result["verdict"]
    if verdict == "inert":
        return "Predicting was not tested: the hybrid predicts less than 5 % of its steps"
    if verdict == "worse than stopping early":
        return f"Worse than stopping early: plain {own} reaches the same loss in less time"
    if verdict == "no gain shown":
        because = f", since {result['refusal']}" if result["refusal"] else ""
        return f"No gain shown over stopping plain {own} early{because}"
    if best is None:
        return f"A gain over {own}: the hybrid reaches its loss faster than stopping plain {own} early"
    peer = optimizer_title(best["name"])
    if result["predicting_pays"]:
        return f"Predicting pays: the hybrid reaches its loss faster than plain {own}, and than {peer}, the best peer"
    if result.get("missing_peer"):
        missing = optimizer_title(result["missing_peer"])
        return (
            f"A gain over {own} and over {peer}, the best peer; but {missing}, which takes the same slow average into "
            "each of its steps and predicts nothing, was not compared (compare.peers) and may have the same gain"
        )
    reached = best["net_speedup"]["mean"]
    if reached is None:
        return f"A gain over {own}, but unknown over {peer}: {best['net_speedup']['note']}"
    return f"The optimizer pays: {peer} without predictions reaches this loss in {reached:.2f} of the time"


def _figures(result: Mapping[str, Any], own: str, best: Mapping[str, Any] | None) -> str:
    net = result["net_speedup"]
    figures = f"net speedup over {own} {ratio(net, 2)}" if net["mean"] is not None else f"no net speedup: {net['note']}"
    if best is not None:
        over = best["net_speedup"]
        figures += f", over {optimizer_title(best['name'])} {ratio(over, 2) if over['mean'] is not None else 'unknown'}"
    return f"{figures}, {100 * result['level']:.3g} % intervals"
