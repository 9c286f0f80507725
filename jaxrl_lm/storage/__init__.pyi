from .checkpoints import (
    Checkpoints as Checkpoints,
    Score as Score,
    WhichCheckpoint as WhichCheckpoint,
)
from .compute import write_compute_note as write_compute_note
from .leftovers import (
    empty_folder as empty_folder,
    is_full_disk as is_full_disk,
    is_unstarted as is_unstarted,
    sweep_leftovers as sweep_leftovers,
)
from .metrics import (
    Curve as Curve,
    MetricsWriter as MetricsWriter,
    read_metrics as read_metrics,
)
from .plots import write_plots as write_plots
from .report import write_report as write_report
from .run_folder import (
    RunFolder as RunFolder,
    append_jsonl as append_jsonl,
    flatten_config as flatten_config,
    read_jsonl as read_jsonl,
    truncate_jsonl as truncate_jsonl,
    write_atomically as write_atomically,
)
from .sections import (
    Section as Section,
    Strip as Strip,
    read_sections as read_sections,
    write_sections as write_sections,
)
from .seeds import (
    SeedCurves as SeedCurves,
    bootstrap_interval as bootstrap_interval,
    draw_seeds as draw_seeds,
    interquartile_mean as interquartile_mean,
    read_seeds as read_seeds,
    write_seed_plots as write_seed_plots,
)
from .trackers import (
    TensorBoardWriter as TensorBoardWriter,
    WandbWriter as WandbWriter,
    check_wandb as check_wandb,
)
from .visible import visible_text as visible_text
