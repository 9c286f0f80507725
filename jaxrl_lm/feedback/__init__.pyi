from .agreement import (
    choice_alpha as choice_alpha,
    choice_kappa as choice_kappa,
    cohen_kappa as cohen_kappa,
    krippendorff_alpha as krippendorff_alpha,
)
from .app import make_app as make_app
from .database import (
    describe_error as describe_error,
    keep_overlap as keep_overlap,
    kept_overlap as kept_overlap,
    lock_server as lock_server,
    open_database as open_database,
)
from .exchange import (
    ExportedLabels as ExportedLabels,
    ImportedLabels as ImportedLabels,
    LabelledItem as LabelledItem,
    export_labels as export_labels,
    export_verdicts as export_verdicts,
    import_labels as import_labels,
)
from .items import (
    MODES as MODES,
    NUM_COMPLETIONS as NUM_COMPLETIONS,
    CompletedPrompt as CompletedPrompt,
    Item as Item,
    ItemList as ItemList,
    Mode as Mode,
    Pairs as Pairs,
    is_blank as is_blank,
    make_items as make_items,
)
from .server import (
    listen as listen,
    serve as serve,
)
from .statistics import (
    LabelStatistics as LabelStatistics,
    compute_statistics as compute_statistics,
    list_modes as list_modes,
)
from .store import (
    Annotator as Annotator,
    LabelStore as LabelStore,
    Lease as Lease,
    Progress as Progress,
    RefusedError as RefusedError,
    add_items as add_items,
    checked_name as checked_name,
)
