"""The folder of a run: configuration, metrics, checkpoints, plots, report; knows no model or algorithm."""

from jaxrl_lm.storage.checkpoints import Checkpoints
from jaxrl_lm.storage.metrics import Curve, MetricsWriter, check_wandb, read_metrics
from jaxrl_lm.storage.plots import write_plots
from jaxrl_lm.storage.report import write_report
from jaxrl_lm.storage.run_folder import (
    RunFolder,
    append_jsonl,
    flatten_config,
    read_jsonl,
    truncate_jsonl,
    write_atomically,
)
from jaxrl_lm.storage.sections import Section, Strip, read_sections, write_sections
from jaxrl_lm.storage.seeds import (
    SeedCurves,
    bootstrap_interval,
    draw_seeds,
    interquartile_mean,
    read_seeds,
    write_seed_plots,
)
from jaxrl_lm.storage.visible import visible_text

__all__ = [
    "Checkpoints",
    "Curve",
    "MetricsWriter",
    "RunFolder",
    "Section",
    "SeedCurves",
    "Strip",
    "append_jsonl",
    "bootstrap_interval",
    "check_wandb",
    "draw_seeds",
    "flatten_config",
    "interquartile_mean",
    "read_jsonl",
    "read_metrics",
    "read_sections",
    "read_seeds",
    "truncate_jsonl",
    "visible_text",
    "write_atomically",
    "write_plots",
    "write_report",
    "write_sections",
    "write_seed_plots",
]
