"""The pages of a comparison: ``report.html`` (one file that loads nothing) and ``report.md``.

From ``comparison.json``, in this order: verdict, arms over the frontier, ratios, configurations, published numbers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_ray.config.optimizers import optimizer_title
from hybrid_ray.report.comparison_headline import comparison_headline
from hybrid_ray.report.pages import shown_directory, write_pages
from hybrid_ray.report.plots.comparison import arms_over_frontier
from hybrid_ray.report.tables import comparison as tables
from hybrid_ray.report.tables.calibration import comparison_calibration
from hybrid_ray.report.tables.cells import ends, mean_of, number, percent
from hybrid_ray.report.tables.configurations import configurations, published
from hybrid_ray.report.tables.trials import ceilings_of
from hybrid_ray.storage.json_files import read_json

__all__ = ["is_comparison", "write_comparison"]


def is_comparison(directory: Path) -> bool:
    """Whether a directory holds a finished comparison."""
    return (directory / "comparison.json").is_file()


def write_comparison(directory: Path) -> str:
    """Write the pages of a comparison from its stored result, and return the headline.

    Raises:
        StoreError: there is no comparison, or the pages cannot be written (earlier pages stay as they are).
    """
    result = read_json(directory / "comparison.json")
    write_pages(
        directory, "comparison", _content(result, directory), {"arms_over_frontier": arms_over_frontier(result)}
    )
    return comparison_headline(result)


def _content(result: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The content of both templates."""
    return {
        "name": result["name"],
        "headline": comparison_headline(result),
        "kind": _kind(result),
        "facts": _facts(result),
        "tiles": _tiles(result),
        "findings": tables.findings(result),
        "arms": tables.arms(result),
        "ratios": tables.ratios(result),
        "peers": tables.peers(result),
        "configurations": configurations(result),
        "published": published(result),
        "calibration": comparison_calibration(result),
        "tuning": tables.tuning(result),
        "directory": shown_directory(directory),
    }


def _kind(result: Mapping[str, Any]) -> str:
    """The kind of finding, which sets the colour: ``gain`` only if predicting pays, or no peer was compared."""
    gain = result["verdict"] == "real gain" and (result["predicting_pays"] or not result["peers"])
    return "gain" if gain else str(result["verdict"])


def _facts(result: Mapping[str, Any]) -> list[str]:
    """What was run and where, in short parts of one line."""
    job, hardware = result["job"], result["machine"].get("hardware", {})
    words = job["words"]
    return [
        f"model {words['model']}",
        words["data"],
        f"{job['steps']} nominal steps of {job['batch_size']} {words['batch_of']}",
        f"{job['optimizer']}, learning rate {result['learning_rate']:g}, {job['schedule']}",
        f"predictor {job['predictor']}",
        *([f"on {hardware['device']}, {hardware['threads']} thread(s)"] if hardware else []),
    ]


def _tiles(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """The main numbers: the two net speedups, the speedup, the loss ratio and the share of predicted steps."""
    compared, net = result["comparisons"], result["net_speedup"]
    share = mean_of([row for row in result["arms"]["hybrid"] if row["loss"] is not None], "predicted_share")
    free, forward = ceilings_of(share, result["backward_share"])
    most = f"upper bound {number(free)}" + (
        f", {number(forward)} if predicted steps ran a forward pass" if forward else ""
    )
    level = f"{result['level']:.1%} interval"
    tiles = [
        (f"net speedup over {optimizer_title(result['job']['optimizer'])}", net, "over stopping early"),
        *_peer_tile(result),
        ("speedup", compared["speedup"], f"over the baseline, in plain steps, {most}"),
        ("loss against the baseline", compared["loss_vs_baseline"], "below 1 is better"),
    ]
    return [
        *(
            {"value": number(found["mean"], 3), "name": name, "note": f"{note}; {ends(found)}, {level}"}
            for name, found, note in tiles
        ),
        {
            "value": percent(share, 0),
            "name": "steps predicted",
            "note": "of the hybrid's nominal steps, mean over seeds",
        },
    ]


def _peer_tile(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    return [
        (
            f"net speedup over {optimizer_title(peer['name'])}",
            peer["net_speedup"],
            "the strongest peer, tuned with as many runs",
        )
        for peer in result["peers"]
        if peer["name"] == result["best_peer"]
    ]
