"""The page of a run, from the folder that the loop left: its rows, its configuration, and the data set's pictures."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import verifier
from certprune.report import Images, write_report
from certprune.rows import read_rows
from certprune.store import read_json


def report_run(folder: Path, data_dir: Path | None = None) -> Path:
    """Writes `folder/report.html`; pictures are left out where the data set is not at hand.

    Raises:
        VerifierError: the folder is not that of a run, or the page cannot be written.
    """
    if not (folder / "results.json").exists():
        raise verifier.VerifierError(f"{folder} has no results.json: give the folder of a run, for example runs/digits.")
    rows, config = read_rows(folder / "results.json"), read_json(folder / "config.json")
    shown = max((row.images for row in rows if row.split == "test"), default=0)
    path = folder / "report.html"
    try:
        settings, pictures = about(config), _pictures(config, shown, data_dir)
    except (KeyError, TypeError, AttributeError):
        raise verifier.VerifierError(f"{folder / 'config.json'} is not the configuration of a run: run the loop again, which writes it.") from None
    write_report([row.model_dump(mode="json") for row in rows], settings, pictures, path, str(folder / "results.json"))
    return path


def about(config: dict[str, Any]) -> dict[str, Any]:
    """The settings for the page's table: of an arm's fine-tuning only what its training did not have already."""
    arms = {name: arm | {"finetune": _news(arm["finetune"], config["train"])} for name, arm in config["prune"].items()}
    return {"title": f"CertPrune: {config['name']}"} | {k: v for k, v in config.items() if k not in ("name", "prune")} | {"prune": arms}


def _news(finetune: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in finetune.items() if value != train.get(key)}


def _pictures(config: dict[str, Any], count: int, data_dir: Path | None) -> Images | None:
    try:
        data = verifier.load_dataset(config["data"]["name"], data_dir or config["data"]["data_dir"])
    except verifier.VerifierError:
        return None
    return Images(data.test.x[:count], data.classes)
