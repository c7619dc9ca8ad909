"""A comparison as plain text: verdict, one line per arm, peers, ratios, configurations, footnotes."""

import textwrap
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from hybrid_ray.config.optimizers import optimizer_title
from hybrid_ray.report.comparison_headline import comparison_headline
from hybrid_ray.report.tables.cells import ratio

__all__ = ["comparison_text"]


def comparison_text(result: Mapping[str, Any]) -> str:
    """``comparison.json`` as text for a terminal, at most 100 columns wide."""
    parts = [_headline, _arm_lines, _peer_lines, _comparison_lines, _configuration_lines, _footnotes]
    return "\n\n".join(text for part in parts if (text := "\n".join(part(result))))


def _headline(result: Mapping[str, Any]) -> Iterator[str]:
    yield from textwrap.wrap(f"{result['name']}: {comparison_headline(result)}", 100)
    net, own, seeds = result["net_speedup"], optimizer_title(result["job"]["optimizer"]), len(result["seeds"])
    if net["mean"] is not None:
        yield f"net speedup over {own} {ratio(net, 4)} over {seeds} seeds ({result['level']:.1%} interval)"


def _arm_lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'arm':<18}{'seeds':>6}{'loss':>10}{'time':>10}{'real steps':>12}{'predicted':>11}   time to target"
    for arm, rows in result["arms"].items():
        done = [row for row in rows if row["loss"] is not None]
        if not done:
            yield f"{arm:<18}{0:>6}   {rows[0]['error'] or rows[0]['status']}"
            continue
        loss, time, real = (fmean(row[name] for row in done) for name in ("loss", "time", "real_steps"))
        share = 100 * fmean(row["predicted_share"] for row in done)
        yield f"{arm:<18}{len(done):>6}{loss:>10.4f}{time:>10.1f}{real:>12.1f}{share:>10.1f}%   {_target(result, arm)}"


def _target(result: Mapping[str, Any], arm: str) -> str:
    if result["time_to_target"] is None:
        return "-"
    found = result["time_to_target"]["arms"][arm]
    misses = f", {found['misses']} missed" if found["misses"] else ""
    median, low, high = ("never" if found[name] is None else f"{found[name]:.1f}" for name in ("median", "low", "high"))
    return f"{median} ({low}–{high}){misses}"


def _peer_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Other optimizers, each trained for as long as the hybrid."""
    if not result["peers"]:
        return
    own = optimizer_title(result["job"]["optimizer"])
    yield f"{'peer':<20}{'rate':>9}{'loss':>9}   net speedup: hybrid over peer; peer over {own}"
    for peer in result["peers"]:
        losses = [row["loss"] for row in peer["runs"] if row["loss"] is not None]
        loss = f"{fmean(losses):>9.4f}" if losses else f"{'-':>9}"
        nets = "; ".join(ratio(peer[name], 4) for name in ("net_speedup", "over_baseline"))
        yield f"{optimizer_title(peer['name']):<20}{peer['learning_rate']:>9.2g}{loss}   {nets}"


def _comparison_lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield "hybrid relative to the other arms, paired by seed"
    for name, found in result["comparisons"].items():
        note = f"  {found['note']}" if found["note"] else ""
        yield f"  {name:<26}{ratio(found, 4)}{note}"


def _configuration_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Whole configurations in raw seconds, because batch and precision change the cost of a step."""
    scored = any(run["accuracy"] is not None for entry in result["configurations"] for run in entry["runs"])
    yield "raw seconds; speedup over the baseline, then over the same settings without prediction"
    yield (
        f"{'configuration':<26}{'seconds':>9}{'loss':>9}"
        + ("  accuracy" if scored else "")
        + "   speedup: over baseline, over own settings"
    )
    for entry in result["configurations"]:
        name, done = entry["name"].replace("_", " "), [run for run in entry["runs"] if run["loss"] is not None]
        if not done:
            yield f"{name:<26}{entry['runs'][0]['error'] or entry['runs'][0]['status']}"
            continue
        line = (
            f"{name:<26}{fmean(run['train_seconds'] for run in done):>9.2f}{fmean(run['loss'] for run in done):>9.4f}"
        )
        line += f"{100 * fmean(run['accuracy'] for run in done):>9.2f}%" if scored else ""
        ratios = [entry["ratios"].get(f"speedup_vs_{other}") for other in ("baseline", "plain")]
        yield line + "   " + ", ".join(ratio(found, 4) for found in ratios if found)
        if entry["net_speedup"] and entry["name"] != "hybrid":
            yield f"{'':<26}net speedup over stopping early {ratio(entry['net_speedup'], 4)}"


def _footnotes(result: Mapping[str, Any]) -> Iterator[str]:
    net, plan = result["net_speedup"], result["planning"]
    words = result["job"]["words"]
    loss = f"{words['measure']} per {words['unit']} on the {result['split']} split"
    yield f"losses: {loss}; times: plain steps; time to target: median (interval)"
    if net["note"]:
        yield f"net speedup: {net['note']}"
    if plan["seeds_needed"] is not None:
        yield f"to detect {plan['effect']:.1%} of time with {plan['power']:.0%} power: {plan['seeds_needed']} seeds"
    of_peers = {peer["name"]: peer["tuning"] for peer in result["peers"] if peer["tuning"]}
    for name, tuned in {**result["tuning"], **of_peers}.items():
        if "learning_rate" in tuned["at_edge"]:
            rate = tuned["best"]["learning_rate"]
            yield f"{name}: the best learning rate, {rate:g}, is the lowest or highest tried: widen compare.lr_factors"
