"""Labels by human annotators: the web page that collects them and the database that stores them.

Needs the extra `label`; does not import JAX.
"""

from jaxrl_lm.feedback.agreement import choice_alpha, choice_kappa, cohen_kappa, krippendorff_alpha
from jaxrl_lm.feedback.app import make_app
from jaxrl_lm.feedback.database import describe_error, keep_overlap, kept_overlap, lock_server, open_database
from jaxrl_lm.feedback.exchange import (
    ExportedLabels,
    ImportedLabels,
    JudgedItem,
    export_labels,
    export_verdicts,
    import_labels,
)
from jaxrl_lm.feedback.items import MODES, NUM_COMPLETIONS, Answers, Item, ItemList, Mode, Pairs, is_blank, make_items
from jaxrl_lm.feedback.server import listen, serve
from jaxrl_lm.feedback.statistics import LabelStatistics, compute_statistics, list_modes
from jaxrl_lm.feedback.store import Annotator, LabelStore, Lease, Progress, RefusedError, add_items, checked_name

__all__ = [
    "MODES",
    "NUM_COMPLETIONS",
    "Annotator",
    "Answers",
    "ExportedLabels",
    "ImportedLabels",
    "Item",
    "ItemList",
    "JudgedItem",
    "LabelStatistics",
    "LabelStore",
    "Lease",
    "Mode",
    "Pairs",
    "Progress",
    "RefusedError",
    "add_items",
    "checked_name",
    "choice_alpha",
    "choice_kappa",
    "cohen_kappa",
    "compute_statistics",
    "describe_error",
    "export_labels",
    "export_verdicts",
    "import_labels",
    "is_blank",
    "keep_overlap",
    "kept_overlap",
    "krippendorff_alpha",
    "list_modes",
    "listen",
    "lock_server",
    "make_app",
    "make_items",
    "open_database",
    "serve",
]
